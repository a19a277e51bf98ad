//! Why a container could not be made: which step of how many, what it did to what, what the kernel said, what helps.

use std::fmt;

use nix::errno::Errno;

use crate::cgroup::systemd::SystemdError;
use crate::cgroup::{CgroupError, Hit, MemoryFacts};
use crate::hooks::HookError;
use crate::plan::{Entry, Plan};
use crate::step::root::Root;
use crate::step::{Chore, Step};
use crate::sys::wait::Exit;
use crate::sys::{Call, Failed};

/// A container, or a process in it, that could not be made.
#[derive(Debug)]
pub struct RunError(Box<Report>);

#[derive(Debug)]
struct Report {
    verb: &'static str,
    id: String,
    /// Place and length of the plan, and what the step does.
    step: Option<(usize, usize, String)>,
    cause: Cause,
    /// What the reader may do about it.
    hint: Option<&'static str>,
    /// The words engines look for when a program cannot be executed.
    program: Option<String>,
}

/// What went wrong at a step.
#[derive(Debug)]
pub enum Cause {
    /// A system call.
    Failed(Failed),
    /// The cgroup.
    Cgroup(CgroupError),
    /// systemd, which was to make the cgroup.
    Systemd(SystemdError),
    /// A hook of the runtime's namespaces.
    Hook(HookError),
    /// A system call, or a hook in the container's namespaces, and the reason in the kernel's or the hook's own words.
    Explained {
        /// What the failure looked like.
        failed: Failed,
        /// The reason.
        words: String,
    },
    /// The seccomp agent could not be reached.
    Agent(Failed),
    /// The child ended without a word.
    Died {
        /// How, if that is known yet.
        exit: Option<Exit>,
        /// What the kernel killed for, if it killed for memory meanwhile.
        oom: Option<MemoryFacts>,
    },
    /// This process has this many threads.
    Threads(u64),
    /// The caller gave up.
    Abandoned(&'static str),
}

impl From<Failed> for Cause {
    fn from(failed: Failed) -> Cause {
        Cause::Failed(failed)
    }
}

impl From<CgroupError> for Cause {
    fn from(error: CgroupError) -> Cause {
        Cause::Cgroup(error)
    }
}

impl From<SystemdError> for Cause {
    fn from(error: SystemdError) -> Cause {
        Cause::Systemd(error)
    }
}

impl From<HookError> for Cause {
    fn from(error: HookError) -> Cause {
        Cause::Hook(error)
    }
}

impl Plan {
    /// The error for a cause at a place in this plan.
    pub(crate) fn error(&self, at: Option<usize>, cause: impl Into<Cause>) -> RunError {
        let cause = cause.into();
        let entry = at.and_then(|at| Some((at, self.entries.get(at)?)));
        let failed = match &cause {
            Cause::Failed(failed) | Cause::Explained { failed, .. } => Some(*failed),
            _ => None,
        };
        RunError(Box::new(Report {
            verb: self.verb,
            id: self.state.id().to_owned(),
            step: entry.map(|(at, entry)| (at + 1, self.entries.len(), entry.what())),
            hint: entry.zip(failed).and_then(|((_, entry), failed)| hint(entry, failed)),
            program: entry.zip(failed).and_then(|((_, entry), failed)| program(entry, failed)),
            cause,
        }))
    }
}

impl RunError {
    /// What went wrong.
    pub fn cause(&self) -> &Cause {
        &self.0.cause
    }

    /// Adds what is known of a child that ended without a word, once it is.
    pub(super) fn child_ended(&mut self, exit_now: Option<Exit>, oom_now: Option<MemoryFacts>) {
        if let Cause::Died { exit, oom } = &mut self.0.cause {
            (*exit, *oom) = (exit_now, oom_now);
        }
    }

    /// Adds what kills a child before it does anything, for all we know.
    pub(super) fn child_was_born_dead(&mut self) {
        if let Cause::Died { oom: None, .. } = &self.0.cause {
            self.0.hint = Some(
                "it was killed at its birth: if cgroup.kill was ever written in the cgroup of this runtime, Linux from 6.14 on \
                 lets nobody be born from there into another; start the runtime in a new cgroup",
            );
        }
    }

    /// The program is missing (127) or may not be executed (126), as shells count it.
    pub fn program_status(&self) -> Option<i32> {
        match (&self.0.program, &self.0.cause) {
            (Some(_), Cause::Failed(Failed { errno: Errno::EACCES | Errno::EISDIR | Errno::ENOEXEC, .. })) => Some(126),
            (Some(_), _) => Some(127),
            (None, _) => None,
        }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { verb, id, step, cause, hint, program } = &*self.0;
        write!(f, "cannot {verb} {id}: ")?;
        if let Some((at, of, what)) = step {
            write!(f, "{what} (step {at} of {of}): ")?;
        }
        match program {
            Some(words) => f.write_str(words)?,
            None => cause.fmt(f)?,
        }
        if let Some(hint) = hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for RunError {}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Failed(failed) => failed.fmt(f),
            Cause::Cgroup(error) => error.fmt(f),
            Cause::Systemd(error) => error.why().fmt(f),
            Cause::Hook(error) => error.fmt(f),
            Cause::Explained { failed, words } if words.is_empty() => failed.fmt(f),
            Cause::Explained { failed, words } => write!(f, "{failed}: {words}"),
            Cause::Agent(failed) => write!(f, "hand the seccomp notification descriptor to its agent: {failed}"),
            Cause::Died { exit, oom } => {
                f.write_str("init ended without a word")?;
                if let Some(exit) = exit {
                    write!(f, ": {exit}")?;
                }
                match oom.as_ref().map(|facts| &facts.hit) {
                    None => Ok(()),
                    Some(Some(Hit::Above(dir))) => {
                        write!(f, "; the memory limit of {}, above its own, was hit: raise that one", dir.display())
                    }
                    Some(Some(Hit::Machine)) => f.write_str("; the machine has no memory left"),
                    Some(Some(Hit::Own) | None) => {
                        f.write_str("; it hit the memory limit of its cgroup: raise linux.resources.memory.limit")
                    }
                }
            }
            Cause::Threads(threads) => {
                write!(f, "this process has {threads} threads; a container is only made by a process with one")
            }
            Cause::Abandoned(why) => f.write_str(why),
        }
    }
}

