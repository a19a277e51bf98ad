//! Starting a supervisor in the background, for who finds that none runs.

use std::{
    env,
    ffi::{CString, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStringExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use libcontainer::sys::{spawn, wait};
use nix::unistd::Pid;
use tokio::{io::Interest, net::UnixDatagram};

use crate::{
    config::Config,
    socket::{holder, make_private},
    sys,
};

/// What of our environment the supervisor may know: it outlives whoever started it.
const PASSED_ON: [&str; 8] = [
    "DBUS_SESSION_BUS_ADDRESS",
    "HOME",
    "PATH",
    "USER",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
    "TMPDIR",
];

/// Larger, the log of supervisors started like this is set aside.
const LARGEST_LOG: u64 = 1 << 20;

/// A supervisor that runs now.
#[derive(Debug)]
pub enum Started {
    /// By us, with this pid.
    Ours(Pid),
    /// By somebody who was faster. It may not listen yet.
    Somebodys,
}

/// Which folders the supervisor is to use.
#[derive(Clone, Debug)]
pub struct Folders {
    /// As in [`Config`].
    pub state: PathBuf,
    /// As in [`Config`].
    pub root: PathBuf,
    /// They are the ones it would use anyway.
    pub usual: bool,
}

impl Folders {
    /// Those of this configuration, in which flags `named` one of them or not.
    pub fn new(config: Config, named: bool) -> Folders {
        Folders { state: config.state, root: config.root, usual: !named }
    }

    /// What the supervisor logs to, if it is started from here.
    pub fn log(&self) -> PathBuf {
        self.root.join("dunnaged.log")
    }
}

/// Starts `dunnaged` in a session of its own, and waits until it says that it serves.
///
/// # Errors
/// When it cannot be found or started, or ends at once; the text has what it said.
pub async fn start(folders: &Folders) -> Result<Started> {
    let binary = binary()?;
    make_private(&folders.state)?;
    make_private(&folders.root)?;
    let (notices, _socket) = Notices::listen(&folders.state)?;
    let mut log = open_log(&folders.log())?;
    let (pid, pidfd) = execute(&binary, folders, &notices, &log)?;
    let ended = sys::watch(pidfd.try_clone().context("watch the supervisor")?, Interest::READABLE);
    let ended = ended.context("watch the supervisor")?;
    let exit = tokio::select! {
        ready = notices.ready() => return ready.map(|()| Started::Ours(pid)),
        ended = ended.readable() => ended.map(drop).context("watch the supervisor")
            .and_then(|()| Ok(wait::child(pidfd.as_fd())?))?,
    };
    if is_locked(&folders.state)? {
        return Ok(Started::Somebodys);
    }
    let mut said = String::new();
    log.read_to_string(&mut said).with_context(|| format!("read {}", folders.log().display()))?;
    bail!("the supervisor did not start ({exit}): {}", said.trim_end())
}

/// The binary beside ours, or on the PATH.
fn binary() -> Result<PathBuf> {
    let own = env::current_exe().context("find our own binary")?;
    let beside = own.parent().map(|folder| folder.join("dunnaged"));
    let path = env::var_os("PATH").unwrap_or_default();
    let mut candidates = beside.into_iter().chain(env::split_paths(&path).map(|folder| folder.join("dunnaged")));
    candidates.find(|file| file.is_file()).with_context(|| {
        format!(
            "no supervisor runs, and there is no dunnaged to start: neither beside {} nor on the PATH",
            own.display()
        )
    })
}

/// Where the supervisor says that it is ready (sd_notify(3)).
struct Notices {
    socket: UnixDatagram,
    path: PathBuf,
}

/// Removes the socket's file.
struct Unlink(PathBuf);

impl Drop for Unlink {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            log::debug!("remove {}: {error}", self.0.display());
        }
    }
}

impl Notices {
    fn listen(state: &Path) -> Result<(Notices, Unlink)> {
        let path = state.join(format!("start-{}.sock", std::process::id()));
        match fs::remove_file(&path) {
            // Of a process of our pid that was killed here.
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("remove {}", path.display())),
        }
        let socket = UnixDatagram::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
        Ok((Notices { socket, path: path.clone() }, Unlink(path)))
    }

    async fn ready(&self) -> Result<()> {
        let mut notice = [0; 4096];
        loop {
            let length = self.socket.recv(&mut notice).await.context("hear from the supervisor")?;
            if notice[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                return Ok(());
            }
        }
    }
}

/// Opens the log to append to, and to read what is appended from now on.
fn open_log(path: &Path) -> Result<File> {
    let open = || OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path);
    let mut log = open().with_context(|| format!("open {}", path.display()))?;
    if log.metadata().with_context(|| format!("look at {}", path.display()))?.len() > LARGEST_LOG {
        // A supervisor that still runs goes on in the old file.
        let old = path.with_extension("log.1");
        fs::rename(path, &old).with_context(|| format!("rename {} to {}", path.display(), old.display()))?;
        log = open().with_context(|| format!("open {}", path.display()))?;
    }
    log.seek(SeekFrom::End(0)).with_context(|| format!("read {}", path.display()))?;
    Ok(log)
}

fn execute(binary: &Path, folders: &Folders, notices: &Notices, log: &File) -> Result<(Pid, OwnedFd)> {
    let mut argv = vec![OsString::from("dunnaged")];
    if !folders.usual {
        argv.extend([OsString::from("--state"), folders.state.clone().into()]);
        argv.extend([OsString::from("--root"), folders.root.clone().into()]);
    }
    let assigned = |name: &str, value: OsString| {
        let mut variable = OsString::from(format!("{name}="));
        variable.push(value);
        variable
    };
    let mut environment: Vec<OsString> =
        PASSED_ON.iter().filter_map(|name| Some(assigned(name, env::var_os(name)?))).collect();
    environment.push(assigned("NOTIFY_SOCKET", notices.path.clone().into()));
    let strings = |words: Vec<OsString>| words.into_iter().map(c_string).collect::<Result<Vec<CString>>>();
    let (path, argv, environment) = (c_string(binary.into())?, strings(argv)?, strings(environment)?);
    let null = File::open("/dev/null").context("open /dev/null")?;
    let command = spawn::Command {
        path: &path,
        argv: &argv,
        env: &environment,
        cwd: Some(c"/"),
        stdin: null.as_fd(),
        stderr: log.as_fd(),
    };
    spawn::spawn(&command).with_context(|| format!("start {}", binary.display()))
}

fn c_string(text: OsString) -> Result<CString> {
    CString::new(text.into_vec()).context("a path with a NUL in it")
}

/// Whether a supervisor has the folder, or is about to.
fn is_locked(state: &Path) -> Result<bool> {
    let path = state.join("lock");
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file.with_context(|| format!("open {}", path.display()))?,
    };
    let holder = holder(&file).with_context(|| format!("look at the lock {}", path.display()))?;
    Ok(holder.is_some())
}
