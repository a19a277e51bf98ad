//! What this runtime supports, as a document (runtime-spec, "Features Structure"). Every list comes from the table that
//! the code itself works from, so that the two cannot disagree.

use std::collections::HashMap;

use oci_spec::runtime::{
    Apparmor, Cgroup, Features, IDMap, IntelRdt, LinuxFeature, MemoryPolicy, MountExtensions, NetDevices, Seccomp,
    Selinux,
};

use crate::facts::OCI_VERSION;
use crate::hooks::Moment;
use crate::plan::mounts::known_options;
use crate::plan::{KINDS, MEMORY_POLICY_FLAGS, MEMORY_POLICY_MODES};
use crate::seccomp;

/// The oldest version of the spec whose config.json we read.
const OCI_VERSION_MIN: &str = "1.0.0";

/// The document. Most of it is what was compiled in, whatever this machine's kernel says to it.
pub fn features() -> Features {
    let owned = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    let mut features = Features::default();
    features
        .set_oci_version_min(OCI_VERSION_MIN.to_owned())
        .set_oci_version_max(OCI_VERSION.to_owned())
        .set_hooks(owned(&Moment::ALL.map(Moment::name)))
        .set_mount_options(owned(&known_options()))
        .set_linux(Some(linux()))
        .set_annotations(Some(HashMap::from([("dunnage.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())])))
        .set_potentially_unsafe_config_annotations(Some(Vec::new()));
    features
}

fn linux() -> LinuxFeature {
    let mut namespaces = KINDS.map(|(kind, ..)| kind).to_vec();
    namespaces.sort_by_key(|kind| kind.to_string());
    let mut capabilities = caps::all().into_iter().collect::<Vec<_>>();
    capabilities.sort_by_key(caps::Capability::index);
    let mut cgroup = Cgroup::default();
    cgroup.set_v1(Some(true)).set_v2(Some(true)).set_rdma(Some(true));
    // An ordinary user has no containers yet.
    cgroup.set_systemd(Some(true)).set_systemd_user(Some(false));
    let (mut apparmor, mut selinux, mut idmap) = (Apparmor::default(), Selinux::default(), IDMap::default());
    apparmor.set_enabled(Some(true));
    selinux.set_enabled(Some(true));
    idmap.set_enabled(Some(true));
    let (mut mounts, mut memory) = (MountExtensions::default(), MemoryPolicy::default());
    mounts.set_idmap(Some(idmap));
    memory.set_modes(Some(MEMORY_POLICY_MODES.map(|(mode, _)| json_name(&mode)).to_vec()));
    memory.set_flags(Some(MEMORY_POLICY_FLAGS.map(|(flag, _)| json_name(&flag)).to_vec()));
    // Refused by the plan.
    let (mut intel_rdt, mut net_devices) = (IntelRdt::default(), NetDevices::default());
    intel_rdt.set_enabled(Some(false)).set_schemata(Some(false)).set_monitoring(Some(false));
    net_devices.set_enabled(Some(false));
    let mut linux = LinuxFeature::default();
    linux
        .set_namespaces(Some(namespaces))
        .set_capabilities(Some(capabilities.iter().map(caps::Capability::to_string).collect()))
        .set_cgroup(Some(cgroup))
        .set_seccomp(Some(seccomp_features()))
        .set_apparmor(Some(apparmor))
        .set_selinux(Some(selinux))
        .set_intel_rdt(Some(intel_rdt))
        .set_memory_policy(Some(memory))
        .set_mount_extensions(Some(mounts))
        .set_net_devices(Some(net_devices));
    linux
}

fn seccomp_features() -> Seccomp {
    let host = seccomp::HostSeccomp::detect();
    let mut features = Seccomp::default();
    features
        .set_enabled(Some(host.is_some()))
        .set_actions(Some(seccomp::ACTIONS.to_vec()))
        .set_operators(Some(seccomp::OPERATORS.map(|operator| json_name(&operator)).to_vec()))
        .set_archs(Some(seccomp::architectures()))
        .set_known_flags(Some(seccomp::FLAGS.map(|flag| json_name(&flag)).to_vec()))
        .set_supported_flags(host.map(|host| host.flags.iter().map(json_name).collect()));
    features
}

/// The name in config.json.
fn json_name(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_says_what_the_code_does() {
        let json = serde_json::to_value(features()).unwrap();
        let has = |list: &serde_json::Value, name: &str| list.as_array().unwrap().iter().any(|item| item == name);
        assert!(has(&json["hooks"], "createContainer") && has(&json["mountOptions"], "rro"));
        let linux = &json["linux"];
        assert!(has(&linux["namespaces"], "time") && has(&linux["namespaces"], "network"));
        assert!(has(&linux["capabilities"], "CAP_CHECKPOINT_RESTORE"));
        let seccomp = &linux["seccomp"];
        assert!(has(&seccomp["actions"], "SCMP_ACT_NOTIFY") && has(&seccomp["operators"], "SCMP_CMP_MASKED_EQ"));
        assert!(has(&seccomp["knownFlags"], "SECCOMP_FILTER_FLAG_LOG"));
        assert!(has(&linux["memoryPolicy"]["modes"], "MPOL_BIND"));
        assert_eq!(linux["cgroup"]["systemd"], true);
        assert_eq!(json["ociVersionMax"], OCI_VERSION);
        let archs = if cfg!(target_arch = "x86_64") { 3 } else { 2 };
        assert_eq!(seccomp["archs"].as_array().unwrap().len(), archs);
    }
}
