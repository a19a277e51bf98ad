//! A timeline for <https://ui.perfetto.dev> and chrome://tracing: the trace event format, as one JSON document.

use serde::Serialize;
use serde_json::{Value, json};

use super::timeline::{Timeline, Who};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    trace_events: Vec<Value>,
    display_time_unit: &'static str,
    other_data: Value,
}

/// One process, the container's start, with a thread for each who had a part in it.
pub(super) fn chrome(timeline: &Timeline) -> serde_json::Result<String> {
    let mut actors: Vec<&Who> = Vec::new();
    for span in &timeline.spans {
        if !actors.contains(&&span.who) {
            actors.push(&span.who);
        }
    }
    let name = |kind: &str, thread: usize, name: &str| json!({"name": kind, "ph": "M", "pid": 1, "tid": thread, "args": {"name": name}});
    let mut events = vec![name("process_name", 0, &format!("start of {}", timeline.id))];
    events.extend(actors.iter().enumerate().map(|(index, who)| name("thread_name", index + 1, who.name())));
    events.extend(timeline.spans.iter().map(|span| {
        let thread = actors.iter().position(|who| **who == span.who).map_or(0, |index| index + 1);
        json!({
            "name": span.name, "cat": span.who.name(), "ph": "X", "pid": 1, "tid": thread,
            "ts": microseconds(span.offset_ns), "dur": microseconds(span.duration_ns),
        })
    }));
    let document = Document {
        trace_events: events,
        display_time_unit: "ns",
        other_data: json!({"namespace": timeline.namespace, "id": timeline.id, "beginNs": timeline.begin_ns.to_string()}),
    };
    Ok(serde_json::to_string(&document)? + "\n")
}

/// The format's unit, of which a number may have parts.
fn microseconds(nanoseconds: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a start takes less than the hundred days that f64 tells apart")]
    let exact = nanoseconds as f64;
    exact / 1000.0
}

#[cfg(test)]
mod tests {
    use super::{super::timeline::tests::sample, *};

    #[test]
    fn every_span_is_a_complete_event_of_its_actors_thread() {
        let document: Value = serde_json::from_str(&chrome(&sample()).unwrap()).unwrap();
        let events = document["traceEvents"].as_array().unwrap();
        let names: Vec<_> =
            events.iter().filter(|event| event["ph"] == "M").map(|event| &event["args"]["name"]).collect();
        assert_eq!(names, ["start of web", "supervisor", "shim", "parent", "init", "ghost"]);
        let spans: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(spans.len(), sample().spans.len());
        assert_eq!((&spans[0]["ts"], &spans[0]["dur"], &spans[0]["tid"]), (&json!(0.0), &json!(182.0), &json!(1)));
        let init = spans.iter().find(|span| span["name"] == "mount proc at /proc").unwrap();
        assert_eq!((&init["ts"], &init["dur"], &init["tid"]), (&json!(1950.0), &json!(24.0), &json!(4)));
    }
}
