//! The OCI hooks: programs the spec asks us to run at six moments of a container's life, each with the container's state
//! on its stdin ([runtime-spec, POSIX-platform Hooks](https://github.com/opencontainers/runtime-spec/blob/main/config.md#posix-platform-hooks)).
//!
//! Hooks in the runtime's namespace are processes that nobody here waits for ([`Run`]): whoever drives the container reaps
//! them with its other children and keeps their deadlines. Hooks in the container's namespace are run by its init, which
//! has nothing else to do and does wait ([`run_in_child`]).

use crate::sys::wait::{self, Exit};
use crate::sys::{Call, Failed, io_failed, memory, process, spawn};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use oci_spec::runtime as oci;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use std::{fmt, slice};

/// How much of a hook's stderr, from its end, goes into an error's text (bytes).
const TAIL: u64 = 1024;

/// The moment at which a hook runs, in the order of a container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Namespaces exist, root not yet changed; in the runtime's namespace. Deprecated by the spec, used by many.
    Prestart,
    /// As `Prestart`, after it.
    CreateRuntime,
    /// Before the root is changed; in the container's namespaces.
    CreateContainer,
    /// Just before the container's program; in the container's namespaces and root.
    StartContainer,
    /// After the container's program was started; in the runtime's namespace. Its failure is only logged.
    Poststart,
    /// After the container was deleted; in the runtime's namespace. Its failure is only logged.
    Poststop,
}

impl Moment {
    /// Every moment, in the order of a container's life.
    pub const ALL: [Moment; 6] = [
        Moment::Prestart,
        Moment::CreateRuntime,
        Moment::CreateContainer,
        Moment::StartContainer,
        Moment::Poststart,
        Moment::Poststop,
    ];

    /// The name in config.json.
    pub fn name(self) -> &'static str {
        match self {
            Moment::Prestart => "prestart",
            Moment::CreateRuntime => "createRuntime",
            Moment::CreateContainer => "createContainer",
            Moment::StartContainer => "startContainer",
            Moment::Poststart => "poststart",
            Moment::Poststop => "poststop",
        }
    }

    /// The spec's hooks of this moment.
    pub fn of(self, hooks: &oci::Hooks) -> &[oci::Hook] {
        let list = match self {
            Moment::Prestart => hooks.prestart(),
            Moment::CreateRuntime => hooks.create_runtime(),
            Moment::CreateContainer => hooks.create_container(),
            Moment::StartContainer => hooks.start_container(),
            Moment::Poststart => hooks.poststart(),
            Moment::Poststop => hooks.poststop(),
        };
        list.as_deref().unwrap_or_default()
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One hook, checked and ready to execute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    moment: Moment,
    path: CString,
    argv: Vec<CString>,
    env: Vec<CString>,
    timeout: Option<Duration>,
}

impl Hook {
    /// Checks the hook of a spec. Arguments and environment are taken exactly as given; without arguments, as `execv` needs
    /// one, the path is the first. The error says what is wrong, without naming the field.
    pub fn new(moment: Moment, spec: &oci::Hook) -> Result<Hook, String> {
        let path = spec.path();
        if !path.is_absolute() {
            return Err(format!("path {path:?} is not absolute"));
        }
        let path = c_string("path", path.as_os_str().as_bytes())?;
        let list = |name: &str, values: &Option<Vec<String>>| -> Result<Vec<CString>, String> {
            values.iter().flatten().map(|value| c_string(name, value.as_bytes())).collect()
        };
        let mut argv = list("args", spec.args())?;
        if argv.is_empty() {
            argv.push(path.clone());
        }
        let timeout = match spec.timeout() {
            None => None,
            Some(seconds) if seconds > 0 => Some(Duration::from_secs(seconds.cast_unsigned())),
            Some(seconds) => return Err(format!("timeout {seconds} is not greater than zero")),
        };
        Ok(Hook { moment, path, argv, env: list("env", spec.env())?, timeout })
    }

    /// When it runs.
    pub fn moment(&self) -> Moment {
        self.moment
    }

    fn command<'a>(&'a self, cwd: Option<&'a CStr>, stdin: &'a File, stderr: BorrowedFd<'a>) -> spawn::Command<'a> {
        spawn::Command { path: &self.path, argv: &self.argv, env: &self.env, cwd, stdin: stdin.as_fd(), stderr }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} hook {}", self.moment, self.path.to_string_lossy())
    }
}

