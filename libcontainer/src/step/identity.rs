//! From root with all rights to the process of the spec.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::personality::{self, Persona};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{AccessFlags, Gid, Pid, Uid, faccessat, setgroups, sethostname, setresgid, setresuid, write};

use super::{Caps, Label, Rlimit, User};
use crate::run::{Fds, Message};
use crate::seccomp::Filter;
use crate::sys::process::{
    capset, close_range, exit_now, join_session_keyring, key_permissions, prctl, prlimit, set_key_permissions,
};
use crate::sys::{Call, Failed, io_failed};

/// A kernel without keyrings has none to leak.
pub(super) fn keyring(name: &CStr, others: bool) -> Result<(), Failed> {
    // keyctl(2): search right for the same user, or, seen from another user namespace, for others.
    const USER_SEARCH: u32 = 0x0008_0000;
    const OTHER_SEARCH: u32 = 0x0000_0008;
    let key = match join_session_keyring(name) {
        Err(Failed { errno: Errno::ENOSYS, .. }) => return Ok(()),
        key => key?,
    };
    set_key_permissions(key, key_permissions(key)? | if others { OTHER_SEARCH } else { USER_SEARCH })
}

/// The working directory; made only where it is missing, as engines expect.
pub(super) fn make_cwd(cwd: &CStr) -> Result<(), Failed> {
    let path = path_of(cwd);
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(io_failed(Call::Mkdir))
}

fn path_of(text: &CStr) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(text.to_bytes()))
}

/// Writes a file of the verified procfs, and of nothing that is mounted over part of it (EXDEV): what is meant for the
/// kernel must not end in a file of somebody's choice (CVE-2025-52881).
pub(super) fn write_proc(path: &CStr, value: &str, fds: &Fds) -> Result<(), Failed> {
    let proc = Fds::have(fds.proc.as_ref())?;
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let within = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags).resolve(within);
    let file = openat2(proc.as_fd(), path, how).map_err(Call::Open.failed())?;
    write(&file, value.as_bytes()).map_err(Call::Write.failed())?;
    Ok(())
}

pub(super) fn hostname(name: &str) -> Result<(), Failed> {
    sethostname(name).map_err(Call::Sethostname.failed())
}

/// Takes effect when the program is executed.
pub(super) fn label(label: &Label, fds: &Fds) -> Result<(), Failed> {
    match label {
        Label::SeLinux(label) => write_proc(c"self/attr/exec", label, fds),
        Label::AppArmor(profile) => {
            let command = format!("exec {profile}");
            match write_proc(c"self/attr/apparmor/exec", &command, fds) {
                // Before Linux 5.8 there was one file for all security modules.
                Err(Failed { call: Call::Open, errno: Errno::ENOENT }) => write_proc(c"self/attr/exec", &command, fds),
                done => done,
            }
        }
    }
}

impl Rlimit {
    /// Sets it for `pid`; 0 is this process.
    pub(crate) fn set(&self, pid: Pid) -> Result<(), Failed> {
        prlimit(pid, self.resource, self.soft, self.hard)
    }
}

/// Through the runtime's /proc, which is still ours, and knows us whatever pid namespace we were born in.
pub(super) fn oom_score_adj(score: i32) -> Result<(), Failed> {
    fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(io_failed(Call::Write))
}

pub(super) fn affinity(cpus: &[u64]) -> Result<(), Failed> {
    let mut set = CpuSet::new();
    for cpu in (0..cpus.len() * 64).filter(|cpu| cpus[cpu / 64] & (1 << (cpu % 64)) != 0) {
        set.set(cpu).map_err(Call::SchedSetaffinity.failed())?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).map_err(Call::SchedSetaffinity.failed())
}

pub(super) fn personality(persona: u32) -> Result<(), Failed> {
    personality::set(Persona::from_bits_retain(persona.cast_signed())).map_err(Call::Personality.failed())?;
    Ok(())
}

pub(super) fn no_new_privileges() -> Result<(), Failed> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0])?;
    Ok(())
}

/// Loads the filter. Its listener is fetched by the runtime, which knows whom it is for.
///
/// From here on the filter may hold up any call but write(2) until somebody listens: so the runtime is told by a write,
/// and takes the descriptor out of us by itself (pidfd_getfd(2)). It must have it before we go on to close it.
pub(super) fn seccomp(filter: &Filter, fds: &Fds) -> Result<(), Failed> {
    let Some(listener) = filter.load().map_err(Call::Seccomp.failed())? else { return Ok(()) };
    Message::Listener(listener.as_raw_fd()).write(fds.wire.as_fd())?;
    match Message::wait(fds.wire.as_fd())? {
        Some(Message::Go(_)) => Ok(()),
        _ => exit_now(1), // the runtime is gone
    }
}

/// What `caps` reports only as text, this thread's errno still says.
fn capability_failed<E>(_: E) -> Failed {
    Failed { call: Call::Prctl, errno: Errno::last() }
}

/// Capabilities by number: `caps` has them by name.
fn each_capability(mask: u64) -> impl Iterator<Item = caps::Capability> {
    caps::all().into_iter().filter(move |cap| mask & cap.bitmask() != 0)
}

pub(super) fn bounding(set: u64) -> Result<(), Failed> {
    for cap in each_capability(!set) {
        match caps::drop(None, caps::CapSet::Bounding, cap) {
            Ok(()) => {}
            // A capability the kernel does not know is in no set.
            Err(_) if Errno::last() == Errno::EINVAL => {}
            Err(error) => return Err(capability_failed(error)),
        }
    }
    Ok(())
}

