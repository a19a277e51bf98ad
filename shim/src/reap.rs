//! The only wait call in the process.
//!
//! Every direct child stays a zombie, and so keeps its pid, until [`Reaper::reap`] collects it. Whoever starts a process
//! calls [`Reaper::watch`] before it gives the one thread back to the event loop, hence before the next `reap`: a number
//! that is being watched can neither have been reaped already nor belong to another process by now.

use std::{
    cell::RefCell,
    collections::HashMap,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::SystemTime,
};

use futures::{FutureExt as _, future::Shared};
use libcontainer::sys::wait::{self, Exit as End};
use nix::unistd::Pid;
use tokio::sync::oneshot;

/// The end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// How it ended.
    pub(crate) end: End,
    /// When it was reaped; taken once, so that every reply and event says the same.
    pub(crate) at: SystemTime,
}

impl Exit {
    /// What containerd calls the exit status: the code, or 128 + the signal.
    pub(crate) fn status(&self) -> u32 {
        self.end.status().cast_unsigned()
    }
}

/// Collects children and tells those who watch them.
#[derive(Clone, Default)]
pub(crate) struct Reaper {
    watched: Rc<RefCell<HashMap<Pid, oneshot::Sender<Exit>>>>,
}

impl Reaper {
    /// The exit of the direct child `pid`, for the one who started it.
    pub(crate) fn watch(&self, pid: Pid) -> Watch {
        let (tell, exit) = oneshot::channel();
        self.watched.borrow_mut().insert(pid, tell);
        Watch(exit.shared())
    }

    /// Collects every child that has ended. SIGCHLD coalesces, so this goes on until there is none.
    ///
    /// Whom nobody watches is an orphan that was reparented to us, or the child of one who stopped caring.
    pub(crate) fn reap(&self) {
        loop {
            match wait::any() {
                Ok(Some((pid, end))) => {
                    let exit = Exit { end, at: SystemTime::now() };
                    let told = self.watched.borrow_mut().remove(&pid).map(|tell| tell.send(exit));
                    if !matches!(told, Some(Ok(()))) {
                        log::debug!("reaped {pid}, which nobody watches: {end}");
                    }
                }
                Ok(None) => return,
                Err(failed) => {
                    log::warn!("wait for children: {failed}");
                    return;
                }
            }
        }
    }
}

/// Resolves to the exit of a watched process, for everyone who holds a copy.
#[derive(Clone)]
pub(crate) struct Watch(Shared<oneshot::Receiver<Exit>>);

impl Watch {
    /// The exit, if the process has been reaped.
    pub(crate) fn known(&self) -> Option<Exit> {
        self.0.clone().now_or_never()?.ok()
    }
}

impl Future for Watch {
    type Output = Exit;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Exit> {
        match ready!(self.0.poll_unpin(context)) {
            Ok(exit) => Poll::Ready(exit),
            // The reaper is gone, so the event loop is over: nothing will ever come.
            Err(_) => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(end: End) -> u32 {
        Exit { end, at: SystemTime::UNIX_EPOCH }.status()
    }

    #[test]
    fn a_signal_counts_from_128() {
        assert_eq!(exit(End::Code(0)), 0);
        assert_eq!(exit(End::Code(255)), 255);
        assert_eq!(exit(End::Signal(9)), 137);
        assert_eq!(exit(End::Signal(37)), 165, "real-time signals too");
    }
}
