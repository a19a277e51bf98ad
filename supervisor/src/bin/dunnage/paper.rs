//! What stdout is: a terminal with a width and colours, or a pipe that gets everything in full and plain.

use std::{
    env,
    io::{self, IsTerminal},
};

use crate::terminal::size;

/// How to print for whoever reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Paper {
    /// Characters in a line; nothing if lines may be as long as they like.
    pub(crate) width: Option<usize>,
    pub(crate) colours: bool,
}

impl Paper {
    /// For a program, or a file: nothing is cut, and nothing is coloured.
    pub(crate) const PLAIN: Paper = Paper { width: None, colours: false };

    /// What our stdout is now; a terminal's width may have changed a moment later.
    pub(crate) fn of_stdout() -> Paper {
        if !io::stdout().is_terminal() {
            return Paper::PLAIN;
        }
        // One that does not tell its size, such as a serial line, has the usual one.
        let width = size().map_or(80, |(width, _)| usize::from(width));
        Paper { width: Some(width), colours: wants_colours() }
    }

    /// `text` in a tone, if there are colours.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        match tone.code().filter(|_| self.colours) {
            Some(code) => format!("\x1b[{code}m{text}\x1b[0m"),
            None => text.to_owned(),
        }
    }
}

/// <https://no-color.org>, and terminals that know no colours.
fn wants_colours() -> bool {
    env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && env::var_os("TERM").is_some_and(|kind| kind != "dumb")
}

/// What a text means to its reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    #[default]
    Plain,
    /// A heading.
    Strong,
    /// As it should be.
    Good,
    /// To be looked at.
    Warning,
    /// Wrong.
    Bad,
    /// Of less interest.
    Faint,
    /// One thing among others of its kind.
    Accent,
}

impl Tone {
    /// ECMA-48, SGR.
    fn code(self) -> Option<u8> {
        match self {
            Tone::Plain => None,
            Tone::Strong => Some(1),
            Tone::Faint => Some(2),
            Tone::Bad => Some(31),
            Tone::Good => Some(32),
            Tone::Warning => Some(33),
            Tone::Accent => Some(36),
        }
    }
}
