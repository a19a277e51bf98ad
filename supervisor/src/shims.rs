//! The shims that live: their pidfds, and connections to them. A connection is opened when it is needed, and a few are kept
//! for a while when they are not: a thousand of them would cost megabytes.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use libcontainer::sys::{Failed, process::pidfd_send_signal};
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use protobuf::Message;
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::watch,
    time::{sleep, timeout},
};
use ttrpc::{
    Code, Request, Response,
    r#async::{Client, transport::Socket},
};

use crate::{book::Name, fault::Fault, sys};

/// How long a connection is kept that nobody uses, and so long as no more than these are open: after a large request, each
/// has 130 KiB of buffers.
const IDLE: Duration = Duration::from_secs(10);
const KEPT: usize = 4;
/// How many pidfds are looked at in one go.
const BATCH: usize = 64;
/// The service that every shim has.
const TASK: &str = "containerd.task.v3.Task";

/// The shims that live. Its copies are one and the same.
#[derive(Clone)]
pub(crate) struct Shims(Arc<Shared>);

struct Shared {
    shims: Mutex<HashMap<Arc<Name>, Shim>>,
    /// Holds every pidfd, by the number of its shim: a thousand registrations with tokio's own would be ten times as large.
    epoll: Epoll,
    names: Mutex<(u64, HashMap<u64, Arc<Name>>)>,
    idle: Duration,
    /// Each connection has a copy.
    open: Arc<()>,
    /// Somebody looks after idle connections.
    swept: AtomicBool,
}

struct Shim {
    /// Of its socket.
    address: Arc<str>,
    pidfd: Option<(u64, OwnedFd)>,
    connection: Option<Connection>,
    /// Made when somebody waits for its end.
    gone: Option<watch::Sender<()>>,
}

struct Connection {
    client: Client,
    /// Each call that is under way has a copy.
    calls: Arc<()>,
    last: Instant,
    _open: Arc<()>,
}

impl Connection {
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.calls) == 1
    }
}

impl Shims {
    pub(crate) fn new() -> io::Result<Self> {
        Self::keeping(IDLE)
    }

