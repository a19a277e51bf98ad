//! What a process reads and writes: FIFOs, files and loggers, as the client named them; terminals are in `console`, and what
//! is kept in a log for others to read and to attach to (`log://`) goes through an `outlet`.
//!
//! Where it can, the process itself gets the client's FIFO, and its output costs the shim nothing. The shim only holds a
//! second reader, so that a client that goes away (containerd restarting) means neither EPIPE for the process nor the end
//! of what is already in the FIFO. Being a reader it does not keep the client from seeing the end: that comes with the last
//! writer in the container. For stdin it is the other way round: the shim holds a second writer until CloseIO.
//!
//! A pipe of our own stands between, and the shim moves the bytes along, where a FIFO of the client's would not do:
//! - the output of an exec: Delete must end the client's reading although a child left behind still holds the other end,
//!   and nothing can take a writer away from a FIFO;
//! - a process that may not reopen the FIFO, which belongs to the client, as `/dev/stdout`: other users than root, user
//!   namespaces, SELinux labels;
//! - a regular file: `echo > /dev/stdout` would truncate it, and the whole log with it.

use std::{io, os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};

use nix::{
    errno::Errno,
    sys::stat::fstat,
    unistd::{Gid, Uid, fchown},
};
use thiserror::Error;
use tokio::time::timeout;

use crate::{
    attach::{Attach, Hub},
    console::{Console, Wiring},
    flow::{Copy, End, flow},
    kept::{Kept, Stream},
    logger::{Logger, LoggerError},
    outlet::{Outlet, Place},
    reap::Reaper,
};

mod open;
mod uri;

pub(crate) use uri::percent_decoded;

use self::{
    open::{Input, Output, blocking, open_log, open_output, open_stdin, pipe},
    uri::{Uri, plain_path},
};

/// How long Delete waits for output that is still on its way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// What a client says as stdin if those who attach bring it.
const ATTACH: &str = "attach:";

