//! Signals by name or number.

use std::str::FromStr;

use nix::sys::signal;

/// A signal, as kill(1) takes it: `TERM`, `SIGTERM`, `15`, `RTMIN+3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signal(pub(crate) u32);

impl FromStr for Signal {
    type Err = String;

    fn from_str(text: &str) -> Result<Signal, String> {
        // The kernel's; the C library keeps the first two for itself and calls the third RTMIN (signal(7)).
        const LAST: u32 = 64;
        const RTMIN: u32 = 34;
        let unknown = || format!("there is no signal {text}; `kill -l` lists them");
        let name = text.to_ascii_uppercase();
        let name = name.strip_prefix("SIG").unwrap_or(&name);
        let number = |text: &str| text.parse::<u32>().ok();
        let found = if let Some(number) = number(name) {
            Some(number)
        } else if let Some(rest) = name.strip_prefix("RTMIN") {
            if rest.is_empty() {
                Some(RTMIN)
            } else {
                rest.strip_prefix('+').and_then(number).map(|n| RTMIN + n.min(LAST))
            }
        } else if let Some(rest) = name.strip_prefix("RTMAX") {
            if rest.is_empty() {
                Some(LAST)
            } else {
                rest.strip_prefix('-').and_then(number).and_then(|n| LAST.checked_sub(n))
            }
            .filter(|number| *number >= RTMIN)
        } else {
            signal::Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as u32)
        };
        found.filter(|number| (1..=LAST).contains(number)).map(Signal).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_read_as_kill_reads_them() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigkill", 9),
            ("1", 1),
            ("64", 64),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("rtmax-1", 63),
        ] {
            assert_eq!(text.parse(), Ok(Signal(number)), "{text}");
        }
        for text in ["", "0", "65", "-1", "TERMINATE", "RTMIN+31", "RTMIN-1", "RTMAX-40", "RTMIN+4294967295"] {
            assert!(text.parse::<Signal>().is_err(), "{text}");
        }
    }
}