    /// Connections are kept for so long.
    fn keeping(idle: Duration) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let (shims, names, open) = (Mutex::default(), Mutex::default(), Arc::default());
        Ok(Self(Arc::new(Shared { shims, epoll, names, idle, open, swept: AtomicBool::new(false) })))
    }

    fn shims(&self) -> MutexGuard<'_, HashMap<Arc<Name>, Shim>> {
        self.0.shims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn names(&self) -> MutexGuard<'_, (u64, HashMap<u64, Arc<Name>>)> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A shim that listens at `address`.
    pub(crate) fn add(&self, name: &Arc<Name>, address: &str) {
        let shim = Shim { address: address.into(), pidfd: None, connection: None, gone: None };
        self.shims().insert(name.clone(), shim);
    }

    /// From now on its end is noticed.
    pub(crate) fn watch(&self, name: &Arc<Name>, pidfd: OwnedFd) -> io::Result<()> {
        let mut shims = self.shims();
        let Some(shim) = shims.get_mut(name) else { return Ok(()) };
        let mut names = self.names();
        names.0 += 1;
        let number = names.0;
        self.0.epoll.add(&pidfd, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
        names.1.insert(number, name.clone());
        shim.pidfd = Some((number, pidfd));
        Ok(())
    }

    /// Forgets a shim that is gone, or that never was there.
    pub(crate) fn remove(&self, name: &Name) {
        // Closed, a pidfd leaves the epoll by itself.
        if let Some(Shim { pidfd: Some((number, _)), .. }) = self.shims().remove(name) {
            self.names().1.remove(&number);
        }
    }

    /// Whether it lives, as far as we have heard.
    pub(crate) fn lives(&self, name: &Name) -> bool {
        self.shims().contains_key(name)
    }

    /// Ends it at once, if it is watched: false if it is not.
    pub(crate) fn kill(&self, name: &Name) -> Result<bool, Failed> {
        let shims = self.shims();
        let Some((_, pidfd)) = shims.get(name).and_then(|shim| shim.pidfd.as_ref()) else { return Ok(false) };
        match pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL) {
            Ok(()) | Err(Failed { errno: Errno::ESRCH, .. }) => Ok(true),
            Err(failed) => Err(failed),
        }
    }

    /// Waits until it is gone.
    pub(crate) async fn gone(&self, name: &Name) {
        let waits = {
            let mut shims = self.shims();
            let Some(shim) = shims.get_mut(name) else { return };
            shim.gone.get_or_insert_with(|| watch::Sender::new(())).subscribe()
        };
        // An error, and nothing else, says that the shim has been removed.
        let mut waits = waits;
        drop(waits.changed().await);
    }

    /// Tells of every shim that is gone, once it has been removed. Never returns.
    pub(crate) async fn tend(self, mut gone: impl FnMut(Arc<Name>)) {
        let watched = self.0.epoll.0.try_clone().and_then(|fd| sys::watch(fd, Interest::READABLE));
        let watched = match watched {
            Ok(watched) => watched,
            Err(error) => return log::error!("watch the shims: {error}; their ends will go unnoticed"),
        };
        loop {
            let ready = watched.readable().await;
            let mut events = [EpollEvent::empty(); BATCH];
            let number = match self.0.epoll.wait(&mut events, EpollTimeout::ZERO) {
                Ok(number) => number,
                Err(Errno::EINTR) => continue,
                Err(errno) => return log::error!("watch the shims: {errno}; their ends will go unnoticed"),
            };
            if number < BATCH
                && let Ok(mut ready) = ready
            {
                ready.clear_ready();
            }
            for event in events.iter().take(number) {
                let name = self.names().1.get(&event.data()).cloned();
                if let Some(name) = name {
                    self.remove(&name);
                    gone(name);
                }
            }
        }
    }

    /// Sends a request to the container's shim as it is, and brings back the answer as it is.
    pub(crate) async fn request(&self, name: &Arc<Name>, request: Request) -> Result<Response, Fault> {
        let mut call = self.call(name).await?;
        match call.client.request(request).await {
            Ok(response) => Ok(response),
            Err(ttrpc::Error::RpcStatus(status)) => Err(Fault::Status(status)),
            // ttrpc has no other sign for it; the connection is good all the same.
            Err(ttrpc::Error::Others(text)) if text == "Request deadline elapsed" => {
                Err(Fault::Deadline(format!("the shim of container {name} has not answered in time")))
            }
            Err(error) => {
                call.broken();
                Err(Fault::Unavailable(format!(
                    "the shim of container {name} has closed the connection ({error}); try again"
                )))
            }
        }
    }

    /// The same for a call of our own to its Task service, with a deadline.
    pub(crate) async fn ask<A: Message>(
        &self,
        name: &Arc<Name>,
        method: &str,
        request: &impl Message,
        limit: Duration,
    ) -> Result<A, Fault> {
        let failed = |what: &str, error: protobuf::Error| Fault::Failed(format!("{what} Task.{method}: {error}"));
        let payload = request.write_to_bytes().map_err(|error| failed("encode", error))?;
        let request = Request {
            service: TASK.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX),
            ..Default::default()
        };
        let late =
            |_| Fault::Deadline(format!("the shim of container {name} has not answered Task.{method} in {limit:?}"));
        let response = timeout(limit, self.request(name, request)).await.map_err(late)??;
        A::parse_from_bytes(&response.payload).map_err(|error| failed("decode the answer to", error))
    }

    /// A connection to the shim, kept open for the call.
    async fn call(&self, name: &Arc<Name>) -> Result<Call, Fault> {
        let gone = || Fault::Unavailable(format!("container {name} has no shim to ask"));
        let address = {
            let mut shims = self.shims();
            let shim = shims.get_mut(name).ok_or_else(gone)?;
            if let Some(connection) = &shim.connection {
                return Ok(Call::over(connection, self, name));
            }
            shim.address.clone()
        };
        let stream = UnixStream::connect(&*address).await.map_err(|error| {
            let why = match error.raw_os_error() {
                Some(libc::EAGAIN) => "it takes no more connections at the moment".to_owned(),
                _ => error.to_string(),
            };
            Fault::Unavailable(format!("connect to the shim of container {name} at {address}: {why}"))
        })?;
        let client = Client::new(Socket::from(stream));
        let mut shims = self.shims();
        let shim = shims.get_mut(name).ok_or_else(gone)?;
        // Somebody else may have been faster.
        let (calls, last, _open) = (Arc::default(), Instant::now(), self.0.open.clone());
        let connection = shim.connection.get_or_insert_with(|| Connection { client, calls, last, _open });
        if !self.0.swept.swap(true, Ordering::Relaxed) {
            tokio::spawn(self.clone().sweep());
        }
        Ok(Call::over(connection, self, name))
    }

    /// How many connections are open.
    fn open(&self) -> usize {
        Arc::strong_count(&self.0.open) - 1
    }

    /// Closes the connections that nobody has used for a while. Ends when there are none, and gives back what they took.
    async fn sweep(self) {
        while self.open() > 0 {
            sleep(self.0.idle).await;
            for shim in self.shims().values_mut() {
                shim.connection.take_if(|connection| connection.is_idle() && connection.last.elapsed() >= self.0.idle);
            }
        }
        self.0.swept.store(false, Ordering::Relaxed);
        sys::trim();
    }
}

