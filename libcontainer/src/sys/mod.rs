//! Every `unsafe` of the crate: one thin, typed function for each system call nix has no wrapper for.
//!
//! A function here does one call and says which one failed. It decides nothing.

use std::fmt;

use nix::errno::Errno;

pub mod cgroup;
pub mod exec;
pub(crate) mod in_root;
pub(crate) mod loopdev;
pub mod memory;
pub(crate) mod mount;
pub mod process;
pub mod seccomp;
pub mod shared;
pub mod socket;
pub mod spawn;
pub mod terminal;
pub(crate) mod userns;
pub mod wait;

/// Declares [`Call`]: one variant for each system call we name in errors.
macro_rules! calls {
    ($($variant:ident = $name:literal),* $(,)?) => {
        /// A system call, or the file operation it stands for, as it is named in errors.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Call {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
        }

        impl Call {
            const ALL: &[Call] = &[$(Call::$variant),*];

            /// The name as it stands in the man pages.
            pub fn name(self) -> &'static str {
                match self { $(Call::$variant => $name,)* }
            }
        }
    };
}

calls! {
    Accept = "accept4", Access = "access", Bind = "bind", Bpf = "bpf", Capset = "capset", Chdir = "chdir", Chown = "chown",
    Chroot = "chroot", Clone = "clone", Clone3 = "clone3", Close = "close", CloseRange = "close_range", Connect = "connect", Dup = "dup3",
    Eventfd = "eventfd", Execve = "execve", Execveat = "execveat", Fchdir = "fchdir", Fchmod = "fchmod", Fchown = "fchown", Fcntl = "fcntl",
    Fsconfig = "fsconfig", Fsmount = "fsmount", Fsopen = "fsopen", Fspick = "fspick", Fstat = "fstat", Fstatfs = "fstatfs",
    Getcwd = "getcwd", Getdents = "getdents64", Hook = "hook", InotifyAdd = "inotify_add_watch", Inotify = "inotify_init1", Ioctl = "ioctl",
    IoprioSet = "ioprio_set", Keyctl = "keyctl", Kill = "kill", Linkat = "linkat", Listen = "listen",
    MemfdCreate = "memfd_create", Mkdir = "mkdirat", Mknod = "mknodat", Mmap = "mmap", Mount = "mount",
    MountSetattr = "mount_setattr", MoveMount = "move_mount", Open = "open", OpenTree = "open_tree", Openat2 = "openat2",
    Personality = "personality", PidfdGetfd = "pidfd_getfd", PidfdOpen = "pidfd_open", PidfdSendSignal = "pidfd_send_signal", Pipe = "pipe2",
    PivotRoot = "pivot_root", Poll = "poll", Prctl = "prctl", Prlimit = "prlimit", Read = "read", Readlink = "readlinkat",
    Recvmsg = "recvmsg", Rename = "renameat", Rmdir = "rmdir", SchedSetaffinity = "sched_setaffinity",
    SchedSetattr = "sched_setattr", Seccomp = "seccomp", Sendmsg = "sendmsg", Setdomainname = "setdomainname",
    Setgid = "setresgid", Setgroups = "setgroups", Sethostname = "sethostname", SetMempolicy = "set_mempolicy",
    Setns = "setns", Setxattr = "setxattr", Setsid = "setsid", Setuid = "setresuid", Sigaction = "sigaction", Sigprocmask = "sigprocmask",
    Socket = "socket", Socketpair = "socketpair", Statfs = "statfs", Statx = "statx", Symlink = "symlinkat", Umount = "umount2",
    Unlink = "unlinkat", Unshare = "unshare", Utimens = "utimensat", Waitid = "waitid", Write = "write",
    // Not the kernel's: rules of ours about where a mount may go (EPERM).
    ProcRule = "nothing may hide /proc", RootRule = "nothing may hide the root directory",
    HostRule = "config.json would change a setting of the host's own namespace",
}

impl Call {
    /// The failure of this call with `errno`: `nix_call().map_err(Call::Mount.failed())`.
    pub fn failed(self) -> impl Fn(Errno) -> Failed {
        move |errno| Failed { call: self, errno }
    }

    /// The call with this number, for a number that came over the wire.
    pub(crate) fn from_number(number: u16) -> Option<Call> {
        Call::ALL.get(usize::from(number)).copied()
    }
}

/// A system call that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    /// The call.
    pub call: Call,
    /// What the kernel answered.
    pub errno: Errno,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}: {}", self.call.name(), self.errno, self.errno.desc())
    }
}

impl std::error::Error for Failed {}

/// Turns the return value of a raw call into a result; -1 means that errno says why.
pub(crate) fn check(call: Call, ret: libc::c_long) -> Result<libc::c_long, Failed> {
    if ret == -1 { Err(Failed { call, errno: Errno::last() }) } else { Ok(ret) }
}

/// The failure of `call` behind an `io::Error` of the standard library.
pub(crate) fn io_failed(call: Call) -> impl Fn(std::io::Error) -> Failed {
    move |error| Failed { call, errno: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_survives_the_wire() {
        for (number, call) in Call::ALL.iter().enumerate() {
            assert_eq!(*call as usize, number);
            assert_eq!(Call::from_number(number as u16), Some(*call));
        }
        assert_eq!(Call::from_number(u16::MAX), None);
    }

    #[test]
    fn a_failure_names_call_and_errno() {
        let failed = Call::Mount.failed()(Errno::EPERM);
        assert_eq!(failed.to_string(), "mount: EPERM: Operation not permitted");
    }
}