/// Why a process could not be given its stdio.
#[derive(Debug, Error)]
pub(crate) enum StdioError {
    #[error("unknown STDIO scheme {0}")]
    Scheme(String),
    #[error("malformed STDIO URI {0}")]
    Uri(String),
    #[error("open {what} {path:?}: {source}")]
    Open { what: &'static str, path: PathBuf, source: io::Error },
    #[error("open {what} {path:?}: nobody opened it to read within 30 s")]
    NoReader { what: &'static str, path: PathBuf },
    #[error("{step}: {source}")]
    System { step: &'static str, source: io::Error },
    #[error(
        "give a pipe to user {0}:{1}, who is not mapped in our user namespace: for others than root an ordinary user needs \
         newuidmap, and ranges of ids in /etc/subuid and /etc/subgid"
    )]
    Unmapped(Uid, Gid),
    #[error("listen for who attaches: {0:#}")]
    Attach(anyhow::Error),
    #[error("stdin {stdin:?} with stdout {stdout:?}: {why}")]
    Mixed { stdin: String, stdout: String, why: &'static str },
    #[error(transparent)]
    Logger(#[from] LoggerError),
}

/// What the client asked for, as it said it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Who will use it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    /// The process's user, in the shim's namespace; also the owner of the pipes made for it.
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    /// Something beside the mode bits decides what it may open: an SELinux label.
    pub(crate) confined: bool,
    /// It was exec'ed into a container, and may leave children behind that hold its stdio.
    pub(crate) exec: bool,
}

impl Wanted {
    fn mixed(&self, why: &'static str) -> StdioError {
        StdioError::Mixed { stdin: self.stdin.clone(), stdout: self.stdout.clone(), why }
    }
}

/// What a process that has no terminal is started with.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// The shim's side of a process's stdio. Dropping it closes all of that.
#[derive(Default)]
pub(crate) struct Stdio {
    /// Keeps stdin from ending before CloseIO.
    stdin: Option<OwnedFd>,
    /// What else is only held open: second readers of output FIFOs, the pipes to a logger.
    held: Vec<OwnedFd>,
    input: Option<Copy>,
    outputs: Vec<Copy>,
    logger: Option<Logger>,
    /// What a terminal will be connected with.
    for_console: Option<Wiring>,
    attach: Option<Box<Attach>>,
    console: Option<Console>,
}

impl Stdio {
    /// Opens what `wanted` names, and returns what the process gets unless it gets a terminal.
    ///
    /// `owner` is the container's or the exec's id and the namespace, for a logger.
    pub(crate) async fn open(
        wanted: &Wanted,
        user: User,
        owner: (&str, &str),
        reaper: &Reaper,
    ) -> Result<(Self, Option<Ends>), StdioError> {
        let mut stdio = Self::default();
        match stdio.open_all(wanted, user, owner, reaper).await {
            Ok(ends) => Ok((stdio, ends)),
            Err(error) => {
                // A logger that was started already has nothing to log, and nobody else to stop it.
                stdio.close().await;
                Err(error)
            }
        }
    }

    async fn open_all(
        &mut self,
        wanted: &Wanted,
        user: User,
        owner: (&str, &str),
        reaper: &Reaper,
    ) -> Result<Option<Ends>, StdioError> {
        if let Some(place) = wanted.stdout.strip_prefix("log://") {
            let place = Place::parse(place).ok_or_else(|| StdioError::Uri(wanted.stdout.clone()))?;
            return self.open_kept(wanted, user, &place);
        }
        if wanted.stdin == ATTACH {
            return Err(wanted.mixed("there is nowhere to attach to; stdout must be log://"));
        }
        let (out, err) = self.open_outputs(wanted, owner, reaper).await?;
        let input = open_stdin(&wanted.stdin)?;
        if wanted.terminal {
            let from = match input {
                Input::Device(_) => None,
                Input::Fifo { reader, writer } => {
                    self.stdin = Some(writer);
                    Some(End::source(reader).map_err(system("watch stdin"))?)
                }
            };
            self.for_console = Some(Wiring::Client(from, out.into_sink()?));
            return Ok(None);
        }
        let stdin = self.give_stdin(input, user)?;
        Ok(Some(Ends { stdin, stdout: self.give("stdout", out, user)?, stderr: self.give("stderr", err, user)? }))
    }

    /// The end of an input that the process gets.
    fn give_stdin(&mut self, input: Input, user: User) -> Result<OwnedFd, StdioError> {
        let (reader, writer) = match input {
            Input::Device(fd) => return Ok(fd),
            Input::Fifo { reader, writer } => (reader, writer),
        };
        self.stdin = Some(writer);
        if user.may_reopen(&reader)? {
            return blocking(reader);
        }
        let (read_end, write_end) = pipe()?;
        user.own(&read_end)?;
        let from = End::source(reader).map_err(system("watch stdin"))?;
        let to = End::sink(write_end, None).map_err(system("watch stdin"))?;
        self.input = Some(copy("stdin", from, to));
        Ok(read_end)
    }

    /// Opens a log, and the socket where clients attach.
    fn open_kept(&mut self, wanted: &Wanted, user: User, place: &Place) -> Result<Option<Ends>, StdioError> {
        let failed = |source| StdioError::Open { what: "log", path: place.log.clone(), source };
        let outlet = Outlet::new(Kept::open(&place.log, place.bounds).map_err(failed)?, Arc::new(Hub::default()));
        let hub = outlet.hub().clone();
        if let Some(path) = &place.attach {
            self.attach = Some(Box::new(Attach::listen(path, hub.clone()).map_err(StdioError::Attach)?));
        }
        let attached = wanted.stdin == ATTACH;
        if wanted.terminal {
            if !attached && !wanted.stdin.is_empty() {
                return Err(wanted.mixed("a terminal whose output is kept gets its input by attach: or not at all"));
            }
            self.for_console = Some(Wiring::Outlet(Box::new(outlet), attached));
            return Ok(None);
        }
        let stdin = if attached {
            let (read_end, write_end) = pipe()?;
            user.own(&read_end)?;
            hub.feed_pipe(write_end).map_err(system("watch stdin"))?;
            read_end
        } else {
            self.give_stdin(open_stdin(&wanted.stdin)?, user)?
        };
        let output = |stream| {
            let (read_end, write_end) = pipe()?;
            user.own(&write_end)?;
            let from = End::source(read_end).map_err(system("watch a pipe"))?;
            Ok::<_, StdioError>(((stream, Arc::new(from)), write_end))
        };
        let ((out, stdout), (err, stderr)) = (output(Stream::Out)?, output(Stream::Err)?);
        self.outputs.push(Copy::spawn(outlet.run(vec![out, err])));
        self.let_clients_in()?;
        Ok(Some(Ends { stdin, stdout, stderr }))
    }

    fn let_clients_in(&mut self) -> Result<(), StdioError> {
        self.attach.as_mut().map_or(Ok(()), |attach| attach.serve().map_err(system("serve who attaches")))
    }

    /// Connects a terminal with what the client opened for it.
    pub(crate) fn attach(&mut self, master: OwnedFd) -> Result<(), StdioError> {
        if let Some(wiring) = self.for_console.take() {
            self.console = Some(Console::new(master, wiring).map_err(system("connect the terminal"))?);
        }
        self.let_clients_in()
    }

    /// Sets the terminal's size; without a terminal there is nothing to do.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        self.console.as_ref().map_or(Ok(()), |console| console.resize(columns, rows))
    }

    /// Lets stdin end once the client has closed it too.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
        if let Some(attach) = &self.attach {
            attach.hub().close_input();
        }
    }

