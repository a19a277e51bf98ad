//! What `top` knows and shows: pure state, changed by readings and by keys.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::time::SystemTime;

use ratatui::widgets::TableState;
use runtime_v2_api::supervisor::{Container, Phase, Usage, VersionResponse};

use super::keys::Key;
use super::machine::Machine;
use crate::usage::{Rates, rates};
use crate::words;

/// So many readings are kept for the graphs.
const KEPT: usize = 60;

/// What a supervisor answers, at one time.
#[derive(Debug, Default)]
pub(super) struct Sample {
    pub(super) containers: Vec<Container>,
    /// With their namespaces.
    pub(super) usages: Vec<(String, Usage)>,
    pub(super) version: VersionResponse,
}

/// A namespace and an id.
type Name = (String, String);

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Cpu,
    Memory,
    Pids,
    /// Bytes read and written per second.
    Disk,
    Name,
}

/// What there is to say about the supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// It has not answered yet.
    Asked,
    Fine,
    /// It has not answered since.
    Silent(SystemTime),
    /// It went away.
    Away(SystemTime),
    /// It answers with an error.
    Failing(String),
}

/// A container with what is measured of it.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) container: Container,
    pub(super) usage: Option<Usage>,
    pub(super) rates: Option<Rates>,
}

impl Row {
    pub(super) fn name(&self) -> Name {
        name(&self.container)
    }

    pub(super) fn lives(&self) -> bool {
        words::lives(&self.container)
    }
}

fn name(container: &Container) -> Name {
    (container.namespace.clone(), container.id.clone())
}

/// The last readings of one container, the newest last.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) cpu: VecDeque<f64>,
    pub(super) memory: VecDeque<f64>,
}

/// Everything.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) link: Link,
    pub(super) version: Option<VersionResponse>,
    pub(super) machine: Machine,
    pub(super) machine_cpu: VecDeque<f64>,
    /// In the order in which they are shown.
    pub(super) rows: Vec<Row>,
    histories: HashMap<Name, History>,
    pub(super) sort: Sort,
    pub(super) reversed: bool,
    /// Those that have ended are shown as well.
    pub(super) ended: bool,
    selected: Option<Name>,
    /// Which row is selected, and which is the first on the screen.
    pub(super) table: TableState,
    /// So many rows were there room for when it was drawn last.
    pub(super) room: usize,
}

impl Model {
    pub(super) fn new(ended: bool) -> Model {
        Model {
            link: Link::Asked,
            version: None,
            machine: Machine::default(),
            machine_cpu: VecDeque::new(),
            rows: Vec::new(),
            histories: HashMap::new(),
            sort: Sort::default(),
            reversed: false,
            ended,
            selected: None,
            table: TableState::default(),
            room: 1,
        }
    }

    /// The machine was read.
    pub(super) fn machine(&mut self, now: Machine) {
        if let Some(cpu) = now.cpu_since(&self.machine).filter(|_| self.machine != Machine::default()) {
            remember(&mut self.machine_cpu, cpu);
        }
        self.machine = now;
    }

    /// The supervisor has answered.
    pub(super) fn take(&mut self, sample: Sample) {
        let mut usages: HashMap<Name, Usage> =
            sample.usages.into_iter().map(|(namespace, usage)| ((namespace, usage.id.clone()), usage)).collect();
        let mut before: HashMap<Name, Usage> =
            self.rows.drain(..).filter_map(|row| Some((row.name(), row.usage?))).collect();
        self.rows = sample
            .containers
            .into_iter()
            .map(|container| {
                let name = name(&container);
                let usage = usages.remove(&name);
                let rates = usage.as_ref().zip(before.remove(&name)).and_then(|(usage, before)| rates(&before, usage));
                Row { container, usage, rates }
            })
            .collect();
        let mut histories = std::mem::take(&mut self.histories);
        for row in self.rows.iter().filter(|row| row.usage.is_some()) {
            let mut history = histories.remove(&row.name()).unwrap_or_default();
            if let Some(rates) = row.rates {
                remember(&mut history.cpu, rates.cpu);
            }
            remember(&mut history.memory, row.usage.as_ref().map_or(0.0, working_set));
            self.histories.insert(row.name(), history);
        }
        self.version = Some(sample.version);
        self.link = Link::Fine;
        self.arrange();
    }

