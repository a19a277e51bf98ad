//! `attach`, and staying connected, which `run` does too.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use runtime_v2_api::supervisor::Container;

use crate::args::Global;
use crate::frames::{self, BRINGS_STDIN, Heard, Output, Stdin, WANTS_OUTPUT};
use crate::session::Session;
use crate::streams::Stream;
use crate::talk::{self, Left, Signals, Talk};
use crate::{terminal, wait};

/// Docker's.
pub(crate) const KEYS: &str = "ctrl-p,ctrl-q";

/// Keys as the bytes that a terminal sends for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keys(pub(crate) Vec<u8>);

impl std::str::FromStr for Keys {
    type Err = String;

    fn from_str(text: &str) -> Result<Keys, String> {
        let key = |name: &str| match (name.as_bytes(), name.strip_prefix("ctrl-").map(str::as_bytes)) {
            // The control characters of ASCII are its letters less the upper bits.
            (_, Some([letter @ (b'a'..=b'z' | b'@' | b'['..=b'_')])) => Some(letter & 0x1f),
            ([byte], _) if byte.is_ascii_graphic() => Some(*byte),
            _ => None,
        };
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        keys.map(Keys).ok_or_else(|| format!("{text:?} are no keys such as ctrl-p,ctrl-q or ctrl-x,d"))
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Keys that disconnect, and leave the container running
    #[arg(long, value_name = "KEYS", default_value = KEYS)]
    pub(crate) detach_keys: Keys,
    /// Do not pass stdin on
    #[arg(long)]
    pub(crate) no_stdin: bool,
    /// The container
    #[arg(value_name = "CONTAINER")]
    pub(crate) id: String,
}

pub(crate) async fn attach(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let session = Session::open(global).await?;
    let container = session.find(&args.id).await?;
    if wait::has_ended(&container) {
        bail!("{} has ended; `dunnage logs {}` prints what it wrote", container.id, container.id);
    }
    let stdin = container.stdin && !args.no_stdin;
    terminal::check(stdin, container.terminal)?;
    let signals = Signals::new()?;
    let flags = if stdin { WANTS_OUTPUT | BRINGS_STDIN } else { WANTS_OUTPUT };
    let connection = frames::connect(Path::new(&container.attach), flags).await?;
    let left = stay(&session, &container, connection, stdin, &args.detach_keys, &signals).await?;
    Ok(ExitCode::from(talk::code(left)))
}

/// Stays with a container's first process until it ends or we leave.
pub(crate) async fn stay(
    session: &Session,
    container: &Container,
    (mut output, input): (Output, Stdin),
    stdin: bool,
    keys: &Keys,
    signals: &Signals,
) -> anyhow::Result<Left> {
    let talk = Talk { session, id: &container.id, exec: "", tty: container.terminal, stdin, keys };
    let ended = async {
        print(&mut output).await?;
        wait::exit_code(session, container).await.map(Left::Ended)
    };
    talk.stay(signals, input, ended).await
}

/// Prints what the container says until it has said all.
async fn print(output: &mut Output) -> anyhow::Result<()> {
    let cannot = "cannot write the output";
    let (stdout, stderr) =
        (Stream::writer(io::stdout()).context(cannot)?, Stream::writer(io::stderr()).context(cannot)?);
    loop {
        let written = match output.next().await.context("cannot read the container's output")? {
            Some(Heard::Stdout(bytes)) => stdout.write_all(&bytes).await,
            Some(Heard::Stderr(bytes)) => stderr.write_all(&bytes).await,
            Some(Heard::CutOff(why)) => bail!("disconnected: {why}"),
            // Without a last word, the shim was killed: what became of the container is told by its exit.
            Some(Heard::End) | None => return Ok(()),
        };
        written.map_err(|error| talk::unheard(&error))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_docker_reads_them() {
        for (text, bytes) in [(KEYS, &[16, 17][..]), ("ctrl-@,a,ctrl-_", &[0, b'a', 31]), ("ctrl-[", &[27])] {
            assert_eq!(text.parse::<Keys>().unwrap().0, bytes);
        }
        for text in ["", "ctrl-", "ctrl-1", "ab", "a,,b"] {
            assert!(text.parse::<Keys>().is_err(), "{text}");
        }
    }
}
