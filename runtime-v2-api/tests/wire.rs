//! What a real containerd and its own shim said to each other decodes to what we expect, and encodes to the same bytes again.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]

use protobuf::{Enum, Message};
use runtime_v2_api::{
    Payload, Timestamp, cgroups_v1, events, forward::ForwardRequest, json, pack, runc, task::*, topic, types::Status,
    unpack,
};

const BUNDLE: &str = "/run/wire/io.containerd.runtime.v2.task/default/web-1";
const SNAPSHOTS: &str = "/var/lib/wire/io.containerd.snapshotter.v1.overlayfs/snapshots";
const STDIO: [&str; 3] = [
    "/run/containerd/fifo/3103703716/web-1-stdin",
    "/run/containerd/fifo/3103703716/web-1-stdout",
    "/run/containerd/fifo/3103703716/web-1-stderr",
];
const EXEC_STDIO: [&str; 3] = [
    "/run/containerd/fifo/2832896399/probe-1-stdin",
    "/run/containerd/fifo/2832896399/probe-1-stdout",
    "/run/containerd/fifo/2832896399/probe-1-stderr",
];
const PID: u32 = 4519;
const EXEC_PID: u32 = 4553;
/// When the container and its exec ended: seconds and nanoseconds.
const EXITED_AT: (i64, i32) = (1795232211, 824178404);
const EXEC_EXITED_AT: (i64, i32) = (1795232211, 235560433);
/// Go's zero time, the first day of year 1, stands for "not exited".
const NEVER: (i64, i32) = (-62135596800, 0);

