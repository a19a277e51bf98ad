use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    os::{
        fd::AsRawFd as _,
        unix::{fs::PermissionsExt as _, net::UnixStream},
    },
    path::Path,
    time::Duration,
};

use nix::sys::socket::{Shutdown, shutdown};
use protobuf::MessageField;
use runtime_v2_api::{Payload, pack};
use tokio::{runtime::Builder, task::JoinHandle};

use super::*;
use crate::{
    config::MetricsAddress,
    journal::{Bounds, Journal},
};

fn run(test: impl Future<Output = ()>) {
    Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

fn container(namespace: &str, id: &str, phase: Phase) -> Container {
    Container {
        namespace: namespace.to_owned(),
        id: id.to_owned(),
        phase: phase.into(),
        // A process that is there as long as the test.
        shim_pid: std::process::id(),
        ..Default::default()
    }
}

/// Metrics of these containers, all of which were launched 10 s after 1970, and the folder of the journal below.
fn metrics(containers: Vec<Container>) -> (Metrics, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { size: 1 << 20, age: Duration::from_secs(3600) };
    let journal = Journal::open(&dir.path().join("journal"), bounds, |_| true).unwrap().0;
    let metrics = Metrics::new(Sources {
        containers: Box::new(move || containers.clone()),
        state_dir: Box::new(|_, _| None),
        launched: Box::new(|_, id| (id != "unknown").then_some(10_000_000_000)),
        troubles: Box::new(|| vec!["the disk is full".to_owned()]),
        unheard: Box::new(|| 5),
        relay: Relay::new(journal, dir.path().join("cursors"), |_, _| {}),
        usages: Usages::default(),
        upgrades: 3,
    });
    (metrics, dir)
}

fn event(seconds: i64, nanos: i32, topic: &str, event: &impl Payload) -> Envelope {
    Envelope {
        timestamp: MessageField::some(Timestamp { seconds, nanos, ..Default::default() }),
        namespace: "default".to_owned(),
        topic: topic.to_owned(),
        event: MessageField::some(pack(event).unwrap()),
        ..Default::default()
    }
}

async fn text(metrics: &Metrics) -> String {
    let mut bytes = Vec::new();
    metrics.scrape(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Reads the format back as a scraper does: each sample by its name and labels. Refuses what a scraper refuses.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut families: BTreeMap<&str, &str> = BTreeMap::new();
    let body = text.strip_suffix("# EOF\n").expect("an end");
    for line in body.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            assert!(families.insert(name, kind).is_none(), "{name} comes twice");
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let name = sample.split('{').next().unwrap();
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'), "{name}");
        let (family, kind) = families.iter().next_back().map(|_| owner(&families, name)).unwrap();
        match kind {
            "counter" => assert_eq!(name, format!("{family}_total")),
            "gauge" => assert_eq!(name, family),
            _ => assert!(["_bucket", "_sum", "_count"].contains(&&name[family.len()..]), "{name}"),
        }
        if let Some(labels) = sample.strip_prefix(name).filter(|labels| !labels.is_empty()) {
            assert!(labels.starts_with('{') && labels.ends_with("\"}"), "{sample}");
        }
        assert!(samples.insert(sample.to_owned(), value.parse().unwrap()).is_none(), "{sample} comes twice");
    }
    samples
}

/// The family that a sample is of: the longest whose name it begins with.
fn owner<'f>(families: &BTreeMap<&'f str, &'f str>, name: &str) -> (&'f str, &'f str) {
    let owners = families.iter().filter(|(family, _)| name.starts_with(**family));
    owners.max_by_key(|(family, _)| family.len()).map(|(family, kind)| (*family, *kind)).expect(name)
}

