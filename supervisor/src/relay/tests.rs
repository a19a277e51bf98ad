use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Instant,
};

use futures::TryStreamExt as _;
use runtime_v2_api::{forward_ttrpc::EventsClient, supervisor_ttrpc, supervisor_ttrpc::SupervisorClient};
use runtime_v2_server::connections;
use tempfile::TempDir;
use tokio::{net::UnixListener, runtime::Builder, sync::mpsc};
use ttrpc::{
    asynchronous::{Client, ClientStreamReceiver, Server, transport::Listener},
    context::{self, Context},
};

use super::*;
use crate::{carry::Carrier, journal::Bounds};

const WIDE: Bounds = Bounds { size: 64 << 20, age: Duration::from_secs(86400) };

/// A supervisor that only relays.
struct Relaying {
    dir: TempDir,
    relay: Relay,
    heard: Arc<Mutex<Vec<u64>>>,
    _server: Server,
}

/// Its service, as `service.rs` has it.
struct Service(Relay);

#[async_trait]
impl supervisor_ttrpc::Supervisor for Service {
    async fn subscribe(
        &self,
        _: &TtrpcContext,
        request: SubscribeRequest,
        to: ServerStreamSender<SubscribeResponse>,
    ) -> ttrpc::Result<()> {
        self.0.subscribe(request, "default", to).await
    }

    async fn ack(&self, _: &TtrpcContext, request: AckRequest) -> ttrpc::Result<Empty> {
        self.0.ack(&request).map(|()| Empty::default())
    }
}

impl Relaying {
    async fn start() -> Self {
        Self::over(tempfile::tempdir().unwrap(), WIDE, PATIENCE).await
    }

    async fn over(dir: TempDir, bounds: Bounds, patience: Duration) -> Self {
        let journal = Journal::open(&dir.path().join("journal"), bounds, |_| true).unwrap().0;
        let heard = Arc::<Mutex<Vec<u64>>>::default();
        let told = heard.clone();
        let relay = Relay::with_patience(journal, dir.path().join("cursors"), patience, move |number, _| {
            told.lock().unwrap().push(number);
        });
        // As in the daemon, so that what is measured here is what goes through there.
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let carrier = Carrier::default();
        let connection = move |stream| carrier.connection(stream, Vec::new(), mpsc::channel(1).0);
        let mut server = Server::new()
            .add_listener(Listener::new(connections(listener, |_| Ok(())).map_ok(connection)))
            .register_service(relay.forward_service())
            .register_service(supervisor_ttrpc::create_supervisor(Arc::new(Service(relay.clone()))));
        server.start().await.unwrap();
        Self { dir, relay, heard, _server: server }
    }

    async fn client(&self) -> Client {
        Client::connect(&format!("unix://{}", self.socket().display())).await.unwrap()
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("socket")
    }

    async fn subscribe(&self, request: SubscribeRequest) -> ttrpc::Result<Stream> {
        Stream::of(SupervisorClient::new(self.client().await).subscribe(Context::default(), &request).await?).await
    }

    async fn ack(&self, name: &str, number: u64) -> ttrpc::Result<Empty> {
        let request = AckRequest { name: name.to_owned(), number, ..Default::default() };
        SupervisorClient::new(self.client().await).ack(Context::default(), &request).await
    }

    fn take(&self, count: usize) {
        for number in 0..count {
            self.relay.take(None, &envelope("default", &number.to_string())).unwrap();
        }
    }
}

/// A subscription, behind its first message.
struct Stream {
    receiver: ClientStreamReceiver<SubscribeResponse>,
    /// What the first message said.
    begin: (u64, u64),
}

impl Stream {
    async fn of(mut receiver: ClientStreamReceiver<SubscribeResponse>) -> ttrpc::Result<Self> {
        let first = receiver.recv().await?.expect("a first message");
        assert!(first.envelope.is_none());
        Ok(Self { receiver, begin: (first.number, first.lost) })
    }

    async fn next(&mut self) -> (u64, String) {
        let message = self.receiver.recv().await.unwrap().expect("an event");
        (message.number, message.envelope.topic.clone())
    }

