//! Events, to containerd: in order, each one again and again until containerd has taken it.
//!
//! It may be down for a second or a day; nothing is given up, and what waits is kept encoded. An event reaches a containerd
//! twice only if that one died between taking it and saying so. A supervisor is told each event's number, and can tell.

use std::{
    collections::HashMap,
    env, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use protobuf::{Message as _, MessageField};
use runtime_v2_api::{Payload, Timestamp, forward, pack, unheard};
use tokio::{
    net::UnixStream,
    select,
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use ttrpc::{
    Code,
    r#async::{Client, transport::Socket},
    context,
};

use crate::ledger::Ledger;

/// Between two attempts while containerd is away: at first, and at most. A new event does not wait that long.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a connection is kept that nothing is sent over. Most of a shim's life is idle, and each costs the receiver some
/// KiB: kept for ten seconds, those of four hundred shims are open while containers start one after the other.
const IDLE: Duration = Duration::from_secs(1);

/// Publishes events. One for each shim; its copies share one queue.
#[derive(Clone)]
pub(crate) struct Publisher {
    namespace: String,
    queue: mpsc::UnboundedSender<Event>,
    pending: watch::Sender<usize>,
    /// The number of the last event.
    last: Arc<AtomicU64>,
    ledger: Option<Arc<Ledger>>,
}

/// An event that containerd has not taken yet.
struct Event {
    /// Counted from 1.
    number: u64,
    topic: &'static str,
    /// A `ForwardRequest`.
    request: Vec<u8>,
}

impl Publisher {
    /// Publishes to the containerd that listens at `address`, which is what it gave us as `TTRPC_ADDRESS`; what it has not
    /// taken is in the `ledger` too, if there is one. Must be called inside the event loop, where the sending takes place.
    pub(crate) fn new(namespace: &str, address: &str, ledger: Option<Ledger>) -> Self {
        Self::pausing(FIRST_PAUSE, namespace, address, ledger)
    }

    fn pausing(first_pause: Duration, namespace: &str, address: &str, ledger: Option<Ledger>) -> Self {
        let (queue, events) = mpsc::unbounded_channel();
        let pending = watch::Sender::new(0);
        let ledger = ledger.map(Arc::new);
        let delivery = Delivery {
            path: address.strip_prefix("unix://").unwrap_or(address).to_owned(),
            first_pause,
            connection: None,
            pending: pending.clone(),
            ledger: ledger.clone(),
        };
        tokio::spawn(delivery.run(events));
        Self { namespace: namespace.to_owned(), queue, pending, last: Arc::default(), ledger }
    }

    /// Adds an event to those that are to be delivered. It is of now, and is not waited for.
    pub(crate) fn publish(&self, topic: &'static str, event: &impl Payload) {
        match self.encode(topic, event) {
            Ok(request) => {
                let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
                if let Some(ledger) = &self.ledger {
                    ledger.write(number, &request);
                }
                self.pending.send_modify(|pending| *pending += 1);
                if self.queue.send(Event { number, topic, request }).is_err() {
                    // Only if the event loop itself is coming down.
                    log::error!("the event {topic} has nobody left to deliver it");
                }
            }
            // Over 2 GiB, which nothing that containerd sent us makes possible.
            Err(error) => log::error!("encode the event {topic}: {error}"),
        }
    }

    fn encode(&self, topic: &str, event: &impl Payload) -> protobuf::Result<Vec<u8>> {
        let envelope = forward::Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: MessageField::some(pack(event)?),
            ..Default::default()
        };
        let request = forward::ForwardRequest { envelope: MessageField::some(envelope), ..Default::default() };
        request.write_to_bytes()
    }

    /// How many events containerd has not taken yet.
    pub(crate) fn pending(&self) -> usize {
        *self.pending.borrow()
    }

    /// Waits until there is no such event.
    pub(crate) async fn drained(&self) {
        // An error would mean that the sender is gone, which we hold.
        drop(self.pending.subscribe().wait_for(|pending| *pending == 0).await);
    }

    /// There will be no more events. Those that were not taken by now are lost with us, unless they are written down.
    pub(crate) fn retire(&self) {
        match (self.pending(), &self.ledger) {
            (0, None) => {}
            (0, Some(ledger)) => ledger.remove(),
            (pending, None) => log::warn!("{pending} events that containerd did not take are lost"),
            (pending, Some(ledger)) => {
                log::warn!("{pending} events that were not taken are left in {}", ledger.path().display());
            }
        }
    }
}

/// Where containerd takes events. It tells every shim.
pub(crate) fn address() -> anyhow::Result<String> {
    env::var("TTRPC_ADDRESS").context("TTRPC_ADDRESS, the socket where containerd takes events")
}

/// The time as containerd wants it.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: since_1970.as_secs().cast_signed(),
        nanos: since_1970.subsec_nanos().cast_signed(),
        ..Timestamp::default()
    }
}