fn c_string(field: &str, bytes: &[u8]) -> Result<CString, String> {
    CString::new(bytes).map_err(|_| format!("{field} contains a NUL byte"))
}

/// Every hook of `hooks`, in the order of moments and of the spec; or, for each bad one, its field and what is wrong.
pub fn check(hooks: &oci::Hooks) -> Result<Vec<Hook>, Vec<(String, String)>> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for moment in Moment::ALL {
        for (index, spec) in moment.of(hooks).iter().enumerate() {
            match Hook::new(moment, spec) {
                Ok(hook) => good.push(hook),
                Err(what) => bad.push((format!("hooks.{moment}[{index}]"), what)),
            }
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(bad) }
}

/// A hook that failed, with the end of what it wrote to its stderr.
#[derive(Debug, thiserror::Error)]
#[error("{hook}: {what}{}{stderr}", if stderr.is_empty() { "" } else { ": " })]
pub struct HookError {
    hook: String,
    what: String,
    stderr: String,
}

impl HookError {
    fn new(hook: &Hook, what: impl fmt::Display, stderr: String) -> HookError {
        HookError { hook: hook.to_string(), what: what.to_string(), stderr }
    }
}

/// A hook in the runtime's namespace, running.
///
/// The driver reaps the process `pid()` and hands its exit to [`Run::finish`]; past the `deadline()` it calls
/// [`Run::kill`] first and still waits for the exit.
#[derive(Debug)]
#[must_use = "a running hook must be finished with its exit"]
pub struct Run {
    hook: Hook,
    pid: Pid,
    pidfd: OwnedFd,
    stderr: File,
    deadline: Option<Instant>,
    killed: bool,
    ended: bool,
}

/// A hook nobody will finish is not left running: whoever began it gave up.
impl Drop for Run {
    fn drop(&mut self) {
        if !self.ended
            && let Err(failed) = self.kill()
        {
            log::warn!("cannot kill {}: {failed}", self.hook);
        }
    }
}

impl Run {
    /// Starts `hook` in the directory `bundle`, with `state` (the OCI state JSON) to read on its stdin, all at once. Never
    /// blocks: stdin and stderr are memory files. A program that cannot be executed is reported by `finish`.
    pub fn spawn(hook: &Hook, bundle: &CStr, state: &[u8]) -> Result<Run, HookError> {
        let start = || {
            let stderr = stderr()?;
            let stdin = memory::sealed(c"container-state", state)?;
            let (pid, pidfd) = spawn::spawn(&hook.command(Some(bundle), &stdin, stderr.as_fd()))?;
            Ok((pid, pidfd, stderr))
        };
        let (pid, pidfd, stderr) = start().map_err(|failed: Failed| HookError::new(hook, failed, String::new()))?;
        let deadline = hook.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Ok(Run { hook: hook.clone(), pid, pidfd, stderr, deadline, killed: false, ended: false })
    }

    /// The process to reap.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// When it must have ended, if the spec sets a timeout.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Kills the hook and what it left in its session's first process group. Its exit is still to be reaped.
    pub fn kill(&mut self) -> Result<(), Failed> {
        self.killed = true;
        kill_group(self.pid, self.pidfd.as_fd())
    }

    /// Waits for its end, for a process that has nothing else to do.
    pub fn wait(mut self) -> Result<(), HookError> {
        let ended = ended_by(&self.pidfd, self.deadline);
        let ended = ended.and_then(|in_time| if in_time { Ok(()) } else { self.kill() });
        match ended.and_then(|()| wait::child(self.pidfd.as_fd())) {
            Ok(exit) => self.finish(exit),
            Err(failed) => Err(HookError::new(&self.hook, failed, tail(&self.stderr))),
        }
    }

    /// What came of it.
    pub fn finish(mut self, exit: Exit) -> Result<(), HookError> {
        self.ended = true; // and its number may be another's
        let late = self.killed.then_some(self.hook.timeout).flatten();
        match (exit, late) {
            (Exit::Code(0), _) => Ok(()),
            (_, Some(timeout)) => {
                let what = format_args!("not done after its timeout of {} s, killed", timeout.as_secs());
                Err(HookError::new(&self.hook, what, tail(&self.stderr)))
            }
            (exit, None) => Err(HookError::new(&self.hook, exit, tail(&self.stderr))),
        }
    }
}

