//! **What**: `felix sub`: records as they come, one per line.
//!
//! **Invariants**: stdout is flushed whenever there is nothing to read, so a pipe behind it is live. Gaps and resets
//! are always told, on stderr; with `--json --verbose` also between the records.
//!
//! **Never**: exit code 0 with fewer records than `--count`, unless the reader of stdout went away.
//!
//! **See**: `record.rs` for the lines, `subscribe/latency.rs`, `felix_client::Subscriber`.

mod latency;
mod notice;

use crate::cli::Globals;
use crate::failure::{Exit, Failure};
use crate::link::{check_shard, connect_for_run};
use crate::output::{Out, say};
use crate::record::{RecordFormat, Shown};
use crate::signals::{LOOK_EVERY, Signals};
use crate::start::Begin;
use crate::text::now;
use crate::units::parse_positive_duration;
use clap::{Args, ValueEnum};
use felix_client::protocol::names::StreamName;
use felix_client::protocol::pattern::Pattern;
use felix_client::{DeliveredBatch, DeliveryMode, Item, Shards, SlowPolicy, SubscribeOptions, Subscriber};
use latency::Latency;
use notice::{Counts, Notice};
use std::time::{Duration, Instant};

/// Options of `sub`.
#[derive(Args, Debug)]
#[command(after_help = "\
Each record is one line: its value, or with --json an object with exactly these fields:
  stream, shard, offset, time, key, value
  and with --verbose: lineage, headers, ttl
