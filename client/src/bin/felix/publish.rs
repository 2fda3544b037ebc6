//! **What**: `felix pub`: lines become records.
//!
//! ```text
//! stdin or file --> input.rs --> line --> key.rs --> key, value --> Publisher::send --> acks --> summary
//! ```
//!
//! **Invariants**: one record per line, in order. The newline is taken off and nothing else: a CR before it belongs to
//! the value. Empty lines are passed over unless `--keep-empty`. However the run ends, what was taken before is flushed
//! and accounted for in the summary.
//!
//! **Never**: exit code 0 with a bad line, a refused record or an unknown outcome.
//!
//! **See**: `summary.rs` for how it ends, `felix_client::Publisher`.

mod summary;

use crate::cli::Globals;
use crate::failure::{Exit, Failure};
use crate::input::{Lines, Next};
use crate::key::{BadLine, KeySource, parse_separator};
use crate::link::{check_shard, connect_for_run};
use crate::output::Out;
use crate::signals::{LOOK_EVERY, Signals};
use crate::text::now;
use crate::units::{parse_positive_duration, parse_rate};
use clap::{Args, ValueEnum};
use felix_client::protocol::limits::{BATCH_BODY_BYTES_MAX, TTL_MS_MAX};
use felix_client::protocol::names::StreamName;
use felix_client::{AckFuture, Compression, Publisher, PublisherOptions, RecordToPublish, SendError, ShardTarget};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use summary::{Ending, Summary};

/// Time an acknowledgement may take unless `--timeout` says otherwise: longer than the restart of a broker.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);
/// A progress bar appears when the run is longer than this.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);
/// Records between two looks at the clock for progress, and at what became of one of them.
const LOOK_EVERY_RECORDS: u64 = 1_024;

/// Time between two looks for room in flight: far less than it takes to send what may be in flight.
const ROOM_CHECK: Duration = Duration::from_micros(500);

/// Options of `pub`.
#[derive(Args, Debug)]
#[command(after_help = "\
One record per line. The newline is not part of the record, a CR before it is.
Empty lines are passed over unless --keep-empty. A bad line (no JSON, no key,
too long) is reported with its number; what came before it is published, and
the exit code is 1, also with --on-bad skip.

Examples:
  felix pub acme/md/quotes --key-field symbol < quotes.jsonl
  felix pub acme/md/quotes --key-separator '\\t' --file quotes.tsv --compression lz4
  felix pub acme/md/quotes --key XNAS.AAPL --header source=manual --ttl 5s
  felix pub acme/md/quotes --file quotes.jsonl --rate 1000/s --json")]
pub struct PubArgs {
    /// Stream: tenant/namespace/stream
    #[arg(value_name = "NAME")]
    name: StreamName,
    /// Key of every record
    #[arg(long, value_name = "KEY", group = "key_source")]
    pub key: Option<String>,
    /// Lines are JSON objects; the key is this field (a string, integer or boolean)
    #[arg(long, value_name = "FIELD", group = "key_source")]
    key_field: Option<String>,
    /// Key and value are divided by this, like '\t'
    #[arg(long, value_name = "TEXT", group = "key_source", value_parser = parse_separator)]
    key_separator: Option<std::vec::Vec<u8>>,
    /// Publish to this shard, whatever the key
    #[arg(long, value_name = "N")]
    shard: Option<u32>,
    /// Read this file instead of stdin
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Publish at this pace, like 1000/s
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    rate: Option<f64>,
    /// Do not ask for acknowledgements: at most once, and losses are not told
    #[arg(long)]
    no_ack: bool,
    /// Header of every record; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = parse_header)]
    headers: Vec<(String, String)>,
    /// Time to live of every record, like 5s
    #[arg(long, value_name = "SPAN", value_parser = parse_ttl)]
    ttl: Option<u64>,
    /// Compress batches that are worth it
    #[arg(long, value_enum, value_name = "HOW", default_value = "none")]
    compression: CompressionArg,
    /// Wait for the acknowledgements after so many records [default: as many as may be in flight]
    #[arg(long, value_name = "RECORDS", value_parser = clap::value_parser!(u64).range(1..))]
    batch: Option<u64>,
    /// Publish empty lines too
    #[arg(long)]
    keep_empty: bool,
    /// What to do about a bad line
    #[arg(long, value_enum, value_name = "WHAT", default_value = "stop")]
    on_bad: OnBad,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnBad {
    /// Publish what came before it and stop
    Stop,
    /// Pass over it and go on
    Skip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CompressionArg {
    None,
    Lz4,
    Zstd,
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err(format!("{text:?} is no header; write name=value")),
    }
}

fn parse_ttl(text: &str) -> Result<u64, String> {
    let ms = u64::try_from(parse_positive_duration(text)?.as_millis()).unwrap_or(u64::MAX);
    match ms {
        1..=TTL_MS_MAX => Ok(ms),
        _ => Err(format!("{text:?} is out of range; a TTL is 1ms to {}d", TTL_MS_MAX / 86_400_000)),
    }
}

impl PubArgs {
    fn key_source(&self) -> KeySource {
        match (&self.key, &self.key_field, &self.key_separator) {
            (Some(key), _, _) => KeySource::Fixed(key.clone().into_bytes()),
            (_, Some(field), _) => KeySource::Field(field.clone()),
            (_, _, Some(separator)) => KeySource::Separator(separator.clone()),
            _ => KeySource::None,
        }
    }

