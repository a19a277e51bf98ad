//! A container after it was made: what state it is in, signals for it, its end.
//!
//! Everything here works from the recorded [`State`] and the kernel, so that any process can do it: a command line, a
//! shim that adopts a container, the `delete` of a shim that is gone.

use crate::cgroup::{Cgroup, CgroupError, FreezerState, systemd};
use crate::facts::StateFacts;
use crate::gate;
use crate::hooks::{Hook, HookError, Moment, Run};
use crate::state::{Dir, State, StateError};
use crate::sys::process::{pidfd_open, pidfd_send_signal};
use crate::sys::{Call, Failed, io_failed};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fmt;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a killed container may take to die. Exits wait for the kernel (a flush to a slow disk, a core dump).
const DYING: Duration = Duration::from_secs(10);

/// The status of the runtime-spec's state document, and runc's `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// On its way.
    Creating,
    /// Waits for `start`.
    Created,
    /// Its program was executed.
    Running,
    /// As `Running`, and frozen.
    Paused,
    /// Its first process has ended, or never was.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// Why something could not be done with a container.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// Its state or folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its first process has ended.
    #[error("container not running")]
    NotRunning,
    /// Only a stopped container is deleted without force.
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped {
        /// The container.
        id: String,
        /// What it is doing.
        status: Status,
    },
    /// Killed, and still not dead.
    #[error("container {id} was killed, but process {pid} did not end within {} s", DYING.as_secs())]
    Undead {
        /// The container.
        id: String,
        /// The first of its processes that is still there.
        pid: Pid,
    },
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A system call.
    #[error("{doing}: {failed}")]
    Call {
        /// What was being done.
        doing: &'static str,
        /// What failed.
        failed: Failed,
    },
}

fn failed(doing: &'static str) -> impl FnOnce(Failed) -> ContainerError {
    move |failed| ContainerError::Call { doing, failed }
}

/// A container that was made.
#[derive(Debug)]
pub struct Container {
    dir: PathBuf,
    state: State,
}

impl Container {
    /// The container whose state is in the folder `dir`.
    ///
    /// # Errors
    /// As [`State::load`].
    pub fn load(dir: &Path) -> Result<Container, StateError> {
        Ok(Container { dir: dir.to_owned(), state: State::load(dir)? })
    }

    /// What is recorded of it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// A pidfd for its first process, unless that has ended.
    ///
    /// # Errors
    /// As [`crate::state::Init::open`].
    pub fn init(&self) -> Result<Option<OwnedFd>, ContainerError> {
        self.state.init.map_or(Ok(None), |init| init.open().map_err(failed("look for the container's first process")))
    }

    /// Its cgroup.
    ///
    /// # Errors
    /// As [`Cgroup::open`].
    pub fn cgroup(&self) -> Result<Cgroup, CgroupError> {
        Cgroup::open(self.state.cgroup.clone())
    }

