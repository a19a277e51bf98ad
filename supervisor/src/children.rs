//! Processes that we start for a moment, and those that fall to us as a subreaper. The only wait call of the supervisor.
//!
//! Every direct child keeps its number until [`Reaper::reap`] collects it. Whoever starts one watches it before it gives the
//! one thread back to the event loop, so that a number that is watched never belongs to another process.

use std::{
    collections::HashMap,
    ffi::CStr,
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use libcontainer::sys::{
    process::{pidfd_open, pidfd_send_signal},
    wait::{self, Exit},
};
use nix::{
    sys::memfd::{MFdFlags, memfd_create},
    unistd::Pid,
};
use tokio::{sync::oneshot, time::timeout};

/// Of what a program says, no more than this is for a person to read.
const LONGEST_TEXT: usize = 4096;

/// Collects children and tells those who watch them.
#[derive(Clone, Default)]
pub(crate) struct Reaper(Arc<Mutex<HashMap<Pid, oneshot::Sender<Exit>>>>);

impl Reaper {
    /// The exit of a direct child, for the one who has just started it.
    fn watch(&self, pid: Pid) -> oneshot::Receiver<Exit> {
        let (tell, exit) = oneshot::channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, tell);
        exit
    }

    /// Collects every child that has ended. SIGCHLD coalesces, so this goes on until there is none.
    pub(crate) fn reap(&self) {
        loop {
            match wait::any() {
                Ok(Some((pid, exit))) => {
                    let tell = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
                    if tell.is_none_or(|tell| tell.send(exit).is_err()) {
                        log::debug!("reaped {pid}, which nobody waits for: {exit}");
                    }
                }
                Ok(None) => return,
                Err(failed) => return log::warn!("wait for children: {failed}"),
            }
        }
    }
}

/// Runs a program to its end and returns what it printed. stdin, stdout and stderr are files in memory: nothing of it has to
/// be waited for but its end, and whatever it leaves behind holds nothing of ours open.
///
/// # Errors
/// A text for people: it could not be started, took longer than `limit` (and was killed), or failed, with what it said.
pub(crate) async fn run(
    reaper: &Reaper,
    mut command: Command,
    input: &[u8],
    limit: Duration,
) -> Result<Vec<u8>, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut spawn = || -> io::Result<_> {
        let (mut stdin, stdout, stderr) = (memory(c"stdin")?, memory(c"stdout")?, memory(c"stderr")?);
        stdin.write_all(input)?;
        stdin.rewind()?;
        command.stdin(stdin).stdout(Stdio::from(stdout.try_clone()?)).stderr(Stdio::from(stderr.try_clone()?));
        // A terminal's ^C is for us, who then see to it that nothing is left half done.
        let child = command.process_group(0).spawn()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        Ok((pid, reaper.watch(pid), stdout, stderr))
    };
    let (pid, mut exit, stdout, stderr) = spawn().map_err(|error| format!("execute {program}: {error}"))?;
    // Nobody reaps it before we give the thread back.
    let pidfd = pidfd_open(pid).map_err(|failed| format!("watch {program}: {failed}"))?;
    let ended = match timeout(limit, &mut exit).await {
        Ok(ended) => ended,
        Err(_) => {
            kill(&pidfd);
            // Not even SIGKILL ends what sleeps in the kernel; then it is the next start's to deal with.
            drop(timeout(limit, exit).await);
            return Err(format!("{program} has not ended in {limit:?}{}", said(stderr)));
        }
    };
    match ended {
        Ok(Exit::Code(0)) => contents(stdout).map_err(|error| format!("read what {program} printed: {error}")),
        Ok(exit) => Err(format!("{program}: {exit}{}", said(stderr))),
        Err(_) => Err(format!("{program}: the supervisor ends")),
    }
}

fn memory(name: &CStr) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?))
}

fn kill(pidfd: &OwnedFd) {
    if let Err(failed) = pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL) {
        log::debug!("kill a program that took too long: {failed}");
    }
}

fn contents(mut file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What it had to say, for the end of a sentence.
fn said(stderr: File) -> String {
    let text = contents(stderr).unwrap_or_default();
    let text = String::from_utf8_lossy(text.get(..LONGEST_TEXT).unwrap_or(&text)).trim().to_owned();
    if text.is_empty() { text } else { format!(": {text}") }
}

#[cfg(test)]
mod tests {

    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

    use super::*;

    /// Collects those who are watched only: the other children of this process are other tests'.
    fn reap_watched(reaper: &Reaper) {
        reaper.0.lock().unwrap().retain(|pid, tell| {
            let exit = match waitpid(*pid, Some(WaitPidFlag::WNOHANG)).unwrap() {
                WaitStatus::Exited(_, code) => Exit::Code(code),
                WaitStatus::Signaled(_, signal, _) => Exit::Signal(signal as i32),
                _ => return true,
            };
            let (gone, _) = oneshot::channel();
            std::mem::replace(tell, gone).send(exit).is_err()
        });
    }

    /// Runs it, reaping all the while.
    fn run_here(command: Command, input: &[u8], limit: Duration) -> Result<Vec<u8>, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let reaper = Reaper::default();
        runtime.block_on(async {
            tokio::select! {
                done = run(&reaper, command, input, limit) => done,
                () = async { loop { reap_watched(&reaper); tokio::time::sleep(Duration::from_millis(1)).await } } => unreachable!(),
            }
        })
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_is_run_to_its_end_or_its_limit() {
        let limit = Duration::from_secs(60);
        assert_eq!(run_here(Command::new("/bin/cat"), b"12345", limit).unwrap(), b"12345");
        let failed = run_here(shell("echo why >&2; exit 3"), b"", limit).unwrap_err();
        assert_eq!(failed, "/bin/sh: exit status 3: why");
        let missing = run_here(Command::new("/nonexistent"), b"", limit).unwrap_err();
        assert!(missing.starts_with("execute /nonexistent: "), "{missing}");
        // What it leaves behind does not hold us up.
        assert_eq!(run_here(shell("sleep 1 & echo done"), b"", limit).unwrap(), b"done\n");

        let mut limit = Duration::from_millis(100);
        loop {
            let late = run_here(shell("echo stuck >&2; exec sleep 1000"), b"", limit).unwrap_err();
            let mute = format!("/bin/sh has not ended in {limit:?}");
            if late == format!("{mute}: stuck") {
                break;
            }
            // It did not come to say it.
            assert!(late == mute && limit < Duration::from_secs(60), "{late}");
            limit *= 2;
        }
    }
}