/// The bytes of the block of that name.
fn bytes(name: &str) -> Vec<u8> {
    let hex: String = include_str!("recorded.txt")
        .lines()
        .skip_while(|line| *line != name)
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .map(str::trim)
        .collect();
    assert!(!hex.is_empty(), "nothing is recorded as `{name}`");
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// The message of that name, which must have no field that we do not know and must encode to what was recorded.
fn recorded<M: Message>(name: &str) -> M {
    let bytes = bytes(name);
    let message = M::parse_from_bytes(&bytes).unwrap();
    assert!(message.unknown_fields().iter().next().is_none(), "{name} has unknown fields");
    assert_eq!(message.write_to_bytes().unwrap(), bytes, "{name} encodes to other bytes");
    message
}

/// The event that was forwarded under `topic`, taken out of its envelope and put back.
fn event<M: Payload>(name: &str, topic: &str) -> M {
    let request: ForwardRequest = recorded(name);
    assert_eq!((request.envelope.namespace.as_str(), request.envelope.topic.as_str()), ("default", topic));
    assert!(request.envelope.timestamp.seconds >= 1795232211);
    let event = unpack::<M>(&request.envelope.event).unwrap().unwrap();
    assert_eq!(pack(&event).unwrap(), *request.envelope.event);
    event
}

fn at(time: &Timestamp) -> (i64, i32) {
    (time.seconds, time.nanos)
}

#[test]
fn options_come_on_the_stdin_of_start_and_again_in_create() {
    let any: runtime_v2_api::Any = recorded("stdin of start");
    let create: CreateTaskRequest = recorded("Create request");
    assert_eq!(any, *create.options);
    assert_eq!(any.type_url, runc::Options::TYPE_URL);
    let options: runc::Options = unpack(&any).unwrap().unwrap();
    assert_eq!(options, runc::Options { root: "/run/wire/runc".into(), ..Default::default() });
    assert_eq!(unpack::<runtime_v2_api::runtimeoptions::Options>(&any).unwrap(), None);
}

#[test]
fn create_has_the_bundle_the_mounts_and_the_stdio() {
    let create: CreateTaskRequest = recorded("Create request");
    assert_eq!((create.id.as_str(), create.bundle.as_str()), ("web-1", BUNDLE));
    assert_eq!([&create.stdin, &create.stdout, &create.stderr], STDIO);
    assert_eq!((create.terminal, create.checkpoint.as_str()), (false, ""));
    let [root] = &create.rootfs[..] else { panic!("one mount was recorded: {:?}", create.rootfs) };
    assert_eq!((root.type_.as_str(), root.source.as_str(), root.target.as_str()), ("overlay", "overlay", ""));
    let [work, upper, lower] = [("work", "2/work"), ("upper", "2/fs"), ("lower", "1/fs")]
        .map(|(name, folder)| format!("{name}dir={SNAPSHOTS}/{folder}"));
    assert_eq!(root.options, ["index=off".to_owned(), work, upper, lower]);

    let response: CreateTaskResponse = recorded("Create response");
    assert_eq!(response.pid, PID);
    let event: events::TaskCreate = event("event /tasks/create", topic::TASK_CREATE);
    assert_eq!((event.container_id.as_str(), event.bundle.as_str(), event.pid), ("web-1", BUNDLE, PID));
    assert_eq!((&event.rootfs, event.checkpoint.as_str()), (&create.rootfs, ""));
    assert_eq!([&event.io.stdin, &event.io.stdout, &event.io.stderr], STDIO);
    assert!(!event.io.terminal);
}

#[test]
fn connect_gives_the_pids_of_the_shim_and_of_the_container() {
    assert_eq!(recorded::<ConnectRequest>("Connect request").id, "web-1");
    let response: ConnectResponse = recorded("Connect response");
    assert_eq!((response.shim_pid, response.task_pid, response.version.as_str()), (4441, PID, ""));
}

#[test]
fn start_of_the_container_and_of_an_exec_differ_in_the_exec_id() {
    let of_container: StartRequest = recorded("Start request for web-1");
    assert_eq!((of_container.id.as_str(), of_container.exec_id.as_str()), ("web-1", ""));
    let of_exec: StartRequest = recorded("Start request for probe-1");
    assert_eq!((of_exec.id.as_str(), of_exec.exec_id.as_str()), ("web-1", "probe-1"));
    assert_eq!(recorded::<StartResponse>("Start response").pid, PID);

    let start: events::TaskStart = event("event /tasks/start", topic::TASK_START);
    assert_eq!((start.container_id.as_str(), start.pid), ("web-1", PID));
    let start: events::TaskExecStarted = event("event /tasks/exec-started", topic::TASK_EXEC_STARTED);
    assert_eq!((start.container_id.as_str(), start.exec_id.as_str(), start.pid), ("web-1", "probe-1", EXEC_PID));
}

#[test]
fn exec_has_its_process_as_json() {
    let exec: ExecProcessRequest = recorded("Exec request");
    assert_eq!((exec.id.as_str(), exec.exec_id.as_str(), exec.terminal), ("web-1", "probe-1", false));
    assert_eq!([&exec.stdin, &exec.stdout, &exec.stderr], EXEC_STDIO);
    assert_eq!(exec.spec.type_url, json::PROCESS);
    let process = String::from_utf8(exec.spec.value.clone()).unwrap();
    assert!(process.starts_with(r#"{"user":{"uid":0,"gid":0,"additionalGids":[0]},"args":["sh","-c","exit 3"],"#));
    assert!(
        process.ends_with(r#""rlimits":[{"type":"RLIMIT_NOFILE","hard":1024,"soft":1024}],"noNewPrivileges":true}"#)
    );
    let added: events::TaskExecAdded = event("event /tasks/exec-added", topic::TASK_EXEC_ADDED);
    assert_eq!((added.container_id.as_str(), added.exec_id.as_str()), ("web-1", "probe-1"));
}

#[test]
fn state_follows_the_life_of_a_process() {
    assert_eq!(recorded::<StateRequest>("State request for web-1").exec_id, "");
    assert_eq!(recorded::<StateRequest>("State request for probe-1").exec_id, "probe-1");
    let lives = [
        ("of web-1, running", "web-1", PID, Status::RUNNING, STDIO, 0, NEVER),
        ("of web-1, paused", "web-1", PID, Status::PAUSED, STDIO, 0, NEVER),
        ("of web-1, stopped", "web-1", PID, Status::STOPPED, STDIO, 137, EXITED_AT),
        ("of probe-1, created", "probe-1", 0, Status::CREATED, EXEC_STDIO, 0, NEVER),
        ("of probe-1, stopped", "probe-1", EXEC_PID, Status::STOPPED, EXEC_STDIO, 3, EXEC_EXITED_AT),
    ];
    for (name, id, pid, status, stdio, exit_status, exited_at) in lives {
        let state: StateResponse = recorded(&format!("State response {name}"));
        assert_eq!((state.id.as_str(), state.exec_id.as_str(), state.bundle.as_str()), (id, "", BUNDLE), "{name}");
        assert_eq!((state.pid, state.status.enum_value()), (pid, Ok(status)), "{name}");
        assert_eq!([&state.stdin, &state.stdout, &state.stderr], stdio, "{name}");
        assert_eq!(
            (state.terminal, state.exit_status, at(&state.exited_at)),
            (false, exit_status, exited_at),
            "{name}"
        );
    }
    assert_eq!([Status::UNKNOWN, Status::PAUSING].map(|status| status.value()), [0, 5]);
}

#[test]
fn an_exit_is_told_the_same_by_wait_event_and_delete() {
    let wait: WaitRequest = recorded("Wait request for probe-1");
    assert_eq!((wait.id.as_str(), wait.exec_id.as_str()), ("web-1", "probe-1"));
    let response: WaitResponse = recorded("Wait response");
    assert_eq!((response.exit_status, at(&response.exited_at)), (3, EXEC_EXITED_AT));
    for (id, pid, status, exited_at) in [("probe-1", EXEC_PID, 3, EXEC_EXITED_AT), ("web-1", PID, 137, EXITED_AT)] {
        let exit: events::TaskExit = event(&format!("event /tasks/exit of {id}"), topic::TASK_EXIT);
        assert_eq!((exit.container_id.as_str(), exit.id.as_str()), ("web-1", id));
        assert_eq!((exit.pid, exit.exit_status, at(&exit.exited_at)), (pid, status, exited_at));
        let response: DeleteResponse = recorded(&format!("Delete response of {id}"));
        assert_eq!((response.pid, response.exit_status, at(&response.exited_at)), (pid, status, exited_at));
    }
    assert_eq!(recorded::<DeleteRequest>("Delete request for probe-1").exec_id, "probe-1");
    assert_eq!(recorded::<DeleteRequest>("Delete request for web-1").exec_id, "");

    let delete: events::TaskDelete = event("event /tasks/delete", topic::TASK_DELETE);
    assert_eq!((delete.container_id.as_str(), delete.id.as_str(), delete.pid), ("web-1", "", PID));
    assert_eq!((delete.exit_status, at(&delete.exited_at)), (137, EXITED_AT));
    let printed: DeleteResponse = recorded("stdout of delete");
    assert_eq!((printed.pid, printed.exit_status), (PID, 137));
}

#[test]
fn kill_says_the_signal_and_whether_all() {
    let polite: KillRequest = recorded("Kill request with 15");
    assert_eq!((polite.id.as_str(), polite.exec_id.as_str(), polite.signal, polite.all), ("web-1", "", 15, false));
    let all: KillRequest = recorded("Kill request with 9");
    assert_eq!((all.id.as_str(), all.exec_id.as_str(), all.signal, all.all), ("web-1", "", 9, true));
}

#[test]
fn stats_are_version_1_metrics() {
    assert_eq!(recorded::<StatsRequest>("Stats request").id, "web-1");
    let response: StatsResponse = recorded("Stats response");
    let metrics: cgroups_v1::Metrics = unpack(&response.stats).unwrap().unwrap();
    assert_eq!(pack(&metrics).unwrap(), *response.stats);
    assert_eq!((metrics.pids.current, metrics.pids.limit), (1, 0));
    let cpu = &metrics.cpu.usage;
    assert_eq!((cpu.total, cpu.user, cpu.per_cpu.iter().sum::<u64>()), (31342024, 0, 31342024));
    assert_eq!(cpu.kernel, 30000000);
    assert_eq!((metrics.memory.usage.limit, metrics.memory.usage.usage), (67108864, 499712));
    assert_eq!((metrics.memory.hierarchical_memory_limit, metrics.memory.total_pg_fault), (67108864, 777));
    assert!(metrics.blkio.is_some() && metrics.memory_oom_control.is_some() && metrics.rdma.is_none());
}

#[test]
fn what_names_only_the_container() {
    assert_eq!(recorded::<PauseRequest>("Pause request").id, "web-1");
    assert_eq!(recorded::<ResumeRequest>("Resume request").id, "web-1");
    assert_eq!(event::<events::TaskPaused>("event /tasks/paused", topic::TASK_PAUSED).container_id, "web-1");
    assert_eq!(event::<events::TaskResumed>("event /tasks/resumed", topic::TASK_RESUMED).container_id, "web-1");
    assert_eq!(recorded::<PidsRequest>("Pids request").id, "web-1");
    let pids: PidsResponse = recorded("Pids response");
    assert_eq!(
        pids.processes.iter().map(|process| (process.pid, process.info.is_some())).collect::<Vec<_>>(),
        [(PID, false)]
    );
    let close: CloseIORequest = recorded("CloseIO request");
    assert_eq!((close.id.as_str(), close.exec_id.as_str(), close.stdin), ("web-1", "probe-1", true));
    let shutdown: ShutdownRequest = recorded("Shutdown request");
    assert_eq!((shutdown.id.as_str(), shutdown.now), ("web-1", false));
}
