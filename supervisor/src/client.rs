//! A client of the supervisor: what `dunnage` speaks through, on a tokio runtime of one thread.
//!
//! The supervisor may be killed, replaced or upgraded at any moment, and the containers go on. So a call that may be made
//! twice is made again once somebody listens at the socket again ([`Client::repeat`]); of the others it cannot be known
//! whether they were carried out, and their callers are told so ([`CallError::Gone`]).

use std::{
    cell::RefCell,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Poll, ready},
    time::Duration,
};

use nix::unistd::geteuid;
use runtime_v2_api::{shim_ttrpc::ShimClient, supervisor_ttrpc::SupervisorClient, task_v3::TaskClient};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use ttrpc::{Code, asynchronous::transport::Socket, context::Context};

use crate::{
    traffic::GOING,
    watch::{AddWatchFlags, Watch},
};

/// The key of the namespace in a call's metadata, as containerd has it.
const NAMESPACE: &str = "containerd-namespace-ttrpc";

/// How long a supervisor that went away may take to be back: what a service manager takes to start it again, and more.
const PATIENCE: Duration = Duration::from_secs(10);

/// Nobody tells that a socket that is there is listened to from now on, so it is looked at again after so long.
const AGAIN: Duration = Duration::from_millis(100);

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens at the socket.
    #[error("no supervisor listens at {}", socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket cannot be connected to for another reason: it belongs to somebody else, for one.
    #[error("connect to the supervisor at {}: {source}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The supervisor went away before it answered. What was asked for may have been done, or not.
    #[error("the supervisor at {} went away before it answered", socket.display())]
    Gone {
        /// The socket.
        socket: PathBuf,
    },
    /// It answered with an error.
    #[error("{message}")]
    Refused {
        /// The kind of error.
        code: Code,
        /// What the supervisor or the shim says.
        message: String,
    },
    /// The connection carries something that is not ttrpc as we know it.
    #[error("talk to the supervisor: {0}")]
    Protocol(ttrpc::Error),
}

impl CallError {
    /// The supervisor's kind of error, if it answered with one.
    pub fn code(&self) -> Option<Code> {
        match self {
            CallError::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// The supervisor is going away, or is gone, and there will be another.
    fn is_for_another(&self) -> bool {
        match self {
            CallError::Gone { .. } => true,
            CallError::Refused { code: Code::UNAVAILABLE, message } => message == GOING,
            _ => false,
        }
    }

    /// What was asked about does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NOT_FOUND)
    }
}

/// What is served on the supervisor's socket. All share one connection.
#[derive(Clone)]
pub struct Services {
    /// The supervisor itself.
    pub supervisor: SupervisorClient,
    /// The containers' shims, which calls are routed to.
    pub task: TaskClient,
    /// What a Dunnage shim serves beside that.
    pub shim: ShimClient,
}

/// A supervisor, and the namespace that calls are about.
pub struct Client {
    socket: PathBuf,
    namespace: String,
    connection: RefCell<Connection>,
}

#[derive(Clone)]
struct Connection {
    services: Services,
    /// The other side has closed it.
    closed: watch::Sender<bool>,
}

impl Client {
    /// Connects to the supervisor that listens at `socket`.
    ///
    /// # Errors
    /// [`CallError::NotRunning`] or [`CallError::Connect`].
    pub async fn connect(socket: &Path, namespace: &str) -> Result<Client, CallError> {
        let connection = RefCell::new(connect(socket).await?);
        Ok(Client { socket: socket.to_owned(), namespace: namespace.to_owned(), connection })
    }

    /// Connects to a supervisor that is about to listen at `socket`.
    ///
    /// # Errors
    /// As [`Client::connect`], after ten seconds.
    pub async fn await_and_connect(socket: &Path, namespace: &str) -> Result<Client, CallError> {
        let connection = RefCell::new(await_supervisor(socket, PATIENCE).await?);
        Ok(Client { socket: socket.to_owned(), namespace: namespace.to_owned(), connection })
    }

    /// The namespace that calls are about.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Makes a call that must not be made twice.
    ///
    /// # Errors
    /// Any [`CallError`]. A connection that is known to be lost is renewed before the call is made.
    pub async fn call<T>(&self, call: impl AsyncFn(&Services, Context) -> ttrpc::Result<T>) -> Result<T, CallError> {
        let mut connection = self.connection.borrow().clone();
        if *connection.closed.borrow() {
            connection = self.reconnect().await?;
        }
        call(&connection.services, self.context()).await.map_err(|error| self.failed(&connection, error))
    }

    /// Makes a call that may be made twice, and does so while the supervisor goes away before it answers.
    ///
    /// # Errors
    /// Any [`CallError`]; [`CallError::NotRunning`] once the supervisor has been away for ten seconds.
    pub async fn repeat<T>(&self, call: impl AsyncFn(&Services, Context) -> ttrpc::Result<T>) -> Result<T, CallError> {
        let mut quick = Quick::default();
        loop {
            let began = Instant::now();
            match self.call(&call).await {
                Err(error) if error.is_for_another() && quick.again(began).await => {}
                answer => return answer,
            }
        }
    }

