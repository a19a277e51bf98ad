//! `dunnaged` with real shims: containers on their way in and out, over its own death and theirs.
#![expect(clippy::unwrap_used, reason = "what helps the tests fails as they do")]

mod kills;
mod thousand;
mod world;

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use runtime_v2_api::{supervisor::Phase, task};
use ttrpc::Code;
use world::{PATIENCE, shell, world};

#[test]
fn a_container_is_launched_lives_over_a_kill_and_is_removed() {
    let Some(mut world) = world() else { return };
    let mut request = shell("web-1", "exit 7");
    request.labels.insert("key".to_owned(), "value".to_owned());
    let launched = world.launch(&request).unwrap();
    assert_eq!((launched.phase.enum_value(), &*launched.namespace), (Ok(Phase::CREATED), "default"));
    assert!(launched.pid > 0 && launched.shim_pid > 0 && launched.launch.len() == 6, "{launched:?}");
    assert_eq!(launched.labels["key"], "value");
    assert_eq!(world.launch(&request).unwrap_err().code, Code::ALREADY_EXISTS);

    world.kill();
    world.start();
    // A shim that does not answer within 5 s is not waited for.
    world.until("known", |world| world.phase("web-1") != Phase::UNKNOWN);
    let found = world.get("web-1").unwrap();
    assert_eq!(found, launched);
    world.start_task("web-1");
    assert_eq!(world.wait_task("web-1"), 7);
    world.until("stopped", |world| world.phase("web-1") == Phase::STOPPED);
    world.kill();
    world.start();
    let found = world.get("web-1").unwrap();
    assert_eq!((found.phase.enum_value(), found.exit_status), (Ok(Phase::STOPPED), 7));
    assert!(found.started_at.is_some() && found.exited_at.is_some() && found.pid == 0, "{found:?}");
    world.remove("web-1", false).unwrap();
    assert_eq!(world.remove("web-1", false).unwrap_err().code, Code::NOT_FOUND);
    assert_eq!(world.events(), ["create", "start", "exit", "delete"]);
    world.close();
}

/// As killed between an event's way into the journal and its way into the book, which no test could hit.
#[test]
fn an_exit_that_the_book_lacks_is_found_in_the_journal_although_the_shim_lives() {
    let Some(mut world) = world() else { return };
    for (id, last) in [("web-1", true), ("web-2", false)] {
        world.launch(&shell(id, "exit 7")).unwrap();
        let entry = world.path("state/book/default").join(id).with_added_extension("json");
        let before = fs::read(&entry).unwrap();
        world.start_task(id);
        world.until("stopped", |world| world.phase(id) == Phase::STOPPED);
        if !last {
            world.launch(&shell("other", "true")).unwrap();
        }
        world.kill();
        fs::write(&entry, before).unwrap();
        world.start();
        world.until("stopped again", |world| world.phase(id) == Phase::STOPPED);
        assert_eq!(world.get(id).unwrap().exit_status, 7);
    }
    assert_eq!(world.events().iter().filter(|event| *event == "exit").count(), 2);
    world.close();
}

#[test]
fn what_runs_is_removed_only_with_force() {
    let Some(world) = world() else { return };
    world.launch(&shell("busy", "while :; do sleep 1; done")).unwrap();
    world.start_task("busy");
    let refused = world.remove("busy", false).unwrap_err();
    assert_eq!(refused.code, Code::FAILED_PRECONDITION, "{}", refused.text);
    world.remove("busy", true).unwrap();
    assert_eq!(world.events(), ["create", "start", "exit", "delete"]);
    world.close();
}

#[test]
fn a_container_may_remove_itself() {
    let Some(world) = world() else { return };
    let mut request = shell("short", "true");
    request.auto_remove = true;
    world.launch(&request).unwrap();
    world.start_task("short");
    world.until("removed", |world| world.list().0.is_empty());
    world.close();
}

#[test]
fn a_launch_that_fails_leaves_nothing() {
    let Some(world) = world() else { return };
    let mut request = shell("bad", "true");
    request.spec = String::from_utf8(request.spec).unwrap().replace("\"cwd\":\"/\"", "\"cwd\":\"relative\"").into();
    let refused = world.launch(&request).unwrap_err();
    assert!(refused.text.contains("cwd"), "{}", refused.text);
    world.is_clean().unwrap();

    for (id, code) in [("../x", Code::INVALID_ARGUMENT), ("", Code::INVALID_ARGUMENT)] {
        assert_eq!(world.launch(&shell(id, "true")).unwrap_err().code, code);
    }
    world.close();
}

#[test]
fn a_shim_that_is_killed_leaves_a_lost_container_with_a_whole_story() {
    let Some(mut world) = world() else { return };
    for (id, restart) in [("first", false), ("second", true)] {
        let container = world.launch(&shell(id, "while :; do sleep 1; done")).unwrap();
        world.start_task(id);
        if restart {
            world.kill();
        }
        signal(container.shim_pid, Signal::SIGKILL);
        if restart {
            world.start();
        }
        world.until("lost", |world| world.phase(id) == Phase::LOST);
        let lost = world.get(id).unwrap();
        assert_eq!((lost.exit_status, lost.pid, lost.shim_pid), (137, 0, 0));
        assert!(lost.reason.contains("has ended") && lost.exited_at.is_some(), "{lost:?}");
        assert!(!runs(container.pid), "its process goes with it");
        assert!(!fs::exists(lost.bundle).unwrap());
        let request = task::StateRequest { id: id.to_owned(), ..Default::default() };
        let state = world.task(async |client, context| client.state(context, &request).await).unwrap_err();
        assert_eq!(state.code, Code::FAILED_PRECONDITION, "{}", state.text);
    }
    world.remove("first", false).unwrap();
    world.kill();
    world.start();
    assert_eq!(world.phase("second"), Phase::LOST);
    world.remove("second", false).unwrap();
    let life = ["create", "start", "exit", "delete"];
    assert_eq!(world.events(), [life, life].concat());
    world.close();
}