    /// What it is doing, asked of the kernel.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn status(&self) -> Result<Status, ContainerError> {
        if self.init()?.is_none() {
            // Whoever makes it holds the folder until there is a first process, and cleans up on failure.
            return Ok(if self.state.creating && self.state.init.is_none() {
                Status::Creating
            } else {
                Status::Stopped
            });
        }
        if self.state.creating {
            return Ok(Status::Creating);
        }
        match self.cgroup()?.freezer_state() {
            Ok(FreezerState::Frozen | FreezerState::Freezing) => return Ok(Status::Paused),
            Ok(FreezerState::Thawed) | Err(CgroupError::NoController { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let path = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(&self.dir);
        let closed = path.map_err(io_failed(Call::Open)).and_then(|dir| gate::is_closed(dir.as_fd()));
        Ok(if closed.map_err(failed("look at the container's gate"))? { Status::Created } else { Status::Running })
    }

    /// Sends its first process the signal of this number.
    ///
    /// # Errors
    /// [`ContainerError::NotRunning`] when that has ended.
    pub fn signal(&self, signal: i32) -> Result<(), ContainerError> {
        let init = self.init()?.ok_or(ContainerError::NotRunning)?;
        match pidfd_send_signal(init.as_fd(), signal) {
            Err(Failed { errno: Errno::ESRCH, .. }) => Err(ContainerError::NotRunning),
            sent => sent.map_err(failed("signal the container's first process")),
        }
    }

    /// Sends the signal to every process in it, also when only others than its first are left.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal_all(&self, signal: Signal) -> Result<(), ContainerError> {
        match self.cgroup()? {
            // Its first process takes its pid namespace along.
            cgroup if cgroup.is_nowhere() => self.signal(signal as i32),
            cgroup => Ok(cgroup.signal_all(signal)?),
        }
    }

    /// Every process in it, as numbered in our pid namespace.
    ///
    /// # Errors
    /// When the cgroup cannot be read.
    pub fn pids(&self) -> Result<Vec<Pid>, ContainerError> {
        Ok(self.cgroup()?.pids()?)
    }

    /// Kills what is left of it and waits until that is dead.
    fn end(&self, mut cgroup: Cgroup, init: Option<OwnedFd>) -> Result<(), ContainerError> {
        let deadline = Instant::now() + DYING;
        // Without a recorded first process the cgroup may be another container's: its processes are not ours to kill.
        let ours = self.state.init.is_some();
        if let (Some(init), Some(recorded)) = (&init, self.state.init) {
            match pidfd_send_signal(init.as_fd(), libc::SIGKILL) {
                Ok(()) | Err(Failed { errno: Errno::ESRCH, .. }) => {}
                // It is of a user namespace beside ours, as after an ordinary user's supervisor was killed; its cgroup is ours.
                Err(Failed { errno: Errno::EPERM, .. }) if !cgroup.is_nowhere() => {}
                Err(error) => return Err(failed("kill the container's first process")(error)),
            }
            // A frozen one dies when it is thawed, which killing the cgroup sees to.
            cgroup.kill()?;
            self.wait_for(Pid::from_raw(recorded.pid), init, deadline)?;
        }
        loop {
            let busy = match cgroup.remove() {
                Ok(()) => break,
                Err(busy @ CgroupError::Busy { .. }) if Instant::now() < deadline => busy,
                Err(error) => return Err(error.into()),
            };
            // A child whose runtime was killed before it was recorded ends by itself when it wants to speak to it.
            if ours {
                cgroup.kill()?;
            }
            let pids = cgroup.pids()?;
            for pid in &pids {
                match pidfd_open(*pid) {
                    Ok(pidfd) => self.wait_for(*pid, &pidfd, deadline)?,
                    Err(Failed { errno: Errno::ESRCH, .. }) => {}
                    Err(error) => return Err(failed("look for the container's processes")(error)),
                }
            }
            log::debug!("{busy}");
            if pids.is_empty() {
                // The last one is on its way out of the kernel, of which there is no notice.
                poll(&mut [], 1_u8).map_err(Call::Poll.failed()).map_err(failed("wait for the cgroup"))?;
            }
        }
        // Without a first process the unit, too, may be another container's.
        if let Some(unit) = cgroup.unit().filter(|_| ours)
            && let Err(error) = systemd::Call::stop(unit).wait()
        {
            // It is empty, so systemd will come to it by itself.
            log::warn!("container {}: {error}", self.state.id);
        }
        Ok(())
    }

    fn wait_for(&self, pid: Pid, pidfd: &OwnedFd, deadline: Instant) -> Result<(), ContainerError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return Err(ContainerError::Undead { id: self.state.id.clone(), pid }),
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed("wait for the container's end")(Call::Poll.failed()(errno))),
            }
        }
    }

    /// Runs the poststop hooks; they cannot bring anything back, so their failures are only logged.
    fn poststop(&self) {
        for run in poststop(&self.state) {
            if let Err(error) = run.and_then(Run::wait) {
                log::warn!("container {}: {error}", self.state.id);
            }
        }
    }
}

/// Starts the poststop hooks of a container that is gone: each when the iterator is asked for it, and then it is to be
/// finished before the next.
pub fn poststop(state: &State) -> impl Iterator<Item = Result<Run, HookError>> {
    let facts = StateFacts::new(&state.id, &state.bundle, state.annotations.clone());
    state.poststop.iter().filter_map(move |spec| match Hook::new(Moment::Poststop, spec) {
        Ok(hook) => Some(Run::spawn(&hook, &facts.bundle(), &facts.json(Moment::Poststop))),
        Err(what) => {
            log::warn!("container {}: poststop hook: {what}", state.id);
            None
        }
    })
}

