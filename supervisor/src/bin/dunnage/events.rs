//! `events`: what the supervisor's journal says, from a cursor on, and then as it comes.

use std::process::ExitCode;

use anyhow::Context;
use runtime_v2_api::forward::Envelope;
use runtime_v2_api::supervisor::subscribe_request::From;
use runtime_v2_api::supervisor::{SubscribeRequest, SubscribeResponse};
use serde::Serialize;

use self::event::Event;
use crate::args::{Format, Global};
use crate::paper::{Paper, Tone};
use crate::record::line;
use crate::session::Session;
use crate::streams::reader_gone;
use crate::table::{printable, shorten};
use crate::{ReaderGone, complain, print, words};

mod event;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each event has a number, and the numbers grow by one: `--from` the last one seen goes on where that was. \
                  Events are kept for a time, and for so many bytes (journal.max_age, journal.max_size of dunnaged.toml)."
)]
pub(crate) struct Args {
    /// Go on as events come, until interrupted; also while the supervisor is replaced
    #[arg(short, long)]
    follow: bool,
    /// Those after the event of this number; 0 for all that are kept, `now` for those to come [default: 0, with -f now]
    #[arg(long, value_name = "CURSOR")]
    from: Option<Cursor>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to print them; as JSON, each is a document on a line of its own
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cursor {
    After(u64),
    Now,
}

impl std::str::FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Cursor, String> {
        match text {
            "now" => Ok(Cursor::Now),
            _ => text.parse().map(Cursor::After).map_err(|_| "neither the number of an event nor `now`".to_owned()),
        }
    }
}

