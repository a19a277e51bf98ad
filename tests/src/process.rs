//! Processes as `/proc` shows them: which belong to a case, whether they live, and what they weigh.

use std::{
    fmt, fs,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait::{eventually, patience, readable};

/// A process that was seen in `/proc`.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its id in the namespace of the test.
    pub pid: u32,
    /// Its command line, or its name in brackets.
    pub command: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}: {}", self.pid, self.command)
    }
}

/// All processes that carry `name` in their command line, environment, cgroup, working directory or root.
pub fn carrying(name: &str) -> Vec<Process> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|text| text.parse().ok()) else { continue };
        let file = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let link = |link: &str| fs::read_link(entry.path().join(link)).unwrap_or_default().into_os_string();
        let texts = [file("cmdline"), file("environ"), file("cgroup")];
        let links = ["cwd", "root"].map(link);
        let all = texts.iter().map(Vec::as_slice).chain(links.iter().map(|link| link.as_encoded_bytes()));
        if all.into_iter().any(|text| contains(text, name)) && state(pid).is_some_and(|state| state != 'Z') {
            found.push(Process { pid, command: command(pid) });
        }
    }
    found
}

/// All processes of a user, by the number outside of any user namespace.
pub fn of_user(uid: u32) -> Vec<Process> {
    let pids = fs::read_dir("/proc").expect("read /proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_theirs = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Uid:"));
        line.and_then(|ids| ids.split_whitespace().next()?.parse().ok()) == Some(uid)
    };
    let alive = pids.filter(is_theirs).filter(|pid| state(*pid).is_some_and(|state| state != 'Z'));
    alive.map(|pid| Process { pid, command: command(pid) }).collect()
}

fn contains(text: &[u8], name: &str) -> bool {
    text.windows(name.len()).any(|window| window == name.as_bytes())
}

fn command(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if words.is_empty() {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        return format!("[{}]", name.trim());
    }
    String::from_utf8_lossy(&words).replace('\0', " ").trim_end().to_owned()
}

/// The state letter of `/proc/<pid>/stat`; nothing if there is no such process.
pub fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Whether `pid` is there and has not ended.
pub fn lives(pid: u32) -> bool {
    state(pid).is_some_and(|state| state != 'Z' && state != 'X')
}

/// Sends SIGKILL.
pub fn kill_hard(pid: u32) {
    signal(pid, Signal::SIGKILL);
}

/// Sends SIGTERM.
pub fn terminate(pid: u32) {
    signal(pid, Signal::SIGTERM);
}

/// Sends a signal; that the process has ended already is no error.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    match kill(pid, signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(errno) => panic!("kill {pid}: {errno}"),
    }
}

/// A hold on one process that cannot come to mean another.
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// `pidfd_open(2)`; nothing if there is no such process.
    pub fn open(pid: u32) -> Option<Self> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)?;
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok().map(Self)
    }

    /// Waits for the end of the process; `false` if `limit` came first.
    pub fn ended_within(&self, limit: Duration) -> bool {
        readable(self.0.as_fd(), Instant::now() + limit)
    }
}

/// Waits until `pid` has ended.
pub fn wait_for_end(pid: u32) {
    let ended = Pidfd::open(pid).is_none_or(|pidfd| pidfd.ended_within(patience()));
    assert!(ended, "process {pid} ({}) goes on", command(pid));
}

/// A number from `/proc/<pid>/status`, as `Threads` or `NoNewPrivs`.
pub fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("read the status of a process");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in the status of {pid}")).trim().to_owned()
}

/// Waits until a process catches SIGTERM: before that, process 1 of a pid namespace takes no notice of it.
pub fn wait_for_trap(pid: u32) {
    eventually("a trap for SIGTERM", || {
        let caught = u64::from_str_radix(&status(pid, "SigCgt"), 16).expect("a mask of signals");
        (caught & 1 << (Signal::SIGTERM as u32 - 1) != 0).then_some(())
    });
}

/// What a process weighs, in KiB, from `/proc/<pid>/smaps_rollup`.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Resident pages, shared ones too.
    pub rss: u64,
    /// Pages nobody else has.
    pub private: u64,
}

/// Reads what `pid` weighs.
pub fn memory(pid: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("read smaps_rollup");
    let sum = |prefix: &str| {
        let lines = text.lines().filter(|line| line.starts_with(prefix));
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
    };
    Memory { rss: sum("Rss:"), private: sum("Private_") }
}

/// The open descriptors of `pid` with what they lead to.
pub fn descriptors(pid: u32) -> Vec<(u32, String)> {
    let Ok(dir) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let mut all: Vec<_> = dir
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
        })
        .collect();
    all.sort();
    all
}