    /// Runs something that may be begun anew, such as a stream that is read from a cursor on, until it ends by itself.
    /// `call` keeps what it has come to; it is called again each time the supervisor goes away.
    ///
    /// # Errors
    /// As [`Client::repeat`].
    pub async fn follow<T>(
        &self,
        mut call: impl AsyncFnMut(&Services, Context) -> ttrpc::Result<T>,
    ) -> Result<T, CallError> {
        let mut connection = self.connection.borrow().clone();
        let mut quick = Quick::default();
        loop {
            let began = Instant::now();
            if *connection.closed.borrow() {
                connection = self.reconnect().await?;
            }
            match call(&connection.services, self.context()).await.map_err(|error| self.failed(&connection, error)) {
                Err(error) if error.is_for_another() && quick.again(began).await => {}
                answer => return answer,
            }
        }
    }

    fn failed(&self, connection: &Connection, error: ttrpc::Error) -> CallError {
        match error {
            ttrpc::Error::RpcStatus(status) => {
                CallError::Refused { code: status.code.enum_value_or(Code::UNKNOWN), message: status.message }
            }
            // ttrpc notices a closed connection in many ways and words.
            _ if *connection.closed.borrow() => CallError::Gone { socket: self.socket.clone() },
            ttrpc::Error::Socket(_) | ttrpc::Error::LocalClosed | ttrpc::Error::RemoteClosed | ttrpc::Error::Eof => {
                connection.closed.send_replace(true);
                CallError::Gone { socket: self.socket.clone() }
            }
            error => CallError::Protocol(error),
        }
    }

    /// Waits until a supervisor listens at the socket, for [`PATIENCE`] at most, and uses that one from now on.
    async fn reconnect(&self) -> Result<Connection, CallError> {
        let connection = await_supervisor(&self.socket, PATIENCE).await?;
        self.connection.replace(connection.clone());
        Ok(connection)
    }

    fn context(&self) -> Context {
        let mut context = Context::default();
        context.set(NAMESPACE.to_owned(), vec![self.namespace.clone()]);
        context
    }
}

/// The context of a call about another namespace than its client's.
pub fn within(mut context: Context, namespace: &str) -> Context {
    context.metadata.insert(NAMESPACE.to_owned(), vec![namespace.to_owned()]);
    context
}

/// Calls that ended as soon as they were made: a supervisor that does nothing but go away is not asked for ever.
#[derive(Default)]
struct Quick(u32);

impl Quick {
    /// Whether to make a call again that was begun then; not at once if it has failed so before.
    async fn again(&mut self, began: Instant) -> bool {
        self.0 = if began.elapsed() < AGAIN { self.0 + 1 } else { 0 };
        if self.0 > 1 {
            sleep(AGAIN).await;
        }
        self.0 < 20
    }
}

async fn connect(socket: &Path) -> Result<Connection, CallError> {
    match UnixStream::connect(socket).await {
        Ok(stream) => {
            // It would turn us away without a word.
            let (theirs, ours) = (stream.peer_cred().map(|peer| peer.uid()), geteuid().as_raw());
            if let Ok(theirs) = theirs
                && theirs != ours
            {
                let source =
                    io::Error::other(format!("it is user {theirs}'s, and serves nobody else; we are user {ours}"));
                return Err(CallError::Connect { socket: socket.to_owned(), source });
            }
            let closed = watch::Sender::new(false);
            let client = ttrpc::asynchronous::Client::new(Socket::new(Stream { stream, closed: closed.clone() }));
            let services = Services {
                supervisor: SupervisorClient::new(client.clone()),
                task: TaskClient::new(client.clone()),
                shim: ShimClient::new(client),
            };
            Ok(Connection { services, closed })
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Err(CallError::NotRunning { socket: socket.to_owned() })
        }
        Err(source) => Err(CallError::Connect { socket: socket.to_owned(), source }),
    }
}

async fn await_supervisor(socket: &Path, patience: Duration) -> Result<Connection, CallError> {
    let failed = |source| CallError::Connect { socket: socket.to_owned(), source };
    let deadline = Instant::now() + patience;
    let appears = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ATTRIB;
    // Before the first look, so that nothing happens unseen between the two.
    let mut folder = Watch::new(socket.parent(), appears).map_err(failed)?;
    loop {
        match connect(socket).await {
            Err(CallError::NotRunning { .. }) if Instant::now() < deadline => {}
            answer => return answer,
        }
        let changed = async {
            tokio::select! {
                changed = folder.changed() => changed,
                () = sleep(AGAIN), if socket.exists() => Ok(()),
            }
        };
        if let Ok(changed) = timeout_at(deadline, changed).await {
            changed.map_err(failed)?;
        }
    }
}

/// The connection as ttrpc reads it; it notes when the other side has closed it, which ttrpc's errors do not say for sure.
struct Stream {
    stream: UnixStream,
    closed: watch::Sender<bool>,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if read.is_err() || buf.filled().len() == before {
            self.closed.send_replace(true);
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
