//! Events from the shims in, to subscribers out; between the two lies the journal, and no queue.
//!
//! An event is answered for once it is in the journal. A subscriber reads from the journal at its own pace, a small batch
//! at a time, and each message is handed to ttrpc only when the one before it has been written to the client's socket.
//! So one that is slow costs a batch, whatever piles up; one that takes nothing at all is cut off.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use protobuf::{Message as _, MessageField};
use runtime_v2_api::{
    Empty,
    forward::{Envelope, ForwardRequest},
    forward_ttrpc,
    supervisor::{AckRequest, SubscribeRequest, SubscribeResponse, subscribe_request},
    unheard::{NUMBER, SOURCE},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use ttrpc::{
    Code,
    r#async::{ServerStreamSender, Service, TtrpcContext},
};

use crate::journal::{Appended, Bounds, Journal, Unfit};

#[cfg(test)]
mod tests;

/// For how long a subscriber may take nothing while there is something for it.
const PATIENCE: Duration = Duration::from_secs(30);
/// After so much silence a subscriber is told where it is. It may be gone, which only a message finds out.
const SILENCE: Duration = Duration::from_secs(60);

/// Takes events, and passes them on.
#[derive(Clone)]
pub struct Relay(Arc<Shared>);

struct Shared {
    journal: Mutex<Journal>,
    heard: Heard,
    last: watch::Sender<u64>,
    /// The folder of the named cursors.
    cursors: PathBuf,
    relayed: AtomicU64,
    subscribers: Mutex<Subscribers>,
    patience: Duration,
}

/// Who is told each event, with its number.
type Heard = Box<dyn Fn(u64, &Envelope) + Send + Sync>;

#[derive(Default)]
struct Subscribers {
    /// How far each has come.
    at: BTreeMap<u64, u64>,
    opened: u64,
    cut_off: u64,
}

/// What there is to count, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The number of the last event.
    pub last: u64,
    /// Events taken since the relay was made.
    pub relayed: u64,
    /// Subscribers connected now.
    pub subscribers: u64,
    /// How many events the last of them is behind, at most; those it did not ask for included.
    pub pending: u64,
    /// Subscribers that were cut off.
    pub cut_off: u64,
    /// Bytes of the journal.
    pub journal: u64,
}

impl Relay {
    /// A relay over this journal. `heard` is called once for each new event, in their order, before it is answered for.
    /// `cursors` is the folder where named subscribers' cursors are kept.
    pub fn new(journal: Journal, cursors: PathBuf, heard: impl Fn(u64, &Envelope) + Send + Sync + 'static) -> Self {
        Self::with_patience(journal, cursors, PATIENCE, heard)
    }

    fn with_patience(
        journal: Journal,
        cursors: PathBuf,
        patience: Duration,
        heard: impl Fn(u64, &Envelope) + Send + Sync + 'static,
    ) -> Self {
        let last = watch::Sender::new(journal.last());
        Self(Arc::new(Shared {
            journal: Mutex::new(journal),
            heard: Box::new(heard),
            last,
            cursors,
            relayed: AtomicU64::new(0),
            subscribers: Mutex::default(),
            patience,
        }))
    }

    /// Takes an event, unless it is one that was taken before: `source` is who sent it and its own number of it.
    ///
    /// # Errors
    /// When it is not in the journal: of the kind `InvalidInput` if it never will be, otherwise it can be tried again.
    pub fn take(&self, source: Option<(&str, u64)>, envelope: &Envelope) -> io::Result<()> {
        let bytes = envelope.write_to_bytes().map_err(io::Error::other)?;
        // The lock is given back before anybody is told.
        let appended = self.journal().append(source, &bytes)?;
        if let Appended::New(number) = appended {
            self.0.relayed.fetch_add(1, Ordering::Relaxed);
            (self.0.heard)(number, envelope);
            self.0.last.send_replace(number);
        }
        Ok(())
    }

    /// What shims forward their events to, as they do to containerd.
    pub fn forward_service(&self) -> HashMap<String, Service> {
        forward_ttrpc::create_events(Arc::new(self.clone()))
    }

