//! What containers use: the supervisor's readings of their counters, and from two of them, rates.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use dunnage_supervisor::client::{Client, within};
use runtime_v2_api::supervisor::{Usage, UsageRequest};
use serde::Serialize;

use crate::words;

/// What the containers of a namespace have used, or those of these `ids`; those that have ended are not among them.
pub(crate) async fn read(client: &Client, namespace: &str, ids: &[String]) -> anyhow::Result<Vec<Usage>> {
    let request = UsageRequest { ids: ids.to_vec(), ..UsageRequest::default() };
    let usages =
        client.repeat(async |on, context| on.supervisor.usage(within(context, namespace), &request).await).await;
    Ok(usages.context("read what containers use")?.usages)
}

/// How fast the counters grew.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    /// Processors: 1.0 is one that did nothing else.
    pub(crate) cpu: f64,
    /// The part of the time in which it wanted a processor and its limit said no.
    pub(crate) throttled: f64,
    /// Bytes a second.
    pub(crate) read: f64,
    pub(crate) written: f64,
    /// The parts of the time in which some of its processes waited for processors, memory, disks (PSI), where the kernel tells.
    pub(crate) waits: Option<[f64; 3]>,
}

/// Nothing if no time has passed, or if a counter ran backwards: then it is another container of the same name.
pub(crate) fn rates(before: &Usage, after: &Usage) -> Option<Rates> {
    let elapsed = after.time.checked_sub(before.time).filter(|time| *time > 0)?;
    #[expect(clippy::cast_precision_loss, reason = "a share, of which few figures are shown")]
    let share = |counter: fn(&Usage) -> u64, unit: f64| {
        Some(counter(after).checked_sub(counter(before))? as f64 * unit / elapsed as f64)
    };
    // Readings are in nanoseconds, as is the time; pressure is in microseconds; bytes are told per second.
    Some(Rates {
        cpu: share(|usage| usage.cpu_total, 1.0)?,
        throttled: share(|usage| usage.cpu_throttled, 1.0)?,
        read: share(|usage| usage.io_read_bytes, 1e9)?,
        written: share(|usage| usage.io_write_bytes, 1e9)?,
        waits: match (after.cpu_some, after.memory_some, after.io_some) {
            (Some(_), Some(_), Some(_)) => Some([
                share(|usage| usage.cpu_some.unwrap_or_default(), 1e3)?,
                share(|usage| usage.memory_some.unwrap_or_default(), 1e3)?,
                share(|usage| usage.io_some.unwrap_or_default(), 1e3)?,
            ]),
            _ => None,
        },
    })
}

/// The part of its memory limit that is in use; nothing without a limit.
pub(crate) fn memory_share(usage: &Usage) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a share, of which few figures are shown")]
    let share = usage.memory_working_set as f64 / usage.memory_limit as f64;
    (usage.memory_limit > 0).then_some(share)
}

/// A reading as programs read it. Counters since the container was made, levels of now; bytes, nanoseconds, and for
/// pressure, microseconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Reading {
    id: String,
    time: String,
    /// Processors in use since the reading before: 1.0 is one that did nothing else. Null in the first.
    cpu: Option<f64>,
    cpu_total_ns: u64,
    cpu_user_ns: u64,
    cpu_system_ns: u64,
    cpu_throttled_ns: u64,
    memory: u64,
    memory_working_set: u64,
    /// Null for none.
    memory_limit: Option<u64>,
    memory_swap: u64,
    pids: u64,
    pids_limit: Option<u64>,
    read_bytes: u64,
    written_bytes: u64,
    reads: u64,
    writes: u64,
    oom_kills: u64,
    pressure_us: Pressure,
}

/// For how long some or all processes waited, where the kernel tells.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pressure {
    cpu_some: Option<u64>,
    memory_some: Option<u64>,
    memory_full: Option<u64>,
    io_some: Option<u64>,
    io_full: Option<u64>,
}

impl Reading {
    pub(crate) fn of(usage: &Usage, rates: Option<Rates>) -> Reading {
        let limit = |value: u64| (value > 0).then_some(value);
        Reading {
            id: usage.id.clone(),
            time: words::rfc3339(SystemTime::UNIX_EPOCH + Duration::from_nanos(usage.time)),
            cpu: rates.map(|rates| rates.cpu),
            cpu_total_ns: usage.cpu_total,
            cpu_user_ns: usage.cpu_user,
            cpu_system_ns: usage.cpu_system,
            cpu_throttled_ns: usage.cpu_throttled,
            memory: usage.memory,
            memory_working_set: usage.memory_working_set,
            memory_limit: limit(usage.memory_limit),
            memory_swap: usage.memory_swap,
            pids: usage.pids,
            pids_limit: limit(usage.pids_limit),
            read_bytes: usage.io_read_bytes,
            written_bytes: usage.io_write_bytes,
            reads: usage.io_reads,
            writes: usage.io_writes,
            oom_kills: usage.oom_kills,
            pressure_us: Pressure {
                cpu_some: usage.cpu_some,
                memory_some: usage.memory_some,
                memory_full: usage.memory_full,
                io_some: usage.io_some,
                io_full: usage.io_full,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(seconds: u64, cpu: u64) -> Usage {
        Usage {
            time: seconds * 1_000_000_000,
            cpu_total: cpu,
            io_read_bytes: cpu / 1000,
            cpu_some: Some(cpu / 4000),
            memory_some: Some(0),
            io_some: Some(0),
            ..Usage::default()
        }
    }

    #[test]
    fn rates_are_what_was_added_per_second() {
        let rates = rates(&usage(10, 1_000_000_000), &usage(12, 4_000_000_000)).unwrap();
        assert_eq!((rates.cpu, rates.read, rates.written), (1.5, 1_500_000.0, 0.0));
        assert_eq!(rates.waits, Some([0.375, 0.0, 0.0]));
    }

    #[test]
    fn another_container_of_the_same_name_starts_anew() {
        assert_eq!(rates(&usage(10, 500), &usage(11, 400)), None);
        assert_eq!(rates(&usage(10, 500), &usage(10, 500)), None);
        assert_eq!(rates(&usage(10, 500), &usage(9, 600)), None);
    }

    #[test]
    fn no_limit_is_no_share() {
        assert_eq!(memory_share(&Usage { memory_working_set: 5, ..Usage::default() }), None);
        assert_eq!(memory_share(&Usage { memory_working_set: 5, memory_limit: 20, ..Usage::default() }), Some(0.25));
    }
}
