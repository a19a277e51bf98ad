//! Making and shaping a process: clone3, descriptors, credentials, scheduling.
#![expect(unsafe_code, reason = "raw system calls that nix has no wrapper for")]

use std::ffi::CStr;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use libc::{c_int, c_long, c_uint, c_ulong};
use nix::errno::Errno;
use nix::unistd::Pid;

use super::{Call, Failed, check, io_failed};

/// Which of the two processes `clone3` returned in.
pub enum Cloned {
    /// The caller, with the child's pid in its own pid namespace and a pidfd for it.
    Parent(Pid, OwnedFd),
    /// The copy.
    Child,
}

/// What `clone3(2)` is asked for beyond the namespace flags.
pub struct CloneOptions<'a> {
    /// `CLONE_NEW*` and `CLONE_PARENT`.
    pub flags: u64,
    /// The cgroup v2 directory the child is born in (`CLONE_INTO_CGROUP`, Linux 5.7).
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// `clone3(2)` as a fork: copied memory, a pidfd, handlers reset to their defaults. Linux 5.5.
///
/// Only for a process with one thread: the child may then do everything a process may.
pub fn clone3(options: &CloneOptions<'_>) -> Result<Cloned, Failed> {
    // libc's own constants are too narrow for these two (clone(2)).
    const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    let mut flags = options.flags | libc::CLONE_PIDFD as u64 | CLEAR_SIGHAND;
    if options.cgroup.is_some() {
        flags |= INTO_CGROUP;
    }
    // With CLONE_PARENT the signal at exit is the parent's own, and must not be given.
    let exit_signal = if options.flags & libc::CLONE_PARENT as u64 == 0 { libc::SIGCHLD as u64 } else { 0 };
    let args = libc::clone_args {
        flags,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: options.cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: `args` is a live struct of the given size; without CLONE_VM the child works on its own copy of our memory.
    let pid = check(Call::Clone3, unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel stored a new descriptor in `pidfd`, which nobody else knows.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent(Pid::from_raw(pid as i32), pidfd))
}

/// `_exit(2)`: ends this process without destructors, as the child of a clone must.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(code) }
}

/// `pidfd_open(2)`. Linux 5.3.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd, Failed> {
    // SAFETY: no pointers are passed.
    let fd = check(Call::PidfdOpen, unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: the kernel returned a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The process a pidfd is for, by its number in the pid namespace of our procfs (pidfd_open(2), fdinfo). `ESRCH` once it was
/// reaped.
pub fn pidfd_pid(pidfd: BorrowedFd<'_>) -> Result<Pid, Failed> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()));
    let info = info.map_err(io_failed(Call::Read))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|pid| pid.trim().parse().ok());
    pid.filter(|&pid| pid > 0).map(Pid::from_raw).ok_or(Failed { call: Call::PidfdOpen, errno: Errno::ESRCH })
}

/// `pidfd_getfd(2)`: a copy of descriptor `number` of the process behind `pidfd`. Linux 5.6.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd, Failed> {
    let nr = libc::SYS_pidfd_getfd;
    // SAFETY: no pointers are passed.
    let fd = check(Call::PidfdGetfd, unsafe { libc::syscall(nr, pidfd.as_raw_fd(), number, 0) })?;
    // SAFETY: the kernel returned a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// `pidfd_send_signal(2)`. Linux 5.1.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Failed> {
    let info = ptr::null::<libc::siginfo_t>();
    let (nr, fd) = (libc::SYS_pidfd_send_signal, pidfd.as_raw_fd());
    // SAFETY: a null siginfo is allowed and means what kill(2) sends.
    check(Call::PidfdSendSignal, unsafe { libc::syscall(nr, fd, signal, info, 0) })?;
    Ok(())
}

/// `close_range(2)` on `first..=last`; `libc::CLOSE_RANGE_CLOEXEC` only marks them. Linux 5.9 (the flag 5.11).
pub fn close_range(first: u32, last: u32, flags: u32) -> Result<(), Failed> {
    // SAFETY: no pointers are passed; the callers own every descriptor in the range or mean to end it.
    check(Call::CloseRange, unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) })?;
    Ok(())
}

/// `prctl(2)` with up to four plain numbers.
pub fn prctl(option: c_int, args: [c_ulong; 4]) -> Result<c_int, Failed> {
    let [a, b, c, d] = args;
    // SAFETY: used with options that take numbers only.
    Ok(check(Call::Prctl, c_long::from(unsafe { libc::prctl(option, a, b, c, d) }))? as c_int)
}