Key and value are strings if they are UTF-8, else {\"base64\":\"..\"}. A missing key
and the value of a deleted key are null. time is the producer's clock, in UTC.

A filter is made of tokens divided by dots: '*' is any one token, '>' at the
end is one or more tokens.

It ends after --count records, after --timeout, when no record came for
--idle-exit, or with Ctrl-C. The exit code is 0, but with --count: 4 if it
ended before so many records came, 130 if you ended it.

Examples:
  felix sub acme/md/quotes
  felix sub acme/md/quotes --from earliest --count 10 --json
  felix sub acme/md/quotes --filter 'XNAS.*' --from ago:5m --idle-exit 2s
  felix sub acme/md/quotes --shard 0 --from position:1:4200 --json
  felix sub acme/md/quotes --quiet --latency --timeout 10s")]
pub struct SubArgs {
    /// Stream: tenant/namespace/stream
    #[arg(value_name = "NAME")]
    name: StreamName,
    /// earliest, latest, offset:N, position:LINEAGE:OFFSET, time:RFC3339 or ago:SPAN
    #[arg(long, value_name = "WHERE", value_parser = Begin::parse, default_value = "latest")]
    from: Begin,
    /// Only records whose key matches, like 'XNAS.*' or 'md.>'
    #[arg(long, value_name = "PATTERN", value_parser = parse_filter)]
    filter: Option<String>,
    /// End after so many records, over all shards
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Only this shard
    #[arg(long, value_name = "N")]
    shard: Option<u32>,
    /// When this reader is too slow: keep its pace, jump ahead with a gap, or be disconnected
    #[arg(long, value_enum, value_name = "POLICY", default_value = "block")]
    policy: PolicyArg,
    /// How records travel: a stream shared by subscriptions, a stream of its own, or datagrams
    #[arg(long, value_enum, value_name = "MODE", default_value = "shared")]
    mode: ModeArg,
    /// End when no record came for so long
    #[arg(long, value_name = "SPAN", value_parser = parse_positive_duration)]
    idle_exit: Option<Duration>,
    /// At the end print how old records were when they came (producer's clock to ours)
    #[arg(long)]
    latency: bool,
    /// With --json: a value that is JSON becomes part of the object instead of a string
    #[arg(long)]
    parse_json: bool,
    /// Print the key and a tab in front of each value
    #[arg(long, conflicts_with = "json")]
    with_key: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PolicyArg {
    Block,
    DropOldest,
    Disconnect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeArg {
    /// One stream per connection
    Shared,
    /// A stream of its own
    Own,
    /// Datagrams, at most once; what is too large goes on a stream
    Datagram,
    /// Datagrams, at most once; what is too large is told as a gap
    DatagramOrGap,
}

fn parse_filter(text: &str) -> Result<String, String> {
    Pattern::parse(text).map(|pattern| pattern.as_str().to_string()).map_err(|error| error.to_string())
}

impl SubArgs {
    /// The options for a stream with so many shards.
    fn options(&self, shard_count: usize) -> Result<SubscribeOptions, Failure> {
        check_shard(self.shard, shard_count, &self.name)?;
        let shards = match self.shard {
            Some(shard) => Shards::One(shard),
            None if self.from.is_of_one_shard() && shard_count == 1 => Shards::One(0),
            None if self.from.is_of_one_shard() => {
                return Err(Failure::usage(format!(
                    "an offset means something only within a shard and {} has {shard_count}; add --shard N",
                    self.name
                )));
            }
            None => Shards::All,
        };
        Ok(SubscribeOptions {
            shards,
            start: self.from.resolve(now()),
            filter: self.filter.clone(),
            policy: match self.policy {
                PolicyArg::Block => SlowPolicy::Block,
                PolicyArg::DropOldest => SlowPolicy::DropOldest,
                PolicyArg::Disconnect => SlowPolicy::Disconnect,
            },
            mode: match self.mode {
                ModeArg::Shared => DeliveryMode::Shared,
                ModeArg::Own => DeliveryMode::Own,
                ModeArg::Datagram => DeliveryMode::DatagramOrStream,
                ModeArg::DatagramOrGap => DeliveryMode::DatagramOrGap,
            },
            ..SubscribeOptions::default()
        })
    }
}

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Count,
    Time,
    Idle,
    Signal,
}

fn exit(ending: Ending, count_wanted: bool) -> Exit {
    match ending {
        Ending::Signal if count_wanted => Exit::Interrupted,
        Ending::Time | Ending::Idle if count_wanted => Exit::Unknown,
        _ => Exit::Success,
    }
}

/// One run of `sub` after everything is open.
struct Run<'a> {
    globals: &'a Globals,
    args: &'a SubArgs,
    stream: &'a str,
    format: RecordFormat,
    out: &'a mut Out,
    latency: Option<Latency>,
    /// Lines of one batch.
    lines: Vec<u8>,
    counts: Counts,
}

impl Run<'_> {
    fn go(&mut self, subscriber: &mut Subscriber, signals: &Signals) -> Result<Ending, Failure> {
        let started = Instant::now();
        let mut last_record = started;
        loop {
            if signals.raised() {
                return Ok(Ending::Signal);
            }
            let clock = Instant::now();
            let left = |since: Instant, span: Option<Duration>| {
                span.map_or(Duration::MAX, |span| span.saturating_sub(clock.duration_since(since)))
            };
            let until_end = left(started, self.globals.timeout);
            if until_end.is_zero() {
                return Ok(Ending::Time);
            }
            let item = match subscriber.try_next()? {
                Some(item) => item,
                None => {
                    self.out.flush()?;
                    let until_idle = left(last_record, self.args.idle_exit);
                    if until_idle.is_zero() {
                        return Ok(Ending::Idle);
                    }
                    match subscriber.next_item(Some(LOOK_EVERY.min(until_end).min(until_idle)))? {
                        Some(item) => item,
                        None => continue,
                    }
                }
            };
            match item {
                Item::Records(batch) => {
                    let before = self.counts.records;
                    if self.records_came(&batch)? {
                        return Ok(Ending::Count);
                    }
                    if self.counts.records > before {
                        last_record = Instant::now();
                    }
                }
                other => self.tell(&other)?,
            }
        }
    }

    /// Prints the records of a batch. True: that was the last one wanted.
    fn records_came(&mut self, batch: &DeliveredBatch) -> Result<bool, Failure> {
        let received = now();
        let mut last = false;
        self.lines.clear();
        for record in batch.records() {
            self.counts.records += 1;
            if let Some(latency) = &mut self.latency {
                latency.record(record.time, received);
            }
            if !self.globals.quiet {
                let headers: Vec<(&str, &[u8])> = match self.format.wants_headers() {
                    // Headers that break the format are the producer's fault; the record is shown without them.
                    true => record.headers().map_while(Result::ok).collect(),
                    false => Vec::new(),
                };
                let shown = Shown {
                    shard: record.shard.0,
                    offset: record.position.offset.0,
                    lineage: record.position.lineage.0,
                    time: record.time,
                    key: record.key,
                    value: (!record.tombstone).then_some(record.value),
                    headers: &headers,
                    ttl_ms: record.ttl_ms,
                };
                self.format.put(&mut self.lines, &shown);
            }
            if self.args.count == Some(self.counts.records) {
                last = true;
                break;
            }
        }
        self.out.bytes(&self.lines)?;
        Ok(last)
    }

    /// Tells what is no record.
    fn tell(&mut self, item: &Item) -> Result<(), Failure> {
        let Some(notice) = Notice::of(self.stream, item) else { return Ok(()) };
        self.counts.add(&notice);
        self.globals.say(format_args!("{notice}"));
        if self.format.wants_headers() && !self.globals.quiet {
            self.out.value(&notice)?;
        }
        Ok(())
    }

    /// What is said when it is over.
    fn sum_up(&mut self, elapsed: Duration) -> Result<(), Failure> {
        self.counts.seconds = (elapsed.as_secs_f64() * 1e6).round() / 1e6;
        if let Some(latency) = &self.latency {
            say(format_args!("{latency}"));
        }
        self.globals.explain(format_args!("{}", self.counts));
        match (self.globals.quiet, self.out.json()) {
            (false, _) => Ok(()),
            (true, true) => self.out.value(&self.counts),
            (true, false) => self.out.line(self.counts.records),
        }
    }
}