    /// The numbers of the rest, of a stream that ends.
    async fn rest(mut self) -> Vec<u64> {
        let mut numbers = Vec::new();
        while let Some(message) = self.receiver.recv().await.unwrap() {
            numbers.push(message.number);
        }
        numbers
    }
}

fn envelope(namespace: &str, topic: &str) -> Envelope {
    Envelope { namespace: namespace.to_owned(), topic: topic.to_owned(), ..Default::default() }
}

fn after(number: u64) -> SubscribeRequest {
    from(subscribe_request::From::After(number))
}

fn from(from: subscribe_request::From) -> SubscribeRequest {
    SubscribeRequest { from: Some(from), ..Default::default() }
}

fn named(name: &str) -> SubscribeRequest {
    SubscribeRequest { until_now: true, ..from(subscribe_request::From::Name(name.to_owned())) }
}

async fn forward(client: &Client, source: Option<(&str, &str)>, topic: &str) -> ttrpc::Result<Empty> {
    let metadata = source.map(|(source, number)| {
        [(SOURCE, source), (NUMBER, number)].map(|(key, value)| (key.to_owned(), vec![value.to_owned()])).into()
    });
    let envelope = MessageField::some(envelope("default", topic));
    let request = ForwardRequest { envelope, ..Default::default() };
    EventsClient::new(client.clone()).forward(context::with_metadata(metadata.unwrap_or_default()), &request).await
}

fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> Code {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        other => panic!("{other:?}"),
    }
}