    /// The process has ended, and so may its terminal.
    pub(crate) fn exited(&mut self) {
        if let Some(console) = &mut self.console {
            console.exited();
        }
    }

    /// Waits, though not for ever, until all output has reached the client; then closes everything and stops the logger.
    pub(crate) async fn close(mut self) {
        // Not stdin yet: a terminal whose input ends is hung up, and what it has still to say would be lost.
        self.exited();
        let outputs = self.outputs.iter_mut().chain(self.console.as_mut().map(Console::copy));
        let drained = async {
            for copy in outputs {
                copy.done().await;
            }
            if let Some(attach) = &self.attach {
                attach.hub().end();
                attach.hub().deserted().await;
            }
        };
        if timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            log::info!("output is still held open {DRAIN_TIMEOUT:?} after its process ended, and is cut off");
        }
        if let Some(attach) = &self.attach {
            // Whatever happened, nobody is to wait for more.
            attach.hub().end();
        }
        let logger = self.logger.take();
        drop(self);
        if let Some(logger) = logger {
            logger.stop().await;
        }
    }

    /// Opens stdout and stderr. Only the scheme of stdout counts.
    async fn open_outputs(
        &mut self,
        wanted: &Wanted,
        (id, namespace): (&str, &str),
        reaper: &Reaper,
    ) -> Result<(Output, Output), StdioError> {
        match Uri::parse(&wanted.stdout)? {
            Uri::File(path) => {
                let out = open_log(&path).map_err(|source| StdioError::Open { what: "stdout", path, source })?;
                let err = out.try_clone().map_err(system("duplicate the log file"))?;
                Ok((Output::File(out), Output::File(err)))
            }
            Uri::Logger { path, args, strict } => {
                let ((out_read, out), (err_read, err)) = (pipe()?, pipe()?);
                let logger =
                    self.logger.insert(Logger::spawn(&path, &args, (id, namespace), out_read, err_read, reaper)?);
                logger.ready(strict).await?;
                Ok((Output::Logger(out), Output::Logger(err)))
            }
            Uri::Path(path) => {
                let out = open_output("stdout", path).await?;
                // A terminal has one output.
                let stderr = if wanted.terminal { None } else { plain_path(&wanted.stderr) };
                Ok((out, open_output("stderr", stderr).await?))
            }
        }
    }

    /// The end of an output that the process gets.
    fn give(&mut self, what: &'static str, output: Output, user: User) -> Result<OwnedFd, StdioError> {
        match output {
            Output::Device(fd) => Ok(fd),
            Output::Logger(fd) => {
                let end = fd.try_clone().map_err(system("duplicate the logger's pipe"))?;
                user.own(&end)?;
                // The logger is to see the end at Delete, not when the process ends.
                self.held.push(fd);
                Ok(end)
            }
            Output::Fifo { writer, spare } if !user.exec && user.may_reopen(&writer)? => {
                self.held.push(spare);
                blocking(writer)
            }
            output @ (Output::Fifo { .. } | Output::File(_)) => {
                let (read_end, write_end) = pipe()?;
                user.own(&write_end)?;
                let from = End::source(read_end).map_err(system("watch a pipe"))?;
                self.outputs.push(copy(what, from, output.into_sink()?));
                Ok(write_end)
            }
        }
    }
}

