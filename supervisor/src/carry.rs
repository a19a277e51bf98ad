//! Connections that outlive the program that serves them: an upgrade hands them to its successor, with what their clients
//! still wait for.
//!
//! ttrpc is not told. When all is halted, it reads nothing more from clients; what it has read is answered as ever, but for
//! the calls that wait for something to happen one day. Of these the requests are kept as they came, and the successor
//! reads them again, before whatever comes next. Shims are read from all the time: they may do what a client waits for
//! only once their events are taken.

use std::{
    collections::BTreeMap,
    io, mem,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker, ready},
};

use nix::sys::socket::{Shutdown, shutdown};
use protobuf::Message as _;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::{Notify, mpsc},
};
use ttrpc::Request;

/// A frame begins with its length, its stream, each in four bytes, its kind, and flags (ttrpc's protocol).
const HEADER: usize = 10;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 3;
/// The sender of this frame sends no more in its stream.
const LAST: u8 = 1;
/// ttrpc refuses what is longer.
const LONGEST: usize = 4 << 20;

/// All connections. Its copies are one and the same.
#[derive(Clone, Default)]
pub(crate) struct Carrier(Arc<Shared>);

#[derive(Default)]
struct Shared {
    links: Mutex<Vec<Weak<Link>>>,
    halted: Mutex<Halted>,
    /// Something was written.
    stirred: Notify,
}

#[derive(Default)]
struct Halted {
    yes: bool,
    /// Those who would read.
    wakers: Vec<Waker>,
}

/// A connection as ttrpc reads and writes it.
pub(crate) struct Connection {
    link: Arc<Link>,
    carrier: Carrier,
    _alive: mpsc::Sender<()>,
}

struct Link {
    stream: UnixStream,
    state: Mutex<State>,
}

struct State {
    /// Still to be read, before what comes from the stream.
    left: Vec<u8>,
    /// It is a shim's, for its events. Known from the first request on.
    feeds: Option<bool>,
    inbound: Frames,
    /// The requests that are not answered yet, by their streams.
    requests: BTreeMap<u32, (Header, Vec<u8>)>,
    outbound: Frames,
}

impl Carrier {
    /// A connection; the receiver of `alive` learns when it is closed. `left` was read from it before, by another.
    pub(crate) fn connection(&self, stream: UnixStream, left: Vec<u8>, alive: mpsc::Sender<()>) -> Connection {
        let (inbound, outbound) = (Frames::new(true), Frames::new(false));
        let state = Mutex::new(State { left, feeds: None, inbound, requests: BTreeMap::new(), outbound });
        let link = Arc::new(Link { stream, state });
        let mut links = lock(&self.0.links);
        links.retain(|link| link.strong_count() > 0);
        links.push(Arc::downgrade(&link));
        Connection { link, carrier: self.clone(), _alive: alive }
    }

    /// From now on nothing is read. What was read is answered.
    pub(crate) fn halt(&self) {
        lock(&self.0.halted).yes = true;
    }

    /// Goes on where it was halted.
    pub(crate) fn resume(&self) {
        let mut halted = lock(&self.0.halted);
        halted.yes = false;
        halted.wakers.drain(..).for_each(Waker::wake);
    }

    /// Waits until every connection can be carried; `waits` says of which calls the answers need not be waited for. Those
    /// with calls that `lags` names may stay behind.
    pub(crate) async fn settled(&self, waits: impl Fn(&Request) -> bool, lags: impl Fn(&Request) -> bool) {
        let settled = |link: &Arc<Link>| {
            let state = link.state();
            state.carried(&waits, |_| {}).is_some() || state.unanswered().any(|request| lags(&request))
        };
        loop {
            let stirred = self.0.stirred.notified();
            if self.links().iter().all(settled) {
                return;
            }
            stirred.await;
        }
    }

    /// The calls that `settled` waits for.
    pub(crate) fn unsettled(&self, waits: impl Fn(&Request) -> bool) -> Vec<String> {
        let links = self.links();
        let calls = links.iter().flat_map(|link| {
            let state = link.state();
            let missing = state.unanswered().filter(|request| !waits(request));
            missing.map(|request| format!("{}/{}", request.service, request.method)).collect::<Vec<_>>()
        });
        calls.collect()
    }

