//! OCI seccomp profiles, compiled to one BPF program and loaded.
//!
//! Compiling is pure and happens while a container is planned; the child only [loads](Filter::load). What a profile means is
//! what it means to runc with libseccomp, since that is where profiles were tried out. `rules` says how rules combine,
//! `program` how the result is laid out, and `tests/seccomp_verdicts.rs` holds both against libseccomp.
//!
//! seccompiler compiles the tests on arguments. Around it we do what it cannot: it makes one action and one errno per
//! filter for one 64-bit architecture, knows no x32, no 32-bit ABI and no user notification, kills on any other
//! architecture, and tries system calls one after the other, four hundred comparisons deep for Docker's profile.

mod program;
mod rules;
mod syscalls;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::errno::Errno;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompFilterFlag as Flag, LinuxSeccompOperator as Operator,
};
use seccompiler::BpfProgram;

pub use self::syscalls::Abi;
use self::{rules::Table, syscalls::Syscall};
use crate::sys;

/// The longest program the kernel takes: `BPF_MAXINSNS` of <linux/bpf_common.h>.
const LONGEST: usize = 4096;
/// The highest errno that `SECCOMP_RET_ERRNO` delivers as it is: `MAX_ERRNO` of the kernel.
const HIGHEST_ERRNO: u32 = 4095;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

pub(crate) const ACTIONS: [Action; 9] = [
    Action::ScmpActKill,
    Action::ScmpActKillThread,
    Action::ScmpActKillProcess,
    Action::ScmpActTrap,
    Action::ScmpActErrno,
    Action::ScmpActNotify,
    Action::ScmpActTrace,
    Action::ScmpActLog,
    Action::ScmpActAllow,
];
pub(crate) const FLAGS: [Flag; 4] = [
    Flag::SeccompFilterFlagTsync,
    Flag::SeccompFilterFlagLog,
    Flag::SeccompFilterFlagSpecAllow,
    Flag::SeccompFilterFlagWaitKillableRecv,
];

/// Every operator of an argument test.
pub(crate) const OPERATORS: [Operator; 7] = [
    Operator::ScmpCmpNe,
    Operator::ScmpCmpLt,
    Operator::ScmpCmpLe,
    Operator::ScmpCmpEq,
    Operator::ScmpCmpGe,
    Operator::ScmpCmpGt,
    Operator::ScmpCmpMaskedEq,
];

/// The architectures that programs on this machine can have, and rules be for.
pub(crate) fn architectures() -> Vec<Arch> {
    let known = [Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32, Arch::ScmpArchAarch64, Arch::ScmpArchArm];
    let native = Abi::NATIVE.into_iter();
    native.flat_map(|native| known.into_iter().filter(move |arch| native.of(*arch).is_some())).collect()
}

/// What this machine's kernel can do for a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSeccomp {
    /// The ABI of the container's programs. Part of every filter, listed or not.
    pub native: Abi,
    /// Actions the kernel knows. Empty without `CONFIG_SECCOMP_FILTER`.
    pub actions: Vec<Action>,
    /// Flags the kernel knows.
    pub flags: Vec<Flag>,
}

impl HostSeccomp {
    /// Asks the kernel. `None` on an architecture this module has no system call table for.
    pub fn detect() -> Option<Self> {
        let native = Abi::NATIVE?;
        let actions =
            ACTIONS.into_iter().filter(|action| sys::seccomp::action_available(action.as_u32(Some(0)))).collect();
        let flags = FLAGS.into_iter().filter(|flag| sys::seccomp::flags_available(probe_bits(*flag))).collect();
        Some(Self { native, actions, flags })
    }
}

fn flag_bit(flag: Flag) -> libc::c_ulong {
    match flag {
        Flag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
        Flag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        Flag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        Flag::SeccompFilterFlagWaitKillableRecv => libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    }
}

/// What must be set for the kernel to consider the flag at all.
fn probe_bits(flag: Flag) -> libc::c_ulong {
    match flag {
        Flag::SeccompFilterFlagWaitKillableRecv => flag_bit(flag) | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
        _ => flag_bit(flag),
    }
}

/// A compiled profile.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    /// The program, at most 4096 instructions long.
    pub program: BpfProgram,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: libc::c_ulong,
    /// Whom to hand the descriptor that [`Filter::load`] gives, if the profile notifies.
    pub listener: Option<Listener>,
}

/// The agent that answers `SCMP_ACT_NOTIFY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its `AF_UNIX` stream socket, in the runtime's mount namespace. The OCI container process state goes there.
    pub path: PathBuf,
    /// Passed on as it is, in that state's `metadata`.
    pub metadata: String,
}

/// Everything that is wrong with a profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SeccompError {
    /// At least one.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong with a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field below `linux.seccomp`, like `syscalls[3].args[0].index`.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux.seccomp.{}: {}", self.field, self.reason)
    }
}