/// Removes a container: its processes and cgroup; runs its poststop hooks; removes its folder. Whatever an interrupted command left
/// is no obstacle with `force`, nor that the container still runs; without, it must have stopped or not been started.
///
/// Waits for the end of what it killed and for the hooks: for a process that has nothing else to do.
///
/// # Errors
/// The folder stays until everything else is gone, so that this can be tried again.
pub fn delete(dir: Dir, force: bool) -> Result<(), ContainerError> {
    let container = match Container::load(dir.path()) {
        Ok(container) => container,
        Err(StateError::Unfinished(_)) if force => return Ok(dir.remove()?),
        Err(error @ StateError::Corrupt { .. }) if force => {
            log::warn!("{error}; removing it, but its processes and cgroup are unknown");
            return Ok(dir.remove()?);
        }
        Err(error) => return Err(error.into()),
    };
    let status = container.status()?;
    if !force && !matches!(status, Status::Stopped | Status::Created) {
        return Err(ContainerError::NotStopped { id: container.state.id, status });
    }
    container.end(container.cgroup()?, container.init()?)?;
    container.poststop();
    Ok(dir.remove()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Saved;
    use crate::state::{self, Init};
    use std::collections::HashMap;
    use std::fs;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    /// A folder with the state of a container whose first process is `init`.
    fn record(path: &Path, init: Option<Init>, poststop: &str) -> Dir {
        let dir = Dir::create(path).unwrap();
        let state = State {
            id: "web-1".into(),
            bundle: "/".into(),
            rootfs: "/rootfs".into(),
            created: state::now(),
            annotations: HashMap::new(),
            no_pivot: false,
            no_new_keyring: false,
            init,
            creating: false,
            cgroup: Saved::default(),
            poststop: serde_json::from_str(poststop).unwrap(),
        };
        dir.save(&state).unwrap();
        dir
    }

    fn sleeper() -> (Child, Init) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let init = Init::of(Pid::from_raw(child.id() as i32)).unwrap();
        (child, init)
    }

    #[test]
    fn a_running_container_is_deleted_only_with_force_and_its_hook_runs() {
        let folder = tempfile::tempdir().unwrap();
        let (path, (mut child, init)) = (folder.path().join("web-1"), sleeper());
        let seen = folder.path().join("seen");
        let hook = format!(r#"[{{"path":"/bin/sh","args":["sh","-c","cat >{}"]}}]"#, seen.display());
        let dir = record(&path, Some(init), &hook);
        assert_eq!(Container::load(&path).unwrap().status().unwrap(), Status::Running);
        let refused = delete(dir, false).unwrap_err();
        assert_eq!(refused.to_string(), "cannot delete container web-1 that is not stopped: running");
        assert!(!seen.exists());
        delete(Dir::lock(&path).unwrap(), true).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert!(!path.exists());
        assert!(fs::read_to_string(seen).unwrap().contains(r#""status":"stopped""#));
    }

    #[test]
    fn a_stranger_with_the_same_number_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (path, (mut child, init)) = (folder.path().join("web-1"), sleeper());
        let dir = record(&path, Some(Init { start_time: init.start_time - 1, ..init }), "[]");
        let container = Container::load(&path).unwrap();
        assert_eq!(container.status().unwrap(), Status::Stopped);
        assert!(matches!(container.signal(libc::SIGKILL), Err(ContainerError::NotRunning)));
        delete(dir, true).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "still running");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_an_interrupted_command_left_goes_with_force_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web-1");
        let leave: [fn(&Path); 3] = [
            |_| {},
            |path| fs::write(path.join("state.json.new"), "{").unwrap(),
            |path| fs::write(path.join("state.json"), "{").unwrap(),
        ];
        for leave in leave {
            let dir = Dir::create(&path).unwrap();
            leave(&path);
            assert!(matches!(delete(dir, false), Err(ContainerError::State(_))));
            delete(Dir::lock(&path).unwrap(), true).unwrap();
            assert!(!path.exists());
        }
    }
}
