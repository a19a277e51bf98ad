//! Either side ends in the middle of a launch, at every step there is; many launches at once.

use std::fs;
use std::io::{Read, Write, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use libcontainer::host::Host;
use libcontainer::run::{Into, Launch, Progress, Wake};
use libcontainer::sys::process::{CloneOptions, Cloned, clone3, exit_now, pidfd_open, pidfd_send_signal};
use libcontainer::sys::wait::{self, Exit};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_child_subreaper;
use nix::unistd::Pid;
use serde_json::json;

use super::{Bundle, drive, end, hierarchies, streams};

/// With hooks on both sides and a user namespace, so that there is every kind of meeting.
fn eventful(user_namespace: bool) -> Bundle {
    let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "cat >/dev/null"] }]);
    let bundle = Bundle::new("exec sleep 1000").also(
        "",
        "hooks",
        json!({ "createRuntime": hook, "createContainer": hook, "startContainer": hook, "poststart": hook }),
    );
    if !user_namespace {
        return bundle;
    }
    let maps = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let all = ["pid", "ipc", "uts", "mount", "network", "cgroup", "user"].map(|kind| json!({ "type": kind }));
    for path in [bundle.folder.path().to_owned(), bundle.folder.path().join("rootfs")] {
        std::os::unix::fs::chown(&path, Some(100_000), Some(100_000)).unwrap();
    }
    let bundle = bundle.with("/linux/namespaces", json!(all));
    bundle.also("/linux", "uidMappings", maps.clone()).also("/linux", "gidMappings", maps)
}

/// Drives a launch, through its start, until `step` has begun. False if it never does.
fn drive_until(launch: &mut Launch, step: usize) -> bool {
    let begun = |launch: &Launch| launch.timeline().unwrap().spans().any(|span| span.step >= step);
    let mut wakes = vec![Wake::Readable];
    loop {
        for wake in wakes.drain(..) {
            match launch.advance(wake).unwrap() {
                Progress::Waiting => {}
                Progress::AtGate => launch.start(),
                Progress::Running => return false,
            }
        }
        if begun(launch) {
            return true;
        }
        wakes.push(Wake::Readable);
        for pid in launch.wants().exits {
            let pidfd = pidfd_open(pid).unwrap();
            if poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() > 0 {
                wakes.push(Wake::Exited(pid, wait::child(pidfd.as_fd()).unwrap()));
            }
        }
    }
}

/// Whether the process is gone in time.
fn gone(pidfd: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(60_000_u16)).unwrap() > 0
}

fn begin(bundle: &Bundle) -> (Launch, std::io::PipeReader) {
    bundle.begin().unwrap_or_else(|error| panic!("{error}"))
}

fn steps(bundle: &Bundle) -> usize {
    bundle.plan(&Host::detect().unwrap()).unwrap().to_string().lines().count()
}

/// Where it waits for start. A runtime that goes later may be too late to be missed.
fn gate(bundle: &Bundle) -> usize {
    let plan = bundle.plan(&Host::detect().unwrap()).unwrap().to_string();
    plan.lines().position(|line| line.ends_with("wait for start")).unwrap()
}

pub(super) fn a_child_killed_at_any_step_leaves_nothing() {
    for bundle in [eventful(false), eventful(true)] {
        let mut died = 0;
        for step in 0..steps(&bundle) {
            let (mut launch, _reader) = begin(&bundle);
            let pidfd = pidfd_open(launch.pid()).unwrap();
            let there = drive_until(&mut launch, step);
            pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL).unwrap();
            if !there {
                end(launch.into_launched().unwrap());
                continue;
            }
            launch.start();
            match drive(&mut launch) {
                // Killed after the last word: it ran, and was killed.
                Ok(Progress::Running) => {
                    let launched = launch.into_launched().unwrap();
                    assert!(gone(&launched.pidfd));
                    launched.cgroup.unwrap().remove().unwrap();
                }
                Ok(progress) => panic!("step {step}: {progress:?}"),
                Err(error) => {
                    died += 1;
                    assert!(error.to_string().contains(&format!("cannot create {}", bundle.id)), "{error}");
                }
            }
            assert!(gone(&pidfd));
        }
        assert!(died > 10, "{died}");
    }
}

