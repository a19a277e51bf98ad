//! The screen of `top`.

use std::time::SystemTime;

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row as TableRow, Table};
use runtime_v2_api::supervisor::Phase;
use unicode_width::UnicodeWidthStr;

use super::model::{Link, Model, Row, Sort};
use crate::paper::Tone;
use crate::record::{COMMAND, ROOT};
use crate::table::printable;
use crate::usage::memory_share;
use crate::words;

/// Characters of a graph: one for each of the last readings.
const GRAPH: u16 = 12;

/// Below this height there is no room for the selected container's details.
const TALL: u16 = 16;

/// Draws `model`, and tells it how many rows there was room for.
pub(super) fn draw(model: &mut Model, frame: &mut Frame<'_>, now: SystemTime, colours: bool) {
    let paint = Paint { colours };
    let notices = notices(model, now, paint);
    let details = if frame.area().height >= TALL { 6 } else { 0 };
    let noticed = u16::try_from(notices.len()).unwrap_or(u16::MAX);
    let [head, middle, rows, below, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(noticed),
        Constraint::Min(2),
        Constraint::Length(details),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    header(model, frame, head, now, paint);
    frame.render_widget(Paragraph::new(notices), middle);
    table(model, frame, rows, now, paint);
    if details > 0 {
        frame.render_widget(Paragraph::new(selected(model, now, paint)).block(border(model, paint)), below);
    }
    frame.render_widget(Line::styled(KEYS, paint.tone(Tone::Faint)), foot);
}

const KEYS: &str = " q quit  ↑↓ select  sort by  c cpu  m memory  p pids  d disk  n name  r reverse  a ended ones";

/// Styles, as far as the terminal has them. Bold and reversed are no colours.
#[derive(Clone, Copy)]
struct Paint {
    colours: bool,
}

impl Paint {
    fn tone(self, tone: Tone) -> Style {
        let colour = |colour| if self.colours { Style::new().fg(colour) } else { Style::new() };
        match tone {
            Tone::Plain => Style::new(),
            Tone::Strong => Style::new().add_modifier(Modifier::BOLD),
            Tone::Faint if self.colours => Style::new().add_modifier(Modifier::DIM),
            Tone::Faint => Style::new(),
            Tone::Bad => colour(Color::Red),
            Tone::Good => colour(Color::Green),
            Tone::Warning => colour(Color::Yellow),
            Tone::Accent => colour(Color::Cyan),
        }
    }

    fn span(self, tone: Tone, text: impl Into<String>) -> Span<'static> {
        Span::styled(text.into(), self.tone(tone))
    }
}

/// How many there are of each kind, and who says so; then the machine.
fn header(model: &Model, frame: &mut Frame<'_>, area: Rect, now: SystemTime, paint: Paint) {
    let count =
        |phases: &[Phase]| model.rows.iter().filter(|row| phases.contains(&words::phase(&row.container))).count();
    let kinds = [
        (Tone::Good, "running", count(&[Phase::RUNNING])),
        (Tone::Warning, "paused", count(&[Phase::PAUSED])),
        (Tone::Warning, "created", count(&[Phase::CREATED, Phase::LAUNCHING])),
        (Tone::Plain, "ended", count(&[Phase::STOPPED])),
        (Tone::Bad, "lost", count(&[Phase::LOST, Phase::UNKNOWN])),
    ];
    let mut line = Line::from(paint.span(Tone::Strong, " dunnage"));
    for (tone, kind, count) in kinds.into_iter().filter(|(_, kind, count)| *count > 0 || *kind == "running") {
        line.push_span("  ");
        line.push_span(paint.span(tone, format!("{count} {kind}")));
    }
    let supervisor = model.version.as_ref().map_or(String::new(), |version| {
        let up = words::time(version.started_at.as_ref())
            .map_or(String::new(), |then| format!(" · up {}", words::rough(words::since(then, now))));
        format!("dunnaged {} · pid {}{up} ", version.version, version.pid)
    });
    let machine = &model.machine;
    let cpu = model.machine_cpu.back().map_or("-".to_owned(), |cpu| words::percent(*cpu));
    let graph = graph(model.machine_cpu.iter().copied(), 1.0);
    let (used, all) = (words::size(machine.memory_used), words::size(machine.memory));
    let second = Line::from(vec![
        Span::raw(format!(" cpu {cpu} of {} ", machine.cpus)),
        paint.span(Tone::Accent, graph),
        Span::raw(format!("  memory {used} of {all}  load {}", machine.load)),
    ]);
    // Where there is no room for both, it is the containers that matter.
    let gap = usize::from(area.width).checked_sub(line.width() + supervisor.chars().count() + 2);
    if let Some(gap) = gap {
        line.push_span(" ".repeat(gap + 2));
        line.push_span(paint.span(Tone::Faint, supervisor));
    }
    frame.render_widget(Paragraph::new(vec![line, second]), area);
}