impl fmt::Display for SeccompError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            write!(f, "{}{problem}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl Filter {
    /// Compiles a profile for a machine.
    ///
    /// Names of system calls that no ABI of the machine knows are passed over, as the profiles in use count on; so are
    /// architectures the machine cannot run. An `errnoRet` beside an action that returns none is passed over too: the
    /// specification wants an error there, but no runtime gives one, and profiles have them.
    ///
    /// # Errors
    /// All problems of the profile at once.
    pub fn compile(profile: &LinuxSeccomp, host: &HostSeccomp) -> Result<Self, SeccompError> {
        let mut compiler = Compiler { profile, host, problems: Vec::new() };
        let listener = compiler.listener();
        let flags = compiler.flags(listener.is_some());
        let program = compiler.program();
        if compiler.problems.is_empty() {
            Ok(Self { program, flags, listener })
        } else {
            Err(SeccompError { problems: compiler.problems })
        }
    }

    /// Puts the filter on the calling thread and everything it becomes or starts. Allocates nothing.
    ///
    /// Gives the notification descriptor, close-on-exec, if the filter notifies. From then on nobody answers notifications
    /// until someone else holds that descriptor: handing it over must do without the system calls that notify. `write`
    /// never does.
    ///
    /// # Errors
    /// The errno of `seccomp(2)`: `EACCES` without no_new_privs or CAP_SYS_ADMIN in the user namespace, `EBUSY` if an earlier
    /// filter of the process has a listener too, `EINVAL` if the kernel does not take the program or a flag.
    pub fn load(&self) -> Result<Option<OwnedFd>, Errno> {
        sys::seccomp::load(&self.program, self.flags)
    }
}

struct Compiler<'a> {
    profile: &'a LinuxSeccomp,
    host: &'a HostSeccomp,
    problems: Vec<Problem>,
}

