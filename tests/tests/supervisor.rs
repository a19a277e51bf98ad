//! The supervisor under everything that can happen to it: killed in the middle of a storm of calls, on a full disk, over
//! damaged files, with clients that never read, replaced in place.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
        process::CommandExt as _,
    },
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Instant,
};

use dunnage_tests::{Alone, Cli, Event, alone, eventually, process};
use nix::mount::{MsFlags, mount};
use protobuf::{EnumOrUnknown, Message};
use runtime_v2_api::{
    Empty,
    forward::{Envelope, ForwardRequest},
    supervisor::{ParkRequest, Parked, SubscribeRequest, TakeRequest, UpgradeRequest, subscribe_request},
};

/// How often the supervisor is killed, or upgraded, in each storm.
const KILLS: u32 = 12;
/// How many clients call at the same time.
const CLIENTS: u32 = 3;

/// What became of the calls of a storm.
#[derive(Default)]
struct Calls {
    made: AtomicU32,
    /// Ended by a kill of the supervisor; each said so.
    cut_off: AtomicU32,
    /// The exit codes of the containers whose clients heard of them.
    exits: Mutex<BTreeMap<String, i32>>,
}

/// Clients call `call` again and again, with their own number and that of the call, while the supervisor is disturbed.
fn storm(disturb: impl Fn(), call: impl Fn(u32, u32) + Sync) {
    let begin = Instant::now();
    call(CLIENTS, 0);
    let undisturbed = begin.elapsed();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (over, call) = (&over, &call);
            scope.spawn(move || {
                (0..).take_while(|_| !over.load(Ordering::Relaxed)).for_each(|number| call(client, number))
            });
        }
        for kill in 0..KILLS {
            // Spreads them over what the calls do, however long one takes here; nothing is waited for.
            thread::sleep(undisturbed * (2 + 3 * kill % 8));
            disturb();
        }
        over.store(true, Ordering::Relaxed);
    });
}

fn kill_and_start(world: &Alone) {
    world.kill();
    world.start();
}

/// Runs containers with the client's number and that of the call in their names, and exit codes of their own.
fn runs(cli: &Cli, calls: &Calls, client: u32, number: u32) {
    let (name, code) = (format!("c{client}-{number}"), i32::try_from(number % 100).expect("small"));
    let script = format!("exit {code}");
    let output = cli.command(["run", "--rm", "--name", &name, "--", "sh", "-c", &script]).output();
    let output = output.expect("run dunnage");
    calls.made.fetch_add(1, Ordering::Relaxed);
    match output.status.code() {
        Some(125) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("supervisor"), "a call that fails blames the supervisor: {said}");
            calls.cut_off.fetch_add(1, Ordering::Relaxed);
        }
        got => {
            assert_eq!(got, Some(code), "{}", String::from_utf8_lossy(&output.stderr));
            calls.exits.lock().expect("no client panics").insert(name, code);
        }
    }
}

/// Checks that the exit of every container that a client heard of was told once.
fn check_exits(calls: &Calls, events: &[Event]) {
    let exits = calls.exits.lock().expect("no client panicked");
    assert!(!exits.is_empty(), "no call got through");
    for (name, code) in &*exits {
        let told = events.iter().filter(|event| event.is_exit_of(name, name));
        let told: Vec<i64> = told.map(|event| event.number("exit_status").cast_signed()).collect();
        assert_eq!(told, [i64::from(*code)], "the exit of {name}, once, with its code");
    }
}