fn run(test: impl Future<Output = ()>) {
    Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn an_event_sent_twice_is_answered_twice_and_heard_once() {
    run(async {
        let relaying = Relaying::start().await;
        let shim = relaying.client().await;
        for number in ["1", "2", "2", "1", "3"] {
            forward(&shim, Some(("5-5", number)), number).await.unwrap();
        }
        // Another shim's, and one of a shim that does not number them.
        forward(&shim, Some(("6-6", "1")), "other").await.unwrap();
        forward(&shim, None, "plain").await.unwrap();
        assert_eq!(*relaying.heard.lock().unwrap(), [1, 2, 3, 4, 5]);
        let mut stream = relaying.subscribe(after(0)).await.unwrap();
        assert_eq!(stream.begin, (0, 0));
        for (number, topic) in [(1, "1"), (2, "2"), (3, "3"), (4, "other"), (5, "plain")] {
            assert_eq!(stream.next().await, (number, topic.to_owned()));
        }
        assert_eq!(relaying.relay.counts().relayed, 5);
    });
}

#[test]
fn what_is_no_event_is_refused_for_good() {
    run(async {
        let relaying = Relaying::start().await;
        let shim = relaying.client().await;
        for source in [("5-5", "x"), ("", "1"), ("a/b", "1"), ("5-5", "-1")] {
            assert_eq!(code(forward(&shim, Some(source), "x").await), Code::INVALID_ARGUMENT, "{source:?}");
        }
        let empty = EventsClient::new(shim.clone()).forward(Context::default(), &ForwardRequest::default()).await;
        assert_eq!(code(empty), Code::INVALID_ARGUMENT);
        assert_eq!(relaying.relay.last(), 0);
    });
}

#[test]
fn a_stream_begins_where_it_is_asked_to() {
    run(async {
        let relaying = Relaying::start().await;
        relaying.take(5);
        let until_now = |request| SubscribeRequest { until_now: true, ..request };
        assert_eq!(relaying.subscribe(until_now(after(3))).await.unwrap().rest().await, [4, 5]);
        assert_eq!(relaying.subscribe(until_now(after(5))).await.unwrap().rest().await, [0; 0]);
        let mut now = relaying.subscribe(from(subscribe_request::From::Now(true))).await.unwrap();
        assert_eq!(now.begin, (5, 0));
        relaying.take(1);
        assert_eq!(now.next().await.0, 6);

        let too_far = relaying.subscribe(after(7)).await.map(|stream| stream.begin);
        assert_eq!(code(too_far), Code::OUT_OF_RANGE);
        let nowhere = relaying.subscribe(SubscribeRequest::default()).await.map(|stream| stream.begin);
        assert_eq!(code(nowhere), Code::INVALID_ARGUMENT);
    });
}

#[test]
fn a_named_subscriber_goes_on_where_it_was_also_after_a_restart() {
    run(async {
        let relaying = Relaying::start().await;
        relaying.take(5);
        assert_eq!(relaying.subscribe(named("me")).await.unwrap().rest().await, [1, 2, 3, 4, 5]);
        relaying.ack("me", 4).await.unwrap();
        assert_eq!(code(relaying.ack("me", 6).await), Code::OUT_OF_RANGE);
        for name in ["", ".", "..", "a/b", ".me", "ü", &"x".repeat(65)] {
            assert_eq!(code(relaying.ack(name, 1).await), Code::INVALID_ARGUMENT, "{name}");
            let stream = relaying.subscribe(named(name)).await.map(|stream| stream.begin);
            assert_eq!(code(stream), Code::INVALID_ARGUMENT, "{name}");
        }
        let Relaying { dir, relay, _server, .. } = relaying;
        drop(_server);
        fs::remove_file(dir.path().join("socket")).unwrap();
        // The server's tasks hold the relay until they have run.
        while Arc::strong_count(&relay.0) > 1 {
            tokio::task::yield_now().await;
        }
        drop(relay);
        let relaying = Relaying::over(dir, WIDE, PATIENCE).await;
        assert_eq!(relaying.subscribe(named("me")).await.unwrap().rest().await, [5]);
        assert_eq!(relaying.subscribe(named("other")).await.unwrap().rest().await.len(), 5);

        fs::write(relaying.dir.path().join("cursors/me"), "rubbish").unwrap();
        let damaged = relaying.subscribe(named("me")).await.map(|stream| stream.begin);
        assert_eq!(code(damaged), Code::DATA_LOSS);
    });
}

#[test]
fn a_stream_has_the_events_of_its_namespace_or_of_all() {
    run(async {
        let relaying = Relaying::start().await;
        for namespace in ["default", "other", "other", "default"] {
            relaying.relay.take(None, &envelope(namespace, "x")).unwrap();
        }
        let request = SubscribeRequest { until_now: true, ..after(0) };
        assert_eq!(relaying.subscribe(request.clone()).await.unwrap().rest().await, [1, 4]);
        let all = SubscribeRequest { all_namespaces: true, ..request };
        assert_eq!(relaying.subscribe(all).await.unwrap().rest().await, [1, 2, 3, 4]);
    });
}

#[test]
fn who_comes_too_late_is_told_how_much_is_lost() {
    run(async {
        let bounds = Bounds { size: 8 << 10, ..WIDE };
        let relaying = Relaying::over(tempfile::tempdir().unwrap(), bounds, PATIENCE).await;
        relaying.take(1000);
        let mut stream = relaying.subscribe(after(10)).await.unwrap();
        let (begin, lost) = stream.begin;
        assert!(lost > 0);
        assert_eq!(begin, 10 + lost);
        assert_eq!(stream.next().await.0, begin + 1);
    });
}

#[test]
fn a_journal_that_cannot_be_written_keeps_the_events_at_the_shims() {
    run(async {
        // Each event begins a new file, which takes the folder.
        let bounds = Bounds { size: 0, ..WIDE };
        let relaying = Relaying::over(tempfile::tempdir().unwrap(), bounds, PATIENCE).await;
        let shim = relaying.client().await;
        forward(&shim, Some(("5-5", "1")), "x").await.unwrap();
        let (journal, aside) = (relaying.dir.path().join("journal"), relaying.dir.path().join("aside"));
        fs::rename(&journal, &aside).unwrap();
        assert_eq!(code(forward(&shim, Some(("5-5", "2")), "x").await), Code::UNAVAILABLE);
        assert!(matches!(&*relaying.relay.troubles(), [what] if what.contains("takes no events")));
        fs::rename(&aside, &journal).unwrap();
        forward(&shim, Some(("5-5", "2")), "x").await.unwrap();
        assert_eq!((relaying.relay.troubles(), relaying.relay.last()), (vec![], 2));
        assert_eq!(*relaying.heard.lock().unwrap(), [1, 2]);
    });
}

/// Bytes of our own memory that are no file's.
fn memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    1024 * line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
}