#[test]
fn what_is_exported_can_be_read_back() {
    run(async {
        let (metrics, _dir) = metrics(vec![
            container("default", "a", Phase::RUNNING),
            container("default", "b", Phase::RUNNING),
            container("default", "c", Phase::STOPPED),
            container("we\"ird\\", "a", Phase::CREATED),
        ]);
        metrics.0.sources.relay.take(None, &Envelope::default()).unwrap();
        let text = text(&metrics).await;
        let samples = samples(&text);
        let value = |sample: &str| *samples.get(sample).unwrap_or_else(|| panic!("{sample} in\n{text}"));
        assert_eq!(value("dunnage_containers{namespace=\"default\",state=\"running\"}"), 2.0);
        assert_eq!(value("dunnage_containers{namespace=\"default\",state=\"stopped\"}"), 1.0);
        assert_eq!(value("dunnage_containers{namespace=\"we\\\"ird\\\\\",state=\"created\"}"), 1.0);
        assert_eq!(value("dunnage_events_total"), 1.0);
        assert_eq!(value("dunnage_event_last_number"), 1.0);
        assert_eq!(value("dunnage_event_subscriber_lag"), 0.0);
        assert_eq!(value("dunnage_events_kept_by_shims"), 5.0);
        assert_eq!(value("dunnage_troubles"), 1.0);
        assert_eq!(value("dunnage_supervisor_upgrades_total"), 3.0);
        assert!(value("dunnage_journal_bytes") > 0.0);
        let started = UNIX_EPOCH + Duration::from_secs_f64(value("dunnage_supervisor_start_time_seconds"));
        let ago = SystemTime::now().duration_since(started).unwrap();
        assert!(ago < Duration::from_secs(86400), "that is us, and not the machine: {ago:?}");
        // All of them name one process, which counts once.
        assert_eq!(value("dunnage_shims"), 1.0);
        assert!(value("dunnage_shims_memory_bytes{kind=\"resident\"}") > 1e6);
        assert!(value("dunnage_supervisor_memory_bytes{kind=\"anonymous\"}") > 1e4);
        assert_eq!(value("dunnage_container_start_seconds_count"), 0.0);
    });
}

#[test]
fn a_container_has_all_its_numbers() {
    let usage = Usage {
        id: "a".to_owned(),
        cpu_total: 1_500_000_000,
        memory: 4096,
        pids_limit: 7,
        io_some: Some(2_500_000),
        ..Default::default()
    };
    let value = |name: &str| {
        let series = SERIES.iter().find(|series| series.name == name).expect(name);
        (series.value)(&usage)
    };
    assert_eq!(value("container_cpu_seconds"), Some(1.5));
    assert_eq!(value("container_memory_bytes"), Some(4096.0));
    assert_eq!(value("container_memory_limit_bytes"), None);
    assert_eq!(value("container_pids_limit"), Some(7.0));
    assert_eq!(value("container_pressure_io_waiting_seconds"), Some(2.5));
    assert_eq!(value("container_pressure_cpu_waiting_seconds"), None, "unknown is not none");
}

#[test]
fn latencies_are_counted_from_the_events() {
    run(async {
        let (metrics, _dir) = metrics(vec![]);
        let start = |id: &str| TaskStart { container_id: id.to_owned(), ..Default::default() };
        metrics.heard(&event(10, 3_000_000, topic::TASK_START, &start("a")));
        metrics.heard(&event(10, 3_000_000, topic::TASK_START, &start("unknown")));
        let exec = || ("a".to_owned(), "e".to_owned());
        let (container_id, exec_id) = exec();
        metrics.heard(&event(
            20,
            0,
            topic::TASK_EXEC_ADDED,
            &TaskExecAdded { container_id, exec_id, ..Default::default() },
        ));
        let (container_id, exec_id) = exec();
        let started = TaskExecStarted { container_id, exec_id, ..Default::default() };
        metrics.heard(&event(20, 500_000_000, topic::TASK_EXEC_STARTED, &started));
        // Without its beginning it says nothing.
        metrics.heard(&event(21, 0, topic::TASK_EXEC_STARTED, &started));
        let samples = samples(&text(&metrics).await);
        assert_eq!(samples["dunnage_container_start_seconds_count"], 1.0);
        assert!((samples["dunnage_container_start_seconds_sum"] - 0.003).abs() < 1e-6);
        assert_eq!(samples["dunnage_container_start_seconds_bucket{le=\"0.002\"}"], 0.0);
        assert_eq!(samples["dunnage_container_start_seconds_bucket{le=\"0.004\"}"], 1.0);
        assert_eq!(samples["dunnage_exec_start_seconds_count"], 1.0);
        assert!((samples["dunnage_exec_start_seconds_sum"] - 0.5).abs() < 1e-6);
    });
}