    /// Sends events until the client is gone, or everything it wanted was sent.
    ///
    /// # Errors
    /// OutOfRange for a cursor behind the last event, InvalidArgument for a request that makes no sense, Aborted with the
    /// reason for a client that takes nothing, and what goes wrong with its connection.
    pub async fn subscribe(
        &self,
        request: SubscribeRequest,
        namespace: &str,
        to: ServerStreamSender<SubscribeResponse>,
    ) -> ttrpc::Result<()> {
        let after = self.beginning(&request)?;
        let (mut cursor, lost) = {
            let mut journal = self.journal();
            journal.trim();
            journal.cursor(after)
        };
        let until = if request.until_now { self.last() } else { u64::MAX };
        let mut news = self.0.last.subscribe();
        let subscriber = Subscriber::new(&self.0, to, cursor.number());
        subscriber.tell(cursor.number(), lost).await?;
        loop {
            news.mark_unchanged();
            let batch = self.journal().read(&mut cursor);
            let batch = batch.map_err(|error| status(Code::DATA_LOSS, format!("read the journal: {error}")))?;
            let idle = batch.events.is_empty();
            if batch.lost > 0 {
                let first = batch.events.first().map_or(cursor.number(), |event| event.number - 1);
                subscriber.tell(first, batch.lost).await?;
            }
            for event in batch.events {
                if event.number > until {
                    return Ok(());
                }
                let envelope = Envelope::parse_from_bytes(&event.envelope);
                let envelope =
                    envelope.map_err(|error| status(Code::DATA_LOSS, format!("event {}: {error}", event.number)))?;
                if request.all_namespaces || envelope.namespace == namespace {
                    let envelope = MessageField::some(envelope);
                    let number = event.number;
                    subscriber.send(&SubscribeResponse { number, envelope, ..Default::default() }).await?;
                }
                subscriber.at(event.number);
            }
            if cursor.number() >= until {
                return Ok(());
            }
            if !idle {
                // What is filtered out must not hold up the loop either.
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                // Cannot fail: we hold the sender.
                _ = news.changed() => {}
                () = sleep(SILENCE) => subscriber.tell(cursor.number(), 0).await?,
            }
        }
    }