#[test]
fn an_unreadable_entry_is_named_and_the_others_are_found() {
    let Some(mut world) = world() else { return };
    world.launch(&shell("good", "true")).unwrap();
    let bad = world.launch(&shell("bad", "true")).unwrap();
    world.kill();
    let entry = world.path("state/book/default/bad.json");
    let whole = fs::read(&entry).unwrap();
    fs::write(&entry, &whole[..whole.len() / 2]).unwrap();
    for _ in 0..2 {
        world.start();
        let (containers, troubles) = world.list();
        assert_eq!(containers.iter().map(|container| &*container.id).collect::<Vec<_>>(), ["good"]);
        assert!(troubles.len() == 1 && troubles[0].contains("bad.unreadable"), "{troubles:?}");
        // Who takes its name for free does it no harm, then or at the next start.
        let refused = world.launch(&shell("bad", "true")).unwrap_err();
        assert_eq!(refused.code, Code::ALREADY_EXISTS, "{}", refused.text);
        assert!(refused.text.contains(&bad.bundle), "{}", refused.text);
        assert!(runs(bad.pid) && runs(bad.shim_pid) && !entry.exists());
        world.kill();
    }
    // An operator's repair.
    fs::write(&entry, whole).unwrap();
    fs::remove_file(entry.with_extension("unreadable")).unwrap();
    world.start();
    assert_eq!(world.list().0.len(), 2);
    world.close();
}

#[test]
fn what_a_shim_has_to_say_is_beside_the_containers_log_and_goes_with_it() {
    let Some(mut world) = world() else { return };
    let log = world.path("root/logs/default/web-1/shim.log");
    let container = world.launch(&shell("web-1", "while :; do sleep 1; done")).unwrap();
    world.start_task("web-1");
    // Nobody is there to take its next event, which it says; nor to read that.
    world.kill();
    signal(container.pid, Signal::SIGKILL);
    let deadline = Instant::now() + PATIENCE;
    while !fs::read_to_string(&log).is_ok_and(|text| text.contains(" waits for ")) {
        assert!(Instant::now() < deadline, "never said");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(runs(container.shim_pid));
    world.start();
    world.until("stopped", |world| world.phase("web-1") == Phase::STOPPED);
    signal(container.shim_pid, Signal::SIGKILL);
    world.until("lost", |world| world.phase("web-1") == Phase::LOST);
    let reason = world.get("web-1").unwrap().reason;
    assert!(reason.ends_with(&format!("is in {}", log.display())), "{reason}");
    world.remove("web-1", false).unwrap();
    assert!(!log.exists());
    world.close();
}

#[test]
fn bounds_of_the_journal_count_from_a_reload_on() {
    let Some(mut world) = world() else { return };
    let config = world.path("dunnaged.toml");
    fs::write(&config, "").unwrap();
    world.kill();
    world.configure(&config);
    world.start();
    // Old enough, each event begins a file, and only the last file is kept.
    for id in ["first", "second"] {
        world.launch(&shell(id, "true")).unwrap();
        world.remove(id, true).unwrap();
    }
    assert!(!world.events().is_empty());
    fs::write(&config, "subreaper = false\n[journal]\nmax_age = '1ms'").unwrap();
    signal(world.pid(), Signal::SIGHUP);
    world.until("read again", |world| world.log().contains("read the configuration again"));
    assert!(world.log().contains("subreaper has changed in the configuration"), "{}", world.log());
    world.until("dropped", |world| world.events().is_empty());

    fs::write(&config, "[journal]\nmaxage = '1s'").unwrap();
    signal(world.pid(), Signal::SIGHUP);
    world.until("refused", |world| world.log().contains("everything stays as it is"));
    assert!(world.log().contains("the nearest is \"journal.max_age\""), "{}", world.log());
    world.launch(&shell("third", "true")).unwrap();
    world.close();
}

/// A zombie does not run, should nobody reap it.
fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn signal(pid: u32, signal: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

#[test]
fn a_shim_that_hangs_holds_back_only_its_own_calls() {
    let Some(world) = world() else { return };
    let stuck = world.launch(&shell("stuck", "true")).unwrap();
    signal(stuck.shim_pid, Signal::SIGSTOP);
    let request = task::StateRequest { id: "stuck".to_owned(), ..Default::default() };
    let context = || ttrpc::context::with_duration(Duration::from_millis(300));
    let late = world.task(async |client, _| client.state(context(), &request).await).unwrap_err();
    assert!(matches!(late.code, Code::DEADLINE_EXCEEDED | Code::UNAVAILABLE), "{late:?}");
    world.launch(&shell("other", "true")).unwrap();
    world.start_task("other");
    assert_eq!(world.wait_task("other"), 0);
    world.remove("other", true).unwrap();
    signal(stuck.shim_pid, Signal::SIGCONT);
    let state = world.task(async |client, context| client.state(context, &request).await).unwrap();
    assert_eq!(state.id, "stuck");
    world.close();
}
