//! `stats`: what containers use, as a table that is kept up to date.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use runtime_v2_api::supervisor::Usage;
use tokio::time::{MissedTickBehavior, interval};

use crate::args::{Format, Global};
use crate::paper::{Paper, Tone};
use crate::record::{document, line};
use crate::session::Session;
use crate::table::{Cell, Table};
use crate::terminal::size;
use crate::usage::{self, Rates, Reading, memory_share, rates};
use crate::{print, words};

/// From one reading to the next. Rates are means over it.
const PERIOD: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print them once, after a second to measure in
    #[arg(long)]
    no_stream: bool,
    /// How to print them; as JSON, the readings of each second are a document on a line of its own
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Only these containers
    #[arg(value_name = "CONTAINER")]
    ids: Vec<String>,
}

pub(crate) async fn stats(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let session = Session::open(global).await?;
    let mut ids = Vec::new();
    for name in &args.ids {
        ids.push(session.find(name).await?.id);
    }
    let mut clock = interval(PERIOD);
    // After a wait for the supervisor, one reading and not all that were missed.
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut before, mut shown) = (HashMap::new(), 0);
    for round in 0_u64.. {
        clock.tick().await;
        let usages = usage::read(&session.client, session.client.namespace(), &ids).await?;
        let readings = measure(&mut before, usages);
        if args.no_stream {
            if round == 1 {
                print(told(&readings, &args, Paper::of_stdout())?.as_bytes())?;
                break;
            }
            continue;
        }
        let text = told(&readings, &args, Paper::of_stdout())?;
        print(over(&text, &mut shown, args.format).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Each reading with the rates since the one before, which it replaces.
fn measure(before: &mut HashMap<String, Usage>, usages: Vec<Usage>) -> Vec<(Usage, Option<Rates>)> {
    let rate = |usage: &Usage| rates(before.get(&usage.id)?, usage);
    let readings: Vec<_> = usages.into_iter().map(|usage| (usage.clone(), rate(&usage))).collect();
    *before = readings.iter().map(|(usage, _)| (usage.id.clone(), usage.clone())).collect();
    readings
}

fn told(readings: &[(Usage, Option<Rates>)], args: &Args, paper: Paper) -> serde_json::Result<String> {
    if args.format == Format::Table {
        return Ok(table(readings).render(paper));
    }
    let readings: Vec<_> = readings.iter().map(|(usage, rates)| Reading::of(usage, *rates)).collect();
    if args.no_stream { document(&readings) } else { line(&readings) }
}

fn table(readings: &[(Usage, Option<Rates>)]) -> Table {
    let titles = ["NAME", "CPU", "MEMORY", "LIMIT", "USED", "PIDS", "READ", "WRITTEN", "THROTTLED"];
    let mut table = Table::new(&titles).numbers(&titles[1..]);
    for (usage, rates) in readings {
        let share = memory_share(usage);
        let pids = match usage.pids_limit {
            0 => usage.pids.to_string(),
            limit => format!("{}/{limit}", usage.pids),
        };
        table.row([
            Cell::new(Tone::Strong, words::short(&usage.id)),
            rates.map_or("-".to_owned(), |rates| words::percent(rates.cpu)).into(),
            words::size(usage.memory_working_set).into(),
            if usage.memory_limit > 0 { words::size(usage.memory_limit) } else { "-".to_owned() }.into(),
            Cell::new(words::pressing(share), share.map_or("-".to_owned(), words::percent)),
            pids.into(),
            words::size(usage.io_read_bytes).into(),
            words::size(usage.io_write_bytes).into(),
            rates.map_or("-".to_owned(), |rates| words::percent(rates.throttled)).into(),
        ]);
    }
    table
}

/// On a terminal, the table in the place of the one before, as much of it as there is room for. Elsewhere one after the
/// other.
fn over(text: &str, shown: &mut usize, format: Format) -> String {
    if format == Format::Json || !io::stdout().is_terminal() {
        return text.to_owned();
    }
    let height = size().map_or(0, |(_, height)| usize::from(height));
    // The cursor stands on the line below the table; one more for what has no room.
    let room = if height > 3 { height - 2 } else { usize::MAX };
    let lines: Vec<&str> = text.lines().collect();
    let (kept, cut) = lines.split_at(lines.len().min(room));
    let more = if cut.is_empty() { String::new() } else { format!("… and {} more\n", cut.len()) };
    // ECMA-48: up so many lines, and erase to the end of the screen.
    let up = if *shown > 0 { format!("\x1b[{shown}A\x1b[J") } else { String::new() };
    *shown = kept.len() + usize::from(!cut.is_empty());
    format!("{up}{}\n{more}", kept.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(id: &str, seconds: u64, cpu: u64) -> Usage {
        Usage {
            id: id.to_owned(),
            time: seconds * 1_000_000_000,
            cpu_total: cpu,
            memory_working_set: 60 << 20,
            memory_limit: if id == "web" { 64 << 20 } else { 0 },
            pids: 3,
            pids_limit: if id == "web" { 100 } else { 0 },
            io_read_bytes: 1_500_000,
            ..Usage::default()
        }
    }

    #[test]
    fn the_second_reading_tells_rates() {
        let mut before = HashMap::new();
        let first = table(&measure(&mut before, vec![usage("web", 1, 0)])).render(Paper::PLAIN);
        assert!(first.lines().nth(1).unwrap().starts_with("web     -  60.0 MiB"), "{first}");
        let readings = measure(&mut before, vec![usage("web", 2, 370_000_000), usage("new", 2, 9)]);
        let expected = "\
NAME    CPU    MEMORY     LIMIT   USED   PIDS     READ  WRITTEN  THROTTLED
web   37.0%  60.0 MiB  64.0 MiB  93.8%  3/100  1.4 MiB      0 B       0.0%
new       -  60.0 MiB         -      -      3  1.4 MiB      0 B          -
";
        assert_eq!(table(&readings).render(Paper::PLAIN), expected);
        // One that has ended is forgotten.
        measure(&mut before, vec![usage("new", 3, 10)]);
        assert_eq!(before.keys().collect::<Vec<_>>(), ["new"]);
    }

    #[test]
    fn programs_read_numbers_without_units() {
        let args = Args { no_stream: false, format: Format::Json, ids: Vec::new() };
        let readings = [(usage("web", 2, 5), Some(Rates { cpu: 0.25, ..Rates::default() }))];
        let text = told(&readings, &args, Paper::PLAIN).unwrap();
        assert_eq!(text.lines().count(), 1, "one document on one line: {text}");
        let told: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(told[0]["cpu"], 0.25);
        assert_eq!(told[0]["memoryLimit"], 64 << 20);
        assert_eq!(told[0]["time"], "1970-01-01T00:00:02.000000000Z");
    }
}