/// A call that is under way.
struct Call {
    shims: Shims,
    name: Arc<Name>,
    client: Client,
    /// Taken when the call ends.
    calls: Option<Arc<()>>,
}

impl Call {
    fn over(connection: &Connection, shims: &Shims, name: &Arc<Name>) -> Self {
        let (client, calls) = (connection.client.clone(), Some(connection.calls.clone()));
        Self { shims: shims.clone(), name: name.clone(), client, calls }
    }

    /// The next call needs a new connection.
    fn broken(&mut self) {
        self.end(true);
    }

    /// There may be another connection by now, which is nothing to us.
    fn end(&mut self, broken: bool) {
        let Some(calls) = self.calls.take() else { return };
        let mut shims = self.shims.shims();
        let Some(shim) = shims.get_mut(&self.name) else { return };
        let Some(connection) = shim.connection.as_mut().filter(|one| Arc::ptr_eq(&one.calls, &calls)) else { return };
        drop(calls);
        connection.last = Instant::now();
        if broken || (connection.is_idle() && self.shims.open() > KEPT) {
            shim.connection = None;
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(false);
    }
}

impl Fault {
    /// The shim does not know the container, or the process.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Status(status) if status.code() == Code::NOT_FOUND)
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, pin::pin};

    use async_trait::async_trait;
    use runtime_v2_api::{
        Empty,
        task::{PauseRequest, StateRequest, StateResponse, WaitRequest, WaitResponse},
        task_v2,
    };
    use ttrpc::r#async::{Server, TtrpcContext};

    use super::*;

    /// A shim that answers State, refuses Pause, and never answers Wait.
    struct Answers;

    #[async_trait]
    impl task_v2::Task for Answers {
        async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
            Ok(StateResponse { bundle: format!("{}'s", request.id), ..Default::default() })
        }

        async fn pause(&self, _: &TtrpcContext, _: PauseRequest) -> ttrpc::Result<Empty> {
            Err(ttrpc::Error::RpcStatus(ttrpc::get_status(Code::NOT_FOUND, "gone")))
        }

