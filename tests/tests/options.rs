//! Options of the runtime that a client may give.

use std::os::unix::fs::symlink;

use dunnage_tests::{Case, case, case_of_ours};

/// Flags for our shim under runc's name: `ctr` sends runc's options to that name only.
fn as_runc(c: &Case) -> [&'static str; 2] {
    if c.subject.is_ours() {
        symlink(c.subject.shim(), c.path("bin/containerd-shim-runc-v2")).expect("a second name for the shim");
    }
    ["--runtime", "io.containerd.runc.v2"]
}

#[test]
fn a_foreign_runtime_is_refused_by_name() {
    case_of_ours(|c| {
        let runc = as_runc(c);
        assert_eq!(c.run("plain", ["echo", "on"]).flags(runc).output().ok(), "on");
        let outcome = c.run("foreign", ["true"]).flags(runc).flags(["--runc-binary", "crun"]).output();
        assert!(outcome.refused().contains("crun"), "{outcome:?}");
    });
}

#[test]
fn the_root_can_be_moved_instead_of_pivoted() {
    case(|c| {
        let run = c.run("moved", ["sh", "-c", "ls / | grep -c bin"]).flags(as_runc(c)).flags(["--no-pivot"]);
        assert_eq!(run.output().ok(), "1");
    });
}

#[test]
fn no_runc_is_on_the_path() {
    case_of_ours(|c| {
        let programs: Vec<_> =
            std::fs::read_dir(c.path("bin")).expect("read").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(programs, ["containerd-shim-dunnage-v2"]);
        let environment = std::fs::read(format!("/proc/{}/environ", c.containerd())).expect("read the environment");
        let path = format!("PATH={}", c.path("bin").display());
        assert!(environment.split(|&byte| byte == 0).any(|variable| variable == path.as_bytes()));
        assert_eq!(c.run("alone", ["echo", "on"]).output().ok(), "on");
    });
}
