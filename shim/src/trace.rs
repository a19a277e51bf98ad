//! The time line of a container's start, for who asks later: what the shim did, and each step of the plan.

use std::time::{SystemTime, UNIX_EPOCH};

use libcontainer::{plan::Who, run::Launch};
use protobuf::Message as _;
use runtime_v2_api::shim::{Span, TraceResponse};

/// A time line, which only a supervised shim keeps, and encoded: a third of a plan's texts in memory.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    kept: bool,
    /// The shim's own spans, and those of the plan: each a `TraceResponse`, of which several on end are one.
    own: Vec<u8>,
    steps: Vec<u8>,
}

impl Trace {
    /// Keeps a time line, or, unless `kept`, does nothing.
    pub(crate) fn new(kept: bool) -> Self {
        Self { kept, own: Vec::new(), steps: Vec::new() }
    }

    /// Something that the shim began at `begin` is done.
    pub(crate) fn done(&mut self, name: &str, begin: SystemTime) {
        if self.kept {
            let span = span(name.to_owned(), "shim", nanoseconds(begin), nanoseconds(SystemTime::now()));
            encode(vec![span], &mut self.own);
        }
    }

    /// The plan's steps will be forgotten; these are their times.
    pub(crate) fn keep_steps(&mut self, launch: &Launch) {
        if self.kept {
            self.steps.clear();
            encode(steps(launch), &mut self.steps);
            self.steps.shrink_to_fit();
            self.own.shrink_to_fit();
        }
    }

    /// All that is known by now, or None if it was not kept. `launch` still has its steps.
    pub(crate) fn told(&self, launch: Option<&Launch>) -> Option<protobuf::Result<TraceResponse>> {
        let mut all = self.own.clone();
        match launch {
            Some(launch) => encode(steps(launch), &mut all),
            None => all.extend(&self.steps),
        }
        self.kept.then(|| TraceResponse::parse_from_bytes(&all))
    }
}

fn steps(launch: &Launch) -> Vec<Span> {
    let nanoseconds = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let spans = launch.steps().map(|(who, what, times)| {
        let who = match who {
            Who::Parent => "parent",
            Who::Init => "init",
        };
        span(what, who, nanoseconds(times.begin), times.end.map_or(0, nanoseconds))
    });
    spans.collect()
}

fn span(name: String, who: &str, begin: u64, end: u64) -> Span {
    Span { name, who: who.to_owned(), begin, end, ..Span::default() }
}

fn encode(spans: Vec<Span>, to: &mut Vec<u8>) {
    let response = TraceResponse { spans, ..TraceResponse::default() };
    if let Err(error) = response.write_to_vec(to) {
        // Over 2 GiB.
        log::debug!("encode the time line of a start: {error}");
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
