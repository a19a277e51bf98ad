//! A timeline as text: a line for each span, and a bar where it lies in time.

use super::timeline::{Span, Timeline, Who};
use crate::{
    paper::{Paper, Tone},
    table::{printable, shorten},
    words::fine,
};
use unicode_width::UnicodeWidthStr;

/// Where nobody says how wide a line may be.
const WIDTH: usize = 120;

/// A bar is not made shorter for the sake of a name.
const LEAST_BAR: usize = 20;

/// Eighths of a character, from the left.
const EIGHTHS: [char; 8] = ['█', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// Spans below this part of the whole are short: they are told together, unless all are asked for.
const SHORT: u64 = 200;

/// As a line tells it: one span, or short ones of the same actor that follow each other.
fn fold(spans: &[Span], total: u64) -> Vec<Span> {
    let mut lines: Vec<(Span, u32)> = Vec::new();
    for span in spans {
        let short = span.duration_ns < total / SHORT;
        match lines.last_mut() {
            Some((last, count)) if *count > 0 && short && (&last.who, last.depth) == (&span.who, span.depth) => {
                last.duration_ns = (span.offset_ns + span.duration_ns).saturating_sub(last.offset_ns);
                *count += 1;
                last.name = format!("… {count} short steps");
            }
            _ => lines.push((span.clone(), u32::from(short))),
        }
    }
    lines.into_iter().map(|(span, _)| span).collect()
}

/// The whole of it, with a headline.
pub(super) fn waterfall(timeline: &Timeline, all: bool, paper: Paper) -> String {
    let spans = if all { timeline.spans.clone() } else { fold(&timeline.spans, timeline.duration_ns) };
    let names: Vec<String> = spans.iter().map(|span| "  ".repeat(span.depth) + &printable(&span.name)).collect();
    let width = paper.width.unwrap_or(WIDTH);
    let who = widest(spans.iter().map(|span| span.who.name()), "WHO");
    let numbers = 2 * (2 + NUMBER);
    let room = width.saturating_sub(who + 2 + numbers + 2 + LEAST_BAR);
    let name = widest(names.iter().map(String::as_str), "STEP").min(room.max(12));
    let bar = width.saturating_sub(who + 2 + name + numbers + 2).max(LEAST_BAR);
    let mut text = format!(
        "{}: {} in {} steps\n\n",
        printable(&timeline.id),
        paper.paint(Tone::Strong, &fine(timeline.duration_ns)),
        timeline.spans.len()
    );
    let head = format!("{:who$}  {:name$}  {:>NUMBER$}  {:>NUMBER$}", "WHO", "STEP", "AT", "TOOK");
    text += &(paper.paint(Tone::Strong, &head) + "\n");
    for (span, label) in spans.iter().zip(&names) {
        let label = shorten(label, name);
        let blank = " ".repeat(name.saturating_sub(label.width()));
        let (at, took) = (fine(span.offset_ns), fine(span.duration_ns));
        let actor = printable(span.who.name());
        let (before, drawn) = draw(span, timeline.duration_ns, bar);
        let drawn = paper.paint(tone(&span.who), &drawn);
        text += &format!("{actor:who$}  {label}{blank}  {at:>NUMBER$}  {took:>NUMBER$}  {before}{drawn}\n");
    }
    text
}

/// The width of a time, as in "1.21 ms" and "182 µs".
const NUMBER: usize = 7;

fn widest<'a>(texts: impl Iterator<Item = &'a str>, title: &'a str) -> usize {
    texts.chain([title]).map(UnicodeWidthStr::width).max().unwrap_or_default()
}

/// Blanks up to the beginning, and the bar, which is never so short that it cannot be seen.
fn draw(span: &Span, total: u64, width: usize) -> (String, String) {
    let eighths = |time: u64| {
        let cells = u128::from(time) * width as u128 * 8 / u128::from(total.max(1));
        usize::try_from(cells).unwrap_or(usize::MAX).min(width * 8)
    };
    // It begins with a whole character: there are no characters with their right part filled.
    let begin = (eighths(span.offset_ns) / 8).min(width - 1);
    let end = eighths(span.offset_ns.saturating_add(span.duration_ns)).max(begin * 8 + 1);
    let length = end - begin * 8;
    let bar = "█".repeat(length / 8);
    let rest = EIGHTHS.get(length % 8).filter(|_| length % 8 > 0);
    (" ".repeat(begin), bar.chars().chain(rest.copied()).collect())
}

fn tone(who: &Who) -> Tone {
    match who {
        Who::Supervisor => Tone::Good,
        Who::Shim => Tone::Accent,
        Who::Parent => Tone::Warning,
        Who::Init | Who::Other(_) => Tone::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::timeline::tests::sample, *};

    #[test]
    fn each_span_has_its_place_in_time() {
        let expected = "\
web: 4.00 ms in 8 steps

WHO         STEP                          AT     TOOK
supervisor  make the bundle             0 ns   182 µs  █▍
supervisor  start the shim            190 µs  1.21 ms   █████████▊
supervisor  create the container     1.41 ms  2.59 ms            █████████████████████
shim          compile the plan       1.50 ms   120 µs             █▌
parent        clone3                 1.65 ms   250 µs              ██▋
init          mount proc at /proc    1.95 ms  24.0 µs                 ▎
init          pivot to the new root  2.00 ms  1.90 ms                 ███████████████▏
ghost         of a newer shim        3.95 ms   500 ns                                ▌
";
        let text = waterfall(&sample(), true, Paper { width: Some(86), colours: false });
        assert_eq!(text, expected, "{text}");
        assert!(text.lines().all(|line| line.width() <= 86), "{text}");
    }

    #[test]
    fn names_give_way_to_the_bars() {
        let text = waterfall(&sample(), true, Paper { width: Some(64), colours: false });
        assert!(text.lines().all(|line| line.width() <= 64), "{text}");
        assert!(text.contains('…'), "{text}");
    }

    #[test]
    fn short_steps_that_follow_each_other_are_told_together() {
        let span = |name: &str, who, offset_ns, duration_ns| Span {
            who,
            name: name.to_owned(),
            offset_ns,
            duration_ns,
            depth: 0,
        };
        let spans = [
            span("a", Who::Init, 0, 3),
            span("b", Who::Init, 3, 4),
            span("c", Who::Init, 8, 2),
            span("d", Who::Parent, 10, 1),
            span("long", Who::Init, 11, 900),
            span("e", Who::Init, 911, 1),
        ];
        let told = fold(&spans, 1000).into_iter().map(|span| (span.name, span.offset_ns, span.duration_ns));
        let expected = [("… 3 short steps", 0, 10), ("d", 10, 1), ("long", 11, 900), ("e", 911, 1)];
        assert!(told.eq(expected.map(|(name, at, took)| (name.to_owned(), at, took))));
    }

    #[test]
    fn the_shortest_span_can_be_seen() {
        for duration_ns in [0, 1, 1_000] {
            let span = Span { who: Who::Init, name: String::new(), offset_ns: 1_000, duration_ns, depth: 0 };
            let (before, bar) = draw(&span, 1_000 + duration_ns, 20);
            assert!(!bar.is_empty() && before.width() + bar.width() <= 20, "{before:?} {bar:?}");
        }
    }
}
