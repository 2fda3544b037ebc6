//! **What**: what a run says: a line per row, a table per task, JSON lines into a file, a progress bar for people.
//!
//! **Invariants**: every row and summary goes to the file at once, so an ended run leaves what it had. Nothing is drawn
//! while a row is measured.
//!
//! **Never**: a table without what it depends on.
//!
//! **See**: `series.rs`, `results.rs` (tables and plots from the file).

use crate::cell::Row;
use crate::series::{Spread, Summary, Task};
use crate::{Common, Error};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// Where results go.
pub struct Report {
    file: Option<File>,
    bar: ProgressBar,
}

impl Report {
    /// Appends JSON lines to `out`, if given; else summaries go to standard output. `cells` are to come.
    pub fn new(out: Option<&Path>, cells: usize) -> Result<Report, Error> {
        let file = match out {
            Some(path) => {
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                Some(OpenOptions::new().create(true).append(true).open(path)?)
            }
            None => None,
        };
        let bar = ProgressBar::new(cells as u64);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} (about {eta} left) {msg}")?;
        bar.set_style(style);
        Ok(Report { file, bar })
    }

    /// A report of a command with `cells` cells.
    pub fn of(common: &Common, cells: usize) -> Result<Report, Error> {
        Report::new(common.out.as_deref(), cells)
    }

    /// A cell begins.
    pub fn begin(&self, name: &str, task: &Task) {
        self.bar.set_message(format!("{name}, {} subscribers", task.subscribers));
        self.bar.tick();
    }

    /// A cell is done.
    pub fn done(&self) {
        self.bar.inc(1);
    }

    /// Says a line.
    pub fn say(&self, text: &str) {
        self.bar.suspend(|| println!("{text}"));
    }

    /// One run is over.
    pub fn row(&mut self, row: &Row) -> Result<(), Error> {
        self.say(&row.line());
        if self.file.is_some() { self.json("cell", row) } else { Ok(()) }
    }

    /// One task is over.
    pub fn summaries(&mut self, task: &Task, summaries: &[Summary]) -> Result<(), Error> {
        self.say(&table(task, summaries));
        summaries.iter().try_for_each(|summary| self.json("summary", summary))
    }

    /// A line of JSON, with what it is in front.
    pub fn json(&mut self, bench: &str, value: &impl Serialize) -> Result<(), Error> {
        let mut value = serde_json::to_value(value)?;
        value.as_object_mut().ok_or("a line of JSON is an object")?.insert("bench".into(), bench.into());
        match &mut self.file {
            Some(file) => writeln!(file, "{value}")?,
            None => self.say(&value.to_string()),
        }
        Ok(())
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The table of one task. The first contender stands beside each other one.
pub fn table(task: &Task, summaries: &[Summary]) -> String {
    let Some(first) = summaries.first() else { return "every run was void".to_string() };
    let row = &first.last;
    let mut out = format!(
        "\n{} subscriber(s), {} B, {}, {} record(s) per publish, wait {}, {} core(s); medians of {} rounds; ratio = {} / other [min..max]\n",
        task.subscribers,
        row.value_bytes,
        row.load_name(),
        task.batch,
        row.wait,
        row.cores,
        first.rounds,
        first.name,
    );
    out += &format!(
        "{:<14} {:>8} {:>8} {:>8} {:>10} {:>8} {:>6} {:>6} {:>7}  {:<18} {:<18} {:<18}\n",
        "", "p50 us", "p99 us", "p99.9", "deliv/s", "cost ns", "client", "MTU", "spread", "p50", "p99", "cost"
    );
    for it in summaries {
        let spread = if it.last.rate.is_some() { it.p50_us } else { it.cost_ns };
        out += &format!(
            "{:<14} {:>8.1} {:>8.1} {:>8.1} {:>10.0} {:>8.0} {:>5.0}% {:>6} {:>6.1}%  {:<18} {:<18} {:<18}{}{}\n",
            it.name,
            it.p50_us.median,
            it.p99_us.median,
            it.p999_us.median,
            it.rate.median,
            it.cost_ns.median,
            it.last.client_busy_percent,
            it.last.path_mtu,
            spread.percent(),
            ratio(it.ratio_p50),
            ratio(it.ratio_p99),
            ratio(it.ratio_cost),
            if it.lost > 0 { format!(" LOST {}", it.lost) } else { String::new() },
            if it.void { format!(" VOID (others {:.0} %)", it.others_percent.median) } else { String::new() },
        );
    }
    out
}

/// `0.53 [0.50..0.61]`.
pub fn ratio(spread: Spread) -> String {
    format!("{:.2} [{:.2}..{:.2}]", spread.median, spread.min, spread.max)
}
