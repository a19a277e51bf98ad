//! `delete`: removes what is left of one container whose shim is gone, however that one ended, and says how it ended.
//!
//! containerd also calls it after every ordinary end, when nothing is left, and may call it again. Other containers of
//! the same pod are none of its business.

use std::{
    env, fs,
    io::{self, Write as _},
    path::Path,
    time::SystemTime,
};

use anyhow::{Context as _, Error, Result, anyhow};
use libcontainer::{
    container,
    rootfs::{self, Unmounted},
    state::{Dir, StateError},
};
use protobuf::{Message as _, MessageField};
use runtime_v2_api::task::DeleteResponse;

use crate::{address, args::Args, log as journal, options::saved_state_root, publish::timestamp, start::ADDRESS};

/// The exit status of a process that SIGKILL ended, which is what we do to it, or what nobody knows better any more.
const KILLED: u32 = 128 + libc::SIGKILL.cast_unsigned();

/// Removes the container and prints its end.
pub(crate) fn delete(args: &Args) -> Result<()> {
    journal::to_stderr(args)?;
    let bundle = match &args.bundle {
        Some(bundle) => bundle.clone(),
        None => env::current_dir().context("find the bundle, which is the working directory")?,
    };
    // Each is tried whatever became of the one before.
    let failures: Vec<String> = [remove_container(&bundle, args), unmount(&bundle), remove_socket(&bundle)]
        .into_iter()
        .filter_map(|done| done.err().map(|error| format!("{error:#}")))
        .collect();
    if !failures.is_empty() {
        return Err(anyhow!(failures.join("; ")).context(format!("delete {}", args.id)));
    }
    let response = DeleteResponse {
        pid: init_pid(&bundle),
        exit_status: KILLED,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..Default::default()
    };
    let response = response.write_to_bytes().context("encode the answer")?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(&response).and_then(|()| stdout.flush()).context("write to stdout")
}

/// Kills its processes; removes its cgroup and its state.
fn remove_container(bundle: &Path, args: &Args) -> Result<()> {
    let root = saved_state_root(bundle, &args.namespace).context("read the saved options")?;
    match Dir::lock(&root.join(&args.id)) {
        Ok(dir) => container::delete(dir, true).map_err(Error::from),
        // It was deleted properly, or was never made.
        Err(StateError::Missing) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn unmount(bundle: &Path) -> Result<()> {
    let path = bundle.join("rootfs");
    match rootfs::unmount_all(&path)? {
        Unmounted::Done => Ok(()),
        Unmounted::Busy => Err(anyhow!("unmount {}: something still uses it", path.display())),
    }
}

/// Removes the socket of a shim that was killed: it is the last to know of it, as containerd keeps no note.
fn remove_socket(bundle: &Path) -> Result<()> {
    match fs::read_to_string(bundle.join(ADDRESS)) {
        Ok(address) => address.strip_prefix("unix://").map_or(Ok(()), |path| address::sweep(Path::new(path))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).context("read the shim's address"),
    }
}

/// The container's first process as it was recorded, or 0, which is nobody, if it never came to that.
fn init_pid(bundle: &Path) -> u32 {
    fs::read_to_string(bundle.join("init.pid")).ok().and_then(|pid| pid.trim().parse().ok()).unwrap_or(0)
}
