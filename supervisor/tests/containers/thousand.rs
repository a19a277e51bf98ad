//! A thousand shims: found again, asked, kept in little memory, and lost all at once. They are processes that sleep, and
//! one server that answers for all of them.

use std::{
    fs,
    path::Path,
    process::{Child, Command},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use async_trait::async_trait;
use runtime_v2_api::{
    supervisor::Phase,
    task::{StateRequest, StateResponse},
    task_v2::Task,
    types::Status,
};
use tokio::{runtime::Builder, sync::oneshot};
use ttrpc::asynchronous::{Server, TtrpcContext};

use super::world::world;

const SHIMS: usize = 1000;
/// KiB of its own: with the program, 8 MiB are promised.
const MOST: u64 = 4 << 10;

struct Answers;

#[async_trait]
impl Task for Answers {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        Ok(StateResponse { id: request.id, pid: 7, status: Status::RUNNING.into(), ..Default::default() })
    }
}

#[test]
fn a_thousand_shims_are_found_in_little_memory() {
    let Some(mut world) = world() else { return };
    let (_, empty) = memory(world.pid());
    world.kill();
    let socket = world.path("state/s/all");
    let (stop, stopped) = oneshot::channel();
    let server = serve(format!("unix://{}", socket.display()), stopped);
    fs::create_dir_all(world.path("state/book/default")).unwrap();
    let mut shims: Vec<Child> =
        (0..SHIMS).map(|number| shim(&world.path("state/book/default"), &socket, number)).collect();

    let before = Instant::now();
    world.start();
    let found = before.elapsed();
    let (mut containers, troubles) = world.list();
    let known = before.elapsed();
    // A shim that does not answer within 5 s is not waited for.
    world.until("known", |world| {
        containers = world.list().0;
        containers.iter().all(|container| container.phase.enum_value() != Ok(Phase::UNKNOWN))
    });
    assert_eq!((containers.len(), troubles.len()), (SHIMS, 0), "{troubles:?}");
    let running = containers.iter().filter(|container| container.phase.enum_value() == Ok(Phase::RUNNING));
    assert_eq!(running.count(), SHIMS);
    // The answer with all of them was made in memory, too, and is gone by the next question.
    let (resident, heap) = memory(world.pid());
    println!(
        "{SHIMS} shims: serving again after {found:?}, all answered after {known:?}; {resident} KiB resident, {heap} of them its own, and {empty} without a shim"
    );
    // The rest is the program's file, which is larger here than what is shipped.
    assert!(heap <= MOST, "{heap} KiB");
    let descriptors = fs::read_dir(format!("/proc/{}/fd", world.pid())).unwrap().count();
    assert!((SHIMS..SHIMS + 40).contains(&descriptors), "one descriptor each: {descriptors}");
    assert_eq!(fs::read_dir(format!("/proc/{}/task", world.pid())).unwrap().count(), 1);

    for shim in &mut shims {
        shim.kill().unwrap();
        shim.wait().unwrap();
    }
    world.until("all lost", |world| {
        world.list().0.iter().all(|container| container.phase.enum_value() == Ok(Phase::LOST))
    });
    let events = world.events();
    assert_eq!(events.iter().filter(|topic| *topic == "exit").count(), SHIMS);
    assert_eq!(events.len(), 2 * SHIMS);
    stop.send(()).unwrap();
    server.join().unwrap();
    drop(fs::remove_file(socket));
    world.close();
}

/// Answers for all shims until it is told to stop.
fn serve(address: String, stopped: oneshot::Receiver<()>) -> JoinHandle<()> {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let bind =
        || Server::new().bind(&address).unwrap().register_service(runtime_v2_api::task_services(Arc::new(Answers)));
    let mut server = runtime.block_on(async { bind() });
    let serve = move || {
        runtime.block_on(async {
            server.start().await.unwrap();
            stopped.await.unwrap();
            server.shutdown().await.unwrap();
        });
    };
    thread::Builder::new().spawn(serve).unwrap()
}

/// A process that sleeps, and the entry of a container that says it is the shim.
fn shim(book: &Path, socket: &Path, number: usize) -> Child {
    let child = Command::new("/bin/sleep").arg("600").spawn().unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let start_time: u64 = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap().parse().unwrap();
    let steps = ["record", "bundle", "scratch", "start_shim", "connect", "create"];
    let entry = serde_json::json!({
        "stage": "live", "created": 1_700_000_000_000_000_000_u64 + number as u64, "after": 0, "address": socket,
        "shim": {"pid": child.id(), "startTime": start_time},
        "terminal": false, "stdin": false, "auto_remove": false,
        "labels": [["dunnage.command", "sh -c 'while :; do sleep 1; done'"], ["dunnage.root", "machine"]],
        "launch": steps.map(|step| (step, 1_700_000_000_000_000_000_u64, 1_700_000_000_000_100_000_u64)),
        "pid": 7, "started": 1_700_000_000_000_000_000_u64, "exit": null, "oom": false, "deleted": false
    });
    fs::write(book.join(format!("sleeper-{number}.json")), entry.to_string()).unwrap();
    child
}

/// Resident memory, and what of it is no file's, in KiB.
fn memory(pid: u32) -> (u64, u64) {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let field = |name: &str| -> u64 {
        let lines = rollup.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
    };
    (field("Rss:"), field("Anonymous:"))
}
