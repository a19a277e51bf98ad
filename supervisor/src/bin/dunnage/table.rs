//! Aligned columns. On a terminal the last column gives way, so that a row stays a line; elsewhere nothing is cut.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::paper::{Paper, Tone};

/// Between two columns.
const GAP: usize = 2;

/// A cell is not cut below this.
const LEAST: usize = 8;

/// Rows under headings.
#[derive(Debug, Default)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

#[derive(Debug)]
struct Column {
    title: &'static str,
    right: bool,
}

/// A text that fits a line, and what it means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(crate) fn new(tone: Tone, text: impl AsRef<str>) -> Self {
        Cell { text: printable(text.as_ref()), tone }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell::new(Tone::Plain, text)
    }
}

impl Table {
    /// With a column for words under each of `titles`.
    pub(crate) fn new(titles: &[&'static str]) -> Self {
        let columns = titles.iter().map(|title| Column { title, right: false }).collect();
        Table { columns, rows: Vec::new() }
    }

    /// The columns with these titles hold numbers, which are aligned at their ends.
    pub(crate) fn numbers(mut self, titles: &[&str]) -> Self {
        self.columns.iter_mut().for_each(|column| column.right |= titles.contains(&column.title));
        self
    }

    /// A row has as many cells as there are columns.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// A line for the titles, and one for each row.
    pub(crate) fn render(&self, paper: Paper) -> String {
        let heads = self.columns.iter().map(|column| Cell::new(Tone::Strong, column.title)).collect();
        let lines: Vec<&Vec<Cell>> = [&heads].into_iter().chain(&self.rows).collect();
        let widths = self.widths(&lines, paper.width);
        let mut text = String::new();
        for line in lines {
            let mut gap = 0;
            for ((cell, column), width) in line.iter().zip(&self.columns).zip(&widths) {
                let shown = shorten(&cell.text, *width);
                let blank = width - shown.width();
                let (before, after) = if column.right { (blank, 0) } else { (0, blank) };
                text += &" ".repeat(gap + before);
                // The blanks at the end of a line are never written.
                text += &paper.paint(cell.tone, &shown);
                gap = after + GAP;
            }
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
        }
        text
    }

    /// As wide as the widest cell; if that is too wide for the line, the last column is cut, and then the widest others.
    fn widths(&self, lines: &[&Vec<Cell>], width: Option<usize>) -> Vec<usize> {
        let widest = |index: usize| lines.iter().filter_map(|line| line.get(index)).map(|cell| cell.text.width()).max();
        let mut widths: Vec<usize> = (0..self.columns.len()).map(|index| widest(index).unwrap_or_default()).collect();
        let Some(limit) = width else { return widths };
        let mut over =
            (widths.iter().sum::<usize>() + GAP * self.columns.len().saturating_sub(1)).saturating_sub(limit);
        if let Some(last) = widths.last_mut() {
            let cut = over.min(last.saturating_sub(LEAST));
            *last -= cut;
            over -= cut;
        }
        while over > 0 {
            let words = self.columns.iter().zip(widths.iter_mut()).filter(|(column, _)| !column.right);
            let Some((_, widest)) = words.max_by_key(|(_, width)| **width).filter(|(_, width)| **width > LEAST) else {
                break; // the terminal breaks the lines
            };
            *widest -= 1;
            over -= 1;
        }
        widths
    }
}

/// What others have written must not move the cursor, and stays on its line: control characters as Rust writes them.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// The beginning of `text`, and a sign that there is more, if it is wider than `width`.
pub(crate) fn shorten(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut room = width.saturating_sub(1);
    let fits = |c: &char| {
        let width = c.width().unwrap_or_default();
        let fits = width <= room;
        room = room.saturating_sub(width);
        fits
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["ID", "PID", "COMMAND"]).numbers(&["PID"]);
        table.row(["web".into(), "4123".into(), "nginx -g 'daemon off;'".into()]);
        table.row([Cell::new(Tone::Bad, "a1b2c3d4e5f6"), "7".into(), "".into()]);
        table
    }

    fn narrow(width: usize) -> Paper {
        Paper { width: Some(width), colours: false }
    }

    #[test]
    fn columns_are_aligned_and_nothing_trails() {
        let expected = "\
ID             PID  COMMAND
web           4123  nginx -g 'daemon off;'
a1b2c3d4e5f6     7
";
        assert_eq!(table().render(Paper::PLAIN), expected);
    }

    #[test]
    fn a_narrow_terminal_cuts_the_last_column_first() {
        let expected = "\
ID             PID  COMMAND
web           4123  nginx -g 'd…
a1b2c3d4e5f6     7
";
        assert_eq!(table().render(narrow(32)), expected);
        let lines = table().render(narrow(25));
        assert!(lines.contains("a1b2c3d4…") && lines.contains("nginx -…"), "{lines}");
        assert!(lines.lines().all(|line| line.width() <= 25), "{lines}");
        // What cannot be cut any more is broken by the terminal, and still whole.
        assert!(table().render(narrow(3)).contains("4123"));
    }

    #[test]
    fn colours_do_not_move_the_columns() {
        let text = table().render(Paper { width: None, colours: true });
        assert!(text.contains("\x1b[31ma1b2c3d4e5f6\x1b[0m     7"), "{text:?}");
        assert!(text.starts_with("\x1b[1mID\x1b[0m"), "{text:?}");
    }

    #[test]
    fn nobody_else_moves_the_cursor() {
        assert_eq!(printable("a\x1b[2Jb\nc\u{202e}d"), "a\\u{1b}[2Jb\\nc\\u{202e}d");
        assert_eq!(printable("größe 容器"), "größe 容器");
    }

    #[test]
    fn wide_characters_count_twice() {
        assert_eq!(shorten("容器容器", 5), "容器…");
        assert_eq!(shorten("容器", 4), "容器");
        assert_eq!(shorten("ab", 0), "…");
    }
}