    fn options(&self, deadline: Duration) -> PublisherOptions {
        PublisherOptions {
            acks: !self.no_ack,
            target: self.shard.map_or(ShardTarget::ByKey, ShardTarget::Shard),
            compression: match self.compression {
                CompressionArg::None => Compression::None,
                CompressionArg::Lz4 => Compression::Lz4,
                CompressionArg::Zstd => Compression::Zstd,
            },
            deadline,
            ..PublisherOptions::default()
        }
    }
}

/// Spreads records evenly over time.
struct Pace {
    per_second: f64,
    started: Instant,
}

impl Pace {
    /// When record `number`, from 0, is due, counted from the start.
    fn due(&self, number: u64) -> Duration {
        Duration::try_from_secs_f64(number as f64 / self.per_second).unwrap_or(Duration::MAX)
    }

    /// Waits until it is due. True: a signal came first.
    fn wait(&self, number: u64, signals: &Signals) -> bool {
        match self.due(number).checked_sub(self.started.elapsed()) {
            Some(early) if !early.is_zero() => signals.sleep(early),
            _ => false,
        }
    }
}

/// The bar on stderr: only for people, only for long input.
struct Progress {
    bar: Option<ProgressBar>,
    file_bytes: Option<u64>,
    started: Instant,
    wanted: bool,
}

impl Progress {
    fn new(globals: &Globals, file_bytes: Option<u64>) -> Progress {
        let wanted = !globals.quiet && std::io::stderr().is_terminal();
        Progress { bar: None, file_bytes, started: Instant::now(), wanted }
    }