/// Runs `test` beside a subscriber that comes back after each kill, and checks that it heard each event exactly once.
fn with_subscriber(world: &Alone, test: impl FnOnce()) -> Vec<Event> {
    let over = AtomicBool::new(false);
    let (cli, mut heard) = (world.cli(), Vec::new());
    thread::scope(|scope| {
        let subscriber = scope.spawn(|| cli.follow(&mut heard, |_| over.load(Ordering::Relaxed)));
        let tested = catch_unwind(AssertUnwindSafe(test));
        // Also when it has failed, or the subscriber would go on for ever.
        over.store(true, Ordering::Relaxed);
        subscriber.join().expect("the subscriber");
        tested.unwrap_or_else(|panic| resume_unwind(panic));
    });
    let all = world.events_after(0);
    // What came after its last look.
    let last = heard.last().map_or(0, |(number, _)| *number);
    heard.extend(all.iter().filter(|(number, _)| *number > last).cloned());
    let numbers = |events: &[(u64, Event)]| events.iter().map(|(number, _)| *number).collect::<Vec<_>>();
    assert_eq!(numbers(&heard), numbers(&all), "each event once, in order");
    all.into_iter().map(|(_, event)| event).collect()
}

#[test]
fn a_storm_of_runs_survives_a_supervisor_that_is_killed_again_and_again() {
    alone(|world| {
        let (cli, calls) = (world.cli(), Calls::default());
        let events = with_subscriber(world, || {
            storm(|| kill_and_start(world), |client, number| runs(&cli, &calls, client, number));
        });
        check_exits(&calls, &events);
        println!(
            "runs: {KILLS} kills, {} calls, {} cut off, {} events, 0 lost, 0 repeated",
            calls.made.into_inner(),
            calls.cut_off.into_inner(),
            events.len()
        );
    });
}

#[test]
fn a_storm_of_runs_does_not_notice_upgrades() {
    alone(|world| {
        world.idle("web");
        let (cli, calls, pid) = (world.cli(), Calls::default(), world.pid());
        let waits = ["wait", "attach"].map(|command| world.spawn([command, "web"]));
        let events = with_subscriber(world, || {
            let upgrade = || drop(world.dunnage(["upgrade"]).ok().to_owned());
            storm(upgrade, |client, number| runs(&cli, &calls, client, number));
        });
        check_exits(&calls, &events);
        let version = world.ask(async |supervisor, context| supervisor.version(context, &Empty::new()).await);
        let version = version.expect("ask for the version");
        assert_eq!((version.upgrades, version.pid), (KILLS, pid));
        assert_eq!(calls.cut_off.into_inner(), 0, "calls that failed");
        world.dunnage(["kill", "web"]).ok();
        let [wait, attach] = waits;
        assert_eq!((wait.wait().ok(), attach.wait().code), ("137", 137), "those who waited all the time");
        let made = calls.made.into_inner();
        println!("upgrades: {KILLS}, {made} calls, 0 failed, {} events, 0 lost, 0 repeated", events.len());
    });
}

#[test]
fn a_storm_of_execs_survives_a_supervisor_that_is_killed_again_and_again() {
    alone(|world| {
        world.idle("host");
        let (cli, calls) = (world.cli(), Calls::default());
        let before = world.container("host").pid;
        let events = with_subscriber(world, || {
            storm(
                || kill_and_start(world),
                |_, number| {
                    let code = i32::try_from(number % 100).expect("small");
                    let output = cli.command(["exec", "host", "sh", "-c", &format!("echo $$; exit {code}")]).output();
                    let output = output.expect("run dunnage");
                    calls.made.fetch_add(1, Ordering::Relaxed);
                    if output.status.code() != Some(code) {
                        let said = String::from_utf8_lossy(&output.stderr);
                        assert!(said.contains("supervisor"), "a call that fails blames the supervisor: {said}");
                        calls.cut_off.fetch_add(1, Ordering::Relaxed);
                    }
                },
            );
        });
        assert_eq!(world.container("host").pid, before, "the container never noticed");
        println!(
            "execs: {KILLS} kills, {} calls, {} cut off, {} events, 0 lost, 0 repeated",
            calls.made.into_inner(),
            calls.cut_off.into_inner(),
            events.len()
        );
    });
}