/// A memory file for the stderr of hooks. For those run by [`run_in_child`] the parent makes it before it starts the
/// child, and reads its [`tail`] when the child reports a failure.
pub fn stderr() -> Result<File, Failed> {
    memory::file(c"hook-stderr")
}

/// The end of what was written to a hook's `stderr`, on one line.
pub fn tail(stderr: &File) -> String {
    let Ok(size) = stderr.metadata().map(|meta| meta.len()) else { return String::new() };
    let from = size.saturating_sub(TAIL);
    let mut bytes = vec![0; (size - from) as usize];
    match stderr.read_exact_at(&mut bytes, from) {
        Ok(()) => String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" "),
        Err(_) => String::new(),
    }
}

/// For the container's init: runs `hook` to its end, or kills it when its timeout has passed.
///
/// `cwd` is the bundle for a createContainer hook; a startContainer hook keeps init's. How a failure looks: what could not
/// be called, or [`Call::Hook`] with `ETIMEDOUT`, or with `ECANCELED` for a hook that ended badly; then the reason is in
/// `stderr`, which outlives the hook.
pub fn run_in_child(hook: &Hook, cwd: Option<&CStr>, state: &[u8], mut stderr: &File) -> Result<(), Failed> {
    let stdin = memory::sealed(c"container-state", state)?;
    // What an earlier hook complained of is not this one's.
    stderr.set_len(0).and_then(|()| stderr.rewind()).map_err(io_failed(Call::Write))?;
    let (pid, pidfd) = spawn::spawn(&hook.command(cwd, &stdin, stderr.as_fd()))?;
    let deadline = hook.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let in_time = ended_by(&pidfd, deadline)?;
    if !in_time {
        kill_group(pid, pidfd.as_fd())?;
    }
    match wait::child(pidfd.as_fd())? {
        _ if !in_time => Err(Call::Hook.failed()(Errno::ETIMEDOUT)),
        Exit::Code(0) => Ok(()),
        exit => {
            writeln!(stderr, "{exit}").map_err(io_failed(Call::Write))?;
            Err(Call::Hook.failed()(Errno::ECANCELED))
        }
    }
}

/// Waits for the process behind `pidfd`; false when the deadline came first.
fn ended_by(pidfd: &OwnedFd, deadline: Option<Instant>) -> Result<bool, Failed> {
    let mut ended = PollFd::new(pidfd.as_fd(), PollFlags::POLLIN);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // Rounded up, so that a deadline is never met early; longer than poll can count is asked for again.
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        match poll(slice::from_mut(&mut ended), timeout) {
            Ok(0) if left.is_some_and(|left| left.is_zero()) => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => (),
            Ok(_) => return Ok(true),
            Err(errno) => return Err(Call::Poll.failed()(errno)),
        }
    }
}