/// What an operator has to know before all else; mostly nothing.
fn notices(model: &Model, now: SystemTime, paint: Paint) -> Vec<Line<'static>> {
    let ago = |then: SystemTime| words::rough(words::since(then, now));
    let link = match &model.link {
        Link::Fine => None,
        Link::Asked => Some((Tone::Plain, " asking the supervisor …".to_owned())),
        Link::Silent(then) => Some((Tone::Bad, format!(" the supervisor has not answered for {}", ago(*then)))),
        Link::Away(then) => {
            Some((Tone::Bad, format!(" supervisor away for {}, reconnecting; the containers go on", ago(*then))))
        }
        Link::Failing(error) => Some((Tone::Bad, format!(" the supervisor says: {}", printable(error)))),
    };
    let troubles = model.version.iter().flat_map(|version| &version.troubles);
    let troubles = troubles.map(|trouble| (Tone::Warning, format!(" trouble: {}", printable(trouble))));
    link.into_iter().chain(troubles).take(3).map(|(tone, text)| Line::styled(text, paint.tone(tone))).collect()
}

/// A column, and from which width of the screen on it is there.
struct Column {
    title: &'static str,
    sort: Option<Sort>,
    width: Constraint,
    right: bool,
    from: u16,
    cell: fn(&Row, &Model, SystemTime) -> (Tone, String),
}

impl Column {
    /// Of a column that may have any width up to one, only what its texts need.
    fn width(&self, model: &Model, now: SystemTime) -> Constraint {
        let Constraint::Max(most) = self.width else { return self.width };
        let texts = model.shown().map(|row| (self.cell)(row, model, now).1.width());
        let widest = texts.chain([self.title.len() + 1]).max().unwrap_or_default();
        Constraint::Length(u16::try_from(widest).unwrap_or(most).min(most))
    }
}

/// In the order of their importance to somebody who asks what is going on here.
const COLUMNS: [Column; 10] = [
    Column {
        title: "NAME",
        sort: Some(Sort::Name),
        width: Constraint::Max(24),
        right: false,
        from: 0,
        cell: |row, _, _| (Tone::Plain, words::short(&row.container.id).to_owned()),
    },
    Column {
        title: "STATUS",
        sort: None,
        width: Constraint::Max(28),
        right: false,
        from: 56,
        cell: |row, _, now| words::status(&row.container, now),
    },
    Column {
        title: "CPU",
        sort: Some(Sort::Cpu),
        width: Constraint::Length(7),
        right: true,
        from: 0,
        cell: |row, _, _| (Tone::Plain, row.rates.map_or(String::new(), |rates| words::percent(rates.cpu))),
    },
    Column {
        title: "",
        sort: None,
        width: Constraint::Length(GRAPH),
        right: false,
        from: 70,
        cell: |row, model, _| {
            let cpu = model.history(row).map(|history| history.cpu.iter().copied());
            // Of its own greatest, so that its shape is seen; but not of nearly nothing.
            (Tone::Accent, cpu.map_or(String::new(), |cpu| graph(cpu.clone(), cpu.fold(0.05, f64::max))))
        },
    },
    Column {
        title: "MEMORY",
        sort: Some(Sort::Memory),
        width: Constraint::Length(10),
        right: true,
        from: 0,
        cell: |row, _, _| {
            let used = row.usage.as_ref().map(|usage| usage.memory_working_set);
            (Tone::Plain, used.map_or(String::new(), words::size))
        },
    },
    Column {
        title: "",
        sort: None,
        width: Constraint::Length(GRAPH),
        right: false,
        from: 96,
        cell: |row, model, _| {
            let memory = model.history(row).map(|history| history.memory.iter().copied());
            let graph = memory.map_or(String::new(), |memory| {
                // Of the limit, if there is one: a full block is the end.
                let limit = row.usage.as_ref().map_or(0, |usage| usage.memory_limit);
                #[expect(clippy::cast_precision_loss, reason = "a graph's height")]
                let top = if limit > 0 { limit as f64 } else { memory.clone().fold(1.0, f64::max) };
                graph(memory, top)
            });
            (Tone::Accent, graph)
        },
    },
    Column {
        title: "USED",
        sort: None,
        width: Constraint::Length(6),
        right: true,
        from: 84,
        cell: |row, _, _| {
            let share = row.usage.as_ref().and_then(memory_share);
            (words::pressing(share), share.map_or(String::new(), words::percent))
        },
    },
    Column {
        title: "PIDS",
        sort: Some(Sort::Pids),
        width: Constraint::Length(5),
        right: true,
        from: 64,
        cell: |row, _, _| (Tone::Plain, row.usage.as_ref().map_or(String::new(), |usage| usage.pids.to_string())),
    },
    Column {
        title: "DISK/s",
        sort: Some(Sort::Disk),
        width: Constraint::Length(10),
        right: true,
        from: 108,
        cell: |row, _, _| (Tone::Plain, row.rates.map_or(String::new(), |rates| speed(rates.read + rates.written))),
    },
    Column {
        title: "COMMAND",
        sort: None,
        width: Constraint::Fill(1),
        right: false,
        from: 100,
        cell: |row, _, _| (Tone::Faint, row.container.labels.get(COMMAND).cloned().unwrap_or_default()),
    },
];