    /// The supervisor went away, or does not answer. Since when is remembered as long as it lasts.
    pub(super) fn away(&mut self, now: SystemTime) {
        if !matches!(self.link, Link::Away(_)) {
            self.link = Link::Away(now);
        }
    }

    /// It was asked at `then`, and has not answered yet.
    pub(super) fn silent(&mut self, then: SystemTime) {
        if matches!(self.link, Link::Fine | Link::Asked) {
            self.link = Link::Silent(then);
        }
    }

    /// A key was typed. `false`: it was the last.
    pub(super) fn key(&mut self, key: Key) -> bool {
        match key {
            Key::Quit => return false,
            Key::Move(lines) => self.select(lines),
            Key::Page(pages) => self.select(pages.saturating_mul(self.room.max(1).cast_signed())),
            Key::Sort(sort) => self.sort = sort,
            Key::Reverse => self.reversed = !self.reversed,
            Key::Ended => self.ended = !self.ended,
            Key::Redraw => {}
        }
        self.arrange();
        true
    }

    pub(super) fn history(&self, row: &Row) -> Option<&History> {
        self.histories.get(&row.name())
    }

    /// The rows that are shown.
    pub(super) fn shown(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| self.shows(row))
    }

    fn shows(&self, row: &Row) -> bool {
        self.ended || row.lives() || words::phase(&row.container) == Phase::LOST
    }

    pub(super) fn selected(&self) -> Option<&Row> {
        self.shown().nth(self.table.selected()?)
    }

    fn select(&mut self, lines: isize) {
        let last = self.shown().count().saturating_sub(1);
        let at = self.table.selected().unwrap_or_default().saturating_add_signed(lines).min(last);
        let name = self.shown().nth(at).map(Row::name);
        self.selected = name;
    }

    /// Sorts the rows. The selection stays on its container, and where that is gone, on its line.
    fn arrange(&mut self) {
        let (sort, reversed) = (self.sort, self.reversed);
        self.rows.sort_by(|a, b| {
            let order = order(sort, a, b);
            // Those that have ended stay below, and what is alike stays in the order of names.
            let order = if reversed { order.reverse() } else { order };
            b.lives().cmp(&a.lives()).then(order).then_with(|| a.name().cmp(&b.name()))
        });
        let count = self.shown().count();
        let there = self.shown().position(|row| Some(row.name()) == self.selected);
        let line = self.table.selected().filter(|_| self.selected.is_some());
        let at = there.or(line).unwrap_or_default();
        self.table.select((count > 0).then(|| at.min(count.saturating_sub(1))));
        // Until somebody has chosen one, the first row is selected, whichever that is.
        if self.selected.is_some() {
            self.selected = self.selected().map(Row::name);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a graph's height")]
fn working_set(usage: &Usage) -> f64 {
    usage.memory_working_set as f64
}

/// The greatest first, or the first of the alphabet.
fn order(sort: Sort, a: &Row, b: &Row) -> Ordering {
    let rate = |row: &Row, of: fn(Rates) -> f64| row.rates.map_or(0.0, of);
    let count = |row: &Row, of: fn(&Usage) -> u64| row.usage.as_ref().map_or(0, of);
    match sort {
        Sort::Cpu => rate(b, |rates| rates.cpu).total_cmp(&rate(a, |rates| rates.cpu)),
        Sort::Disk => {
            let disk = |rates: Rates| rates.read + rates.written;
            rate(b, disk).total_cmp(&rate(a, disk))
        }
        Sort::Memory => count(b, |usage| usage.memory_working_set).cmp(&count(a, |usage| usage.memory_working_set)),
        Sort::Pids => count(b, |usage| usage.pids).cmp(&count(a, |usage| usage.pids)),
        Sort::Name => a.name().cmp(&b.name()),
    }
}

fn remember(history: &mut VecDeque<f64>, value: f64) {
    history.push_back(value);
    history.drain(..history.len().saturating_sub(KEPT));
}