pub(crate) async fn events(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let session = Session::open(global).await?;
    let mut reader = Reader {
        cursor: args.from.unwrap_or(if args.follow { Cursor::Now } else { Cursor::After(0) }),
        format: args.format,
        paper: Paper::of_stdout(),
        namespaces: args.all_namespaces,
    };
    // An error in printing ends the stream as the supervisor's end would, and is told afterwards.
    let printed = session.client.follow(async |on, context| {
        let request = SubscribeRequest {
            from: Some(match reader.cursor {
                Cursor::After(number) => From::After(number),
                Cursor::Now => From::Now(true),
            }),
            until_now: !args.follow,
            all_namespaces: args.all_namespaces,
            ..SubscribeRequest::default()
        };
        let mut stream = on.supervisor.subscribe(context, &request).await?;
        while let Some(message) = stream.recv().await? {
            if let Err(error) = reader.take(message) {
                return Ok(Err(error));
            }
        }
        // Nobody ends a stream without an end but a supervisor that goes away.
        if args.follow { Err(ttrpc::Error::RemoteClosed) } else { Ok(Ok(())) }
    });
    tokio::select! {
        printed = printed => printed??,
        gone = reader_gone() => {
            gone.context("watch stdout")?;
            return Err(ReaderGone.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what comes, and knows how far it has come.
struct Reader {
    cursor: Cursor,
    format: Format,
    paper: Paper,
    namespaces: bool,
}

impl Reader {
    fn take(&mut self, message: SubscribeResponse) -> anyhow::Result<()> {
        if message.lost > 0 {
            complain(&format!("{} events that were asked for are no longer kept", message.lost));
        }
        if let Some(envelope) = message.envelope.as_ref() {
            let text = match self.format {
                Format::Json => line(&Record::of(message.number, envelope))?,
                Format::Table => self.line(message.number, envelope),
            };
            print(text.as_bytes())?;
        }
        // Also of the first message, without an event: "now" is a place from then on, whatever becomes of the supervisor.
        self.cursor = Cursor::After(message.number);
        Ok(())
    }

    fn line(&self, number: u64, envelope: &Envelope) -> String {
        let time = words::time(envelope.timestamp.as_ref())
            .map_or("-".to_owned(), |time| humantime::format_rfc3339_millis(time).to_string());
        let event = Event::of(envelope);
        let (tone, text) = event.as_ref().map_or_else(|| (Tone::Plain, envelope.topic.clone()), Event::told);
        let container = event.as_ref().map_or("-", Event::container);
        let namespace = if self.namespaces { format!("{}/", envelope.namespace) } else { String::new() };
        let name = printable(&(namespace + words::short(container)));
        let (head, text) = (format!("{number:>6}  {time}  {name:<12}  "), printable(&text));
        let room = self.paper.width.map_or(usize::MAX, |width| width.saturating_sub(head.chars().count()).max(8));
        format!("{head}{}\n", self.paper.paint(tone, &shorten(&text, room)))
    }
}

/// An event as programs read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Record<'a> {
    number: u64,
    timestamp: Option<String>,
    namespace: &'a str,
    topic: &'a str,
    /// The fields of containerd's message; null if this version does not know it.
    event: Option<Event>,
}

impl Record<'_> {
    fn of(number: u64, envelope: &Envelope) -> Record<'_> {
        Record {
            number,
            timestamp: words::time(envelope.timestamp.as_ref()).map(words::rfc3339),
            namespace: &envelope.namespace,
            topic: &envelope.topic,
            event: Event::of(envelope),
        }
    }
}

#[cfg(test)]
mod tests {
    use runtime_v2_api::events::{TaskExit, TaskStart};
    use runtime_v2_api::{Payload, pack};

    use super::*;
    use crate::words::tests::stamp;

    fn envelope(topic: &str, event: &impl Payload) -> Envelope {
        Envelope {
            timestamp: stamp(0),
            namespace: "default".to_owned(),
            topic: topic.to_owned(),
            event: Some(pack(event).unwrap()).into(),
            ..Envelope::default()
        }
    }

    fn exit() -> Envelope {
        let exit = TaskExit {
            container_id: "web".to_owned(),
            id: "probe".to_owned(),
            pid: 12,
            exit_status: 3,
            exited_at: stamp(1),
            ..TaskExit::default()
        };
        envelope("/tasks/exit", &exit)
    }

    #[test]
    fn a_line_begins_with_the_cursor() {
        let reader = Reader { cursor: Cursor::Now, format: Format::Table, paper: Paper::PLAIN, namespaces: false };
        let start = TaskStart { container_id: "web".to_owned(), pid: 7, ..TaskStart::default() };
        let start = reader.line(9, &envelope("/tasks/start", &start));
        assert_eq!(start, "     9  2027-01-15T08:00:00.000Z  web           started, pid 7\n");
        assert!(reader.line(10, &exit()).ends_with("  web           exec probe exited (3), pid 12\n"));
        // From a shim that knows more than we do.
        let unknown = Envelope { topic: "/tasks/dream".to_owned(), ..Envelope::default() };
        assert_eq!(reader.line(11, &unknown), "    11  -  -             /tasks/dream\n");
    }

    #[test]
    fn programs_read_every_field() {
        let expected = r#"{"number":10,"timestamp":"2027-01-15T08:00:00.000000000Z","namespace":"default","topic":"/tasks/exit",\
            "event":{"containerId":"web","id":"probe","pid":12,"exitStatus":3,"exitedAt":"2027-01-15T07:59:59.000000000Z"}}"#;
        let expected = expected.replace("\\\n            ", "") + "\n";
        assert_eq!(line(&Record::of(10, &exit())).unwrap(), expected);
    }

    #[test]
    fn a_cursor_is_a_number_or_now() {
        assert_eq!("17".parse(), Ok(Cursor::After(17)));
        assert_eq!("now".parse(), Ok(Cursor::Now));
        assert!("yesterday".parse::<Cursor>().is_err());
    }

    #[test]
    fn the_first_message_is_a_place_to_go_on_from() {
        let mut reader = Reader { cursor: Cursor::Now, format: Format::Table, paper: Paper::PLAIN, namespaces: false };
        reader.take(SubscribeResponse { number: 41, ..SubscribeResponse::default() }).unwrap();
        assert_eq!(reader.cursor, Cursor::After(41));
    }
}
