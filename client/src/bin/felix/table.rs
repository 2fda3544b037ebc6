//! **What**: aligned tables and lists of facts for people.
//!
//! **Invariants**: columns are two spaces apart, numbers to the right, no space at the end of a line.
//!
//! **Never**: a table when JSON was asked for.
//!
//! **See**: `stream.rs`, `top.rs`.

use std::fmt::Write;

/// On which side of its column a cell is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table: a head, then rows as long as the head.
#[derive(Clone, Debug)]
pub struct Table {
    head: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table. A name that begins with `>` heads a column of numbers.
    pub fn new(head: &[&'static str]) -> Table {
        let head = head.iter().map(|name| match name.strip_prefix('>') {
            Some(name) => (name, Align::Right),
            None => (*name, Align::Left),
        });
        Table { head: head.collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.head.len(), "a row is as long as the head");
        self.rows.push(cells);
    }

    /// The text, each line with its newline.
    pub fn show(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.head[column].0.chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let mut text = String::new();
        let mut line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut row = String::new();
            for ((cell, width), (_, align)) in cells.zip(&widths).zip(&self.head) {
                let _ = match align {
                    Align::Left => write!(row, "{cell:<width$}  "),
                    Align::Right => write!(row, "{cell:>width$}  "),
                };
            }
            text += row.trim_end();
            text.push('\n');
        };
        line(&mut self.head.iter().map(|(name, _)| *name));
        for row in &self.rows {
            line(&mut row.iter().map(String::as_str));
        }
        text
    }
}

/// Names and values under each other, the values aligned.
pub fn facts(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in pairs {
        let line = format!("{name:<width$}  {value}");
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["NAME", ">SHARDS", "AGE"]);
        table.row(vec!["acme/md/quotes".into(), "2".into(), "10m".into()]);
        table.row(vec!["a/b/c".into(), "1024".into(), String::new()]);
        let expected = "\
NAME            SHARDS  AGE
acme/md/quotes       2  10m
a/b/c             1024
";
        assert_eq!(table.show(), expected);
        assert_eq!(Table::new(&["NAME", ">N"]).show(), "NAME  N\n");
    }

    #[test]
    fn facts_are_aligned() {
        assert_eq!(facts(&[("name", "x".into()), ("retention", "1 B".into())]), "name       x\nretention  1 B\n");
    }
}