/// What became of an attempt.
enum Attempt {
    /// containerd has the event.
    Taken,
    /// It will never take this one.
    Refused(String),
    /// Perhaps later.
    Failed(String),
}

struct Delivery {
    path: String,
    /// [`FIRST_PAUSE`], but in a test.
    first_pause: Duration,
    connection: Option<Client>,
    pending: watch::Sender<usize>,
    ledger: Option<Arc<Ledger>>,
}

impl Delivery {
    async fn run(mut self, mut events: mpsc::UnboundedReceiver<Event>) {
        loop {
            let event = match timeout(IDLE, events.recv()).await {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(_) => {
                    self.connection = None;
                    match events.recv().await {
                        Some(event) => event,
                        None => return,
                    }
                }
            };
            self.deliver(event).await;
            if let Some(ledger) = self.ledger.as_ref().filter(|_| *self.pending.borrow() == 1) {
                ledger.clear();
            }
            self.pending.send_modify(|pending| *pending -= 1);
        }
    }

    /// Returns when containerd has taken the event, or has said that it never will.
    async fn deliver(&mut self, event: Event) {
        let number = event.number;
        let mut pause = self.first_pause;
        let mut more = self.pending.subscribe();
        loop {
            match self.attempt(&event).await {
                Attempt::Taken => return,
                Attempt::Refused(why) => {
                    log::error!("containerd refuses event {number}, {}, for good: {why}", event.topic);
                    return;
                }
                Attempt::Failed(why) => {
                    // Once: it may go on for hours.
                    if pause == self.first_pause {
                        log::warn!("event {number}, {}, waits for containerd: {why}", event.topic);
                    }
                    self.connection = None;
                    select! {
                        () = sleep(pause) => {}
                        // Cannot fail: we hold a sender.
                        _ = more.changed() => {}
                    }
                    pause = LONGEST_PAUSE.min(2 * pause);
                }
            }
        }
    }

    async fn attempt(&mut self, event: &Event) -> Attempt {
        let connection = match &self.connection {
            Some(connection) => connection,
            None => match connect(&self.path).await {
                Ok(connection) => self.connection.insert(connection),
                Err(error) => return Attempt::Failed(format!("connect to {}: {error}", self.path)),
            },
        };
        // Without a deadline: when containerd dies the connection ends, and as long as it lives it may still answer, so
        // that sending again could only make it take the event twice.
        let request = ttrpc::Request {
            service: "containerd.services.events.ttrpc.v1.Events".to_owned(),
            method: "Forward".to_owned(),
            payload: event.request.clone(),
            metadata: self.ledger.as_ref().map_or_else(Vec::new, |ledger| {
                let number = event.number.to_string();
                let named = [(unheard::SOURCE, ledger.source().to_owned()), (unheard::NUMBER, number)];
                context::to_pb(HashMap::from(named.map(|(name, value)| (name.to_owned(), vec![value]))))
            }),
            ..Default::default()
        };
        match connection.request(request).await {
            Ok(_) => Attempt::Taken,
            Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::INVALID_ARGUMENT => {
                Attempt::Refused(status.message)
            }
            Err(ttrpc::Error::RpcStatus(status)) => Attempt::Failed(status.message),
            Err(error) => Attempt::Failed(error.to_string()),
        }
    }
}