#[test]
fn an_exec_that_never_starts_is_forgotten() {
    let (metrics, _dir) = metrics(vec![]);
    let added = |container: &str, exec: &str| {
        let (container_id, exec_id) = (container.to_owned(), exec.to_owned());
        event(1, 0, topic::TASK_EXEC_ADDED, &TaskExecAdded { container_id, exec_id, ..Default::default() })
    };
    let exit = |container: &str, id: &str| {
        let (container_id, id) = (container.to_owned(), id.to_owned());
        event(1, 0, topic::TASK_EXIT, &TaskExit { container_id, id, ..Default::default() })
    };
    for (container, exec) in [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1")] {
        metrics.heard(&added(container, exec));
    }
    let left = || metrics.0.adding.lock().unwrap().len();
    metrics.heard(&exit("a", "2"));
    assert_eq!(left(), 3);
    metrics.heard(&exit("a", "a"));
    assert_eq!(left(), 1);
    for exec in 0..2 * MOST_EXECS {
        metrics.heard(&added("c", &exec.to_string()));
    }
    assert_eq!(left(), MOST_EXECS);
}

/// Serves on a port of its own.
async fn serve() -> (u16, JoinHandle<()>, tempfile::TempDir) {
    let (metrics, dir) = metrics(vec![container("default", "a", Phase::RUNNING)]);
    let exporter = listen(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    (exporter.port().unwrap(), tokio::spawn(exporter.serve(metrics)), dir)
}

/// Sends a request and reads the answer, without holding up the loop that gives it.
async fn ask(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut stream = tokio::net::TcpStream::from_std(stream).unwrap();
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await.unwrap();
    answer
}

#[test]
fn only_a_get_of_metrics_is_answered() {
    run(async {
        let (port, _serving, _dir) = serve().await;
        let answer = ask(port, "GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n").await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("openmetrics-text; version=1.0.0"), "{head}");
        assert_eq!(samples(body)["dunnage_containers{namespace=\"default\",state=\"running\"}"], 1.0);
        let head = ask(port, "HEAD /metrics HTTP/1.1\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("rubbish\r\n\r\n", "400"),
            ("\0\u{1}\r\n\r\n", "400"),
            (&format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9000)), "431"),
        ] {
            let answer = ask(port, request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?} {answer}");
        }
    });
}

#[test]
fn scrapers_that_hang_hold_up_nothing_else() {
    run(async {
        let (port, serving, _dir) = serve().await;
        // One says nothing, another half of it, the third does not read.
        let silent = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut half = TcpStream::connect(("127.0.0.1", port)).unwrap();
        half.write_all(b"GET /metr").unwrap();
        let mut deaf = TcpStream::connect(("127.0.0.1", port)).unwrap();
        deaf.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        for _ in 0..3 {
            assert!(ask(port, "GET /metrics HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 200 "));
        }
        // The end of the service is the end of them.
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
        tokio::task::yield_now().await;
        drop(silent);
        let mut rest = Vec::new();
        half.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"");
        // As above.
        while TcpStream::connect(("127.0.0.1", port)).is_ok() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn addresses_that_others_reach_are_refused() {
    run(async {
        for address in ["0.0.0.0:0", "192.0.2.1:80", "[::]:0"] {
            let address = MetricsAddress::Tcp(address.parse().unwrap());
            let error = listen(&address).await.unwrap_err().to_string();
            assert!(error.contains("127.0.0.1"), "{error}");
        }
    });
}

#[test]
fn a_unix_socket_is_ours_alone_and_goes_with_the_service() {
    run(async {
        let (metrics, dir) = metrics(vec![]);
        let path = dir.path().join("metrics");
        // One that a killed supervisor has left.
        let left = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // Another test may just be starting a process, which has it too until it executes.
        shutdown(left.as_raw_fd(), Shutdown::Both).unwrap();
        drop(left);
        let exporter = listen(&MetricsAddress::Unix(path.clone())).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(listen(&MetricsAddress::Unix(path.clone())).await.is_err(), "somebody serves there");
        let serving = tokio::spawn(exporter.serve(metrics));
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut answer = String::new();
        let mut stream = tokio::net::UnixStream::from_std(stream).unwrap();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await.unwrap();
        assert!(answer.ends_with("# EOF\n"));
        serving.abort();
        assert!(serving.await.is_err());
        assert!(!Path::new(&path).exists());
    });
}
