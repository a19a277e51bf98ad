//! Times, sizes and states in the words of people.

use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use runtime_v2_api::{
    Timestamp,
    supervisor::{Container, Phase},
};

use crate::paper::Tone;

/// A length of time in its largest sensible unit: "45s", "3m", "7h", "12d".
pub(crate) fn rough(time: Duration) -> String {
    let seconds = time.as_secs();
    // Up to two of the next unit, so that the number stays telling.
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// A length of time with three figures: "182 µs", "1.21 ms".
pub(crate) fn fine(nanoseconds: u64) -> String {
    let (unit, name) = match nanoseconds {
        0..1_000 => return format!("{nanoseconds} ns"),
        1_000..1_000_000 => (1e3, "µs"),
        1_000_000..1_000_000_000 => (1e6, "ms"),
        _ => (1e9, "s"),
    };
    #[expect(clippy::cast_precision_loss, reason = "three figures are shown")]
    let value = nanoseconds as f64 / unit;
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {name}")
}

/// Bytes: "1.5 MiB".
pub(crate) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// A share, or processors: "37.0%".
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

/// How a share of a limit is to be taken.
pub(crate) fn pressing(share: Option<f64>) -> Tone {
    match share {
        Some(0.95..) => Tone::Bad,
        Some(0.8..) => Tone::Warning,
        _ => Tone::Plain,
    }
}

/// A time of the wire's; nothing if it is not set, or before 1970.
pub(crate) fn time(stamp: Option<&Timestamp>) -> Option<SystemTime> {
    let stamp = stamp?;
    let (seconds, nanos) = (u64::try_from(stamp.seconds).ok()?, u32::try_from(stamp.nanos).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

/// How long ago `then` was; 0 if a clock was set back since.
pub(crate) fn since(then: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_default()
}

/// RFC 3339, in UTC, with nanoseconds.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

/// The id as people want it: of the 64 digits that engines give, the first twelve, which commands take as well.
pub(crate) fn short(id: &str) -> &str {
    let long = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if long { &id[..12] } else { id }
}

/// Whether the container's first process has not ended yet.
pub(crate) fn lives(container: &Container) -> bool {
    !matches!(phase(container), Phase::STOPPED | Phase::LOST)
}

/// One that a newer supervisor knows of is unknown.
pub(crate) fn phase(container: &Container) -> Phase {
    container.phase.enum_value_or(Phase::UNKNOWN)
}

/// How a container is: "up 3m", "exited (137) 2m ago", "lost: the shim was killed".
pub(crate) fn status(container: &Container, now: SystemTime) -> (Tone, String) {
    let ago = |stamp: Option<&Timestamp>| time(stamp).map(|then| rough(since(then, now)));
    let up = || ago(container.started_at.as_ref()).map_or("up".to_owned(), |time| format!("up {time}"));
    let oom = |text: String| if container.oom_killed { text + ", OOM kills" } else { text };
    // What became of it afterwards is told by `inspect`.
    let reason = container.reason.split(';').next().unwrap_or_default();
    let reason = || if reason.is_empty() { String::new() } else { format!(": {reason}") };
    match phase(container) {
        Phase::LAUNCHING => (Tone::Warning, "launching".to_owned()),
        Phase::CREATED => (Tone::Warning, "created".to_owned()),
        Phase::RUNNING => (if container.oom_killed { Tone::Warning } else { Tone::Good }, oom(up())),
        Phase::PAUSED => (Tone::Warning, oom(format!("paused, {}", up()))),
        Phase::STOPPED => {
            let code = container.exit_status;
            let code = if container.oom_killed { format!("{code}, out of memory") } else { code.to_string() };
            let ago = ago(container.exited_at.as_ref()).map_or(String::new(), |time| format!(" {time} ago"));
            let tone = if container.exit_status == 0 { Tone::Faint } else { Tone::Bad };
            (tone, format!("exited ({code}){ago}"))
        }
        Phase::LOST => (Tone::Bad, format!("lost{}", reason())),
        Phase::UNKNOWN => (Tone::Bad, format!("unknown{}", reason())),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use protobuf::MessageField;

    use super::*;

    /// A time that is `seconds` before [`now`].
    pub(crate) fn stamp(seconds: i64) -> MessageField<Timestamp> {
        MessageField::some(Timestamp { seconds: 1_800_000_000 - seconds, ..Timestamp::default() })
    }

    pub(crate) fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn container(phase: Phase) -> Container {
        Container {
            phase: phase.into(),
            started_at: stamp(200),
            exited_at: stamp(60),
            exit_status: 137,
            ..Container::default()
        }
    }

    fn said(container: &Container) -> String {
        status(container, now()).1
    }

    #[test]
    fn a_status_says_how_and_since_when() {
        assert_eq!(said(&container(Phase::RUNNING)), "up 3m");
        assert_eq!(said(&container(Phase::PAUSED)), "paused, up 3m");
        assert_eq!(said(&container(Phase::STOPPED)), "exited (137) 60s ago");
        assert_eq!(
            said(&Container { oom_killed: true, ..container(Phase::STOPPED) }),
            "exited (137, out of memory) 60s ago"
        );
        assert_eq!(
            said(&Container { reason: "the shim was killed; so was the rest".to_owned(), ..container(Phase::LOST) }),
            "lost: the shim was killed"
        );
        assert_eq!(said(&container(Phase::UNKNOWN)), "unknown");
        // The clock was set back, and nobody told a time.
        assert_eq!(said(&Container { started_at: stamp(-5), ..container(Phase::RUNNING) }), "up 0s");
        assert_eq!(said(&Container { started_at: MessageField::none(), ..container(Phase::RUNNING) }), "up");
    }

    #[test]
    fn a_phase_of_the_future_is_unknown() {
        let container = Container { phase: protobuf::EnumOrUnknown::from_i32(99), ..Container::default() };
        assert_eq!(said(&container), "unknown");
    }

    #[test]
    fn lengths_of_time_have_one_unit() {
        for (seconds, text) in [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_800, "2d")] {
            assert_eq!(rough(Duration::from_secs(seconds)), text);
        }
        for (nanos, text) in [
            (999, "999 ns"),
            (1_000, "1.00 µs"),
            (182_400, "182 µs"),
            (41_230_000, "41.2 ms"),
            (2_000_000_000, "2.00 s"),
        ] {
            assert_eq!(fine(nanos), text);
        }
    }

    #[test]
    fn only_the_ids_of_engines_are_shortened() {
        assert_eq!(short(&"a1".repeat(32)), "a1a1a1a1a1a1");
        assert_eq!(short("a-name-of-some-length"), "a-name-of-some-length");
        assert_eq!(short(&"xy".repeat(32)), "xy".repeat(32));
    }
}
