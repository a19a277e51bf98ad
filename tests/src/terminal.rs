//! A pseudo terminal for `ctr -t`, whose user is the test.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{OFlag, open},
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::stat::Mode,
};
use rustix::termios::{LocalModes, OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use crate::wait::{patience, readable};

/// Both ends of a pseudo terminal.
pub struct Terminal {
    user: File,
    inner: OwnedFd,
    /// What was read and not yet asked for.
    shown: Vec<u8>,
}

impl Terminal {
    /// A new terminal of 40 lines with 100 columns.
    pub fn new() -> Self {
        // openpty(3) would not make them close-on-exec, and another test's containerd would inherit them.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).expect("open a terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("unlock a terminal");
        let path = ptsname_r(&master).expect("the terminal's name");
        let slave = open(path.as_str(), flags, Mode::empty()).expect("open the other end of a terminal");
        // Makes no carriage returns itself: those that come out are the container's terminal's.
        let mut settings = tcgetattr(&slave).expect("read the settings of a terminal");
        settings.output_modes -= OutputModes::ONLCR;
        tcsetattr(&slave, OptionalActions::Now, &settings).expect("set up a terminal");
        let terminal = Self { user: File::from(OwnedFd::from(master)), inner: slave, shown: Vec::new() };
        terminal.resize(40, 100);
        terminal
    }

    /// Changes the size of the window. Who draws in it learns of it by SIGWINCH, which is the caller's to send.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.inner, size).expect("resize a terminal");
    }

    /// Whether keys are shown as they are typed, which a terminal in raw mode does not do.
    pub fn echoes(&self) -> bool {
        let settings = tcgetattr(&self.inner).expect("read the settings of a terminal");
        settings.local_modes.contains(LocalModes::ECHO)
    }

    /// Types `text`.
    pub fn type_in(&mut self, text: &str) {
        self.user.write_all(text.as_bytes()).expect("type");
    }

    /// Reads the screen until it shows `text`; all that was shown since the last call, to its end.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let Some(end) = self.find(text, patience()) else {
            let last = &self.shown[self.shown.len().saturating_sub(500)..];
            panic!("gave up waiting for {text:?} on the terminal: {:?}", String::from_utf8_lossy(last));
        };
        String::from_utf8(self.shown.drain(..end).collect()).expect("text on the terminal")
    }

    /// Whether the screen shows `text` within `limit`. What was shown stays for the next call.
    pub fn shows(&mut self, text: &str, limit: Duration) -> bool {
        self.find(text, limit).is_some()
    }

    /// Where `text` ends in what was shown.
    fn find(&mut self, text: &str, limit: Duration) -> Option<usize> {
        let deadline = Instant::now() + limit;
        let mut searched = 0;
        let mut chunk = [0; 4096];
        loop {
            let fresh = &self.shown[searched..];
            if let Some(at) = fresh.windows(text.len()).position(|window| window == text.as_bytes()) {
                return Some(searched + at + text.len());
            }
            searched = self.shown.len().saturating_sub(text.len());
            if !readable(self.user.as_fd(), deadline) {
                return None;
            }
            let count = self.user.read(&mut chunk).expect("read the terminal");
            self.shown.extend_from_slice(&chunk[..count]);
        }
    }

    pub(crate) fn inner(&self) -> OwnedFd {
        self.inner.try_clone().expect("duplicate a terminal")
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}