fn table(model: &mut Model, frame: &mut Frame<'_>, area: Rect, now: SystemTime, paint: Paint) {
    let columns: Vec<&Column> = COLUMNS.iter().filter(|column| area.width >= column.from).collect();
    let heads = columns.iter().map(|column| {
        let arrow = match (column.sort == Some(model.sort), model.reversed) {
            (false, _) => "",
            (true, false) => "▼",
            (true, true) => "▲",
        };
        cell(format!("{}{arrow}", column.title), column.right, Style::new())
    });
    let heads = TableRow::new(heads.collect::<Vec<_>>()).style(paint.tone(Tone::Strong));
    let rows: Vec<_> = model
        .shown()
        .map(|row| {
            let cells = columns.iter().map(|column| {
                let (tone, text) = (column.cell)(row, model, now);
                cell(printable(&text), column.right, paint.tone(tone))
            });
            TableRow::new(cells.collect::<Vec<_>>())
        })
        .collect();
    model.room = usize::from(area.height.saturating_sub(1));
    if rows.is_empty() && model.link == Link::Fine {
        let hint = " no container runs; `dunnage run -d -- sleep 60` starts one";
        frame.render_widget(Paragraph::new(Line::styled(hint, paint.tone(Tone::Faint))), area);
        return;
    }
    let widths: Vec<Constraint> = columns.iter().map(|column| column.width(model, now)).collect();
    let table = Table::new(rows, widths)
        .header(heads)
        .column_spacing(1)
        .highlight_symbol("›")
        .highlight_spacing(ratatui::widgets::HighlightSpacing::Always)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    frame.render_stateful_widget(table, area, &mut model.table);
}

fn cell(text: String, right: bool, style: Style) -> Cell<'static> {
    let alignment = if right { Alignment::Right } else { Alignment::Left };
    Cell::from(Line::from(text).alignment(alignment)).style(style)
}

fn border(model: &Model, paint: Paint) -> Block<'static> {
    let title = model.selected().map_or(String::new(), |row| {
        let (namespace, id) = row.name();
        format!(" {}/{} ", printable(&namespace), printable(&id))
    });
    Block::new().borders(Borders::TOP).title(Span::styled(title, paint.tone(Tone::Strong)))
}

/// More about the selected container than fits a row.
fn selected(model: &Model, now: SystemTime, paint: Paint) -> Vec<Line<'static>> {
    let Some(row) = model.selected() else { return Vec::new() };
    let container = &row.container;
    let label = |name: &str| container.labels.get(name).map_or("-", String::as_str);
    let (tone, status) = words::status(container, now);
    let mut lines = vec![
        Line::from(vec![
            Span::raw(" "),
            paint.span(tone, printable(&status)),
            Span::raw(format!(
                " · pid {} · shim {} · root {}",
                container.pid,
                container.shim_pid,
                printable(label(ROOT))
            )),
        ]),
        Line::from(format!(" {}", printable(label(COMMAND)))),
    ];
    if let Some(usage) = &row.usage {
        let limit = match usage.memory_limit {
            0 => ", no limit".to_owned(),
            limit => format!(" of {}", words::size(limit)),
        };
        let [memory, swap] = [usage.memory_working_set, usage.memory_swap].map(words::size);
        let [read, written] = [usage.io_read_bytes, usage.io_write_bytes].map(words::size);
        lines.push(Line::from(format!(
            " memory {memory}{limit} · swap {swap} · OOM kills {} · disks {read} read, {written} written",
            usage.oom_kills
        )));
    }
    if let Some(rates) = row.rates {
        let waits = rates.waits.map(|waits| {
            let [cpu, memory, io] = waits.map(words::percent);
            format!(" · waiting for cpu {cpu}, for memory {memory}, for disks {io}")
        });
        let throttled = words::percent(rates.throttled);
        lines.push(Line::from(format!(" throttled {throttled} of the time{}", waits.unwrap_or_default())));
    }
    lines.push(Line::from(format!(" log {}", printable(&container.log))));
    lines
}

fn speed(bytes: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are no less than 0, and rounded"
    )]
    let bytes = bytes.round() as u64;
    words::size(bytes)
}

/// The last values as a row of bars, the newest at the right; `top` is a full one.
fn graph(values: impl DoubleEndedIterator<Item = f64>, top: f64) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let bar = |value: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 8")]
        let height = (value / top * 8.0).clamp(0.0, 8.0).ceil() as usize;
        BARS[height.saturating_sub(1)]
    };
    let mut bars: Vec<char> = values.rev().take(usize::from(GRAPH)).map(bar).collect();
    bars.resize(usize::from(GRAPH), ' ');
    bars.iter().rev().collect()
}
