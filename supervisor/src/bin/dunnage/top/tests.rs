//! The screen as its user sees it, and what keys do to it.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use runtime_v2_api::supervisor::{Container, Phase, Usage, VersionResponse};

use super::draw::draw;
use super::keys::{Key, keys};
use super::machine::tests::machine;
use super::model::{Link, Model, Sample, Sort};
use crate::record::{COMMAND, ROOT};
use crate::words::tests::{now, stamp};

fn container(id: &str, phase: Phase, command: &str) -> Container {
    let labels = [(COMMAND, command), (ROOT, "machine")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    Container {
        namespace: "default".to_owned(),
        id: id.to_owned(),
        phase: phase.into(),
        pid: 4123,
        shim_pid: 4119,
        log: format!("/var/lib/dunnage/logs/default/{id}/log"),
        started_at: stamp(200),
        exited_at: stamp(360),
        exit_status: 137,
        labels: labels.into(),
        ..Container::default()
    }
}

/// After so many seconds, with so many milliseconds of cpu used until then.
fn usage(id: &str, second: u64, cpu: u64, mebibytes: u64) -> (String, Usage) {
    let usage = Usage {
        id: id.to_owned(),
        time: second * 1_000_000_000,
        cpu_total: cpu * 1_000_000,
        memory_working_set: mebibytes << 20,
        memory_limit: if id == "web" { 64 << 20 } else { 0 },
        pids: mebibytes,
        io_read_bytes: if id == "db" { second * 1_500_000 } else { 0 },
        cpu_some: Some(0),
        memory_some: Some(0),
        io_some: Some(0),
        ..Usage::default()
    };
    ("default".to_owned(), usage)
}

/// What a supervisor with four containers says after so many seconds.
fn sample(second: u64) -> Sample {
    let containers = vec![
        container("web", Phase::RUNNING, "busybox httpd -f -p 8080"),
        container("sorter", Phase::RUNNING, "sort\n/big/file"),
        container("old", Phase::STOPPED, "false"),
        container("db", Phase::PAUSED, "postgres"),
    ];
    let usages = vec![
        usage("web", second, second * 50, 4 * second),
        usage("sorter", second, second * second * 50, 20),
        usage("db", second, 9, 7),
    ];
    let version = VersionResponse {
        version: "0.1.0".to_owned(),
        pid: 612,
        started_at: stamp(7300),
        ..VersionResponse::default()
    };
    Sample { containers, usages, version }
}

fn model() -> Model {
    let mut model = Model::new(false);
    for second in 1..=8 {
        model.machine(machine(second * 37, second * 63));
        model.take(sample(second));
    }
    model
}

fn shown(model: &mut Model, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(model, frame, now(), false)).unwrap();
    let cells = terminal.backend().buffer().content().chunks(usize::from(width));
    let lines = cells.map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>());
    lines.map(|line| line.trim_end().to_owned() + "\n").collect()
}

fn names(model: &Model) -> Vec<&str> {
    model.shown().map(|row| row.container.id.as_str()).collect()
}

fn typed(model: &mut Model, typed: &[u8]) {
    for key in keys(typed) {
        assert!(model.key(key), "{key:?} is the end");
    }
}

#[test]
fn the_screen() {
    let text = shown(&mut model(), 120, 16);
    let expected = "\
\x20dunnage  2 running  1 paused  1 ended                                                 dunnaged 0.1.0 · pid 612 · up 2h
 cpu 37.0% of 2      ▃▃▃▃▃▃▃  memory 4.0 GiB of 16.0 GiB  load 0.52 0.40 0.30
 NAME   STATUS           CPU▼                  MEMORY                USED  PIDS     DISK/s COMMAND
›sorter up 3m           75.0%      ▂▃▄▅▆▇█   20.0 MiB     ████████           20        0 B sort\\n/big/file
 web    up 3m            5.0%      ███████   32.0 MiB     ▁▁▂▂▃▃▄▄  50.0%    32        0 B busybox httpd -f -p 8080
 db     paused, up 3m    0.0%      ▁▁▁▁▁▁▁    7.0 MiB     ████████            7    1.4 MiB postgres



 default/sorter ────────────────────────────────────────────────────────────────────────────────────────────────────────
 up 3m · pid 4123 · shim 4119 · root machine
 sort\\n/big/file
 memory 20.0 MiB, no limit · swap 0 B · OOM kills 0 · disks 0 B read, 0 B written
 throttled 0.0% of the time · waiting for cpu 0.0%, for memory 0.0%, for disks 0.0%
 log /var/lib/dunnage/logs/default/sorter/log
 q quit  ↑↓ select  sort by  c cpu  m memory  p pids  d disk  n name  r reverse  a ended ones
";
    assert_eq!(text, expected, "{text}");
}

