//! A further process in a container that runs.

use std::collections::HashMap;
use std::path::Path;

use nix::sched::CloneFlags;
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

use super::identity::{self, Identity};
use super::{Entry, Meeting, Namespaces, Plan, Problems, SpecError};
use crate::facts::StateFacts;
use crate::host::Host;
use crate::step::root::Root;
use crate::step::{Clone, PidNamespace, Step};

/// What an exec is about.
#[derive(Debug)]
pub struct ExecRequest<'a> {
    /// The container's id.
    pub id: &'a str,
    /// The container's own config.json: its namespaces and seccomp profile hold for every process in it.
    pub spec: &'a Spec,
    /// The process to run.
    pub process: &'a Process,
    /// Keep the runtime's session keyring, as the container itself was told to.
    pub no_new_keyring: bool,
    /// How many descriptors from 3 on are the caller's gift to the process.
    pub preserve_fds: u32,
}

impl Plan {
    /// The plan for a further process in a running container.
    ///
    /// # Errors
    /// Everything in `process` that is contradictory, unknown, or impossible on `host`.
    pub fn exec(request: &ExecRequest<'_>, host: &Host) -> Result<Plan, SpecError> {
        let mut bad = Problems::default();
        let mut p =
            Plan::new("exec in", StateFacts::new(request.id, Path::new(""), HashMap::new()), request.preserve_fds);
        let none = oci_spec::runtime::Linux::default();
        let linux = request.spec.linux().as_ref().unwrap_or(&none);
        let namespaces = Namespaces::read(linux, false, &mut bad);
        let process = complete(request.process, request.spec.process().as_ref());
        let identity = Identity::of(&process, linux, host, &namespaces, &mut bad);
        let filter = identity::seccomp(linux, host, &mut bad);
        let affinity = process.exec_cpu_affinity().as_ref();
        let cpus = |list: Option<&Option<String>>, field, bad: &mut Problems| {
            let list = list?.as_deref().filter(|list| !list.is_empty())?;
            Some(Step::Affinity(identity::bit_list(field, list, bad)))
        };
        let initial = cpus(affinity.map(|a| a.initial()), "process.execCPUAffinity.initial", &mut bad);
        let last = cpus(affinity.map(|a| a.cpu_affinity_final()), "process.execCPUAffinity.final", &mut bad);

        let own_pid = namespaces.is_own(LinuxNamespaceType::Pid);
        // Where we could not go back to our own pid namespace, the child enters the container's, and goes on in a copy
        // that is born there.
        let copies = own_pid && !host.pid_namespace_returns;
        let pid = if own_pid && !copies { PidNamespace::Container } else { PidNamespace::ByFlags };
        p.entries.push(Entry::Clone(Clone { flags: CloneFlags::empty(), pid, time_offsets: Vec::new() }));
        p.child(Step::Isolate { ignored_signals: host.ignored_signals });
        initial.into_iter().for_each(|step| p.child(step));
        p.child(Step::EnterCgroups);
        identity.before_joining(&mut p);
        if copies {
            p.child(Step::JoinContainer(namespaces.to_join() | CloneFlags::CLONE_NEWPID));
            p.child(Step::Fork(CloneFlags::empty()));
            p.meet(Meeting::Born); // before the runtime knows of the copy it must not end
        } else {
            p.child(Step::JoinContainer(namespaces.to_join()));
        }
        if namespaces.has_user() {
            p.child(Step::BecomeRoot);
        }
        p.child(Step::Session);
        if !request.no_new_keyring {
            p.child(super::keyring(request.id, namespaces.user_is_new(), &mut bad));
        }
        p.child(Step::Root(Root::Open { rootfs: c"/".to_owned() })); // since it joined, the container's
        if identity.has_label() {
            p.child(Step::Root(Root::Proc { mounted: true }));
        }
        identity.stdio(&mut p);
        last.into_iter().for_each(|step| p.child(step));
        identity.become_it(&mut p, filter, |_| {});
        bad.none_or_err()?;
        Ok(p)
    }
}

/// What `process` does not say, engines expect as the container's own process has it; runc fills in the same.
fn complete(process: &Process, own: Option<&Process>) -> Process {
    let mut process = process.clone();
    let Some(own) = own else { return process };
    let empty = |text: &Option<String>| text.as_ref().is_none_or(String::is_empty);
    if process.capabilities().is_none() {
        process.set_capabilities(own.capabilities().clone());
    }
    if process.rlimits().as_ref().is_none_or(Vec::is_empty) {
        process.set_rlimits(own.rlimits().clone());
    }
    if process.no_new_privileges().is_none() {
        process.set_no_new_privileges(own.no_new_privileges());
    }
    if empty(process.apparmor_profile()) {
        process.set_apparmor_profile(own.apparmor_profile().clone());
    }
    if empty(process.selinux_label()) {
        process.set_selinux_label(own.selinux_label().clone());
    }
    process
}
