//! The terminal while `top` has it: in raw mode, and with a screen of its own. It is given back as it was, however we end.

use std::io::{self, Stdout};
use std::panic;

use anyhow::Context;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::{cursor, execute, terminal};
use ratatui::layout::Rect;
use ratatui::{Frame, Terminal, TerminalOptions, Viewport};

use crate::streams::Stream;
use crate::terminal::{Raw, size};

/// Whoever holds this has the terminal. Raw mode ends last, as it began first.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    _other: OtherScreen,
    stdin: Stream,
    raw: Raw,
}

impl Screen {
    /// Takes the terminal that stdin and stdout are.
    pub(super) fn open() -> anyhow::Result<Screen> {
        let stdin = Stream::reader(io::stdin()).context("cannot read the terminal")?;
        let raw = Raw::set()?;
        let other = OtherScreen::enter()?;
        let options = TerminalOptions { viewport: Viewport::Fixed(area()) };
        let terminal = Terminal::with_options(CrosstermBackend::new(io::stdout()), options);
        let mut screen = Screen { terminal: terminal.context(WRITE)?, _other: other, stdin, raw };
        screen.renew()?;
        Ok(screen)
    }

    /// Begins anew: the terminal has another size, or others have written to it or changed its mode.
    pub(super) fn renew(&mut self) -> anyhow::Result<()> {
        self.raw.again()?;
        let clear = terminal::Clear(terminal::ClearType::All);
        execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide, clear).context(WRITE)?;
        // Everything is drawn anew. Terminal::clear would do, but it asks the terminal where the cursor is.
        self.terminal.resize(area()).context(WRITE)
    }

    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> anyhow::Result<()> {
        self.terminal.draw(draw).map(drop).context(WRITE)
    }

    /// What is typed next; nothing once the terminal is gone.
    pub(super) async fn typed(&self) -> io::Result<Vec<u8>> {
        let mut typed = [0; 256];
        let count = self.stdin.read(&mut typed).await?;
        Ok(typed[..count].to_vec())
    }
}

const WRITE: &str = "cannot write to the terminal";

/// The terminal's second screen, below which the first stays as it was. Left when this is dropped, and in a panic, which
/// drops nothing.
struct OtherScreen;

impl OtherScreen {
    fn enter() -> anyhow::Result<OtherScreen> {
        let told = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            leave();
            told(what);
        }));
        execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide).context(WRITE)?;
        Ok(OtherScreen)
    }
}

impl Drop for OtherScreen {
    fn drop(&mut self) {
        leave();
    }
}

fn leave() {
    // A terminal that does not take it is gone.
    drop(execute!(io::stdout(), terminal::LeaveAlternateScreen, cursor::Show));
}

/// One that does not tell its size, such as a serial line, has the usual one.
fn area() -> Rect {
    let (width, height) = size().unwrap_or((80, 24));
    Rect::new(0, 0, width, height)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::process::Command;

    use nix::pty::{OpenptyResult, openpty};
    use nix::sys::termios::{LocalFlags, tcgetattr};

    use super::*;
    use crate::session::block_on;

    /// Set for the process that is to panic.
    const PANICS: &str = "DUNNAGE_TEST_PANICS";

    /// As everywhere in the binaries: a panic drops nothing, and ends the process.
    extern "C" fn panic_and_abort() {
        panic!("the reason");
    }

    #[test]
    fn a_panic_gives_the_terminal_back_before_it_says_why() {
        if std::env::var_os(PANICS).is_some() {
            let panicked = block_on(async {
                let mut screen = Screen::open()?;
                screen.draw(|frame| frame.render_widget("drawn", frame.area()))?;
                panic_and_abort();
                Ok(())
            });
            unreachable!("{panicked:?}");
        }
        let OpenptyResult { master, slave } = openpty(None, None).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = "top::screen::tests::a_panic_gives_the_terminal_back_before_it_says_why";
        command.args(["--exact", "--nocapture", name]).env(PANICS, "1");
        let [stdin, stdout] = [slave.try_clone().unwrap(), slave.try_clone().unwrap()];
        let mut child = command.stdin(stdin).stdout(stdout).stderr(slave).spawn().unwrap();
        drop(command);
        let mut reader = File::from(master);
        let mut shown = Vec::new();
        // With an error, once nobody has the other end any more.
        drop(reader.read_to_end(&mut shown));
        assert!(!child.wait().unwrap().success());
        assert!(tcgetattr(&reader).unwrap().local_flags.contains(LocalFlags::ECHO), "no longer raw");
        let shown = String::from_utf8_lossy(&shown);
        let at = |what| shown.find(what).unwrap_or_else(|| panic!("no {what:?} in {shown:?}"));
        assert!(at("\x1b[?1049h") < at("drawn") && at("drawn") < at("\x1b[?1049l"), "{shown:?}");
        assert!(at("\x1b[?1049l") < at("the reason"), "said on the first screen: {shown:?}");
    }
}