fn copy(what: &'static str, from: End, to: End) -> Copy {
    Copy::spawn(async move {
        match flow(&from, &to).await {
            // Nobody reads stdin any more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => log::warn!("copy {what}: {error}"),
            Ok(()) => {}
        }
    })
}

impl User {
    /// Whether the process may open this FIFO again by way of /proc/self/fd, as it may a pipe of its own.
    fn may_reopen(&self, fd: &OwnedFd) -> Result<bool, StdioError> {
        let meta = fstat(fd).map_err(|errno| system("examine a FIFO")(errno.into()))?;
        Ok(!self.confined && meta.st_uid == self.uid.as_raw() && meta.st_mode & 0o600 == 0o600)
    }

    /// Lets the process reopen its end of a pipe, as `/dev/stdout` for one.
    fn own(&self, pipe: &OwnedFd) -> Result<(), StdioError> {
        match fchown(pipe, Some(self.uid), Some(self.gid)) {
            Err(Errno::EINVAL) => Err(StdioError::Unmapped(self.uid, self.gid)),
            given => given.map_err(|errno| system("give a pipe to its user")(errno.into())),
        }
    }
}

fn system(step: &'static str) -> impl Fn(io::Error) -> StdioError {
    move |source| StdioError::System { step, source }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{File, OpenOptions},
        io::Read as _,
        thread,
    };

    use nix::{fcntl::OFlag, poll::PollFlags, sys::stat::Mode, unistd::mkfifo};
    use tokio::runtime::Builder;

    use super::*;
    use crate::flow::poll_now;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { timeout(Duration::from_secs(20), future).await.expect("must not hang") })
    }

    fn me(exec: bool) -> User {
        User { uid: Uid::current(), gid: Gid::current(), confined: false, exec }
    }

    fn folder_with_fifo(name: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (folder, path)
    }

    /// A client: reads a FIFO to its end.
    fn client(path: &str) -> thread::JoinHandle<String> {
        let path = path.to_owned();
        #[expect(clippy::disallowed_methods, reason = "a test may have threads; the shim may not")]
        thread::spawn(move || {
            let mut text = String::new();
            File::open(path).unwrap().read_to_string(&mut text).unwrap();
            text
        })
    }

    fn wanted(stdout: &str) -> Wanted {
        Wanted { stdout: stdout.to_owned(), ..Wanted::default() }
    }

    fn write_to(fd: OwnedFd, text: &str) {
        io::Write::write_all(&mut File::from(fd), text.as_bytes()).unwrap();
    }

    #[test]
    fn a_client_that_comes_late_gets_everything_and_the_end() {
        for exec in [false, true] {
            let (_folder, path) = folder_with_fifo("out");
            let text = block_on(async {
                let reaper = Reaper::default();
                let (wanted, late) = (wanted(&path), path.clone());
                let mut reader = None;
                let open = Stdio::open(&wanted, me(exec), ("c", "n"), &reaper);
                tokio::pin!(open);
                // Opening waits for a reader, and does not hold up anybody else meanwhile.
                let (stdio, ends) = loop {
                    tokio::select! {
                        biased;
                        opened = &mut open => break opened.unwrap(),
                        () = tokio::task::yield_now(), if reader.is_none() => reader = Some(client(&late)),
                    }
                };
                write_to(ends.unwrap().stdout, "hello");
                stdio.close().await;
                reader.unwrap()
            });
            assert_eq!(text.join().unwrap(), "hello", "exec: {exec}");
        }
    }

    #[test]
    fn init_writes_to_the_clients_fifo_itself_and_an_exec_does_not() {
        for exec in [false, true] {
            let (_folder, path) = folder_with_fifo("out");
            let reader = client(&path);
            block_on(async {
                let reaper = Reaper::default();
                let (stdio, ends) = Stdio::open(&wanted(&path), me(exec), ("c", "n"), &reaper).await.unwrap();
                let ends = ends.unwrap();
                let (given, named) = (fstat(&ends.stdout).unwrap(), nix::sys::stat::stat(path.as_str()).unwrap());
                let same = (given.st_dev, given.st_ino) == (named.st_dev, named.st_ino);
                assert_eq!(same, !exec);
                let flags = nix::fcntl::fcntl(&ends.stdout, nix::fcntl::FcntlArg::F_GETFL).unwrap();
                assert!(!OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK), "programs expect stdout to block");
                drop(ends);
                stdio.close().await;
            });
            assert_eq!(reader.join().unwrap(), "");
        }
    }

    #[test]
    fn closing_an_exec_ends_the_clients_reading_although_a_child_holds_on() {
        let (_folder, path) = folder_with_fifo("out");
        let reader = client(&path);
        block_on(async {
            let reaper = Reaper::default();
            let (stdio, ends) = Stdio::open(&wanted(&path), me(true), ("c", "n"), &reaper).await.unwrap();
            let held_by_a_child = ends.unwrap().stdout;
            drop(stdio);
            // The copy is cancelled by its drop, at the runtime's next turn.
            tokio::task::yield_now().await;
            drop(held_by_a_child);
        });
        assert_eq!(reader.join().unwrap(), "");
    }

    #[test]
    fn stdin_ends_when_the_shim_and_the_client_have_closed_it() {
        let (_folder, path) = folder_with_fifo("in");
        block_on(async {
            let wanted = Wanted { stdin: path.clone(), ..Wanted::default() };
            let (mut stdio, ends) = Stdio::open(&wanted, me(false), ("c", "n"), &Reaper::default()).await.unwrap();
            let mut client = OpenOptions::new().write(true).open(&path).unwrap();
            io::Write::write_all(&mut client, b"one ").unwrap();
            drop(client);
            let mut stdin = File::from(ends.unwrap().stdin);
            assert!(poll_now(&stdin, PollFlags::POLLIN).unwrap() == PollFlags::POLLIN, "no end of file yet");
            let mut client = OpenOptions::new().write(true).open(&path).unwrap();
            io::Write::write_all(&mut client, b"two").unwrap();
            drop(client);
            stdio.close_stdin();
            let mut text = String::new();
            stdin.read_to_string(&mut text).unwrap();
            assert_eq!(text, "one two");
        });
    }

    #[test]
    fn a_log_file_is_made_and_appended_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b c/log");
        let uri = format!("file://{}", path.to_str().unwrap().replace(' ', "%20"));
        for text in ["one\n", "two\n"] {
            block_on(async {
                let reaper = Reaper::default();
                let (stdio, ends) = Stdio::open(&wanted(&uri), me(false), ("c", "n"), &reaper).await.unwrap();
                let ends = ends.unwrap();
                write_to(ends.stdout, text);
                write_to(ends.stderr, "err\n");
                stdio.close().await;
            });
        }
        let text = std::fs::read_to_string(path).unwrap();
        let mut lines = text.lines().collect::<Vec<_>>();
        lines.sort_unstable();
        assert_eq!(lines, ["err", "err", "one", "two"]);
    }
}
