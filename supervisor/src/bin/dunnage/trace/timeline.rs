//! The spans of a start, from all who had a part in it, on one line of time.

use runtime_v2_api::{shim, supervisor};
use serde::Serialize;

/// The start of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Timeline {
    pub(super) namespace: String,
    pub(super) id: String,
    /// Nanoseconds since 1970.
    pub(super) begin_ns: u64,
    pub(super) duration_ns: u64,
    /// By their beginning.
    pub(super) spans: Vec<Span>,
}

/// Something that took time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Span {
    pub(super) who: Who,
    pub(super) name: String,
    /// Since the beginning of the timeline.
    pub(super) offset_ns: u64,
    pub(super) duration_ns: u64,
    /// How many spans it is part of, of those who waited for it.
    #[serde(skip)]
    pub(super) depth: usize,
}

/// Who did it, from the outside in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Who {
    Supervisor,
    Shim,
    /// The shim, at what libcontainer has to do outside of the container.
    Parent,
    /// The container's first process.
    Init,
    /// Whom only a newer shim knows of.
    #[serde(untagged)]
    Other(String),
}

impl Who {
    fn named(name: &str) -> Who {
        match name {
            "supervisor" => Who::Supervisor,
            "shim" => Who::Shim,
            "parent" => Who::Parent,
            "init" => Who::Init,
            other => Who::Other(other.to_owned()),
        }
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Who::Supervisor => "supervisor",
            Who::Shim => "shim",
            Who::Parent => "parent",
            Who::Init => "init",
            Who::Other(name) => name,
        }
    }

    /// Spans are only part of spans of a lower rank: of who asked for them. Parent and init work beside each other.
    fn rank(&self) -> u8 {
        match self {
            Who::Supervisor => 0,
            Who::Shim => 1,
            Who::Parent | Who::Init | Who::Other(_) => 2,
        }
    }
}

impl Timeline {
    /// From what the supervisor and the shim tell; nothing if neither does.
    pub(super) fn new(container: &supervisor::Container, inside: &[shim::Span]) -> Option<Timeline> {
        let outside = container.launch.iter().map(|span| (Who::Supervisor, &span.name, span.begin, span.end));
        let inside = inside.iter().map(|span| (Who::named(&span.who), &span.name, span.begin, span.end));
        let mut all: Vec<_> = outside.chain(inside).collect();
        // What contains another comes before it, also if both began at once.
        all.sort_by_key(|(who, _, begin, end)| (*begin, who.rank(), u64::MAX - end));
        let begin = all.first()?.2;
        let end = all.iter().map(|(.., end)| *end).max()?;
        let mut open: Vec<(u8, u64)> = Vec::new();
        let spans = all.into_iter().map(|(who, name, start, end)| {
            let rank = who.rank();
            open.retain(|(_, until)| *until > start);
            let depth = open.iter().filter(|(outer, until)| *outer < rank && *until >= end).count();
            open.push((rank, end));
            let (offset_ns, duration_ns) = (start - begin, end.saturating_sub(start));
            Span { who, name: name.clone(), offset_ns, duration_ns, depth }
        });
        Some(Timeline {
            namespace: container.namespace.clone(),
            id: container.id.clone(),
            begin_ns: begin,
            duration_ns: end.saturating_sub(begin),
            spans: spans.collect(),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn at(name: &str, begin: u64, end: u64) -> supervisor::Span {
        supervisor::Span { name: name.to_owned(), begin, end, ..supervisor::Span::default() }
    }

    fn by(who: &str, name: &str, begin: u64, end: u64) -> shim::Span {
        shim::Span { name: name.to_owned(), who: who.to_owned(), begin, end, ..shim::Span::default() }
    }

    pub(in super::super) fn sample() -> Timeline {
        let start = 1_700_000_000_000_000_000;
        let outside = [
            at("make the bundle", start, start + 182_000),
            at("start the shim", start + 190_000, start + 1_400_000),
            at("create the container", start + 1_410_000, start + 4_000_000),
        ];
        let inside = [
            by("shim", "compile the plan", start + 1_500_000, start + 1_620_000),
            by("parent", "clone3", start + 1_650_000, start + 1_900_000),
            by("init", "mount proc at /proc", start + 1_950_000, start + 1_974_000),
            by("init", "pivot to the new root", start + 2_000_000, start + 3_900_000),
            by("ghost", "of a newer shim", start + 3_950_000, start + 3_950_500),
        ];
        let container = supervisor::Container {
            namespace: "default".to_owned(),
            id: "web".to_owned(),
            launch: outside.into(),
            ..supervisor::Container::default()
        };
        Timeline::new(&container, &inside).unwrap()
    }

    #[test]
    fn spans_are_part_of_those_who_asked_for_them() {
        let depths: Vec<_> = sample().spans.iter().map(|span| (span.who.name().to_owned(), span.depth)).collect();
        let depths: Vec<_> = depths.iter().map(|(who, depth)| (who.as_str(), *depth)).collect();
        let outside = [("supervisor", 0); 3];
        assert_eq!(depths[..3], outside);
        assert_eq!(depths[3..], [("shim", 1), ("parent", 1), ("init", 1), ("init", 1), ("ghost", 1)]);
    }

    #[test]
    fn without_a_span_there_is_no_timeline() {
        assert_eq!(Timeline::new(&supervisor::Container::default(), &[]), None);
    }

    #[test]
    fn a_clock_that_was_set_back_breaks_nothing() {
        let container = supervisor::Container { launch: vec![at("odd", 50, 20)], ..supervisor::Container::default() };
        let timeline = Timeline::new(&container, &[]).unwrap();
        assert_eq!((timeline.spans[0].duration_ns, timeline.duration_ns), (0, 0));
    }
}