/// SIGKILL for a child that nobody has reaped yet (so its number is still its own) and for its process group.
fn kill_group(pid: Pid, pidfd: BorrowedFd<'_>) -> Result<(), Failed> {
    // It may not have reached its setsid yet: then there is no group, and the pidfd alone does it.
    match kill(Pid::from_raw(-pid.as_raw()), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => (),
        Err(errno) => return Err(Call::Kill.failed()(errno)),
    }
    process::pidfd_send_signal(pidfd, Signal::SIGKILL as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn hook(moment: Moment, script: &str, timeout: Option<i64>) -> Hook {
        let mut spec = oci::Hook::default();
        let args = ["any-name", "-c", script].map(String::from).to_vec();
        spec.set_path(PathBuf::from("/bin/sh")).set_args(Some(args)).set_timeout(timeout);
        Hook::new(moment, &spec).unwrap()
    }

    fn run(script: &str, timeout: Option<i64>) -> Result<(), HookError> {
        Run::spawn(&hook(Moment::CreateRuntime, script, timeout), c"/", br#"{"id":"web-1"}"#).unwrap().wait()
    }

    #[test]
    fn a_hook_reads_the_state_in_the_bundle_with_its_own_environment_only() {
        let checks = r#"read -r state || :; [ "$state" = '{"id":"web-1"}' ] && [ "$PWD" = / ] && [ -z "$HOME$USER" ] &&
            [ "$0" = any-name ] || exit 1"#;
        // `sh -c script` takes $0 from the argument after the script, or from argv[0] without one.
        run(checks, None).unwrap();
    }

    #[test]
    fn a_failing_hook_tells_its_status_and_its_last_words() {
        let error = run("echo first >&2; echo no such bridge: br0 >&2; exit 3", None).unwrap_err();
        assert_eq!(error.to_string(), "createRuntime hook /bin/sh: exit status 3: first no such bridge: br0");
        let error = run("kill -KILL $$", None).unwrap_err();
        assert_eq!(error.to_string(), "createRuntime hook /bin/sh: killed by signal 9");
    }

    #[test]
    fn a_late_hook_is_killed_with_its_children() {
        let late = hook(Moment::CreateRuntime, "sleep 1000 & echo waiting >&2; wait", Some(1));
        let mut run = Run::spawn(&late, c"/", b"{}").unwrap();
        assert!(run.deadline.is_some());
        // It may have said nothing yet in a second of a busy machine.
        run.deadline = None;
        while tail(&run.stderr) != "waiting" {
            std::thread::yield_now();
        }
        run.deadline = Some(Instant::now());
        let late = "createRuntime hook /bin/sh: not done after its timeout of 1 s, killed: waiting";
        assert_eq!(run.wait().unwrap_err().to_string(), late);
    }

    #[test]
    fn a_missing_program_is_named_with_its_errno() {
        let mut spec = oci::Hook::default();
        spec.set_path(PathBuf::from("/nowhere/hook"));
        let hook = Hook::new(Moment::Poststop, &spec).unwrap();
        assert_eq!(hook.argv, [c"/nowhere/hook".to_owned()]);
        let error = Run::spawn(&hook, c"/", b"{}").unwrap().wait().unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("poststop hook /nowhere/hook: exit status 127: cannot run it: execve: "), "{text}");
        assert!(text.contains("ENOENT"), "{text}");
    }

    #[test]
    fn signals_reach_a_hook_at_their_defaults() {
        // SIGPIPE (13) is ignored in this process, as in every Rust program; SigIgn and SigBlk must be empty in the hook, and
        // so in what it executes. The shell itself blocks signals now and then.
        run("! grep '^Sig[IB].*[1-9a-f]' /proc/self/status >&2", None).unwrap();
    }

    #[test]
    fn no_descriptor_of_ours_reaches_a_hook() {
        let inherited = File::open("/dev/null").unwrap();
        nix::fcntl::fcntl(&inherited, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let only_stdio = "for fd in /proc/$$/fd/*; do [ ${fd##*/} -le 2 ] || ! [ -L $fd ] || exit 1; done";
        run(only_stdio, None).unwrap();
    }

    #[test]
    fn init_runs_a_hook_to_its_end_and_keeps_its_words() {
        let words = stderr().unwrap();
        let state = br#"{"status":"creating"}"#;
        let run = |script, timeout| run_in_child(&hook(Moment::StartContainer, script, timeout), None, state, &words);
        run("grep -q creating", None).unwrap();
        assert_eq!(run("echo bad >&2; exit 4", None), Err(Call::Hook.failed()(Errno::ECANCELED)));
        assert_eq!(tail(&words), "bad exit status 4");
        assert_eq!(run("exec sleep 60", Some(1)), Err(Call::Hook.failed()(Errno::ETIMEDOUT)));
        assert_eq!(tail(&words), "");
    }

    #[test]
    fn every_bad_hook_is_reported_with_its_field() {
        let json = r#"{"prestart":[{"path":"/ok"},{"path":"relative"}],"poststop":[{"path":"/x","timeout":0},
            {"path":"/x","args":["a\u0000b"]}]}"#;
        let bad = check(&serde_json::from_str(json).unwrap()).unwrap_err();
        let fields: Vec<_> = bad.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(fields, ["hooks.prestart[1]", "hooks.poststop[0]", "hooks.poststop[1]"]);
    }

    #[test]
    fn a_long_complaint_is_cut_at_its_front() {
        let error = run("i=0; while [ $i -lt 2000 ]; do echo line-$i >&2; i=$((i+1)); done; exit 1", None).unwrap_err();
        let text = error.to_string();
        assert!(text.ends_with("line-1999") && text.len() < 1200, "{} bytes: {text}", text.len());
    }
}