#[test]
fn a_narrow_screen_keeps_what_matters() {
    let text = shown(&mut model(), 50, 8);
    let expected = "\
\x20dunnage  2 running  1 paused  1 ended
 cpu 37.0% of 2      ▃▃▃▃▃▃▃  memory 4.0 GiB of 16
 NAME      CPU▼     MEMORY
›sorter   75.0%   20.0 MiB
 web       5.0%   32.0 MiB
 db        0.0%    7.0 MiB

 q quit  ↑↓ select  sort by  c cpu  m memory  p pi
";
    assert_eq!(text, expected, "{text}");
}

#[test]
fn keys_sort() {
    let mut model = model();
    assert_eq!(names(&model), ["sorter", "web", "db"]);
    typed(&mut model, b"m");
    assert_eq!(names(&model), ["web", "sorter", "db"]);
    typed(&mut model, b"d");
    assert_eq!(names(&model), ["db", "sorter", "web"]);
    typed(&mut model, b"n");
    assert_eq!(names(&model), ["db", "sorter", "web"]);
    typed(&mut model, b"r");
    assert_eq!((names(&model), model.sort), (vec!["web", "sorter", "db"], Sort::Name));
    // Those that have ended stay below, whatever the order.
    typed(&mut model, b"a");
    assert_eq!(names(&model), ["web", "sorter", "db", "old"]);
}

#[test]
fn the_selection_stays_on_its_container() {
    let mut model = model();
    let selected = |model: &Model| model.selected().map(|row| row.container.id.clone());
    assert_eq!(selected(&model).as_deref(), Some("sorter"), "the first, until somebody chooses");
    typed(&mut model, b"\x1b[Bm");
    assert_eq!((selected(&model).as_deref(), model.table.selected()), (Some("web"), Some(0)));
    // Gone: another one is on its line.
    let mut sample = sample(9);
    sample.containers.retain(|container| container.id != "web");
    model.take(sample);
    assert_eq!(selected(&model).as_deref(), Some("sorter"));
    typed(&mut model, b"\x1b[F\x1b[B");
    assert_eq!(selected(&model).as_deref(), Some("db"), "the last one is the end");
    model.take(Sample::default());
    assert_eq!(selected(&model), None);
    typed(&mut model, b"\x1b[A\x1b[6~");
    assert!(!model.key(Key::Quit));
}

#[test]
fn a_supervisor_that_goes_away_is_told_once_and_forgotten_when_it_is_back() {
    let mut model = model();
    model.away(now() - std::time::Duration::from_secs(7));
    model.away(now());
    let text = shown(&mut model, 120, 16);
    assert!(text.contains("supervisor away for 7s, reconnecting; the containers go on"), "{text}");
    assert!(text.contains("sorter"), "what was last known stays: {text}");
    model.take(sample(20));
    assert_eq!(model.link, Link::Fine);
    assert!(!shown(&mut model, 120, 16).contains("away"));
}

#[test]
fn troubles_and_a_silent_supervisor_are_seen_first() {
    let mut model = model();
    let mut sample = sample(9);
    sample.version.troubles = vec!["the journal's disk is full\x1b[2J".to_owned()];
    model.take(sample);
    model.silent(now() - std::time::Duration::from_secs(4));
    let text = shown(&mut model, 120, 16);
    let lines: Vec<&str> = text.lines().skip(2).take(2).collect();
    let expected = [" the supervisor has not answered for 4s", " trouble: the journal's disk is full\\u{1b}[2J"];
    assert_eq!(lines, expected);
}

#[test]
fn any_size_is_drawn() {
    for (width, height) in [(1, 1), (2, 40), (300, 1), (9, 3), (80, 24), (500, 200)] {
        shown(&mut model(), width, height);
    }
}

#[test]
fn nothing_runs_is_said() {
    let mut model = Model::new(false);
    assert!(shown(&mut model, 80, 10).contains("asking the supervisor"));
    model.take(Sample::default());
    assert!(shown(&mut model, 80, 10).contains("no container runs"));
}
