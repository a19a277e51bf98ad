//! Opening what a client named.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _},
    },
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::PollFlags,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
    unistd::pipe2,
};
use tokio::{io::Interest, time::timeout};

use super::{StdioError, system, uri::plain_path};
use crate::{
    flow::{End, poll_now, set_flag},
    sys::ready,
};

/// How long a client may take to open the reading end of an output FIFO.
const READER_TIMEOUT: Duration = Duration::from_secs(30);

/// Where an output goes.
pub(super) enum Output {
    /// /dev/null, or whatever device the client named.
    Device(OwnedFd),
    /// The client's FIFO, and a reader that never reads.
    Fifo { writer: OwnedFd, spare: OwnedFd },
    /// A regular file, opened to append.
    File(OwnedFd),
    /// The pipe a logger reads.
    Logger(OwnedFd),
}

impl Output {
    pub(super) fn into_sink(self) -> Result<End, StdioError> {
        match self {
            Self::Device(fd) | Self::File(fd) => Ok(End::Ready(fd)),
            Self::Fifo { writer, spare } => End::sink(writer, Some(spare)).map_err(system("watch an output")),
            Self::Logger(fd) => End::sink(fd, None).map_err(system("watch an output")),
        }
    }
}

/// Where stdin comes from.
pub(super) enum Input {
    Device(OwnedFd),
    /// The client's FIFO, and a writer that never writes.
    Fifo {
        reader: OwnedFd,
        writer: OwnedFd,
    },
}

pub(super) fn open_stdin(path: &str) -> Result<Input, StdioError> {
    let Some(path) = plain_path(path) else { return Ok(Input::Device(null()?)) };
    let open = |options: &mut OpenOptions| {
        let file = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
        file.map_err(|source| StdioError::Open { what: "stdin", path: path.into(), source })
    };
    let reader = open(OpenOptions::new().read(true))?;
    if reader.metadata().map_err(system("examine stdin"))?.file_type().is_fifo() {
        let writer = open(OpenOptions::new().write(true))?.into();
        return Ok(Input::Fifo { reader: reader.into(), writer });
    }
    Ok(Input::Device(blocking(reader.into())?))
}

pub(super) async fn open_output(what: &'static str, path: Option<&Path>) -> Result<Output, StdioError> {
    let Some(path) = path else { return Ok(Output::Device(null()?)) };
    let failed = |source| StdioError::Open { what, path: path.into(), source };
    let open = |options: &mut OpenOptions| options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let writer = match open(OpenOptions::new().write(true)) {
        Ok(writer) => writer,
        // A FIFO whose reader is not there yet.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            let found = timeout(READER_TIMEOUT, wait_for_reader(path)).await;
            found.map_err(|_| StdioError::NoReader { what, path: path.into() })?.map_err(failed)?
        }
        Err(error) => return Err(failed(error)),
    };
    let kind = writer.metadata().map_err(failed)?.file_type();
    if kind.is_fifo() {
        let spare = open(OpenOptions::new().read(true)).map_err(failed)?.into();
        Ok(Output::Fifo { writer: writer.into(), spare })
    } else if kind.is_file() {
        let file = writer.into();
        set_flag(&file, OFlag::O_APPEND, true).map_err(failed)?;
        Ok(Output::File(file))
    } else {
        Ok(Output::Device(blocking(writer.into())?))
    }
}

/// A writer of the FIFO `path`, once a client reads it. Until then nothing may be written: it would be lost with us.
///
/// Opening a FIFO to write without blocking needs a reader, so we are one for a moment. From then on there is a writer,
/// a client's open succeeds at once, and inotify tells of it.
async fn wait_for_reader(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let bait = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    if !bait.metadata()?.file_type().is_fifo() {
        return Err(Errno::ENXIO.into());
    }
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(path, AddWatchFlags::IN_OPEN)?;
    let opened = ready::watch_copy(inotify.as_fd(), Interest::READABLE)?;
    let writer = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    drop(bait);
    loop {
        let mut guard = opened.readable().await?;
        // A writer polls as broken for as long as nobody reads.
        if !poll_now(&writer, PollFlags::POLLOUT)?.contains(PollFlags::POLLERR) {
            return Ok(writer);
        }
        match inotify.read_events() {
            Ok(_) => {}
            Err(Errno::EAGAIN) => guard.clear_ready(),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// `file://`: folders and file are made when missing.
pub(super) fn open_log(path: &Path) -> io::Result<OwnedFd> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    Ok(OpenOptions::new().append(true).create(true).mode(0o644).open(path)?.into())
}

fn null() -> Result<OwnedFd, StdioError> {
    let path = "/dev/null";
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.map(OwnedFd::from).map_err(|source| StdioError::Open { what: "stdio", path: path.into(), source })
}

pub(super) fn pipe() -> Result<(OwnedFd, OwnedFd), StdioError> {
    pipe2(OFlag::O_CLOEXEC).map_err(|errno| system("make a pipe")(errno.into()))
}

/// A process expects its stdio to block. The flag belongs to this opening alone, not to the client's.
pub(super) fn blocking(fd: OwnedFd) -> Result<OwnedFd, StdioError> {
    set_flag(&fd, OFlag::O_NONBLOCK, false).map_err(system("make stdio blocking"))?;
    Ok(fd)
}