#[test]
fn what_ends_while_there_is_no_supervisor_is_told_by_the_next() {
    alone(|world| {
        for (id, script) in [("a", "read x; exit 3"), ("b", "exec sleep 1000")] {
            world.dunnage(["run", "-d", "-i", "--name", id, "--", "sh", "-c", script]).ok();
        }
        let (a, b) = (world.container("a"), world.container("b"));
        world.kill();
        process::kill_hard(a.pid);
        // Its shim too: nobody but the bundle can tell of this one.
        process::kill_hard(b.shim_pid);
        process::wait_for_end(b.shim_pid);
        process::wait_for_end(a.pid);
        world.start();
        for id in ["a", "b"] {
            let wait = world.dunnage(["wait", id]);
            assert_eq!(wait.ok(), "137", "{id}");
        }
        let ps = world.dunnage(["ps", "--all"]);
        assert!(ps.ok().contains("lost"), "{}", ps.stdout);
        assert!(!process::lives(b.pid), "what a dead shim leaves is ended");
    });
}

#[test]
fn a_second_supervisor_on_the_same_folders_refuses() {
    alone(|world| {
        let second = world.daemon().output().expect("run dunnaged");
        let said = String::from_utf8_lossy(&second.stderr);
        assert!(!second.status.success() && said.contains(&format!("process {}", world.pid())), "{said}");
        world.dunnage(["ps"]).ok();
    });
}

#[test]
fn other_users_are_refused() {
    alone(|world| {
        world.copy_programs();
        let mut stranger = Command::new(world.path("bin/dunnage"));
        stranger.args(["ps"]).env("DUNNAGE_ADDRESS", world.socket()).uid(65534).gid(65534);
        let outcome = stranger.output().expect("run dunnage as a stranger");
        assert!(!outcome.status.success(), "a closed folder");
        // Even with the doors left open by mistake.
        for (path, mode) in [(world.path("state"), 0o755), (world.socket(), 0o777)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("open a door");
        }
        let outcome = stranger.output().expect("run dunnage as a stranger");
        let said = String::from_utf8_lossy(&outcome.stderr);
        assert!(!outcome.status.success() && said.contains("serves nobody else"), "{said}");
        // One that does not look whom it talks to: a supervisor that finds the place taken.
        let own = world.path("stranger");
        fs::create_dir(&own).expect("make a folder");
        std::os::unix::fs::chown(&own, Some(65534), Some(65534)).expect("give it away");
        let mut rude = Command::new(world.path("bin/dunnaged"));
        rude.arg("--state").arg(own.join("s")).arg("--root").arg(own.join("r")).arg("--address").arg(world.socket());
        rude.env("XDG_RUNTIME_DIR", &own).env("HOME", &own).env("DUNNAGE_ROOTLESS", "1").uid(65534).gid(65534);
        let outcome = rude.output().expect("run dunnaged as a stranger");
        let said = String::from_utf8_lossy(&outcome.stderr);
        assert!(!outcome.status.success() && said.contains("somebody serves"), "{said}");
        world.log().line("is of user 65534");
        fs::set_permissions(world.path("state"), fs::Permissions::from_mode(0o700)).expect("close it");
    });
}