/// `caps` sets one of these three at a time, with a read before each, and loses the errno: one capset(2) does it.
pub(super) fn capabilities(caps: &Caps) -> Result<(), Failed> {
    prctl(libc::PR_SET_KEEPCAPS, [0; 4])?;
    capset(caps.effective, caps.permitted, caps.inheritable)?;
    prctl(libc::PR_CAP_AMBIENT, [libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0, 0, 0])?;
    each_capability(caps.ambient)
        .try_for_each(|cap| caps::raise(None, caps::CapSet::Ambient, cap).map_err(capability_failed))
}

/// User, groups, umask, working directory. The permitted set is kept over the change; the next step narrows it.
pub(super) fn become_user(user: &User, mask: Option<u32>, cwd: &CStr) -> Result<(), Failed> {
    // As root first: engines mount volumes for the container's user below directories that only root may search.
    let entered = nix::unistd::chdir(cwd);
    if let Err(errno) = entered
        && errno != Errno::EACCES
    {
        return Err(Failed { call: Call::Chdir, errno });
    }
    prctl(libc::PR_SET_KEEPCAPS, [1, 0, 0, 0])?;
    if user.may_set_groups {
        let groups = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect::<Vec<_>>();
        setgroups(&groups).map_err(Call::Setgroups.failed())?;
    } else if !user.groups.is_empty() {
        return Err(Failed { call: Call::Setgroups, errno: Errno::EPERM });
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setresgid(gid, gid, gid).map_err(Call::Setgid.failed())?;
    setresuid(uid, uid, uid).map_err(Call::Setuid.failed())?;
    prctl(libc::PR_SET_DUMPABLE, [0; 4])?;
    if let Some(mask) = mask {
        umask(Mode::from_bits_truncate(mask));
    }
    if entered.is_err() {
        nix::unistd::chdir(cwd).map_err(Call::Chdir.failed())?;
    }
    // A directory outside the root, reached through a leaked descriptor, has no name in it (CVE-2024-21626).
    match nix::unistd::getcwd() {
        Ok(path) if path.is_absolute() => Ok(()),
        Ok(_) => Err(Failed { call: Call::Getcwd, errno: Errno::ENOENT }),
        Err(errno) => Err(Failed { call: Call::Getcwd, errno }),
    }
}

/// The file that `program` means, searched for in the process's own PATH, and its HOME if the environment has none.
pub(super) fn find_program(program: &CStr, env: &[CString], fds: &mut Fds) -> Result<(), Failed> {
    let variable = |name: &[u8]| env.iter().find_map(|line| line.to_bytes().strip_prefix(name));
    let found = if program.to_bytes().contains(&b'/') {
        executable(path_of(program)).map(|()| program.to_owned())?
    } else {
        let path = variable(b"PATH=").unwrap_or_default();
        let mut failure = Errno::ENOENT;
        let mut search = path.split(|byte| *byte == b':').filter_map(|directory| {
            let directory = if directory.is_empty() { &b"."[..] } else { directory };
            let candidate = Path::new(std::ffi::OsStr::from_bytes(directory)).join(path_of(program));
            match executable(&candidate) {
                Ok(()) => CString::new(candidate.into_os_string().as_encoded_bytes()).ok(),
                Err(Failed { errno: Errno::EACCES, .. }) => {
                    failure = Errno::EACCES;
                    None
                }
                Err(_) => None,
            }
        });
        let found = search.next();
        found.ok_or(Failed { call: Call::Access, errno: failure })?
    };
    fds.program = Some(found);
    if variable(b"HOME=").is_none() {
        fds.home = CString::new(format!("HOME={}", home().display())).ok();
    }
    Ok(())
}

fn executable(path: &Path) -> Result<(), Failed> {
    let failed = |errno| Failed { call: Call::Access, errno };
    let metadata = fs::metadata(path).map_err(io_failed(Call::Access))?;
    if metadata.is_dir() {
        return Err(failed(Errno::EISDIR));
    }
    // Root may "execute" what nobody may; the kernel then refuses at execve(2), too late for a good message.
    if metadata.mode() & 0o111 == 0 {
        return Err(failed(Errno::EACCES));
    }
    faccessat(nix::fcntl::AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS).map_err(failed)
}

/// The home directory that the container's /etc/passwd names for our user; `/` if it names none.
fn home() -> PathBuf {
    const MOST: u64 = 1 << 20; // the file is the container's; do not read for ever
    let uid = nix::unistd::getuid().to_string();
    let Ok(file) = fs::File::open("/etc/passwd") else { return "/".into() };
    let lines = BufReader::new(file.take(MOST)).lines().map_while(Result::ok);
    let mut homes = lines.filter_map(|line| {
        let fields = line.split(':').collect::<Vec<_>>();
        (fields.get(2) == Some(&uid.as_str())).then(|| fields.get(5).map(PathBuf::from)).flatten()
    });
    homes.next().filter(|home| !home.as_os_str().is_empty()).unwrap_or_else(|| "/".into())
}

/// All descriptors of ours are close-on-exec already; this makes sure.
pub(super) fn leave(fds: &Fds) -> Result<(), Failed> {
    close_range(3 + fds.preserved, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)?;
    Message::Executing.write(fds.wire.as_fd())
}

/// Executes the program. The filter may allow nothing else.
pub(super) fn exec(args: &[CString], env: &[CString], fds: &Fds) -> Result<(), Failed> {
    let program = Fds::have(fds.program.as_ref())?;
    let env = env.iter().chain(&fds.home).map(CString::as_c_str).collect::<Vec<_>>();
    match nix::unistd::execve(program, args, &env) {
        Ok(never) => match never {},
        Err(errno) => Err(Failed { call: Call::Execve, errno }),
    }
}