/// `capset(2)` of this thread: effective, permitted and inheritable in one call, one bit each as in `capabilities(7)`.
pub fn capset(effective: u64, permitted: u64, inheritable: u64) -> Result<(), Failed> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 takes a header and two data structs, both live and only read.
    check(Call::Capset, unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

/// `keyctl(2)` `KEYCTL_JOIN_SESSION_KEYRING`: a new session keyring of this name. Returns its id.
pub fn join_session_keyring(name: &CStr) -> Result<i32, Failed> {
    let op = c_long::from(libc::KEYCTL_JOIN_SESSION_KEYRING);
    // SAFETY: the name is a live C string, which the kernel only reads.
    Ok(check(Call::Keyctl, unsafe { libc::syscall(libc::SYS_keyctl, op, name.as_ptr()) })? as i32)
}

/// `keyctl(2)` `KEYCTL_SETPERM`: the permission mask of `key`.
pub fn set_key_permissions(key: i32, mask: u32) -> Result<(), Failed> {
    let op = c_long::from(libc::KEYCTL_SETPERM);
    // SAFETY: no pointers are passed.
    check(Call::Keyctl, unsafe { libc::syscall(libc::SYS_keyctl, op, key, mask) })?;
    Ok(())
}

/// `keyctl(2)` `KEYCTL_DESCRIBE`: the permission mask of `key`, the fourth field of its description.
pub fn key_permissions(key: i32) -> Result<u32, Failed> {
    let op = c_long::from(libc::KEYCTL_DESCRIBE);
    let mut text = [0u8; 256];
    let (buffer, size) = (text.as_mut_ptr(), text.len());
    // SAFETY: the buffer is live and as long as said.
    let used = check(Call::Keyctl, unsafe { libc::syscall(libc::SYS_keyctl, op, key, buffer, size) })? as usize;
    let text = text.get(..used.min(text.len())).unwrap_or_default();
    text.split(|b| *b == b';')
        .nth(3)
        .and_then(|field| std::str::from_utf8(field).ok())
        .and_then(|field| u32::from_str_radix(field, 16).ok())
        .ok_or(Failed { call: Call::Keyctl, errno: nix::errno::Errno::EBADMSG })
}

/// `ioprio_set(2)` of this process; `value` is class and level as in `ioprio_set(2)`.
pub fn ioprio_set(value: c_int) -> Result<(), Failed> {
    const WHO_PROCESS: c_int = 1;
    // SAFETY: no pointers are passed.
    check(Call::IoprioSet, unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) })?;
    Ok(())
}

/// The scheduling attributes of `sched_setattr(2)`; times in nanoseconds.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// Size of this struct, for the kernel.
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value, for the ordinary policies.
    pub nice: i32,
    /// Priority, for the real-time policies.
    pub priority: u32,
    /// `SCHED_DEADLINE`.
    pub runtime: u64,
    /// `SCHED_DEADLINE`.
    pub deadline: u64,
    /// `SCHED_DEADLINE`.
    pub period: u64,
}

/// `sched_setattr(2)` of this process. Linux 3.14.
pub fn sched_setattr(attr: &SchedAttr) -> Result<(), Failed> {
    let attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..*attr };
    // SAFETY: the struct is live and carries its own size.
    check(Call::SchedSetattr, unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })?;
    Ok(())
}

/// `set_mempolicy(2)`: `mode` with its flags, and the nodes as a bit mask of `u64` words.
pub fn set_mempolicy(mode: c_int, nodes: &[u64]) -> Result<(), Failed> {
    let (mask, bits) = (nodes.as_ptr(), nodes.len() * 64 + 1);
    // SAFETY: the mask is live; maxnode counts its bits plus one, as the kernel wants.
    check(Call::SetMempolicy, unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) })?;
    Ok(())
}

/// `setdomainname(2)`.
pub fn setdomainname(name: &str) -> Result<(), Failed> {
    let (bytes, len) = (name.as_ptr(), name.len());
    // SAFETY: pointer and length are of one live string, which the kernel only reads.
    check(Call::Setdomainname, unsafe { libc::syscall(libc::SYS_setdomainname, bytes, len) })?;
    Ok(())
}

/// `prlimit(2)`: sets `resource` of `pid` (0: this process).
pub fn prlimit(pid: Pid, resource: u32, soft: u64, hard: u64) -> Result<(), Failed> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let old = ptr::null_mut::<libc::rlimit64>();
    let nr = libc::SYS_prlimit64;
    // SAFETY: the new limit is live and only read; a null old limit is allowed.
    check(Call::Prlimit, unsafe { libc::syscall(nr, pid.as_raw(), resource as c_uint, &raw const limit, old) })?;
    Ok(())
}

/// The default action for `signal`, which a parent may have left ignored. By the raw call (rt_sigaction(2)), because
/// glibc refuses the two signals it uses for itself and which a parent may have ignored all the same.
pub fn reset_signal(signal: c_int) -> Result<(), Failed> {
    // The kernel's struct: handler (SIG_DFL is 0), flags, restorer and mask, one word each.
    let default = [0_u64; 4];
    let (old, set_size) = (ptr::null_mut::<u64>(), size_of::<u64>());
    let nr = libc::SYS_rt_sigaction;
    // SAFETY: the action is live and only read; a null old action is allowed.
    check(Call::Sigaction, unsafe { libc::syscall(nr, signal, default.as_ptr(), old, set_size) })?;
    Ok(())
}

/// Blocks every signal; returns the mask there was.
pub fn block_signals() -> Result<libc::sigset_t, Failed> {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut old = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: fills the set it is given.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: both sets are live; the first is filled above.
    let ret = unsafe { libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr()) };
    check(Call::Sigprocmask, c_long::from(ret))?;
    // SAFETY: the call above succeeded and so has written the old mask.
    Ok(unsafe { old.assume_init() })
}