    /// Remembers how far the subscriber of this name has come.
    ///
    /// # Errors
    /// InvalidArgument for a name that cannot be one, OutOfRange for a number behind the last event, Unavailable when it
    /// cannot be written down.
    pub fn ack(&self, request: &AckRequest) -> ttrpc::Result<()> {
        let path = self.named(&request.name)?;
        self.in_range(request.number)?;
        // No name begins with a point.
        let fresh = self.0.cursors.join(format!(".{}", request.name));
        let written = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0.cursors);
        let written = written.and_then(|()| {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(format!("{}\n", request.number).as_bytes())?;
            fs::rename(&fresh, &path)
        });
        written.map_err(|error| status(Code::UNAVAILABLE, format!("write {}: {error}", path.display())))
    }

    /// Keeps so many events from now on, and drops those over that.
    pub fn keep(&self, bounds: Bounds) {
        self.journal().keep(bounds);
    }

    /// The number of the last event.
    pub fn last(&self) -> u64 {
        self.journal().last()
    }

    /// Tells of every event after this number that is kept, again and in order.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn replay(&self, after: u64, mut tell: impl FnMut(u64, &Envelope)) -> io::Result<()> {
        let (mut cursor, _) = self.journal().cursor(after);
        loop {
            let batch = self.journal().read(&mut cursor)?;
            if batch.events.is_empty() && batch.lost == 0 {
                return Ok(());
            }
            for event in batch.events {
                let envelope = Envelope::parse_from_bytes(&event.envelope);
                tell(
                    event.number,
                    &envelope.map_err(|error| io::Error::other(format!("event {}: {error}", event.number)))?,
                );
            }
        }
    }

    /// What there is to count.
    pub fn counts(&self) -> Counts {
        let (last, journal) = {
            let journal = self.journal();
            (journal.last(), journal.size())
        };
        let subscribers = self.0.subscribers();
        let pending = subscribers.at.values().map(|at| last.saturating_sub(*at)).max().unwrap_or(0);
        let (relayed, count) = (self.0.relayed.load(Ordering::Relaxed), subscribers.at.len() as u64);
        Counts { last, relayed, subscribers: count, pending, cut_off: subscribers.cut_off, journal }
    }

    /// What is wrong with the journal, for an operator.
    pub fn troubles(&self) -> Vec<String> {
        self.journal().troubles()
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.0.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number that a stream begins behind.
    fn beginning(&self, request: &SubscribeRequest) -> ttrpc::Result<u64> {
        let after = match &request.from {
            Some(subscribe_request::From::After(number)) => *number,
            Some(subscribe_request::From::Now(_)) => self.last(),
            Some(subscribe_request::From::Name(name)) => self.acknowledged(name)?,
            _ => return Err(invalid("say where to begin: after a number, now, or where a name has come to")),
        };
        self.in_range(after).map(|()| after)
    }

    fn in_range(&self, number: u64) -> ttrpc::Result<()> {
        let last = self.last();
        if number > last {
            let what =
                format!("event {number} is not there yet: the last one is {last}; is this the right supervisor?");
            return Err(status(Code::OUT_OF_RANGE, what));
        }
        Ok(())
    }

    fn acknowledged(&self, name: &str) -> ttrpc::Result<u64> {
        let path = self.named(name)?;
        let failed = |what: String| status(Code::DATA_LOSS, format!("read {}: {what}", path.display()));
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| failed(format!("{text:?} is no number; remove it"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Where the cursor of this name is kept.
    fn named(&self, name: &str) -> ttrpc::Result<PathBuf> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.bytes().all(plain) {
            return Err(invalid(&format!(
                "{name:?} as the name of a subscriber: it takes 1 to 64 letters, digits, '-', '_' and '.', this not first"
            )));
        }
        Ok(self.0.cursors.join(name))
    }
}

#[async_trait]
impl forward_ttrpc::Events for Relay {
    async fn forward(&self, context: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let source = source(&context.metadata)?;
        let Some(envelope) = request.envelope.as_ref() else { return Err(invalid("no envelope")) };
        self.take(source, envelope).map_err(|error| {
            let unfit = error.get_ref().is_some_and(|inner| inner.is::<Unfit>());
            // A shim gives up what is refused, and keeps what is not available.
            let code = if unfit { Code::INVALID_ARGUMENT } else { Code::UNAVAILABLE };
            status(code, format!("append to the journal: {error}"))
        })?;
        Ok(Empty::default())
    }
}

/// Who sent an event, and its number there, from the metadata beside it. Not every shim says so.
fn source(metadata: &HashMap<String, Vec<String>>) -> ttrpc::Result<Option<(&str, u64)>> {
    let value = |name| metadata.get(name).and_then(|values| values.first());
    match (value(SOURCE), value(NUMBER)) {
        (None, None) => Ok(None),
        (Some(source), Some(number)) => match number.parse() {
            Ok(number) => Ok(Some((source, number))),
            Err(_) => Err(invalid(&format!("{NUMBER} is {number:?}, which is no number"))),
        },
        _ => Err(invalid(&format!("{SOURCE} and {NUMBER} come together"))),
    }
}

/// The client at the other end of a stream.
struct Subscriber<'r> {
    shared: &'r Shared,
    id: u64,
    to: ServerStreamSender<SubscribeResponse>,
}

impl<'r> Subscriber<'r> {
    fn new(shared: &'r Shared, to: ServerStreamSender<SubscribeResponse>, at: u64) -> Self {
        let mut subscribers = shared.subscribers();
        subscribers.opened += 1;
        let id = subscribers.opened;
        subscribers.at.insert(id, at);
        Self { shared, id, to }
    }

    fn at(&self, number: u64) {
        self.shared.subscribers().at.insert(self.id, number);
    }

    /// Says where the stream is, and what is lost before that.
    async fn tell(&self, number: u64, lost: u64) -> ttrpc::Result<()> {
        self.send(&SubscribeResponse { number, lost, ..Default::default() }).await
    }

    /// Returns once the message is in the hands of the kernel.
    async fn send(&self, message: &SubscribeResponse) -> ttrpc::Result<()> {
        let Ok(sent) = timeout(self.shared.patience, self.to.send(message)).await else {
            self.shared.subscribers().cut_off += 1;
            let what = format!(
                "cut off before event {}: the subscriber took nothing for {}; subscribe again from there",
                message.number,
                humantime::format_duration(self.shared.patience)
            );
            log::warn!("a subscriber was {what}");
            return Err(status(Code::ABORTED, what));
        };
        sent
    }
}

impl Drop for Subscriber<'_> {
    fn drop(&mut self) {
        self.shared.subscribers().at.remove(&self.id);
    }
}

impl Shared {
    fn subscribers(&self) -> MutexGuard<'_, Subscribers> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn invalid(what: &str) -> ttrpc::Error {
    status(Code::INVALID_ARGUMENT, what.to_owned())
}

fn status(code: Code, what: String) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, what))
}