    fn tell(&mut self, bytes: u64, records: u64) {
        if !self.wanted || self.started.elapsed() < PROGRESS_AFTER {
            return;
        }
        let file_bytes = self.file_bytes;
        let bar = self.bar.get_or_insert_with(|| {
            let (bar, template) = match file_bytes {
                Some(total) => (ProgressBar::new(total), "{wide_bar} {bytes}/{total_bytes} {msg} eta {eta}"),
                None => (ProgressBar::new_spinner(), "{bytes} {msg} {elapsed}"),
            };
            bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        bar.set_position(bytes);
        bar.set_message(format!("{records} records"));
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Why a record was not taken.
enum SendStop {
    Failed(SendError),
    Interrupted,
}

/// One run of `pub` after everything is open.
struct Run<'a> {
    globals: &'a Globals,
    args: &'a PubArgs,
    publisher: &'a Publisher,
    signals: Signals,
    deadline: Duration,
    /// The acknowledgement that is looked at on the way.
    probe: Option<AckFuture>,
    summary: Summary,
}

impl Run<'_> {
    /// Reads, sends and flushes until the input or our luck ends.
    fn go(&mut self, lines: &mut Lines, progress: &mut Progress) -> Ending {
        let keys = self.args.key_source();
        let headers: Vec<(&str, &[u8])> =
            self.args.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let pace = self.args.rate.map(|per_second| Pace { per_second, started: Instant::now() });
        loop {
            if self.signals.raised() {
                return Ending::Interrupted;
            }
            let bad = match lines.next(LOOK_EVERY) {
                Err(error) => return Ending::Input(error),
                Ok(Next::End) => return Ending::InputEnded,
                Ok(Next::Idle) => continue,
                Ok(Next::TooLong) => Some(BadLine::TooLong { max: BATCH_BODY_BYTES_MAX }),
                Ok(Next::Line([])) if !self.args.keep_empty => continue,
                Ok(Next::Line(line)) => match keys.split(line) {
                    Err(bad) => Some(bad),
                    Ok((key, value)) => {
                        if pace.as_ref().is_some_and(|pace| pace.wait(self.summary.taken, &self.signals)) {
                            return Ending::Interrupted;
                        }
                        let record = RecordToPublish {
                            key: key.as_deref(),
                            value,
                            headers: &headers,
                            ttl_ms: self.args.ttl,
                            tombstone: false,
                            time: now(),
                        };
                        match self.send(&record) {
                            Ok(()) => {
                                self.summary.taken += 1;
                                self.summary.bytes += value.len() as u64;
                                None
                            }
                            Err(SendStop::Failed(error @ (SendError::Invalid(_) | SendError::TooLarge { .. }))) => {
                                Some(BadLine::Refused(error))
                            }
                            Err(SendStop::Failed(error)) => return Ending::Send(error),
                            Err(SendStop::Interrupted) => return Ending::Interrupted,
                        }
                    }
                },
            };
            if let Some(bad) = bad {
                self.summary.bad_lines += 1;
                crate::output::say(format_args!("error: line {}: {bad}", lines.number()));
                if self.args.on_bad == OnBad::Stop {
                    return Ending::BadLine;
                }
                continue;
            }
            let batch_is_full = self.args.batch.is_some_and(|batch| self.summary.taken.is_multiple_of(batch));
            if batch_is_full && let Err(ending) = self.flush() {
                return ending;
            }
            if self.summary.taken.is_multiple_of(LOOK_EVERY_RECORDS) {
                if self.probe_failed() {
                    return Ending::Refused;
                }
                progress.tell(lines.bytes_taken(), self.summary.taken);
            } else if pace.is_some() {
                progress.tell(lines.bytes_taken(), self.summary.taken);
            }
        }
    }

    /// Gives a record to the client; waits for room, but not on after a signal. Of one record at a time the outcome is
    /// looked at before the end, so that a long input is not read to its end when nothing is taken any more.
    fn send(&mut self, record: &RecordToPublish<'_>) -> Result<(), SendStop> {
        let begun = Instant::now();
        loop {
            let result = match self.probe {
                None if !self.args.no_ack => self.publisher.try_send_acked(record).map(|ack| self.probe = Some(ack)),
                _ => self.publisher.try_send(record),
            };
            match result {
                Ok(()) => return Ok(()),
                Err(SendError::WouldBlock) if self.signals.raised() => return Err(SendStop::Interrupted),
                Err(SendError::WouldBlock) if begun.elapsed() < self.deadline => std::thread::sleep(ROOM_CHECK),
                Err(SendError::WouldBlock) => return Err(SendStop::Failed(SendError::TimedOut)),
                Err(error) => return Err(SendStop::Failed(error)),
            }
        }
    }

    /// Looks at the record whose outcome is looked at. True: it failed.
    fn probe_failed(&mut self) -> bool {
        match self.probe.as_ref().and_then(AckFuture::try_get) {
            None => false,
            Some(Err(_)) => true,
            Some(Ok(_)) => {
                self.probe = None;
                false
            }
        }
    }

    /// Waits for the outcome of everything sent. An error: it makes no sense to go on.
    fn flush(&mut self) -> Result<(), Ending> {
        match self.publisher.flush() {
            Ok(report) => {
                let clean = report.is_clean();
                self.summary.add(report);
                if clean { Ok(()) } else { Err(Ending::Refused) }
            }
            Err(error) => Err(Ending::Flush(error)),
        }
    }
}

/// Publishes.
pub fn run(globals: &Globals, args: &PubArgs, out: &mut Out) -> Result<Exit, Failure> {
    let unreadable = |error: std::io::Error| {
        let file = args.file.as_ref().map_or("stdin".into(), |path| path.display().to_string());
        Failure::usage(format!("{file} cannot be read: {error}; check the path"))
    };
    let file = args.file.as_deref().filter(|path| path.as_os_str() != "-");
    let mut lines = Lines::open(file, BATCH_BODY_BYTES_MAX).map_err(unreadable)?;
    let file_bytes = file.and_then(|path| std::fs::metadata(path).ok()).filter(|it| it.is_file()).map(|it| it.len());
    let client = connect_for_run(globals)?;
    let route = client.route(&args.name)?;
    check_shard(args.shard, route.shards.len(), &args.name)?;
    let deadline = globals.timeout.unwrap_or(ACK_TIMEOUT);
    let publisher = client.publisher(&args.name, args.options(deadline))?;
    let signals = Signals::install()?;
    if file.is_none() && std::io::stdin().is_terminal() {
        globals.say(format_args!("one record per line; end with Ctrl-D"));
    }
    let mut progress = Progress::new(globals, file_bytes);
    let started = Instant::now();
    let mut run =
        Run { globals, args, publisher: &publisher, signals, deadline, probe: None, summary: Summary::default() };
    let mut ending = run.go(&mut lines, &mut progress);
    if matches!(ending, Ending::Interrupted) && publisher.bytes_in_flight() > 0 {
        globals.say(format_args!("interrupted; waiting for acknowledgements, once more ends it at once"));
    }
    if let Err(after) = run.flush() {
        // A broken input or a signal stays the reason; that records failed too is in the counts.
        if matches!(ending, Ending::InputEnded) {
            ending = after;
        } else if let Ending::Flush(error) = after {
            run.summary.give_up(&error);
        }
    }
    progress.end();
    run.summary.end(run.globals, &args.name, started.elapsed(), &ending, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_ttls() {
        assert_eq!(parse_header("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse_header("a="), Ok(("a".into(), String::new())));
        for bad in ["", "a", "=b"] {
            assert!(parse_header(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_ttl("5s"), Ok(5_000));
        for bad in ["0s", "1us", "11000d", "5"] {
            assert!(parse_ttl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn records_are_due_evenly() {
        let pace = Pace { per_second: 1_000.0, started: Instant::now() };
        assert_eq!(pace.due(0), Duration::ZERO);
        assert_eq!(pace.due(1_500), Duration::from_millis(1_500));
        let slowest = Pace { per_second: 1e-300, started: Instant::now() };
        assert_eq!(slowest.due(u64::MAX), Duration::MAX);
    }
}