        async fn wait(&self, _: &TtrpcContext, _: WaitRequest) -> ttrpc::Result<WaitResponse> {
            std::future::pending().await
        }
    }

    async fn serve(path: &Path) -> Server {
        drop(std::fs::remove_file(path));
        let server = Server::new().bind(&format!("unix://{}", path.display())).unwrap();
        let mut server = server.register_service(runtime_v2_api::task_services(Arc::new(Answers)));
        server.start().await.unwrap();
        server
    }

    async fn state(shims: &Shims, name: &Arc<Name>) -> Result<StateResponse, Fault> {
        let request = StateRequest { id: "web-1".into(), ..Default::default() };
        shims.ask(name, "State", &request, Duration::from_secs(10)).await
    }

    #[test]
    fn a_shim_is_asked_over_one_connection_that_is_made_anew_when_it_breaks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let name = Name::new("default", "web-1").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let shims = Shims::new().unwrap();
            assert!(matches!(state(&shims, &name).await, Err(Fault::Unavailable(_))), "nobody is there");
            shims.add(&name, path.to_str().unwrap());
            assert!(matches!(state(&shims, &name).await, Err(Fault::Unavailable(_))), "it does not listen");

            let mut server = serve(&path).await;
            assert_eq!(state(&shims, &name).await.unwrap().bundle, "web-1's");
            let pause = PauseRequest { id: "web-1".into(), ..Default::default() };
            let refused: Result<Empty, Fault> = shims.ask(&name, "Pause", &pause, Duration::from_secs(10)).await;
            assert!(refused.unwrap_err().is_not_found());

            // A call that is not answered holds up no other, and ends with its time or with the connection.
            let wait = WaitRequest { id: "web-1".into(), ..Default::default() };
            let late: Result<WaitResponse, Fault> = shims.ask(&name, "Wait", &wait, Duration::from_millis(50)).await;
            assert!(matches!(late, Err(Fault::Deadline(_))), "{late:?}");
            let mut waits = pin!(shims.ask::<WaitResponse>(&name, "Wait", &wait, Duration::from_secs(60)));
            assert!(timeout(Duration::from_millis(50), &mut waits).await.is_err());
            assert!(state(&shims, &name).await.is_ok());
            let (broken, _) = tokio::join!(&mut waits, server.shutdown());
            assert!(matches!(broken, Err(Fault::Unavailable(_))), "{broken:?}");

            drop(server);
            let _server = serve(&path).await;
            assert!(state(&shims, &name).await.is_ok(), "by a new connection");
            assert_eq!(shims.open(), 1, "kept for the next");
        });
    }

    #[test]
    fn few_connections_are_kept_and_none_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // Sooner than anybody counts, and later.
            let (shims, kept) = (Shims::keeping(Duration::from_millis(20)).unwrap(), Shims::new().unwrap());
            let _server = serve(&path).await;
            let names: Vec<_> =
                (0..3 * KEPT).map(|number| Name::new("default", &format!("web-{number}")).unwrap()).collect();
            for shims in [&shims, &kept] {
                for name in &names {
                    shims.add(name, path.to_str().unwrap());
                }
                // All at once, so that as many are open.
                futures::future::join_all(names.iter().map(|name| async { state(shims, name).await.unwrap() })).await;
            }
            assert_eq!(kept.open(), KEPT);
            let swept = async {
                while shims.0.swept.load(Ordering::Relaxed) {
                    sleep(Duration::from_millis(1)).await
                }
            };
            timeout(Duration::from_secs(10), swept).await.expect("none is kept for ever");
            assert_eq!(shims.open(), 0);
            state(&shims, &names[0]).await.unwrap();
            assert!(shims.0.swept.load(Ordering::Relaxed), "and again");
        });
    }

    #[test]
    fn the_end_of_a_shim_is_noticed_by_all_who_wait_for_it() {
        let name = Name::new("default", "web-1").unwrap();
        let mut shim = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let shims = Shims::new().unwrap();
            shims.add(&name, "/nowhere");
            assert!(!shims.kill(&name).unwrap(), "it is not watched yet");
            let pidfd = libcontainer::sys::process::pidfd_open(nix::unistd::Pid::from_raw(shim.id().cast_signed()));
            shims.watch(&name, pidfd.unwrap()).unwrap();
            let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
            tokio::spawn(shims.clone().tend(move |name| tell.send(name).unwrap()));
            let mut gone = pin!(shims.gone(&name));
            assert!(timeout(Duration::from_millis(20), &mut gone).await.is_err());
            assert!(shims.kill(&name).unwrap());
            gone.await;
            assert_eq!(told.recv().await.unwrap(), name);
            assert!(!shims.lives(&name) && shims.names().1.is_empty());
            shims.gone(&name).await;
        });
        shim.wait().unwrap();
    }
}
