//! The system calls a container may make unless it is told otherwise. The list is `seccomp.json`: what ordinary programs
//! need, and what each capability is of no use without.

use std::collections::BTreeMap;

use oci_spec::runtime::LinuxSeccomp;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Lists {
    allow: Vec<String>,
    with: BTreeMap<String, Vec<String>>,
}

/// The profile for a process with these capabilities in its bounding set.
pub(crate) fn profile(capabilities: &[String]) -> serde_json::Result<LinuxSeccomp> {
    /// ENOSYS: a C library takes it for an old kernel and calls `clone`, whose flags a filter can look at.
    const NOT_THERE: u32 = 38;
    /// `CLONE_NEW*`, but for time: the bits of clone(2) that make namespaces.
    const NAMESPACES: u64 = 0x7e02_0000;
    /// personality(2): Linux and 32-bit Linux, each with and without UNAME26, and the question for the current one.
    const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

    let lists: Lists = serde_json::from_str(include_str!("seccomp.json"))?;
    let has = |capability: &str| capabilities.iter().any(|own| own == capability);
    let allow = |names: Value, args: Value| json!({"names": names, "action": "SCMP_ACT_ALLOW", "args": args});
    let argument = |index: u8, op: &str, value: u64| json!([{"index": index, "op": op, "value": value}]);

    let mut names = lists.allow;
    names.extend(lists.with.into_iter().filter(|(capability, _)| has(capability)).flat_map(|(_, names)| names));
    names.sort_unstable();
    names.dedup();
    let mut rules = vec![json!({"names": names, "action": "SCMP_ACT_ALLOW"})];
    rules.extend(PERSONALITIES.map(|value| allow(json!(["personality"]), argument(0, "SCMP_CMP_EQ", value))));
    // Sockets to the host itself are none: AF_ALG (38) is the kernel's ciphers, AF_VSOCK (40) the hypervisor.
    for (op, family) in [("SCMP_CMP_LT", 38), ("SCMP_CMP_EQ", 39), ("SCMP_CMP_GT", 40)] {
        rules.push(allow(json!(["socket"]), argument(0, op, family)));
    }
    if !has("CAP_SYS_ADMIN") {
        let no_namespaces = json!([{"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": NAMESPACES, "valueTwo": 0}]);
        rules.push(allow(json!(["clone"]), no_namespaces));
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": NOT_THERE}));
    }
    let architectures = match std::env::consts::ARCH {
        "x86_64" => vec!["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => vec!["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        // The native one.
        _ => Vec::new(),
    };
    serde_json::from_value(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": architectures, "syscalls": rules,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(capabilities: &[&str]) -> Vec<String> {
        let capabilities: Vec<String> = capabilities.iter().map(ToString::to_string).collect();
        let profile = profile(&capabilities).unwrap();
        profile.syscalls().as_ref().unwrap()[0].names().clone()
    }

    #[test]
    fn what_a_capability_is_for_is_allowed_with_it_only() {
        let (none, admin) = (allowed(&[]), allowed(&["CAP_SYS_ADMIN"]));
        for name in ["mount", "setns", "unshare", "bpf", "clone3"] {
            assert!(!none.contains(&name.to_owned()) && admin.contains(&name.to_owned()), "{name}");
        }
        assert!(!admin.contains(&"reboot".to_owned()) && allowed(&["CAP_SYS_BOOT"]).contains(&"reboot".to_owned()));
        // Nobody in a container has a use for these.
        for name in ["kexec_load", "add_key", "keyctl", "request_key", "swapon", "io_uring_setup", "userfaultfd"] {
            assert!(!admin.contains(&name.to_owned()), "{name}");
        }
    }

    #[test]
    fn it_compiles_to_a_filter() {
        let host = libcontainer::seccomp::HostSeccomp::detect().unwrap();
        libcontainer::seccomp::Filter::compile(&profile(&["CAP_CHOWN".to_owned()]).unwrap(), &host).unwrap();
    }
}
