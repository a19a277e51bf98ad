//! kill and delete.

use std::str::FromStr;

use anyhow::{Context, bail};
use libcontainer::container::{self, Container};
use libcontainer::state::{Dir, StateError};
use nix::sys::signal::Signal;

use crate::args::{Delete, Global, Kill};

/// `kill`.
pub(crate) fn kill(global: &Global, options: &Kill) -> anyhow::Result<()> {
    let signal = signal(&options.signal)?;
    let container = Container::load(&global.folder(&options.of.id)?)?;
    if options.all {
        let signal =
            Signal::try_from(signal).with_context(|| format!("--all cannot send real-time signal {signal}"))?;
        return Ok(container.signal_all(signal)?);
    }
    Ok(container.signal(signal)?)
}

/// `delete`.
pub(crate) fn delete(global: &Global, options: &Delete) -> anyhow::Result<()> {
    match Dir::lock(&global.folder(&options.of.id)?) {
        Err(StateError::Missing) if options.force => Ok(()),
        dir => Ok(container::delete(dir?, options.force)?),
    }
}

/// A number, or a name with or without SIG; real-time signals as `RTMIN+n` and `RTMAX-n`.
fn signal(text: &str) -> anyhow::Result<i32> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let (low, high) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let real_time = |rest: &str, from: i32| match rest {
        "" => Some(from),
        rest => rest.parse::<i32>().ok().and_then(|offset| from.checked_add(offset)),
    };
    let number = if let Ok(number) = name.parse() {
        Some(number)
    } else if let Some(rest) = name.strip_prefix("RTMIN") {
        real_time(rest, low).filter(|number| (low..=high).contains(number))
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        real_time(rest, high).filter(|number| (low..=high).contains(number))
    } else {
        Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as i32)
    };
    match number {
        Some(number) if (1..=high).contains(&number) => Ok(number),
        _ => bail!("unknown signal {text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_understood_as_people_write_them() {
        let all = [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("rtmin", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ];
        for (text, number) in all {
            assert_eq!(signal(text).unwrap(), number, "{text}");
        }
        for text in ["", "0", "-9", "65", "SIG", "NOPE", "RTMIN+31", "RTMIN-1", "RTMAX+1", "RTMINx", "SIG9x"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }
}
