//! Loaded filters do what they say. Needs no root: filters go on single threads, with no_new_privs.
#![expect(clippy::unwrap_used, reason = "a test fails where it is surprised")]

use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::mpsc;

use libcontainer::seccomp::{Filter, HostSeccomp};
use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::utsname::uname;
use oci_spec::runtime::LinuxSeccomp;

const DOCKER: &str = include_str!("profiles/docker.json");

fn compile(json: &str) -> Filter {
    let profile: LinuxSeccomp = serde_json::from_str(json).unwrap();
    Filter::compile(&profile, &HostSeccomp::detect().unwrap()).unwrap()
}

/// Runs `test` on a thread of its own, on which filters may be loaded.
fn confined<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let on_thread = || {
        set_no_new_privs().unwrap();
        test()
    };
    std::thread::scope(|scope| scope.spawn(on_thread).join().unwrap())
}

#[test]
fn errno_is_what_the_caller_gets() {
    let filter = compile(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_NATIVE"], "syscalls": [
            {"names": ["uname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 74},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO",
             "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 1, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}]}
        ]}"#,
    );
    let unix = |kind| socket(AddressFamily::Unix, kind, SockFlag::empty(), None).map(drop);
    let got = confined(|| {
        assert!(filter.load().unwrap().is_none());
        (uname().map(|_| ()), unix(SockType::Stream), unix(SockType::Datagram))
    });
    assert_eq!(got, (Err(Errno::EBADMSG), Err(Errno::EPERM), Ok(())));
    assert!(uname().is_ok(), "the filter stays on the thread that loaded it");
}

#[test]
fn dockers_profile_allows_and_forbids() {
    let filter = compile(DOCKER);
    let (allowed, forbidden) = confined(|| {
        filter.load().unwrap();
        let vsock = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None).map(drop);
        (uname().map(|_| ()), vsock)
    });
    assert_eq!((allowed, forbidden), (Ok(()), Err(Errno::EPERM)));
}

#[test]
fn flags_the_kernel_knows_are_accepted_by_it() {
    let filter = compile(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
            "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#,
    );
    assert_eq!(filter.flags, libc::SECCOMP_FILTER_FLAG_LOG | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW);
    confined(|| filter.load().unwrap());
}

#[test]
fn a_notified_call_gets_the_agents_answer() {
    let filter = compile(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "agent.sock", "listenerMetadata": "m",
            "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_TSYNC"],
            "syscalls": [{"names": ["uname"], "action": "SCMP_ACT_NOTIFY"}]}"#,
    );
    let listener = filter.listener.as_ref().unwrap();
    assert_eq!((listener.path.to_str(), listener.metadata.as_str()), (Some("agent.sock"), "m"));
    assert_ne!(filter.flags & libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, 0);

    let (to_agent, agent) = mpsc::channel();
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            set_no_new_privs().unwrap();
            to_agent.send(filter.load().unwrap().unwrap()).unwrap();
            uname().map(|_| ())
        });
        let fd = agent.recv().unwrap();
        assert_eq!(fcntl(&fd, FcntlArg::F_GETFD), Ok(FdFlag::FD_CLOEXEC.bits()));
        let request = ScmpNotifReq::receive(fd.as_raw_fd()).unwrap();
        assert_eq!(request.data.syscall.get_name().unwrap(), "uname");
        let answer = ScmpNotifResp::new_error(request.id, -libc::EXDEV, ScmpNotifRespFlags::empty());
        answer.respond(fd.as_raw_fd()).unwrap();
        assert_eq!(caller.join().unwrap(), Err(Errno::EXDEV));
    });
}

#[test]
fn kill_and_trap_end_the_process_with_sigsys() {
    for action in ["SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--ignored", "--exact", "makes_a_forbidden_call"]).env("ACTION", action);
        let output = child.output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{action}: {output:?}");
    }
}

#[test]
#[ignore = "the child of kill_and_trap_end_the_process_with_sigsys"]
fn makes_a_forbidden_call() {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
    let action = std::env::var("ACTION").unwrap();
    let filter = compile(&format!(
        r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{{"names": ["uname"], "action": "{action}"}}]}}"#
    ));
    set_no_new_privs().unwrap();
    filter.load().unwrap();
    uname().unwrap();
}