/// ttrpc's own way to connect would block the event loop while containerd's queue of connections is full.
async fn connect(path: &str) -> io::Result<Client> {
    Ok(Client::new(Socket::from(UnixStream::connect(path).await?)))
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        pin::pin,
        sync::{Arc, Mutex},
    };

    use async_trait::async_trait;
    use runtime_v2_api::{Empty, events::TaskOOM, forward_ttrpc, topic, unpack};
    use tokio::{io::AsyncReadExt as _, net::UnixListener, runtime::Builder};
    use ttrpc::r#async::{Server, TtrpcContext};

    use super::*;

    /// The events' container ids, which number them here.
    type Taken = Arc<Mutex<Vec<String>>>;

    /// A containerd that takes events, or answers otherwise.
    struct Containerd {
        taken: Taken,
        /// Answers the first attempts in its own way.
        answers: Mutex<Vec<ttrpc::Error>>,
    }

    #[async_trait]
    impl forward_ttrpc::Events for Containerd {
        async fn forward(&self, _: &TtrpcContext, request: forward::ForwardRequest) -> ttrpc::Result<Empty> {
            assert_eq!((&*request.envelope.namespace, &*request.envelope.topic), ("default", topic::TASK_OOM));
            assert!(request.envelope.timestamp.seconds > 0);
            let event: TaskOOM = unpack(&request.envelope.event).unwrap().unwrap();
            if let Some(error) = self.answers.lock().unwrap().pop() {
                return Err(error);
            }
            self.taken.lock().unwrap().push(event.container_id);
            Ok(Empty::new())
        }
    }

    async fn containerd(path: &Path, taken: &Taken, answers: Vec<ttrpc::Error>) -> Server {
        let service = Containerd { taken: taken.clone(), answers: Mutex::new(answers) };
        let mut server = Server::new()
            .bind(&format!("unix://{}", path.display()))
            .unwrap()
            .register_service(forward_ttrpc::create_events(Arc::new(service)));
        server.start().await.unwrap();
        server
    }

    fn oom(publisher: &Publisher, number: usize) {
        let event = TaskOOM { container_id: number.to_string(), ..Default::default() };
        publisher.publish(topic::TASK_OOM, &event);
    }

    fn numbers(taken: &Taken) -> Vec<usize> {
        taken.lock().unwrap().iter().map(|number| number.parse().unwrap()).collect()
    }

    fn status(code: Code) -> ttrpc::Error {
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, "no"))
    }

    /// Runs a test that gets a path for containerd's socket, which is not there yet.
    fn with_socket<F: Future<Output = ()>>(test: impl FnOnce(std::path::PathBuf) -> F) {
        let folder = tempfile::tempdir().unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let test = test(folder.path().join("ttrpc"));
        runtime.block_on(async { timeout(Duration::from_secs(30), test).await }).expect("must not hang");
    }

    #[test]
    fn events_wait_for_containerd_and_keep_their_order_over_its_restarts() {
        with_socket(|path| async move {
            let taken = Taken::default();
            let publisher = Publisher::new("default", &format!("unix://{}", path.display()), None);
            for number in 0..100 {
                oom(&publisher, number);
            }
            // Nobody listens, and nothing is lost.
            assert!(timeout(Duration::from_millis(50), publisher.drained()).await.is_err());
            assert_eq!(publisher.pending(), 100);
            for life in 1..=3 {
                let mut server = containerd(&path, &taken, vec![]).await;
                publisher.drained().await;
                assert_eq!(numbers(&taken), (0..100 * life).collect::<Vec<_>>());
                server.shutdown().await.unwrap();
                drop(server);
                std::fs::remove_file(&path).unwrap();
                for number in 100 * life..100 * (life + 1) {
                    oom(&publisher, number);
                }
            }
            assert_eq!(publisher.pending(), 100);
        });
    }

    #[test]
    fn a_new_event_ends_the_pause() {
        with_socket(|path| async move {
            let taken = Taken::default();
            // It pauses for longer than the test lasts.
            let hour = Duration::from_secs(3600);
            let publisher = Publisher::pausing(hour, "default", path.to_str().unwrap(), None);
            oom(&publisher, 0);
            assert!(timeout(Duration::from_millis(50), publisher.drained()).await.is_err());
            let _server = containerd(&path, &taken, vec![]).await;
            oom(&publisher, 1);
            publisher.drained().await;
            assert_eq!(numbers(&taken), [0, 1]);
        });
    }

    #[test]
    fn only_an_event_that_is_refused_for_good_is_given_up() {
        with_socket(|path| async move {
            let taken = Taken::default();
            let mut answers = vec![status(Code::UNAVAILABLE), status(Code::UNKNOWN), status(Code::INVALID_ARGUMENT)];
            answers.insert(0, status(Code::DEADLINE_EXCEEDED));
            let _server = containerd(&path, &taken, answers).await;
            let publisher = Publisher::new("default", path.to_str().unwrap(), None);
            for number in 0..3 {
                oom(&publisher, number);
            }
            publisher.drained().await;
            assert_eq!(numbers(&taken), [1, 2]);
        });
    }

    #[test]
    fn an_event_is_sent_again_when_containerd_dies_before_it_answers() {
        with_socket(|path| async move {
            let taken = Taken::default();
            let dying = UnixListener::bind(&path).unwrap();
            let publisher = Publisher::new("default", path.to_str().unwrap(), None);
            oom(&publisher, 0);
            let (mut connection, _) = dying.accept().await.unwrap();
            assert!(connection.read(&mut [0; 10]).await.unwrap() > 0);
            std::fs::remove_file(&path).unwrap();
            drop((dying, connection));
            let _server = containerd(&path, &taken, vec![]).await;
            publisher.drained().await;
            assert_eq!(numbers(&taken), [0]);
        });
    }

    #[test]
    fn drained_is_about_all_that_was_published_before() {
        with_socket(|path| async move {
            let taken = Taken::default();
            let publisher = Publisher::new("default", path.to_str().unwrap(), None);
            publisher.drained().await;
            oom(&publisher, 0);
            let mut drained = pin!(publisher.drained());
            assert!(timeout(Duration::from_millis(20), &mut drained).await.is_err());
            let _server = containerd(&path, &taken, vec![]).await;
            drained.await;
            assert_eq!((publisher.pending(), numbers(&taken)), (0, vec![0]));
        });
    }
}