/// Subscribes.
pub fn run(globals: &Globals, args: &SubArgs, out: &mut Out) -> Result<Exit, Failure> {
    if args.parse_json && !globals.json {
        return Err(Failure::usage("--parse-json says how --json looks; add --json"));
    }
    let signals = Signals::install()?;
    let client = connect_for_run(globals)?;
    let route = client.route(&args.name)?;
    let options = args.options(route.shards.len())?;
    let mut subscriber = client.subscribe(&args.name, options)?;
    let stream = args.name.to_string();
    globals.explain(format_args!("subscribed to {stream}"));
    let format = match globals.json {
        true => RecordFormat::json(&stream, globals.verbose, args.parse_json),
        false => RecordFormat::plain(args.with_key),
    };
    let latency = if args.latency { Some(Latency::new()?) } else { None };
    let lines = Vec::new();
    let counts = Counts { stream: stream.clone(), ..Counts::default() };
    let mut run = Run { globals, args, stream: &stream, format, out, latency, lines, counts };
    let started = Instant::now();
    let ended = run.go(&mut subscriber, &signals);
    // Also after a failure: what came is worth its summary.
    let summed = run.sum_up(started.elapsed());
    let (ending, records) = (ended?, run.counts.records);
    summed?;
    let exit = exit(ending, args.count.is_some());
    if let (Exit::Unknown, Some(count)) = (exit, args.count) {
        return Err(Failure::new(
            exit,
            format!("only {records} of {count} records came in time; wait longer, or begin with --from earliest"),
        ));
    }
    Ok(exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SubArgs,
        #[arg(long)]
        #[allow(dead_code, reason = "the global option that with_key conflicts with")]
        json: bool,
    }

    fn args(line: &str) -> SubArgs {
        let words = format!("sub a/b/c {line}");
        Line::try_parse_from(words.split_whitespace()).unwrap_or_else(|error| panic!("{line}: {error}")).args
    }

    #[test]
    fn an_offset_needs_a_shard_if_there_are_several() {
        assert_eq!(args("").options(2).unwrap().shards, Shards::All);
        assert_eq!(args("--from earliest").options(2).unwrap().shards, Shards::All);
        assert_eq!(args("--from offset:5").options(1).unwrap().shards, Shards::One(0));
        assert_eq!(args("--from offset:5 --shard 1").options(2).unwrap().shards, Shards::One(1));
        let failure = args("--from offset:5").options(2).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(failure.message().unwrap().ends_with("add --shard N"));
        assert_eq!(args("--shard 2").options(2).unwrap_err().exit(), Exit::NotFound);
    }

    #[test]
    fn words_become_options() {
        let options = args("--policy drop-oldest --mode datagram --filter XNAS.*").options(1).unwrap();
        assert_eq!(options.policy, SlowPolicy::DropOldest);
        assert_eq!(options.mode, DeliveryMode::DatagramOrStream);
        assert_eq!(options.filter.as_deref(), Some("XNAS.*"));
        for bad in ["--filter a..b", "--count 0", "--idle-exit 0s", "--policy drop", "--mode udp", "--from x"] {
            let words = format!("sub a/b/c {bad}");
            assert!(Line::try_parse_from(words.split_whitespace()).is_err(), "{bad}");
        }
    }

    #[test]
    fn how_it_ends() {
        for (ending, counted, expected) in [
            (Ending::Count, true, Exit::Success),
            (Ending::Time, true, Exit::Unknown),
            (Ending::Idle, true, Exit::Unknown),
            (Ending::Signal, true, Exit::Interrupted),
            (Ending::Time, false, Exit::Success),
            (Ending::Idle, false, Exit::Success),
            (Ending::Signal, false, Exit::Success),
        ] {
            assert_eq!(exit(ending, counted), expected, "{ending:?} {counted}");
        }
    }
}
