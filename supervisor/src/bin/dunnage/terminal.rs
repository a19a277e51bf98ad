//! The terminal that the command line was typed at.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::panic;

use anyhow::Context;
use libcontainer::sys::terminal::window_size;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Columns and rows, if there is a terminal.
pub(crate) fn size() -> Option<(u16, u16)> {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let found = [stdin.as_fd(), stdout.as_fd()].into_iter().find_map(|fd| window_size(fd).ok());
    found.filter(|(width, height)| *width > 0 && *height > 0)
}

/// Our terminal in raw mode: every key goes to the container, also the one that would interrupt us. Restored when this is
/// dropped, and in a panic, which drops nothing.
pub(crate) struct Raw(Termios);

impl Raw {
    pub(crate) fn set() -> anyhow::Result<Raw> {
        let before = tcgetattr(io::stdin()).context("cannot read the terminal's mode")?;
        let raw = Raw(before.clone());
        raw.again()?;
        let saved = libc_form(&before);
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            restore(&saved.into());
            report(what);
        }));
        Ok(raw)
    }

    /// Raw mode once more, after others may have changed it.
    pub(crate) fn again(&self) -> anyhow::Result<()> {
        let mut raw = self.0.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).context("cannot set the terminal to raw mode")
    }
}

/// nix's has a cell in it, which a hook may not hold.
fn libc_form(mode: &Termios) -> nix::libc::termios {
    mode.clone().into()
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore(&self.0);
    }
}

fn restore(mode: &Termios) {
    if let Err(errno) = tcsetattr(io::stdin(), SetArg::TCSANOW, mode) {
        crate::complain(&format!("cannot restore the terminal's mode: {errno}; type `reset`"));
    }
}

/// Refuses what would show nobody anything.
pub(crate) fn check(interactive: bool, tty: bool) -> anyhow::Result<()> {
    if interactive && tty && !io::stdin().is_terminal() {
        anyhow::bail!("-t needs a terminal, and stdin is none; leave it out to pass stdin on as it is");
    }
    Ok(())
}
