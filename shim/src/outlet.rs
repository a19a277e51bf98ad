//! The way of a process's output when it is kept: read as it comes, written to the log, and then sent to who is attached.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use nix::{errno::Errno, poll::PollFlags, unistd::read};
use tokio::{task::yield_now, time::timeout};

use crate::{
    attach::{Hub, frame},
    flow::{End, until},
    kept::{Bounds, Kept, Stream},
    stdio::percent_decoded,
    sys::memory,
};

/// Bytes that are read at once: what a pipe holds, and what a frame may hold.
const CHUNK: usize = frame::LONGEST;
/// With nothing to read for so long, the memory to do it goes.
const QUIET: Duration = Duration::from_secs(1);

/// Where output is kept, and where clients attach.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) log: PathBuf,
    pub(crate) attach: Option<PathBuf>,
    pub(crate) bounds: Bounds,
}

impl Place {
    /// What follows `log://`: `/FILE?attach=/SOCKET&size=BYTES&files=N`, percent-encoded. Without a size, the log grows for
    /// ever; without an `attach`, nobody can.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let absolute = |text: &str| percent_decoded(text, false).map(PathBuf::from).filter(|path| path.is_absolute());
        let (log, query) = text.split_once('?').unwrap_or((text, ""));
        let mut place = Self { log: absolute(log)?, attach: None, bounds: Bounds { size: None, files: 1 } };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=')? {
                ("attach", path) => place.attach = Some(absolute(path)?),
                ("size", bytes) => place.bounds.size = Some(bytes.parse().ok().filter(|bytes| *bytes > 0)?),
                ("files", number) => place.bounds.files = number.parse().ok().filter(|number| *number > 0)?,
                _ => return None,
            }
        }
        Some(place)
    }
}

/// Where output goes.
pub(crate) struct Outlet {
    kept: Kept,
    hub: Arc<Hub>,
}

/// Where it comes from.
pub(crate) type Source = (Stream, Arc<End>);

impl Outlet {
    pub(crate) fn new(kept: Kept, hub: Arc<Hub>) -> Self {
        Self { kept, hub }
    }

    /// Who is attached.
    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Passes output on until all of `sources` have ended.
    pub(crate) async fn run(mut self, mut sources: Vec<Source>) {
        let mut buffer = Vec::new();
        while !sources.is_empty() {
            buffer.resize(CHUNK, 0);
            if self.pass_on(&mut sources, &mut buffer).await {
                yield_now().await;
            } else if !sources.is_empty() && timeout(QUIET, any(&sources)).await.is_err() {
                buffer = Vec::new();
                self.kept.rest();
                memory::trim();
                any(&sources).await;
            }
        }
        self.kept.finish();
        self.hub.end();
    }

    /// Reads once from each source, in turn; whether there was anything. Sources that have ended are taken out.
    async fn pass_on(&mut self, sources: &mut Vec<Source>, buffer: &mut [u8]) -> bool {
        let mut moved = false;
        let mut at = 0;
        while let Some((stream, from)) = sources.get(at) {
            // Before it is read, or nobody would keep the process waiting.
            self.hub.unhindered().await;
            match read(from.fd(), buffer) {
                Ok(count @ 1..) => {
                    self.pass(*stream, &buffer[..count]);
                    moved = true;
                    at += 1;
                }
                Err(Errno::EAGAIN) => at += 1,
                Err(Errno::EINTR) => {}
                ended => {
                    // That is how a terminal ends.
                    if !matches!(ended, Ok(_) | Err(Errno::EIO)) {
                        log::warn!("read {stream:?}: {ended:?}");
                    }
                    sources.remove(at);
                }
            }
        }
        moved
    }

    fn pass(&mut self, stream: Stream, bytes: &[u8]) {
        self.kept.write(stream, bytes, std::time::SystemTime::now());
        let kind = match stream {
            Stream::Out => frame::Kind::Stdout,
            Stream::Err => frame::Kind::Stderr,
        };
        self.hub.send(kind, bytes);
    }
}

/// Waits until there is something to read from any of one or two sources.
async fn any(sources: &[Source]) {
    let ready = async |at: usize| match sources.get(at) {
        Some((_, from)) => until(from, PollFlags::POLLIN).await,
        None => std::future::pending().await,
    };
    let ready: io::Result<()> = tokio::select! {
        ready = ready(0) => ready,
        ready = ready(1) => ready,
    };
    if let Err(error) = ready {
        log::warn!("wait for output: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_two_paths_and_two_bounds() {
        let place = Place {
            log: "/a b/c+d".into(),
            attach: Some("/e&f".into()),
            bounds: Bounds { size: Some(1024), files: 3 },
        };
        assert_eq!(Place::parse("/a%20b/c+d?attach=/e%26f&size=1024&files=3").unwrap(), place,);
        let place = Place { log: "/a".into(), attach: None, bounds: Bounds { size: None, files: 1 } };
        assert_eq!(Place::parse("/a").unwrap(), place);
        for wrong in ["a", "/a?attach=b", "/a?size=0", "/a?size=1k", "/a?files=-1", "/a?x=1"] {
            assert_eq!(Place::parse(wrong), None, "{wrong}");
        }
    }
}