/// Puts a mask back that [`block_signals`] returned.
pub fn restore_signals(mask: &libc::sigset_t) -> Result<(), Failed> {
    // SAFETY: the mask is live and only read; a null old mask is allowed.
    let ret = unsafe { libc::sigprocmask(libc::SIG_SETMASK, mask, ptr::null_mut()) };
    check(Call::Sigprocmask, c_long::from(ret))?;
    Ok(())
}

/// Unblocks every signal, as a new program expects to find it.
pub fn unblock_signals() -> Result<(), Failed> {
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: empties the set it is given.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set is live and emptied above.
    let ret = unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
    check(Call::Sigprocmask, c_long::from(ret))?;
    Ok(())
}

nix::ioctl_write_int_bad!(
    /// `TIOCSCTTY`: this terminal becomes the controlling one of the session we lead.
    tiocsctty,
    libc::TIOCSCTTY
);
nix::ioctl_write_ptr_bad!(
    /// `TIOCSWINSZ`: the size of a terminal, in characters.
    tiocswinsz,
    libc::TIOCSWINSZ,
    libc::winsize
);
nix::ioctl_write_ptr_bad!(
    /// `TIOCSPTLCK`: locks or unlocks the other end of a pty.
    tiocsptlck,
    libc::TIOCSPTLCK,
    c_int
);

/// Makes the terminal behind `fd` the controlling one of this session.
pub fn set_controlling_terminal(fd: BorrowedFd<'_>) -> Result<(), Failed> {
    // SAFETY: an ioctl with a plain number.
    unsafe { tiocsctty(fd.as_raw_fd(), 0) }.map_err(Call::Ioctl.failed())?;
    Ok(())
}

/// Sets the size of the terminal behind `fd`, in characters.
pub fn set_window_size(fd: BorrowedFd<'_>, width: u16, height: u16) -> Result<(), Failed> {
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the struct is live and only read.
    unsafe { tiocswinsz(fd.as_raw_fd(), &raw const size) }.map_err(Call::Ioctl.failed())?;
    Ok(())
}

/// The other end of the pty behind `master`, unlocked, without a look at any path. Linux 4.13.
pub fn open_pty_peer(master: BorrowedFd<'_>) -> Result<OwnedFd, Failed> {
    let unlock: c_int = 0;
    // SAFETY: the number is live and only read.
    unsafe { tiocsptlck(master.as_raw_fd(), &raw const unlock) }.map_err(Call::Ioctl.failed())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: an ioctl with a plain number.
    let fd = check(Call::Ioctl, c_long::from(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) }))?;
    // SAFETY: the kernel returned a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Brings the loopback interface of this network namespace up (`SIOCSIFFLAGS`, netdevice(7)).
pub fn loopback_up(socket: BorrowedFd<'_>) -> Result<(), Failed> {
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is live and only read.
    let ret = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    check(Call::Ioctl, c_long::from(ret))?;
    Ok(())
}

/// The kind of namespace behind `fd` as a `CLONE_NEW*` flag (`NS_GET_NSTYPE`, ioctl_ns(2)). Linux 4.11.
pub fn namespace_kind(fd: BorrowedFd<'_>) -> Result<c_int, Failed> {
    const NS_GET_NSTYPE: c_ulong = 0xb703;
    // SAFETY: an ioctl without an argument.
    Ok(check(Call::Ioctl, c_long::from(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) }))? as c_int)
}

/// Whether the namespace behind `fd` belongs to our user namespace or to one below (`NS_GET_USERNS`, ioctl_ns(2)): the
/// kernel shows us no other owner. Linux 4.9.
pub fn namespace_is_below_us(fd: BorrowedFd<'_>) -> bool {
    const NS_GET_USERNS: c_ulong = 0xb701;
    // SAFETY: an ioctl without an argument.
    let Ok(owner) = check(Call::Ioctl, c_long::from(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_USERNS as _) })) else {
        return false;
    };
    // SAFETY: the kernel returned a new descriptor, which nobody else knows.
    drop(unsafe { OwnedFd::from_raw_fd(owner as RawFd) });
    true
}

/// Descriptors held by number, for the one place where a caller passes bare numbers to its container.
pub fn dup_to(fd: BorrowedFd<'_>, number: RawFd) -> Result<(), Failed> {
    // SAFETY: the target number is one of the three standard streams of a process about to exec, owned by nobody.
    check(Call::Dup, c_long::from(unsafe { libc::dup2(fd.as_raw_fd(), number) }))?;
    Ok(())
}

/// A copy of `fd` with a number of at least `lowest`, close-on-exec.
pub fn dup_above(fd: BorrowedFd<'_>, lowest: RawFd) -> Result<OwnedFd, Failed> {
    // SAFETY: fcntl with a plain number.
    let copy = check(Call::Fcntl, c_long::from(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) }))?;
    // SAFETY: the kernel returned a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(copy as RawFd) })
}
