//! Shims on their way whose number nobody wrote down: `start`, which has not answered yet, and what it has started. They
//! are found by where they are and what they were told to be, and killed through a pidfd.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::Path,
};

use libcontainer::{
    state::Init,
    sys::{
        Failed,
        process::{pidfd_open, pidfd_send_signal},
    },
};
use nix::{errno::Errno, unistd::Pid};
use tokio::io::Interest;

use crate::{book::Name, sys};

/// Ends every process of a launch: those whose working directory is the bundle and whose command line names the container.
/// Returns who they were.
///
/// Each may have started another while we looked, so it goes on until a look finds none; a process that is there all the
/// time of a look is found by it.
pub(crate) async fn end(name: &Name, bundle: &Path) -> io::Result<Vec<Init>> {
    let mut ended = Vec::new();
    loop {
        let found = find(name, bundle)?;
        if found.is_empty() {
            return Ok(ended);
        }
        for (init, pidfd) in found {
            match pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL) {
                Ok(()) | Err(Failed { errno: Errno::ESRCH, .. }) => {}
                Err(failed) => return Err(io::Error::other(format!("kill process {}: {failed}", init.pid))),
            }
            drop(sys::watch(pidfd, Interest::READABLE)?.readable().await?);
            ended.push(init);
        }
    }
}

fn find(name: &Name, bundle: &Path) -> io::Result<Vec<(Init, OwnedFd)>> {
    let Ok(bundle) = fs::metadata(bundle) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")? {
        let process = process?;
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw) else {
            continue;
        };
        // Ended meanwhile, or somebody else's, which is none of ours.
        let Ok(cwd) = fs::metadata(process.path().join("cwd")) else { continue };
        if (cwd.dev(), cwd.ino()) != (bundle.dev(), bundle.ino()) {
            continue;
        }
        // What was found by its number is looked at again now that it can have no other.
        let Ok(pidfd) = pidfd_open(pid) else { continue };
        let (Ok(command), Ok(init)) = (fs::read(process.path().join("cmdline")), Init::of(pid)) else { continue };
        if is_of(name, &command) {
            found.push((init, pidfd));
        }
    }
    Ok(found)
}

/// Whether a command line is that of the container's shim, in whatever action.
fn is_of(name: &Name, command: &[u8]) -> bool {
    let arguments: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
    let says = |flag: &str, value: &str| {
        arguments.windows(2).any(|pair| {
            let [argument, next] = pair else { return false };
            *argument == flag.as_bytes() && *next == std::ffi::OsStr::new(value).as_bytes()
        })
    };
    says("-namespace", &name.namespace) && says("-id", &name.id)
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        os::unix::process::ExitStatusExt as _,
        process::{Child, Command, Stdio},
    };

    use super::*;

    /// Waits for a line that never comes.
    fn start(bundle: &Path, id: &str) -> Child {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo; read line", "shim", "-namespace", "default", "-id", id, "start"]);
        command.current_dir(bundle).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Until it has its own memory, it has no command line.
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        child
    }

    #[test]
    fn only_processes_of_the_launch_are_ended() {
        let folder = tempfile::tempdir().unwrap();
        let name = Name::new("default", "web-1").unwrap();
        let (mut ours, mut neighbour) = (start(folder.path(), "web-1"), start(folder.path(), "web-12"));
        let mut elsewhere = start(Path::new("/"), "web-1");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ended = runtime.block_on(end(&name, folder.path())).unwrap();
        assert_eq!(ended.first().map(|init| init.pid), Some(ours.id().cast_signed()));
        assert_eq!(ours.wait().unwrap().signal(), Some(libc::SIGKILL));
        for other in [&mut neighbour, &mut elsewhere] {
            assert!(other.try_wait().unwrap().is_none());
            other.kill().unwrap();
            other.wait().unwrap();
        }
        let none = runtime.block_on(end(&name, &folder.path().join("gone"))).unwrap();
        assert!(none.is_empty());
    }
}
