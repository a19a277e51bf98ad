//! `kill -9` of the supervisor while it makes and removes containers: all of a container, or nothing of it.

use std::{fs, thread, time::Instant};

use runtime_v2_api::supervisor::{LaunchRequest, Phase};
use ttrpc::Code;

use super::world::{Refusal, World, shell, world};

/// Stops at the point of its life that the file `stop` names, until that file is gone; the rest is the real shim's. What is
/// named by `$0` stays on the command line, as with the real one. It starts nothing that would be known by the world's path
/// and not as a shim: killed in between, that would be left for a moment.
fn stoppable(world: &World) -> String {
    let (real, stop) = (World::real_shim(), world.path("stop"));
    let (real, stop) = (real.display(), stop.display());
    format!(
        "#!/bin/sh\n\
         for action; do :; done\n\
         at() {{ at=; read -r at 2>/dev/null <{stop}; [ \"$at\" = \"$1\" ]; }}\n\
         wait_at() {{ while at \"$1\"; do : >{stop}.there; sleep 0.01; done; }}\n\
         wait_at before-$action\n\
         {real} \"$@\"\n\
         status=$?\n\
         wait_at after-$action\n\
         exit $status\n"
    )
}

/// Sends a request and goes away, which is what a killed supervisor looks like to its client.
fn begin(world: &World, request: &LaunchRequest) -> thread::JoinHandle<Result<(), Refusal>> {
    let (address, request) = (world.address(), request.clone());
    thread::Builder::new().spawn(move || World::launch_at(&address, &request)).unwrap()
}

#[test]
fn a_launch_that_is_killed_while_the_shim_is_started_leaves_nothing() {
    let Some(mut world) = world() else { return };
    world.kill();
    world.replace_shim(&stoppable(&world));
    for point in ["before-start", "after-start"] {
        fs::write(world.path("stop"), point).unwrap();
        world.start();
        let client = begin(&world, &shell("web-1", "true"));
        world.until("there", |world| world.path("stop.there").exists());
        // `start`, and with it perhaps a shim, outlives the supervisor.
        world.kill();
        let refused = client.join().unwrap().unwrap_err();
        assert_eq!(refused.code, Code::UNAVAILABLE, "{}", refused.text);
        world.start();
        world.until("cleaned up", |world| world.list().0.is_empty());
        world.is_clean().unwrap();
        fs::remove_file(world.path("stop")).unwrap();
        fs::remove_file(world.path("stop.there")).unwrap();
        world.kill();
    }
    world.start();
    assert_eq!(world.events(), Vec::<String>::new());
    world.close();
}

#[test]
fn a_client_that_goes_away_leaves_nothing() {
    let Some(mut world) = world() else { return };
    world.kill();
    world.replace_shim(&stoppable(&world));
    fs::write(world.path("stop"), "before-start").unwrap();
    world.start();
    let there = world.path("stop.there");
    World::launch_until(&world.address(), &shell("web-1", "true"), || there.exists());
    world.until("cleaned up", |world| world.list().0.is_empty());
    world.is_clean().unwrap();
    fs::remove_file(world.path("stop")).unwrap();
    world.launch(&shell("web-1", "true")).unwrap();
    world.close();
}

/// Kills at ever later moments of a launch and a removal, over half as long again as one takes here when nobody kills.
#[test]
fn a_supervisor_killed_at_any_moment_leaves_all_or_nothing() {
    let Some(mut world) = world() else { return };
    let before = Instant::now();
    world.launch(&shell("undisturbed", "while :; do sleep 1; done")).unwrap();
    let mut step = before.elapsed() / 20;
    world.start_task("undisturbed");
    world.remove("undisturbed", true).unwrap();
    let (mut kills, mut whole, mut none) = (0, 1, 0);
    let mut number = 0;
    // Later and later, so that one comes through in the end, however slow the machine has become since; and earlier again,
    // should it be so much faster now that none was caught.
    while number < 30 || whole == 1 || none == 0 {
        if number >= 30 && none == 0 {
            (step, number) = (step / 2, 0);
        }
        number += 1;
        let (id, delay) = (format!("web-{number}"), step * number);
        let client = begin(&world, &shell(&id, "while :; do sleep 1; done"));
        thread::sleep(delay);
        world.kill();
        kills += 1;
        let answered = client.join().unwrap().is_ok();
        world.start();
        // Nor unknown, as of a shim that did not answer within 5 s.
        let known = |world: &World| world.get(&id).map_or(Phase::LOST, |found| found.phase.enum_value_or_default());
        world.until("over", |world| !matches!(known(world), Phase::LAUNCHING | Phase::UNKNOWN));
        match world.get(&id) {
            Ok(container) => {
                whole += 1;
                assert_eq!(container.phase.enum_value(), Ok(Phase::CREATED), "{container:?}");
                world.start_task(&id);
            }
            Err(refused) => {
                none += 1;
                assert!(refused.code == Code::NOT_FOUND && !answered, "{refused:?}");
                world.is_clean().unwrap();
                continue;
            }
        }
        // And its way out, as often as it takes.
        let (address, gone) = (world.address(), id.clone());
        let client = thread::Builder::new().spawn(move || World::remove_at(&address, &gone)).unwrap();
        thread::sleep(delay);
        world.kill();
        kills += 1;
        let removed = client.join().unwrap().is_ok();
        world.start();
        assert!(!removed || world.get(&id).is_err_and(|refused| refused.code == Code::NOT_FOUND));
        match world.remove(&id, true) {
            Ok(()) => {}
            Err(refused) => assert_eq!(refused.code, Code::NOT_FOUND, "{}", refused.text),
        }
        world.is_clean().unwrap();
    }
    let events = world.events();
    let count = |topic: &str| events.iter().filter(|event| *event == topic).count();
    println!("{kills} kills; {whole} containers whole, {none} not at all; {} events", events.len());
    assert!(whole > 1 && none > 0, "the moments were all before, or all after");
    assert_eq!((count("create"), count("start")), (count("delete"), whole), "{events:?}");
    assert_eq!(count("exit"), count("delete"), "{events:?}");
    world.close();
}
