//! Waiting for something to happen: on a descriptor where the kernel tells, and with a limit always.

use std::{
    env, fs,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::LazyLock,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

/// How long a test waits for anything before it calls the thing lost. Far above what a loaded machine needs.
pub fn patience() -> Duration {
    slowly(Duration::from_secs(30))
}

/// A limit for a machine that is `DUNNAGE_TEST_SLOW` times slower than those the limits were set for, as a virtual one is.
pub(crate) fn slowly(limit: Duration) -> Duration {
    static FACTOR: LazyLock<u32> = LazyLock::new(|| match env::var("DUNNAGE_TEST_SLOW") {
        Ok(text) => text.parse().expect("DUNNAGE_TEST_SLOW is a number"),
        Err(_) => 1,
    });
    limit * *FACTOR
}

/// Waits until `fd` can be read (for a pidfd: until its process has ended). `false` if `deadline` came first.
pub fn readable(fd: BorrowedFd<'_>, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return false,
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return true,
            Err(errno) => panic!("poll: {errno}"),
        }
    }
}

/// Asks `probe` again and again until it has an answer. Only for states that nothing announces: a counter in a cgroup
/// file, a line in `/proc`, a reply of an RPC. Everything else has a descriptor to wait on.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience();
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        // The pause between two looks; what is waited for is the answer, not the time.
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A file that some process appends its output to, read while it grows.
pub struct Transcript {
    path: PathBuf,
}

impl Transcript {
    /// The file at `path`, which must exist.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// All that has been written until now.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.path).expect("read a transcript")).into_owned()
    }

    /// Waits until `probe` finds in the text what it looks for.
    pub fn find<T>(&self, what: &str, probe: impl Fn(&str) -> Option<T>) -> T {
        self.find_within(patience(), probe)
            .unwrap_or_else(|text| panic!("gave up waiting for {what} in {}:\n{text}", self.path.display()))
    }

    /// The same with a limit of its own; `Err` is the text at the end of it.
    pub fn find_within<T>(&self, limit: Duration, probe: impl Fn(&str) -> Option<T>) -> Result<T, String> {
        let deadline = Instant::now() + limit;
        // Watched before it is read, so that no write falls between the two.
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).expect("inotify");
        inotify.add_watch(&self.path, AddWatchFlags::IN_MODIFY).expect("watch a transcript");
        loop {
            let text = self.text();
            if let Some(found) = probe(&text) {
                return Ok(found);
            }
            if !readable(inotify.as_fd(), deadline) {
                return Err(text);
            }
            match inotify.read_events() {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(errno) => panic!("read inotify: {errno}"),
            }
        }
    }

    /// Waits for a line that contains `text`.
    pub fn line(&self, text: &str) -> String {
        self.find(&format!("a line with {text:?}"), |all| {
            all.lines().find(|line| line.contains(text)).map(ToOwned::to_owned)
        })
    }
}