#[test]
fn a_full_disk_stops_no_container_and_is_told() {
    alone(|world| {
        // A journal on a disk of its own, so that it can be full without the logs'.
        world.stop();
        let disk = world.path("root/journal");
        fs::remove_dir_all(&disk).expect("make room for a disk");
        fs::create_dir(&disk).expect("make a mount point");
        mount(Some("dunnage"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=256k,mode=700"))
            .expect("mount a disk");
        world.start();
        let filler = disk.join("filler");
        let mut file = fs::File::create_new(&filler).expect("make a file");
        while file.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
        drop(file);
        world.dunnage(["run", "-d", "--name", "a", "--", "sh", "-c", "exit 5"]).ok();
        let troubles = eventually("the supervisor to see it", || {
            let version = world.ask(async |supervisor, context| supervisor.version(context, &Empty::new()).await);
            Some(version.expect("ask for the version").troubles).filter(|troubles| !troubles.is_empty())
        });
        assert!(troubles.iter().any(|trouble| trouble.contains("journal")), "{troubles:?}");
        assert_eq!(world.dunnage(["wait", "a"]).ok(), "5", "the container went on, and its shim knows");
        fs::remove_file(filler).expect("make room again");
        eventually("the events that waited", || {
            world.events().iter().any(|event| event.is_exit_of("a", "a")).then_some(())
        });
        let clean = eventually("the trouble to be over", || {
            let version = world.ask(async |supervisor, context| supervisor.version(context, &Empty::new()).await);
            Some(version.expect("ask for the version").troubles).filter(Vec::is_empty)
        });
        assert!(clean.is_empty());
        world.dunnage(["rm", "a"]).ok();
        world.kill();
        nix::mount::umount2(&disk, nix::mount::MntFlags::MNT_DETACH).expect("unmount the disk");
        world.some_events_are_gone();
        world.start();
    });
}

#[test]
fn damage_to_the_book_and_the_journal_is_named_and_the_rest_is_saved() {
    alone(|world| {
        world.idle("whole");
        world.idle("damaged");
        let damaged = world.container("damaged");
        world.kill();
        let entry = world.path(format!("state/book/{}/damaged.json", world.name));
        let text = fs::read(&entry).expect("read an entry");
        fs::write(&entry, &text[..text.len() / 2]).expect("cut an entry short");
        let segments = fs::read_dir(world.path("root/journal")).expect("read the journal");
        let segment = segments.flatten().map(|entry| entry.path()).min().expect("a segment");
        let mut bytes = fs::read(&segment).expect("read a segment");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(&segment, bytes).expect("flip a byte");
        world.start();
        let ps = world.dunnage(["ps", "--all"]);
        assert!(ps.ok().contains("whole"), "{}", ps.stdout);
        let version = world.ask(async |supervisor, context| supervisor.version(context, &Empty::new()).await);
        let troubles = version.expect("ask for the version").troubles;
        assert!(troubles.iter().any(|trouble| trouble.contains("damaged")), "{troubles:?}");
        world.log().line("journal");
        world.some_events_are_gone();
        // What the damaged entry stood for is the operator's to end; here it is the test's.
        process::kill_hard(damaged.pid);
        process::wait_for_end(damaged.pid);
        process::kill_hard(damaged.shim_pid);
        process::wait_for_end(damaged.shim_pid);
        let shim = world.program("containerd-shim-dunnage-v2");
        let mut delete = Command::new(shim);
        delete.args(["-namespace", &world.name, "-id", "damaged", "-address"]).arg(world.socket());
        delete.arg("-bundle").arg(&damaged.bundle).arg("delete");
        assert!(delete.output().expect("run the shim").status.success());
        nix::mount::umount(&Path::new(&damaged.bundle).join("scratch")).expect("unmount what it wrote to");
        fs::remove_dir_all(&damaged.bundle).expect("remove the bundle");
        fs::remove_dir_all(world.path(format!("root/logs/{}/damaged", world.name))).expect("remove the log");
        fs::remove_file(entry.with_extension("unreadable")).expect("remove the entry");
        fs::remove_file(damaged.attach).ok();
        for unheard in fs::read_dir(world.path("state/unheard")).expect("read a folder").flatten() {
            if unheard.file_name().to_string_lossy().starts_with(&format!("{}-", damaged.shim_pid)) {
                fs::remove_file(unheard.path()).expect("remove what nobody will ask for");
            }
        }
    });
}

#[test]
fn a_client_that_subscribes_and_never_reads_costs_little() {
    /// What a frame of a stream says it is, and one that answers a call for good.
    const DATA: u8 = 3;
    const RESPONSE: u8 = 2;
    alone(|world| {
        let before = process::memory(world.pid());
        // By hand, since a client of ours would read: one request frame, and then nothing.
        let from = Some(subscribe_request::From::After(0));
        let subscribe = SubscribeRequest { all_namespaces: true, from, ..Default::default() };
        let mut deaf: Vec<UnixStream> = (0..20)
            .map(|_| {
                let mut stream = UnixStream::connect(world.socket()).expect("connect");
                stream.write_all(&frame(1, "dunnage.supervisor.v1.Supervisor", "Subscribe", &subscribe)).expect("ask");
                stream
            })
            .collect();
        // Of events, ten times what a socket holds.
        let envelope = Envelope { namespace: world.name.clone(), topic: "x".repeat(1000), ..Default::default() };
        let event = ForwardRequest { envelope: Some(envelope).into(), ..Default::default() };
        let mut teller = UnixStream::connect(world.socket()).expect("connect");
        for number in 0..2000 {
            let forward = frame(2 * number + 1, "containerd.services.events.ttrpc.v1.Events", "Forward", &event);
            teller.write_all(&forward).expect("tell of an event");
            let (kind, answer) = read_frame(&mut teller);
            let answer = ttrpc::Response::parse_from_bytes(&answer).expect("a response");
            assert_eq!((kind, answer.status.code), (RESPONSE, EnumOrUnknown::default()), "event {number}: {answer}");
        }
        let after = process::memory(world.pid());
        assert!(after.rss < before.rss + 4096, "20 deaf clients cost {} KiB", after.rss - before.rss);
        // They were being served all the time, and get what they subscribed to.
        for stream in &mut deaf {
            for _ in 0..100 {
                assert_eq!(read_frame(stream).0, DATA);
            }
        }
        println!("20 deaf subscribers: {} KiB before, {} KiB after 2000 events", before.rss, after.rss);
    });
}

/// A ttrpc frame: length, stream, a request, no more from the client; then the request.
fn frame(stream: u32, service: &str, method: &str, request: &impl Message) -> Vec<u8> {
    let request = ttrpc::Request {
        service: service.to_owned(),
        method: method.to_owned(),
        payload: request.write_to_bytes().expect("encode"),
        ..Default::default()
    };
    let request = request.write_to_bytes().expect("encode");
    let length = u32::try_from(request.len()).expect("small");
    [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[1, 1], &request].concat()
}

/// The next frame's type and what it carries.
fn read_frame(stream: &mut UnixStream) -> (u8, Vec<u8>) {
    let mut header = [0; 10];
    stream.read_exact(&mut header).expect("a frame");
    let [a, b, c, d, .., kind, _flags] = header;
    let mut payload = vec![0; u32::from_be_bytes([a, b, c, d]) as usize];
    stream.read_exact(&mut payload).expect("the rest of a frame");
    (kind, payload)
}

#[test]
fn an_upgrade_in_place_is_noticed_by_nobody() {
    alone(|world| {
        world.idle("web");
        let (pid, before) = (world.pid(), world.container("web"));
        // Close-on-exec: another test may start a containerd meanwhile, whose descriptors it counts.
        let (read_end, write_end) = std::io::pipe().expect("a pipe");
        let fd = std::os::fd::AsRawFd::as_raw_fd(&write_end);
        let parked = Parked { name: "end".into(), fd, ..Parked::default() };
        let park =
            ParkRequest { owner: "test".into(), fds: vec![parked], pid: std::process::id(), ..Default::default() };
        world.ask(async |supervisor, context| supervisor.park(context, &park).await).expect("park");
        drop(write_end);

        let mut waiting = world.spawn(["wait", "web"]);
        let mut followed =
            world.spawn(["run", "--rm", "--name", "talker", "--", "sh", "-c", "echo one; sleep 1; echo two"]);
        drop((waiting.stdin(), followed.stdin()));
        followed.stdout().line("one");
        for upgrade in 1..=3 {
            let request = UpgradeRequest::default();
            let version = world.ask(async |supervisor, context| supervisor.upgrade(context, &request).await);
            let version = version.expect("the successor answers");
            assert_eq!((version.upgrades, version.pid), (upgrade, pid), "the same process");
        }
        assert_eq!(world.container("web").pid, before.pid);
        let take = TakeRequest { owner: "test".into(), ..TakeRequest::default() };
        let taken = world.ask(async |supervisor, context| supervisor.take(context, &take).await).expect("take");
        assert_eq!((taken.pid, taken.fds.len()), (pid, 1), "what was parked is still there");
        drop(read_end);

        world.dunnage(["kill", "web"]).ok();
        assert_eq!(waiting.wait().ok(), "137", "who waited before the upgrades is told");
        assert_eq!(followed.wait().ok(), "one\ntwo", "and who listened has heard all");
    });
}

#[test]
fn an_upgrade_to_something_else_is_refused() {
    alone(|world| {
        let script = |status: u8| {
            let path = world.path(format!("wrong-{status}"));
            fs::write(&path, format!("#!/bin/sh\nexit {status}\n")).expect("write a script");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
            path.display().to_string()
        };
        for binary in [script(3), script(0), "/nowhere".to_owned()] {
            let request = UpgradeRequest { binary: binary.clone(), ..UpgradeRequest::default() };
            let answer = world.ask(async |supervisor, context| supervisor.upgrade(context, &request).await);
            assert!(answer.expect_err("refused").to_string().contains(&binary));
        }
        let version = world.ask(async |supervisor, context| supervisor.version(context, &Empty::new()).await);
        assert_eq!(version.expect("still the old one").upgrades, 0);
    });
}

#[test]
fn a_supervisor_that_systemd_starts_serves_on_its_socket_and_on_no_other() {
    alone(|world| {
        world.stop();
        world.activate_with(Some(UnixListener::bind(world.socket()).expect("listen")));
        // Who came before it is served when it is there, as whom systemd starts it for.
        let first = world.spawn(["run", "-d", "--name", "web", "--", "sleep", "1000"]);
        world.start();
        first.wait().ok();
        let before = world.container("web").pid;
        world.kill();
        world.start();
        assert_eq!(world.container("web").pid, before);
        let request = UpgradeRequest::default();
        let version = world.ask(async |supervisor, context| supervisor.upgrade(context, &request).await);
        assert_eq!(version.expect("the successor answers").upgrades, 1);
        world.dunnage(["exec", "web", "true"]).ok();
        world.stop();
        assert!(world.socket().exists(), "it is systemd's");

        let other = world.path("other.sock");
        world.activate_with(Some(UnixListener::bind(&other).expect("listen")));
        let refused = world.daemon().output().expect("run dunnaged");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains("ListenStream="), "{said}");
        for path in [&other, &world.socket()] {
            assert!(said.contains(&*path.to_string_lossy()), "{said}");
        }
        world.activate_with(None);
        fs::remove_file(world.socket()).expect("remove a socket");
        world.start();
    });
}

#[test]
fn the_kernel_spares_a_container_no_more_than_it_spares_others() {
    alone(|world| {
        let config = world.path("dunnaged.toml");
        world.flags(["--config".into(), config.clone().into_os_string()]);
        // Where root may not have less than it was started with, the supervisor says so and goes on.
        for score in [500, -500] {
            world.stop();
            fs::write(&config, format!("oom_score = {score}\n")).expect("write the configuration");
            world.start();
            let id = format!("web{}", score + 500);
            world.idle(&id);
            for words in [&["run", "--rm", "--"][..], &["exec", &id]] {
                let own = world.dunnage(words.iter().copied().chain(["cat", "/proc/self/oom_score_adj"]));
                assert_eq!(own.ok(), "0", "{words:?}");
            }
        }
    });
}

#[test]
fn metrics_tell_of_containers_and_their_starts() {
    alone(|world| {
        world.stop();
        let socket = world.path("metrics.sock");
        world.flags(["--metrics".to_owned(), format!("unix:{}", socket.display())]);
        world.start();
        world.idle("web");
        world.dunnage(["exec", "web", "true"]).ok();
        let mut stream = UnixStream::connect(&socket).expect("connect for metrics");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").expect("ask");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("read the metrics");
        let value = |name: &str| {
            let line =
                text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
            line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number")
        };
        assert!(value("dunnage_container_start_seconds_count") >= 1.0);
        assert!(value("dunnage_container_memory_bytes{") > 0.0);
        assert!(value("dunnage_container_cpu_seconds_total{") > 0.0);
    });
}