/// A frame of ttrpc: a request that opens a stream.
fn frame(service: &str, method: &str, request: &SubscribeRequest) -> Vec<u8> {
    let request = ttrpc::Request {
        service: service.to_owned(),
        method: method.to_owned(),
        payload: request.write_to_bytes().unwrap(),
        ..Default::default()
    };
    let payload = request.write_to_bytes().unwrap();
    let mut frame = Vec::new();
    frame.extend((payload.len() as u32).to_be_bytes());
    frame.extend(1u32.to_be_bytes());
    // A request; the client sends nothing more on this stream.
    frame.extend([1, 1]);
    frame.extend(payload);
    frame
}

#[test]
fn a_subscriber_that_takes_nothing_is_cut_off_and_costs_no_memory() {
    run(async {
        let patience = Duration::from_secs(1);
        let relaying = Relaying::over(tempfile::tempdir().unwrap(), WIDE, patience).await;
        let mut client = UnixStream::connect(relaying.socket()).unwrap();
        client.write_all(&frame("dunnage.supervisor.v1.Supervisor", "Subscribe", &after(0))).unwrap();
        while relaying.relay.counts().subscribers == 0 {
            tokio::task::yield_now().await;
        }
        let before = memory();
        let topic = "x".repeat(1000);
        let mut grown = 0;
        for number in 0..30_000 {
            relaying.relay.take(None, &envelope("default", &topic)).unwrap();
            tokio::task::yield_now().await;
            if number % 1000 == 0 {
                grown = grown.max(memory().saturating_sub(before));
            }
        }
        println!("30,000 events of 1 KiB for a subscriber that takes nothing: {} KiB more memory", grown >> 10);
        // The other tests run beside this one, and have some.
        assert!(grown < 8 << 20, "{grown}");
        while relaying.relay.counts().cut_off == 0 {
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(relaying.relay.counts().subscribers, 0);
        // It is told, if it ever reads.
        client.set_nonblocking(true).unwrap();
        let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
        while !said.ends_with(b"subscribe again from there") {
            match client.read(&mut buffer) {
                Ok(count) if count > 0 => said.extend(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(Duration::from_millis(1)).await,
                other => panic!("{other:?} after {} bytes", said.len()),
            }
        }
    });
}

#[test]
fn a_subscriber_that_is_gone_is_noticed_by_the_next_event() {
    run(async {
        let relaying = Relaying::start().await;
        let stream = relaying.subscribe(after(0)).await.unwrap();
        assert_eq!(relaying.relay.counts().subscribers, 1);
        drop(stream);
        while relaying.relay.counts().subscribers > 0 {
            relaying.take(1);
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn how_fast_it_is() {
    run(async {
        let relaying = Relaying::start().await;
        let mut stream = relaying.subscribe(after(0)).await.unwrap();
        const SHIMS: usize = 10;
        const EACH: usize = 2000;
        let start = Instant::now();
        let mut shims = Vec::new();
        for shim in 0..SHIMS {
            let client = relaying.client().await;
            shims.push(tokio::spawn(async move {
                for number in 1..=EACH {
                    forward(&client, Some((&format!("{shim}-1"), &number.to_string())), "/tasks/exit").await.unwrap();
                }
            }));
        }
        let mut numbers = BTreeSet::new();
        while numbers.len() < SHIMS * EACH {
            assert!(numbers.insert(stream.next().await.0));
        }
        let time = start.elapsed();
        for shim in shims {
            shim.await.unwrap();
        }
        assert_eq!(numbers.last(), Some(&((SHIMS * EACH) as u64)));
        println!(
            "{SHIMS} shims, client and server in one thread: {} events/s forwarded and received by a subscriber",
            ((SHIMS * EACH) as f64 / time.as_secs_f64()) as u64
        );
    });
}
