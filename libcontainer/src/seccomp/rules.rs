//! A profile's rules, sorted out per ABI and per system call number.
//!
//! Where the specification leaves open what overlapping rules mean, libseccomp's answer is the one profiles were written
//! against, so it is ours:
//! - a rule without conditions replaces all rules with conditions; the first of several such rules stays;
//! - rules with conditions are tried in libseccomp's order, not the profile's (see [`Rule::precedence`]);
//! - a rule whose action is the default action is no rule;
//! - on x86, rules for calls that go through `socketcall` and `ipc` hold there too, with argument 0 replaced by the number
//!   of the inner call: the real arguments are behind a pointer, which no filter can follow;
//! - two conditions on the same argument within one rule make it one rule per condition (runc, since libseccomp has
//!   room for one test per argument).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator as Op};
use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::syscalls::{Abi, Syscall};

/// The calls of one ABI that a profile treats differently from its default.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) abi: Abi,
    /// The highest number that any rule speaks of, the default action's included; zero if none does.
    pub(super) highest: u32,
    pub(super) calls: BTreeMap<u32, Verdict>,
}

/// What happens to a call.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// Always this `SECCOMP_RET_*` value.
    Return(u32),
    /// The first rule that holds, or the default action.
    FirstOf(Vec<Rule>),
}

/// Conditions which must all hold, at most one for each argument, in the order of arguments.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rule {
    conditions: Vec<Condition>,
    pub(super) action: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Condition {
    arg: u8,
    op: Op,
    /// Compared with the argument; for [`Op::ScmpCmpMaskedEq`] after both were masked.
    value: u64,
    mask: u64,
}

/// Drops what is said about the upper half of arguments where they have none.
fn narrow(value: u64, abi: Abi) -> u64 {
    if abi.is_64_bit() { value } else { value & u64::from(u32::MAX) }
}

impl Condition {
    /// `arg.index` was checked to be one of a system call's six.
    fn new(arg: &LinuxSeccompArg, abi: Abi) -> Self {
        let (mask, value) = match arg.op() {
            Op::ScmpCmpMaskedEq => (arg.value(), arg.value() & arg.value_two().unwrap_or(0)),
            _ => (u64::MAX, arg.value()),
        };
        Self { arg: arg.index() as u8, op: arg.op(), value: narrow(value, abi), mask: narrow(mask, abi) }
    }

    /// No bit is compared. libseccomp drops such a test, whatever `valueTwo` says.
    fn holds_always(self) -> bool {
        self.op == Op::ScmpCmpMaskedEq && self.mask == 0
    }

    fn precedence(self) -> impl Ord {
        let (kind, value) = match self.op {
            Op::ScmpCmpEq | Op::ScmpCmpNe | Op::ScmpCmpMaskedEq => (0, Reverse(self.value)),
            Op::ScmpCmpLt | Op::ScmpCmpLe => (1, Reverse(!self.value)),
            Op::ScmpCmpGt | Op::ScmpCmpGe => (2, Reverse(self.value)),
        };
        (Reverse(self.arg), kind, value)
    }

    fn compiled(self, abi: Abi) -> Result<SeccompCondition, BackendError> {
        let width = if abi.is_64_bit() { SeccompCmpArgLen::Qword } else { SeccompCmpArgLen::Dword };
        let op = match self.op {
            Op::ScmpCmpNe => SeccompCmpOp::Ne,
            Op::ScmpCmpLt => SeccompCmpOp::Lt,
            Op::ScmpCmpLe => SeccompCmpOp::Le,
            Op::ScmpCmpEq => SeccompCmpOp::Eq,
            Op::ScmpCmpGe => SeccompCmpOp::Ge,
            Op::ScmpCmpGt => SeccompCmpOp::Gt,
            Op::ScmpCmpMaskedEq => SeccompCmpOp::MaskedEq(self.mask),
        };
        SeccompCondition::new(self.arg, width, op, self.value)
    }
}

impl Rule {
    /// The order in which overlapping rules with different actions win: later arguments before earlier, equality before
    /// ranges, the lower upper bound and the higher lower bound first; of rules that begin alike the shorter.
    fn precedence(&self) -> impl Ord + use<> {
        self.conditions.iter().map(|c| c.precedence()).collect::<Vec<_>>()
    }

    pub(super) fn compiled(&self, abi: Abi) -> Result<SeccompRule, BackendError> {
        SeccompRule::new(self.conditions.iter().map(|c| c.compiled(abi)).collect::<Result<_, _>>()?)
    }
}