pub(super) fn a_dropped_launch_ends_its_child_and_its_hook() {
    let bundle = eventful(false);
    let bundle = bundle.also("/hooks", "prestart", json!([{ "path": "/bin/sleep", "args": ["sleep", "1000"] }]));
    let (mut launch, _reader) = begin(&bundle);
    // Until the hook, which never ends.
    while launch.wants().exits.len() < 2 {
        assert_eq!(launch.advance(Wake::Readable).unwrap(), Progress::Waiting);
    }
    let pids = launch.wants().exits;
    let pidfds = pids.iter().map(|pid| pidfd_open(*pid).unwrap()).collect::<Vec<_>>();
    let saved = launch.cgroup().unwrap().saved();
    drop(launch);
    for pidfd in &pidfds {
        assert!(gone(pidfd));
        assert_eq!(wait::child(pidfd.as_fd()).unwrap(), Exit::Signal(9));
    }
    libcontainer::cgroup::Cgroup::open(saved).unwrap().remove().unwrap();
}

pub(super) fn an_orphan_ends_by_itself_before_its_program_runs() {
    set_child_subreaper(true).unwrap();
    for bundle in [eventful(false), eventful(true)] {
        for step in 0..=gate(&bundle) {
            let (mut reader, mut writer) = pipe().unwrap();
            let Cloned::Parent(_, runtime) = clone3(&CloneOptions { flags: 0, cgroup: None }).unwrap() else {
                let (mut launch, _reader) = begin(&bundle);
                writer.write_all(&launch.pid().as_raw().to_ne_bytes()).unwrap();
                assert!(drive_until(&mut launch, step));
                exit_now(0); // as if killed: no destructor runs
            };
            drop(writer);
            let mut said = Vec::new();
            reader.read_to_end(&mut said).unwrap();
            assert_eq!(wait::child(runtime.as_fd()).unwrap(), Exit::Code(0));
            let pid = Pid::from_raw(i32::from_ne_bytes(said.try_into().unwrap()));
            let init = pidfd_open(pid).unwrap();
            assert!(gone(&init), "step {step} of {}", bundle.plan(&Host::detect().unwrap()).unwrap());
            while wait::any().unwrap().is_some() {}
        }
        // What it did not live to remove is for `delete`, which knows from the recorded state.
        for hierarchy in hierarchies() {
            let group = hierarchy.join("dunnage-test").join(&bundle.id);
            assert!(!group.exists() || fs::remove_dir(group).is_ok());
        }
    }
    set_child_subreaper(false).unwrap();
}

pub(super) fn two_hundred_at_once_are_made_and_gone() {
    let begun = Instant::now();
    let bundle = Bundle::new("exit 7");
    let host = Host::detect().unwrap();
    let mut launches = Vec::new();
    for number in 0..200 {
        let mut spec = bundle.config.clone();
        spec["linux"]["cgroupsPath"] = json!(format!("/dunnage-test/{}-{number}", bundle.id));
        let plan = bundle.plan_of(spec, &host).unwrap();
        let (io, reader) = streams();
        launches.push((Launch::begin(plan, io, Into::New { host: &host, gate: None }).unwrap(), reader));
    }
    for (launch, _) in &mut launches {
        assert_eq!(drive(launch).unwrap(), Progress::AtGate);
        launch.start();
    }
    for (mut launch, _) in launches {
        assert_eq!(drive(&mut launch).unwrap(), Progress::Running);
        let launched = launch.into_launched().unwrap();
        assert_eq!(wait::child(launched.pidfd.as_fd()).unwrap(), Exit::Code(7));
        launched.cgroup.unwrap().remove().unwrap();
    }
    println!("  200 containers in {} ms", begun.elapsed().as_millis());
}