impl Compiler<'_> {
    fn problem(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.problems.push(Problem { field: field.into(), reason: reason.into() });
    }

    fn listener(&mut self) -> Option<Listener> {
        let profile = self.profile;
        let rules = profile.syscalls().iter().flatten();
        let metadata = profile.listener_metadata().clone().unwrap_or_default();
        if profile.default_action() == Action::ScmpActNotify {
            // The runtime makes system calls between loading and exec, with nobody to answer for them yet.
            self.problem("defaultAction", "SCMP_ACT_NOTIFY would also stop the runtime itself; name the system calls");
        }
        let notifies = rules.clone().any(|rule| rule.action() == Action::ScmpActNotify);
        match profile.listener_path() {
            Some(path) if notifies => return Some(Listener { path: path.clone(), metadata }),
            None if notifies => {
                self.problem("listenerPath", "SCMP_ACT_NOTIFY needs the socket of an agent that answers")
            }
            None if !metadata.is_empty() => self.problem("listenerMetadata", "is set without a listenerPath"),
            _ => {}
        }
        None
    }

    fn flags(&mut self, notifies: bool) -> libc::c_ulong {
        let mut bits = if notifies { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
        for (i, flag) in self.profile.flags().iter().flatten().enumerate() {
            if !self.host.flags.contains(flag) {
                self.problem(format!("flags[{i}]"), format!("this kernel does not know {flag}"));
            }
            bits |= match flag {
                // The filter is loaded by a process of one thread; beside a listener the kernel would refuse the flag.
                Flag::SeccompFilterFlagTsync => 0,
                // Says how a notified call waits; the kernel refuses it where nothing notifies.
                Flag::SeccompFilterFlagWaitKillableRecv if !notifies => 0,
                _ => flag_bit(*flag),
            };
        }
        bits
    }

    /// The `SECCOMP_RET_*` value of the default action, or of a rule's.
    fn action(&mut self, action: Action, errno: Option<u32>, rule: Option<usize>) -> u32 {
        let field = |default: &str, of_rule: &str| match rule {
            None => default.to_owned(),
            Some(i) => format!("syscalls[{i}].{of_rule}"),
        };
        if !self.host.actions.contains(&action) {
            self.problem(field("defaultAction", "action"), format!("this kernel does not know {action}"));
        }
        let highest = match action {
            Action::ScmpActErrno => HIGHEST_ERRNO,
            Action::ScmpActTrace => libc::SECCOMP_RET_DATA,
            _ => return action.as_u32(None),
        };
        if let Some(errno) = errno.filter(|errno| *errno > highest) {
            let reason = format!("{errno} is too much for {action}, which has room up to {highest}");
            self.problem(field("defaultErrnoRet", "errnoRet"), reason);
            return action.as_u32(None);
        }
        action.as_u32(errno)
    }

    fn program(&mut self) -> BpfProgram {
        let (profile, native) = (self.profile, self.host.native);
        let default = self.action(profile.default_action(), profile.default_errno_ret(), None);
        let listed: Vec<Abi> = profile.architectures().iter().flatten().filter_map(|arch| native.of(*arch)).collect();
        let others = Abi::ALL.into_iter().filter(|abi| *abi != native && listed.contains(abi));
        let mut tables: Vec<Table> = [native].into_iter().chain(others).map(Table::new).collect();

        for (i, rule) in profile.syscalls().iter().flatten().enumerate() {
            let action = self.action(rule.action(), rule.errno_ret(), Some(i));
            let args = rule.args().as_deref().unwrap_or_default();
            for (n, arg) in args.iter().enumerate().filter(|(_, arg)| arg.index() > 5) {
                self.problem(format!("syscalls[{i}].args[{n}].index"), format!("{} is none of 0 to 5", arg.index()));
            }
            for (n, name) in rule.names().iter().enumerate() {
                if name.is_empty() {
                    self.problem(format!("syscalls[{i}].names[{n}]"), "is empty");
                }
                if name == "write" && rule.action() == Action::ScmpActNotify {
                    // As runc: with the filter on, the child must still say that there is a listener to fetch.
                    self.problem(
                        format!("syscalls[{i}].names[{n}]"),
                        "write cannot notify: the runtime itself needs it",
                    );
                }
                // With a problem found the program is never used, and an argument out of range would not fit in one.
                let Some(call) = Syscall::named(name).filter(|_| self.problems.is_empty()) else { continue };
                for table in &mut tables {
                    table.add(name, call, args, (action != default).then_some(action));
                }
            }
        }
        if !self.problems.is_empty() {
            return BpfProgram::new();
        }

        // A profile that forbids what it does not name cannot have meant calls that came after it. Programs probe for those
        // and have a way out if there is no such call, but not if it fails with EPERM or kills them.
        let newer = match profile.default_action() {
            Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace => None,
            _ => Some(ENOSYS),
        };
        let tables = tables.into_iter().map(|table| {
            let newer = newer.filter(|_| listed.contains(&table.abi));
            (table, newer)
        });
        match program::join(tables.collect(), default) {
            Ok(program) if program.len() <= LONGEST => return program,
            Ok(program) => {
                let reason = format!("make a program of {} instructions; the kernel takes {LONGEST}", program.len());
                self.problem("syscalls", reason);
            }
            Err(error) => self.problem("syscalls", format!("cannot be compiled: {error}")),
        }
        BpfProgram::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(json: &str, host: &HostSeccomp) -> Result<Filter, SeccompError> {
        Filter::compile(&serde_json::from_str(json).expect("an OCI profile"), host)
    }

    fn new_kernel() -> HostSeccomp {
        HostSeccomp { native: Abi::X86_64, actions: ACTIONS.to_vec(), flags: FLAGS.to_vec() }
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let host = HostSeccomp {
            native: Abi::X86_64,
            actions: vec![Action::ScmpActAllow, Action::ScmpActErrno],
            flags: vec![],
        };
        let error = compile(
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096, "flags": ["SECCOMP_FILTER_FLAG_LOG"], "syscalls": [
                {"names": ["read", ""], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]},
                {"names": ["write"], "action": "SCMP_ACT_NOTIFY"}
            ]}"#,
            &host,
        );
        let fields: Vec<String> = error.expect_err("six problems").problems.into_iter().map(|p| p.field).collect();
        let expected = [
            "listenerPath",
            "flags[0]",
            "defaultErrnoRet",
            "syscalls[0].args[0].index",
            "syscalls[0].names[1]",
            "syscalls[1].action",
            "syscalls[1].names[0]",
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn notifying_by_default_is_refused() {
        let error = compile(r#"{"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/agent"}"#, &new_kernel());
        assert_eq!(error.expect_err("refused").problems[0].field, "defaultAction");
    }

    #[test]
    fn a_program_the_kernel_would_refuse_is_a_problem() {
        let args: Vec<String> =
            (0..600).map(|v| format!(r#"{{"index": 0, "value": {v}, "op": "SCMP_CMP_EQ"}}"#)).collect();
        let rule = format!(r#"{{"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": [{}]}}"#, args.join(","));
        let error = compile(&format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{rule}]}}"#), &new_kernel());
        let text = error.expect_err("too long").to_string();
        assert!(text.starts_with("linux.seccomp.syscalls: make a program of 42"), "{text}");
    }

    #[test]
    fn unknown_calls_and_foreign_architectures_change_nothing() {
        let plain = compile(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#, &new_kernel());
        let with = compile(
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X", "SCMP_ARCH_AARCH64"], "syscalls": [
                {"names": ["of_the_future"], "action": "SCMP_ACT_KILL"}
            ]}"#,
            &new_kernel(),
        );
        assert_eq!(plain.expect("a filter"), with.expect("a filter"));
    }
}