impl Table {
    pub(super) fn new(abi: Abi) -> Self {
        Self { abi, highest: 0, calls: BTreeMap::new() }
    }

    /// Adds one rule of the profile for one call, whose conditions may be none. Without an action only takes note that the
    /// profile speaks of the call.
    pub(super) fn add(&mut self, name: &str, call: Syscall, args: &[LinuxSeccompArg], action: Option<u32>) {
        let (direct, through) = (call.number(self.abi), self.multiplexer(name));
        self.highest = direct.into_iter().chain(through.map(|(number, _)| number)).fold(self.highest, u32::max);
        let Some(action) = action else { return };
        let conditions: Vec<Condition> = args.iter().map(|arg| Condition::new(arg, self.abi)).collect();
        let repeats =
            conditions.iter().enumerate().any(|(i, c)| conditions[..i].iter().any(|other| other.arg == c.arg));
        if repeats {
            conditions.chunks(1).for_each(|one| self.add_one(direct, through, one, action));
        } else {
            self.add_one(direct, through, &conditions, action);
        }
    }

    fn add_one(&mut self, direct: Option<u32>, through: Option<(u32, u64)>, conditions: &[Condition], action: u32) {
        if let Some((number, inner)) = through {
            let is_inner = Condition { arg: 0, op: Op::ScmpCmpEq, value: inner, mask: u64::MAX };
            let others = conditions.iter().filter(|c| c.arg != 0);
            self.insert(number, others.copied().chain([is_inner]).collect(), action);
        }
        if let Some(number) = direct {
            self.insert(number, conditions.to_vec(), action);
        }
    }

    fn insert(&mut self, number: u32, mut conditions: Vec<Condition>, action: u32) {
        conditions.retain(|c| !c.holds_always());
        conditions.sort_by_key(|c| c.arg);
        let entry = self.calls.entry(number).or_insert_with(|| Verdict::FirstOf(Vec::new()));
        let Verdict::FirstOf(rules) = entry else { return };
        if conditions.is_empty() {
            *entry = Verdict::Return(action);
        } else {
            rules.push(Rule { conditions, action });
        }
    }

    /// Brings the rules of each call into the order in which they are tried.
    pub(super) fn arrange(&mut self) {
        for verdict in self.calls.values_mut() {
            let Verdict::FirstOf(rules) = verdict else { continue };
            // With one action the order decides nothing, and profiles tend to name the common case first.
            if rules.windows(2).any(|pair| pair[0].action != pair[1].action) {
                rules.sort_by_cached_key(Rule::precedence);
            }
            rules.dedup();
        }
    }

    /// The x86 call that a call may also be made through, and its number there (<linux/net.h>, <linux/ipc.h>).
    fn multiplexer(&self, name: &str) -> Option<(u32, u64)> {
        const SOCKETCALL: u32 = 102;
        const IPC: u32 = 117;
        if self.abi != Abi::X86 {
            return None;
        }
        Some(match name {
            "socket" => (SOCKETCALL, 1),
            "bind" => (SOCKETCALL, 2),
            "connect" => (SOCKETCALL, 3),
            "listen" => (SOCKETCALL, 4),
            "accept" => (SOCKETCALL, 5),
            "getsockname" => (SOCKETCALL, 6),
            "getpeername" => (SOCKETCALL, 7),
            "socketpair" => (SOCKETCALL, 8),
            "send" => (SOCKETCALL, 9),
            "recv" => (SOCKETCALL, 10),
            "sendto" => (SOCKETCALL, 11),
            "recvfrom" => (SOCKETCALL, 12),
            "shutdown" => (SOCKETCALL, 13),
            "setsockopt" => (SOCKETCALL, 14),
            "getsockopt" => (SOCKETCALL, 15),
            "sendmsg" => (SOCKETCALL, 16),
            "recvmsg" => (SOCKETCALL, 17),
            "accept4" => (SOCKETCALL, 18),
            "recvmmsg" => (SOCKETCALL, 19),
            "sendmmsg" => (SOCKETCALL, 20),
            "semop" => (IPC, 1),
            "semget" => (IPC, 2),
            "semctl" => (IPC, 3),
            "semtimedop" => (IPC, 4),
            "msgsnd" => (IPC, 11),
            "msgrcv" => (IPC, 12),
            "msgget" => (IPC, 13),
            "msgctl" => (IPC, 14),
            "shmat" => (IPC, 21),
            "shmdt" => (IPC, 22),
            "shmget" => (IPC, 23),
            "shmctl" => (IPC, 24),
            _ => return None,
        })
    }
}