    /// Lends all connections that can be carried, each with the bytes that are to be read before those that come from it:
    /// the requests that are not answered, as `again` makes them.
    pub(crate) fn with_all<T>(
        &self,
        waits: impl Fn(&Request) -> bool,
        again: impl Fn(&mut Request),
        look: impl FnOnce(&[(BorrowedFd<'_>, Vec<u8>)]) -> T,
    ) -> T {
        let links = self.links();
        let carried = links.iter().filter_map(|link| {
            let bytes = link.state().carried(&waits, &again)?;
            Some((link.stream.as_fd(), bytes))
        });
        look(&carried.collect::<Vec<_>>())
    }

    fn links(&self) -> Vec<Arc<Link>> {
        lock(&self.0.links).iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether all is halted; whoever is told so is woken when it goes on.
    fn is_halted(&self, cx: &Context<'_>) -> bool {
        let mut halted = lock(&self.0.halted);
        if halted.yes {
            halted.wakers.push(cx.waker().clone());
        }
        halted.yes
    }
}

impl Link {
    /// Whether it is a shim's; reads ahead to find out, and has whoever asks woken when there is more to know.
    fn feeds(&self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut ahead = [0; 512];
        loop {
            if let Some(feeds) = self.state().feeds() {
                return Ok(feeds);
            }
            match self.poll_read(cx, &mut ahead)? {
                // Also of what was closed without a request.
                Poll::Pending | Poll::Ready(0) => return Ok(false),
                Poll::Ready(count) => self.state().left.extend(&ahead[..count]),
            }
        }
    }

    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn read(&mut self, bytes: &[u8]) {
        let (requests, feeds) = (&mut self.requests, &mut self.feeds);
        self.inbound.take(bytes, |header, payload| {
            if header.kind() == REQUEST {
                feeds.get_or_insert_with(|| begins_feed(&payload));
                requests.insert(header.stream(), (header, payload));
            }
        });
    }

    fn written(&mut self, bytes: &[u8]) {
        let requests = &mut self.requests;
        self.outbound.take(bytes, |header, _| {
            if header.kind() == RESPONSE || (header.kind() == DATA && header.flags() & LAST != 0) {
                requests.remove(&header.stream());
            }
        });
    }

    /// Whether it is a shim's, as far as can be told without reading on.
    fn feeds(&mut self) -> Option<bool> {
        if self.feeds.is_none() {
            let mut ahead = Frames::new(true);
            let begun = self.inbound.begun.iter().chain(&self.inbound.payload).chain(&self.left);
            let feeds = &mut self.feeds;
            ahead.take(&begun.copied().collect::<Vec<_>>(), |_, payload| {
                feeds.get_or_insert_with(|| begins_feed(&payload));
            });
        }
        self.feeds
    }

    fn unanswered(&self) -> impl Iterator<Item = Request> {
        self.requests.values().filter_map(|(_, payload)| Request::parse_from_bytes(payload).ok())
    }

    /// What a successor has to read first; None if it cannot take over, since an answer is still to be written.
    fn carried(&self, waits: impl Fn(&Request) -> bool, again: impl Fn(&mut Request)) -> Option<Vec<u8>> {
        if !self.outbound.is_between() || self.inbound.lost {
            return None;
        }
        let mut bytes = Vec::new();
        for (header, payload) in self.requests.values() {
            let mut request = Request::parse_from_bytes(payload).ok().filter(|request| waits(request))?;
            again(&mut request);
            let payload = request.write_to_bytes().ok()?;
            let length = u32::try_from(payload.len()).ok()?.to_be_bytes();
            bytes.extend(length.iter().chain(&header.0[length.len()..]).chain(&payload));
        }
        bytes.extend(self.inbound.begun.iter().chain(&self.inbound.payload).chain(&self.left));
        Some(bytes)
    }
}

/// Whether a request brings an event, as those of shims do.
pub(crate) fn is_event(request: &Request) -> bool {
    request.method == "Forward"
}

fn begins_feed(request: &[u8]) -> bool {
    Request::parse_from_bytes(request).is_ok_and(|request| is_event(&request))
}

/// The first bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header([u8; HEADER]);

impl Header {
    fn length(self) -> usize {
        let Self([a, b, c, d, ..]) = self;
        u32::from_be_bytes([a, b, c, d]) as usize
    }

    fn stream(self) -> u32 {
        let Self([_, _, _, _, a, b, c, d, ..]) = self;
        u32::from_be_bytes([a, b, c, d])
    }

    fn kind(self) -> u8 {
        self.0[8]
    }

    fn flags(self) -> u8 {
        self.0[9]
    }
}

/// Finds the frames in a stream of bytes.
struct Frames {
    /// What has come of the header.
    begun: Vec<u8>,
    /// What has come of the payload, if that is kept.
    payload: Vec<u8>,
    keeps: bool,
    /// What of the payload is still to come.
    missing: usize,
    /// There was something that is no frame of ttrpc's.
    lost: bool,
}

impl Frames {
    fn new(keeps: bool) -> Self {
        Self { begun: Vec::new(), payload: Vec::new(), keeps, missing: 0, lost: false }
    }

    fn take(&mut self, mut bytes: &[u8], mut whole: impl FnMut(Header, Vec<u8>)) {
        while !bytes.is_empty() && !self.lost {
            let wanted = if self.begun.len() < HEADER { HEADER - self.begun.len() } else { self.missing };
            let (more, rest) = bytes.split_at(wanted.min(bytes.len()));
            bytes = rest;
            if self.begun.len() < HEADER {
                self.begun.extend(more);
                let Some(header) = self.header() else { continue };
                self.missing = header.length();
                self.lost = self.missing > LONGEST;
            } else {
                self.missing -= more.len();
                if self.keeps {
                    self.payload.extend(more);
                }
            }
            if self.missing == 0
                && let Some(header) = self.header()
            {
                // Given back, as most connections wait most of the time.
                self.begun = Vec::new();
                whole(header, mem::take(&mut self.payload));
            }
        }
    }

    /// Once it is whole.
    fn header(&self) -> Option<Header> {
        self.begun.first_chunk().copied().map(Header)
    }

    /// The last byte was the last of a frame.
    fn is_between(&self) -> bool {
        self.begun.is_empty()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.carrier.is_halted(cx) && !self.link.feeds(cx)? {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let mut state = self.link.state();
        if state.left.is_empty() {
            drop(state);
            let count = ready!(self.link.poll_read(cx, buf.initialize_unfilled()))?;
            buf.advance(count);
            state = self.link.state();
        } else {
            let count = state.left.len().min(buf.remaining());
            let rest = state.left.split_off(count);
            buf.put_slice(&mem::replace(&mut state.left, rest));
        }
        state.read(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.link.stream.poll_write_ready(cx))?;
            match self.link.stream.try_write(buf) {
                Ok(count) => {
                    self.link.state().written(&buf[..count]);
                    self.carrier.0.stirred.notify_waiters();
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(self.link.stream.as_raw_fd(), Shutdown::Write).map_err(io::Error::from))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // One less to wait for.
        self.carrier.0.stirred.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet, future::pending, os::fd::OwnedFd, os::unix::net::UnixStream as StdUnixStream, pin::pin,
        time::Duration,
    };

    use futures::StreamExt as _;
    use protobuf::MessageField;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::mpsc::{UnboundedReceiver, UnboundedSender},
        time::timeout,
    };
    use ttrpc::{
        Response,
        r#async::{
            Client, MethodHandler, Server, Service, TtrpcContext,
            transport::{Listener, Socket},
        },
    };

    use super::*;

    /// Answers with its name and what it was sent: a Slow once it is told to, and a Wait never, if there is a successor.
    struct Handler {
        name: &'static str,
        begun: UnboundedSender<String>,
        slow: Arc<Notify>,
    }

    #[async_trait::async_trait]
    impl MethodHandler for Handler {
        async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
            self.begun.send(request.method.clone()).unwrap();
            match (&*request.method, self.name) {
                ("Slow", _) => self.slow.notified().await,
                ("Wait", "first") => pending().await,
                _ => {}
            }
            let status = MessageField::some(ttrpc::get_status(ttrpc::Code::OK, ""));
            let payload = [self.name.as_bytes(), b" ", &request.payload].concat();
            Ok(Response { status, payload, ..Response::default() })
        }
    }

    struct Serving {
        _server: Server,
        carrier: Carrier,
        begun: UnboundedReceiver<String>,
        slow: Arc<Notify>,
    }

    async fn serve(name: &'static str, connections: Vec<(OwnedFd, Vec<u8>)>) -> Serving {
        let (carrier, slow) = (Carrier::default(), Arc::new(Notify::new()));
        let (begin, begun) = mpsc::unbounded_channel();
        let handler = |method: &str| {
            let handler = Handler { name, begun: begin.clone(), slow: slow.clone() };
            (method.to_owned(), Box::new(handler) as Box<dyn MethodHandler + Send + Sync>)
        };
        let service =
            Service { methods: ["State", "Wait", "Slow", "Forward"].map(handler).into(), streams: Default::default() };
        let connection =
            |(fd, left): (OwnedFd, _)| carrier.connection(tokio_stream(fd.into()), left, mpsc::channel(1).0);
        let connections: Vec<_> = connections.into_iter().map(connection).map(io::Result::Ok).collect();
        let listener = Listener::new(futures::stream::iter(connections).chain(futures::stream::pending()));
        let mut server = Server::new().add_listener(listener).register_service([("test".to_owned(), service)].into());
        server.start().await.unwrap();
        Serving { _server: server, carrier, begun, slow }
    }

    fn tokio_stream(stream: StdUnixStream) -> UnixStream {
        stream.set_nonblocking(true).unwrap();
        UnixStream::from_std(stream).unwrap()
    }

    fn request(method: &str, payload: &str) -> Request {
        let (service, method) = ("test".to_owned(), method.to_owned());
        Request { service, method, payload: payload.into(), ..Request::default() }
    }

    async fn ask(client: &Client, method: &str, payload: &str) -> String {
        String::from_utf8(client.request(request(method, payload)).await.unwrap().payload).unwrap()
    }

    fn frame(stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap();
        [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[kind, 0], payload].concat()
    }

    /// The next frame is a response.
    async fn answer(raw: &mut UnixStream) -> String {
        let mut header = [0; HEADER];
        soon(raw.read_exact(&mut header)).await.unwrap();
        let mut payload = vec![0; Header(header).length()];
        soon(raw.read_exact(&mut payload)).await.unwrap();
        String::from_utf8(Response::parse_from_bytes(&payload).unwrap().payload).unwrap()
    }

    async fn soon<T>(what: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(10), what).await.expect("must not hang")
    }

    #[tokio::test]
    async fn who_waits_is_answered_by_the_successor_and_nobody_twice() {
        let (theirs, ours) = StdUnixStream::pair().unwrap();
        let (raw, raw_ours) = StdUnixStream::pair().unwrap();
        let client = Client::new(Socket::from(tokio_stream(theirs)));
        let mut first = serve("first", [ours, raw_ours].map(|end| (end.into(), Vec::new())).into()).await;
        assert_eq!(ask(&client, "State", "a").await, "first a");
        let mut wait = pin!(ask(&client, "Wait", "b"));
        let mut slow = pin!(ask(&client, "Slow", "c"));
        assert_eq!(first.begun.recv().await.as_deref(), Some("State"));
        // In any order.
        let begun = async { BTreeSet::from([first.begun.recv().await.unwrap(), first.begun.recv().await.unwrap()]) };
        tokio::select! {
            begun = soon(begun) => assert_eq!(begun, BTreeSet::from(["Slow", "Wait"].map(String::from))),
            answer = &mut wait => panic!("{answer}"),
            answer = &mut slow => panic!("{answer}"),
        }
        // Of these the first has read one and a half.
        let state = |stream, what| frame(stream, REQUEST, &request("State", what).write_to_bytes().unwrap());
        let (whole, half) = (state(1, "whole"), state(3, "half"));
        let (mut raw, (begin, end)) = (tokio_stream(raw), half.split_at(15));
        raw.write_all(&[&whole, begin].concat()).await.unwrap();
        assert_eq!(answer(&mut raw).await, "first whole");
        let read = async {
            while first.carrier.links()[1].state().inbound.payload.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        soon(read).await;

        first.carrier.halt();
        let mut late = pin!(ask(&client, "State", "d"));
        assert!(timeout(Duration::from_millis(50), &mut late).await.is_err(), "nothing is read any more");
        let early = timeout(Duration::from_millis(20), first.carrier.settled(waits, |_| false)).await;
        assert!(early.is_err(), "an answer is missing");
        soon(first.carrier.settled(waits, |request| request.method == "Slow")).await;
        first.slow.notify_one();
        soon(first.carrier.settled(waits, |_| false)).await;
        assert_eq!(soon(slow).await, "first c");
        raw.write_all(end).await.unwrap();

        let again = |request: &mut Request| request.payload.push(b'!');
        let carried = first.carrier.with_all(waits, again, |all| {
            all.iter().map(|(fd, left)| (fd.try_clone_to_owned().unwrap(), left.clone())).collect()
        });
        let mut second = serve("second", carried).await;
        assert_eq!(soon(wait).await, "second b!");
        assert_eq!(soon(late).await, "second d");
        assert_eq!(answer(&mut raw).await, "second half");
        let mut begun: Vec<String> = Vec::new();
        while let Ok(method) = second.begun.try_recv() {
            begun.push(method);
        }
        begun.sort();
        assert_eq!(begun, ["State", "State", "Wait"], "and Slow is done");
    }

    #[tokio::test]
    async fn shims_are_heard_all_the_time() {
        let ends = [(); 2].map(|()| StdUnixStream::pair().unwrap());
        let [(old, old_ours), (new, new_ours)] = ends;
        let first = serve("first", [old_ours, new_ours].map(|end| (end.into(), Vec::new())).into()).await;
        let [old, new] = [old, new].map(|end| Client::new(Socket::from(tokio_stream(end))));
        assert_eq!(ask(&old, "Forward", "a").await, "first a");
        first.carrier.halt();
        assert_eq!(soon(ask(&old, "Forward", "b")).await, "first b");
        assert_eq!(soon(ask(&new, "Forward", &"c".repeat(2000))).await.len(), "first ".len() + 2000);
    }

    #[tokio::test]
    async fn what_was_halted_goes_on_if_there_is_no_successor() {
        let (theirs, ours) = StdUnixStream::pair().unwrap();
        let client = Client::new(Socket::from(tokio_stream(theirs)));
        let first = serve("only", vec![(ours.into(), Vec::new())]).await;
        first.carrier.halt();
        let mut late = pin!(ask(&client, "State", "a"));
        assert!(timeout(Duration::from_millis(50), &mut late).await.is_err());
        first.carrier.resume();
        assert_eq!(soon(late).await, "only a");
    }

    fn waits(request: &Request) -> bool {
        request.method == "Wait"
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let all = [frame(1, REQUEST, b"abc"), frame(3, DATA, b""), frame(5, RESPONSE, &[7; 300])].concat();
        for size in [1, 2, 9, 10, 11, 13, all.len()] {
            let (mut frames, mut found) = (Frames::new(true), Vec::new());
            for part in all.chunks(size) {
                frames.take(part, |header, payload| found.push((header.stream(), header.kind(), payload.len())));
            }
            assert_eq!(found, [(1, REQUEST, 3), (3, DATA, 0), (5, RESPONSE, 300)], "in parts of {size}");
            assert!(frames.is_between());
        }
        let mut frames = Frames::new(true);
        frames.take(&all[..12], |_, _| panic!("not whole"));
        assert!(!frames.is_between());
        frames.take(&[0xff; 100], |_, _| {});
        assert!(frames.lost, "a length that no frame has");
    }
}
