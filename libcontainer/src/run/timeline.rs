//! When each step began and ended: two numbers a step in a page shared with the child.

use std::cell::Cell;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::sys::Failed;
use crate::sys::shared::SharedNumbers;

/// The time line of a start, written by both sides as it happens.
#[derive(Debug)]
pub struct Timeline {
    stamps: SharedNumbers,
    steps: usize,
    /// The moment at which this side's clock was stopped.
    stopped: Cell<Option<u64>>,
}

/// What one step took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Its place in the plan, from 0.
    pub step: usize,
    /// Since 1970 (`CLOCK_REALTIME`).
    pub begin: Duration,
    /// `None` while it runs, and for a step that never ended.
    pub end: Option<Duration>,
}

impl Timeline {
    pub(crate) fn new(steps: usize) -> Result<Timeline, Failed> {
        Ok(Timeline { stamps: SharedNumbers::new(2 * steps)?, steps, stopped: Cell::new(None) })
    }

    /// From here on all is stamped with this moment: before a filter is loaded that need not allow `clock_gettime(2)`, a
    /// system call wherever the vDSO cannot read the machine's clock (many virtual machines).
    pub(crate) fn stop(&self) {
        self.stopped.set(Some(now()));
    }

    fn now(&self) -> u64 {
        self.stopped.get().unwrap_or_else(now)
    }

    pub(crate) fn begin(&self, step: usize) {
        self.stamps.store(2 * step, self.now());
    }

    pub(crate) fn end(&self, step: usize) {
        self.stamps.store(2 * step + 1, self.now());
    }

    /// The steps that have begun, in the order of the plan.
    pub fn spans(&self) -> impl Iterator<Item = Span> + '_ {
        let moment = |nanoseconds| Some(Duration::from_nanos(nanoseconds)).filter(|moment| !moment.is_zero());
        (0..self.steps).filter_map(move |step| {
            let begin = moment(self.stamps.load(2 * step))?;
            Some(Span { step, begin, end: moment(self.stamps.load(2 * step + 1)) })
        })
    }

    /// The last of the child's steps that began and did not end.
    pub(crate) fn unfinished(&self) -> Option<usize> {
        self.spans().filter(|span| span.end.is_none()).last().map(|span| span.step)
    }
}

/// In nanoseconds, by the only clock that a time namespace does not shift (time_namespaces(7)).
fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME)
        .map_or(0, |time| time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned())
}
