//! The only wait call in the process.
//!
//! Every direct child stays a zombie, and so keeps its pid, until [`Reaper::reap`] collects it. Whoever starts a process
//! calls [`Reaper::watch`] before it gives the one thread back to the event loop, hence before the next `reap`: a number
//! that is being watched can neither have been reaped already nor belong to another process by now.
//!
//! But for a copy that a child made of itself (`CLONE_PARENT`): we hear of it by a message, and it may have been reaped
//! before that was read. So the last exits that nobody watched are kept for a while.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::SystemTime,
};

use futures::{FutureExt as _, future::Shared};
use libcontainer::sys::wait::{self, Exit as End};
use nix::{errno::Errno, sys::signal::kill, unistd::Pid};
use tokio::sync::oneshot;

/// How many exits that nobody watched are kept.
const KEPT: usize = 64;

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
    unwatched: Rc<RefCell<VecDeque<(Pid, Exit)>>>,
}

impl Reaper {
    /// The exit of the direct child `pid`, for the one who started it.
    pub(crate) fn watch(&self, pid: Pid) -> Watch {
        let (tell, told) = oneshot::channel();
        self.watched.borrow_mut().insert(pid, tell);
        if let Some(exit) = self.missed(pid) {
            self.ended(pid, exit);
        }
        Watch(told.shared())
    }

    /// How a process ended that was reaped before anybody watched it.
    fn missed(&self, pid: Pid) -> Option<Exit> {
        let mut unwatched = self.unwatched.borrow_mut();
        let at = unwatched.iter().position(|&(ended, _)| ended == pid)?;
        let (_, exit) = unwatched.remove(at)?;
        // Unless another has the number by now.
        (kill(pid, None) == Err(Errno::ESRCH)).then_some(exit)
    }

    /// Collects every child that has ended. SIGCHLD coalesces, so this goes on until there is none.
    pub(crate) fn reap(&self) {
        loop {
            match wait::any() {
                Ok(Some((pid, end))) => self.ended(pid, Exit { end, at: SystemTime::now() }),
                Ok(None) => return,
                Err(failed) => {
                    log::warn!("wait for children: {failed}");
                    return;
                }
            }
        }
    }

    /// Whom nobody watches is an orphan that was reparented to us, the child of one who stopped caring, or one of whom we
    /// are still to hear.
    fn ended(&self, pid: Pid, exit: Exit) {
        let Some(tell) = self.watched.borrow_mut().remove(&pid) else {
            log::debug!("reaped {pid}, which nobody watches: {}", exit.end);
            let mut unwatched = self.unwatched.borrow_mut();
            unwatched.truncate(KEPT - 1);
            return unwatched.push_front((pid, exit));
        };
        if tell.send(exit).is_err() {
            log::debug!("reaped {pid}, for which nobody waits: {}", exit.end);
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
    fn who_is_heard_of_after_its_end_has_ended_all_the_same() {
        let reaper = Reaper::default();
        let exit = Exit { end: End::Code(1), at: SystemTime::UNIX_EPOCH };
        // A number that the kernel gives to nobody, and one that somebody has.
        let (gone, another) = (Pid::from_raw(i32::MAX), Pid::this());
        reaper.ended(gone, exit);
        reaper.ended(another, exit);
        assert_eq!(reaper.watch(gone).known(), Some(exit));
        assert_eq!(reaper.watch(gone).known(), None, "told once");
        assert_eq!(reaper.watch(another).known(), None, "a process that lives is not the one that ended");
        for number in 0..2 * KEPT as i32 {
            reaper.ended(Pid::from_raw(i32::MAX - number), exit);
        }
        assert_eq!(reaper.unwatched.borrow().len(), KEPT, "orphans come for years");
        assert_eq!(
            reaper.watch(Pid::from_raw(i32::MAX - 2 * KEPT as i32 + 1)).known(),
            Some(exit),
            "the last are kept"
        );
    }

    #[test]
    fn a_signal_counts_from_128() {
        assert_eq!(exit(End::Code(0)), 0);
        assert_eq!(exit(End::Code(255)), 255);
        assert_eq!(exit(End::Signal(9)), 137);
        assert_eq!(exit(End::Signal(37)), 165, "real-time signals too");
    }
}