/// How Go's os/exec words it: containerd's clients and dockerd look for these texts.
fn program(entry: &Entry, failed: Failed) -> Option<String> {
    let quoted = |program: &std::ffi::CStr| format!("{:?}", program.to_string_lossy());
    match (entry, failed.call) {
        (Entry::Child(Step::FindProgram { program, .. }), Call::Access) => {
            let name = program.to_string_lossy();
            let why = match failed.errno {
                Errno::ENOENT if !name.contains('/') => "executable file not found in $PATH".to_owned(),
                Errno::EACCES => "permission denied".to_owned(),
                errno => format!("stat {name}: {}", lower(errno)),
            };
            Some(format!("exec: {}: {why}", quoted(program)))
        }
        (Entry::Child(Step::Exec { args, .. }), Call::Execve) => {
            let program = args.first().map(|arg| quoted(arg)).unwrap_or_default();
            Some(format!("exec: {program}: {}", lower(failed.errno)))
        }
        _ => None,
    }
}

/// The errno's text as Go prints it.
fn lower(errno: Errno) -> String {
    match errno {
        Errno::ENOEXEC => "exec format error".to_owned(),
        errno => {
            let text = errno.desc();
            let mut letters = text.chars();
            letters.next().map_or_else(String::new, |first| first.to_lowercase().collect::<String>() + letters.as_str())
        }
    }
}

/// What helps, where we know it.
fn hint(entry: &Entry, failed: Failed) -> Option<&'static str> {
    Some(match (entry, failed.call, failed.errno) {
        (Entry::Clone(_), Call::Clone3, Errno::ENOSPC | Errno::EUSERS) => {
            "the limit in /proc/sys/user/max_*_namespaces is reached"
        }
        (Entry::Clone(_), Call::Clone3, Errno::EPERM) => {
            "new namespaces need CAP_SYS_ADMIN, or a user namespace that this system may forbid \
             (kernel.unprivileged_userns_clone, AppArmor)"
        }
        (Entry::Clone(_), Call::Clone3, Errno::EINVAL) => "the kernel lacks one of the kinds of namespaces",
        (Entry::Clone(_), Call::Clone3, Errno::ENOMEM) => "there is no memory, or the pid namespace's init has ended",
        (Entry::Clone(_), Call::Clone3, Errno::EAGAIN) => "a pids limit is reached",
        (Entry::Clone(_), Call::Clone3, Errno::EBUSY) => {
            "the cgroup hands controllers down (cgroup.subtree_control), so that only cgroups below it take processes"
        }
        (Entry::Clone(_), Call::Clone3, Errno::EOPNOTSUPP) => "the cgroup is below a threaded one (cgroup.type)",
        (Entry::Clone(_), Call::Clone3, Errno::ENODEV) => "the container's cgroup was removed",
        (Entry::Before(Chore::OpenNamespace { .. }), Call::Open, Errno::ENOENT) => {
            "the process whose namespace it is may have ended"
        }
        (Entry::Before(Chore::OpenNamespace { .. }), Call::Setns, Errno::EINVAL) => {
            "the file is no namespace of this kind"
        }
        (Entry::Child(Step::Root(Root::Clone { .. })), Call::OpenTree, Errno::ENOENT) => {
            "root.path of config.json names a folder that is not there"
        }
        (Entry::Parent(Chore::IdMaps { .. }), _, Errno::EPERM) => {
            "these ids may not be mapped by us; an ordinary user needs newuidmap and /etc/subuid"
        }
        (
            Entry::Parent(Chore::OomScoreAdj(_)) | Entry::Child(Step::OomScoreAdj(_)),
            _,
            Errno::EACCES | Errno::EPERM,
        ) => "a lower score than our own needs CAP_SYS_RESOURCE",
        (Entry::Parent(Chore::Rlimits(_)) | Entry::Child(Step::Rlimit(_)), Call::Prlimit, Errno::EPERM) => {
            "a limit above our own hard limit needs CAP_SYS_RESOURCE"
        }
        (Entry::Child(Step::Console { .. }), Call::Openat2, Errno::ENOENT) => {
            "a terminal needs a devpts mount on /dev/pts"
        }
        (Entry::Child(Step::Sysctl { .. }), Call::Open, Errno::ENOENT) => "the kernel has no such setting",
        (Entry::Child(Step::Become { .. }), Call::Setuid | Call::Setgid, Errno::EINVAL) => {
            "the id is not mapped in the container's user namespace"
        }
        (Entry::Child(Step::Become { .. }), Call::Getcwd, _) => "the working directory is outside the container's root",
        (Entry::Child(Step::Exec { .. }), Call::Execve, Errno::ENOENT) => {
            "the file is there: its interpreter (the #! line, or the ELF loader) is missing in the image"
        }
        (Entry::Child(Step::Exec { .. }), Call::Execve, Errno::ENOEXEC) => {
            "the file is for another architecture, or a script without a #! line"
        }
        (Entry::Child(_), _, Errno::ENOMEM) => "the memory limit may be too small to start in",
        _ => return None,
    })
}
