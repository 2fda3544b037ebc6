//! **What**: `felix stream`: create, list, describe, alter, delete.
//!
//! **Invariants**: a stream is deleted only after a yes: `--yes`, or its name typed at a terminal.
//!
//! **Never**: a durable stream asked for and an ephemeral one made; a durable one is what who says nothing gets.
//!
//! **See**: `felix_protocol::metadata` for the documents.

use crate::cli::Globals;
use crate::failure::{Exit, Failure};
use crate::link::{ask, ask_all, connect};
use crate::output::{Out, confirm};
use crate::table::{Table, facts};
use crate::tenant::Written;
use crate::text::{serialize_time, show_time, show_time_short};
use crate::units::{parse_duration, parse_size, parse_size_u32, show_duration, show_size};
use clap::{Args, Subcommand, ValueEnum};
use felix_client::protocol::metadata::{Durability, ShardStatus, StreamChanges, StreamInfo, StreamSpec};
use felix_client::protocol::names::{NamespaceName, StreamName, check_label};
use felix_client::protocol::time::Timestamp;
use felix_client::{Command, Reply};
use serde::Serialize;
use std::time::Duration;

/// Verbs of `stream`.
#[derive(Args, Debug)]
#[command(arg_required_else_help = true)]
pub struct StreamArgs {
    #[command(subcommand)]
    verb: StreamVerb,
}

#[derive(Debug, Subcommand)]
enum StreamVerb {
    /// Make a stream, and its tenant and namespace if they are missing
    #[command(after_help = "\
Examples:
  felix stream create acme/md/orders --shards 4 --retention-bytes 10GiB
  felix stream create acme/md/ticks --durability interval --interval-ms 50
  felix stream create acme/md/accounts --compact --tombstone-grace 7d --encrypt
  felix stream create acme/md/quotes --shards 2 --ephemeral --retention-age 10m

What may be lost of acknowledged records, by --durability:
  each      nothing; every batch starts its sync at once
  group     nothing; batches that wait share a sync (default)
  interval  at a power failure up to --interval-ms
  none      at a power failure what the system had not written yet
  --ephemeral: everything at every restart of the broker")]
    Create(CreateArgs),
    /// List streams
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  felix stream list
  felix stream list acme/md --json"
    )]
    List {
        /// Only of this tenant or namespace
        #[arg(value_name = "TENANT[/NAMESPACE]", value_parser = parse_scope)]
        scope: Option<Scope>,
    },
    /// Show a stream and its shards
    #[command(after_help = "\
Examples:
  felix stream describe acme/md/quotes
  felix stream describe acme/md/quotes --json")]
    Describe {
        /// Name: tenant/namespace/stream
        #[arg(value_name = "NAME")]
        name: StreamName,
    },
    /// Change the settings of a stream
    #[command(after_help = "\
Examples:
  felix stream alter acme/md/quotes --retention-bytes 1GiB
  felix stream alter acme/md/quotes --retention-age none --if-version 7")]
    Alter(AlterArgs),
    /// Delete a stream and its data
    #[command(
        visible_alias = "rm",
        after_help = "\
Examples:
  felix stream delete acme/md/quotes --yes"
    )]
    Delete {
        /// Name: tenant/namespace/stream
        #[arg(value_name = "NAME")]
        name: StreamName,
        /// Do not ask
        #[arg(long, short = 'y')]
        yes: bool,
    },
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// Name: tenant/namespace/stream
    #[arg(value_name = "NAME")]
    name: StreamName,
    /// Number of shards, 1 to 1024; fixed for the life of the stream
    #[arg(long, value_name = "N", default_value_t = 1)]
    shards: u32,
    /// What an ack is worth: the sync it waits for; fixed for the life of the stream
    #[arg(long, value_name = "KIND", value_enum, default_value = "group")]
    durability: Stored,
    /// Keep records in memory only: a restart of the broker loses them
    #[arg(long, conflicts_with_all = ["durability", "interval_ms", "compact", "tombstone_grace", "encrypt"])]
    ephemeral: bool,
    /// Longest time between two syncs with --durability interval, 1 to 60000 [default: 100]
    #[arg(long, value_name = "MS")]
    interval_ms: Option<u32>,
    /// Keep only the newest record of each key
    #[arg(long)]
    compact: bool,
    /// With --compact: how long a tombstone stays for slow readers, like 7d [default: 24h]
    #[arg(long, value_name = "SPAN", value_parser = parse_duration, requires = "compact")]
    tombstone_grace: Option<Duration>,
    /// Encrypt records at rest under a key of the tenant
    #[arg(long)]
    encrypt: bool,
    /// Bytes kept per shard, like 64MiB; the oldest records go first
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "64MiB")]
    retention_bytes: u64,
    /// Age after which records go, like 10m; or `none`
    #[arg(long, value_name = "SPAN", value_parser = parse_age, default_value = "none")]
    retention_age: Age,
    /// Largest batch a producer may send, like 1000KiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size_u32)]
    batch_bytes_max: Option<u32>,
    /// Refuse if the tenant or namespace is missing
    #[arg(long)]
    no_parents: bool,
}

/// How a durable stream is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stored {
    /// A sync before each ack, started at once
    Each,
    /// A sync before each ack, shared by the batches that wait
    Group,
    /// A sync every --interval-ms; acks do not wait for it
    Interval,
    /// On disk, never synced
    None,
}

#[derive(Args, Debug)]
struct AlterArgs {
    /// Name: tenant/namespace/stream
    #[arg(value_name = "NAME")]
    name: StreamName,
    /// Bytes kept per shard
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    retention_bytes: Option<u64>,
    /// Age after which records go; `none` takes the bound away
    #[arg(long, value_name = "SPAN", value_parser = parse_age)]
    retention_age: Option<Age>,
    /// Largest batch a producer may send
    #[arg(long, value_name = "SIZE", value_parser = parse_size_u32)]
    batch_bytes_max: Option<u32>,
    /// Only if the stream still has this version (see `describe`)
    #[arg(long, value_name = "N")]
    if_version: Option<u64>,
}

/// An age bound, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Age(Option<u64>);

fn parse_age(text: &str) -> Result<Age, String> {
    if text == "none" {
        return Ok(Age(None));
    }
    let span = parse_duration(text).map_err(|error| format!("{error}, or none"))?;
    let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    match ms {
        0 => Err(format!("{text:?} is under a millisecond; give more, or none for no bound")),
        ms => Ok(Age(Some(ms))),
    }
}

/// What to list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scope {
    tenant: String,
    namespace: Option<String>,
}

fn parse_scope(text: &str) -> Result<Scope, String> {
    let say = |error: felix_client::protocol::names::NameError| error.to_string();
    match text.split_once('/') {
        None => check_label(text).map(|()| Scope { tenant: text.into(), namespace: None }).map_err(say),
        Some((_, rest)) if rest.contains('/') => {
            Err("expected tenant or tenant/namespace; `felix stream describe` shows one stream".into())
        }
        Some(_) => NamespaceName::parse(text)
            .map(|name| Scope { tenant: name.tenant().into(), namespace: Some(name.namespace().into()) })
            .map_err(say),
    }
}

fn durability_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Ephemeral => "ephemeral",
        Durability::None => "none",
        Durability::Interval => "interval",
        Durability::Group => "group",
        Durability::Each => "each",
    }
}

/// A stream as JSON.
#[derive(Serialize)]
struct Shown {
    name: String,
    id: u64,
    shards: u32,
    durability: &'static str,
    interval_ms: Option<u32>,
    loss_window: String,
    retention_bytes: u64,
    retention_age_ms: Option<u64>,
    compact: bool,
    tombstone_grace_ms: Option<u64>,
    encrypt: bool,
    batch_bytes_max: u32,
    version: u64,
    #[serde(serialize_with = "serialize_time")]
    created: Timestamp,
}

impl From<&StreamInfo> for Shown {
    fn from(info: &StreamInfo) -> Shown {
        Shown {
            name: info.name.to_string(),
            id: info.id.0,
            shards: info.spec.shards,
            durability: durability_name(info.spec.durability),
            interval_ms: (info.spec.durability == Durability::Interval).then_some(info.spec.interval_ms),
            loss_window: info.spec.loss_window(),
            retention_bytes: info.spec.retention_bytes,
            retention_age_ms: info.spec.retention_age_ms,
            compact: info.spec.compact,
            tombstone_grace_ms: info.spec.compact.then_some(info.spec.tombstone_grace_ms),
            encrypt: info.spec.encrypt,
            batch_bytes_max: info.spec.batch_bytes_max,
            version: info.version,
            created: info.created,
        }
    }
}

/// A stream with its shards as JSON.
#[derive(Serialize)]
struct Described {
    #[serde(flatten)]
    stream: Shown,
    records: u64,
    retained_bytes: u64,
    shard_status: Vec<DescribedShard>,
}

#[derive(Serialize)]
struct DescribedShard {
    index: u32,
    id: u64,
    core: u8,
    lineage: u32,
    epoch: u64,
    log_start: u64,
    high_watermark: u64,
    retained_bytes: u64,
}

impl Described {
    fn new(info: &StreamInfo, shards: &[ShardStatus]) -> Described {
        Described {
            stream: info.into(),
            records: shards.iter().map(|it| it.high_watermark.since(it.log_start)).sum(),
            retained_bytes: shards.iter().map(|it| it.retained_bytes).sum(),
            shard_status: shards
                .iter()
                .map(|it| DescribedShard {
                    index: it.index.0,
                    id: it.shard.0,
                    core: it.core.0,
                    lineage: it.lineage.0,
                    epoch: it.epoch.0,
                    log_start: it.log_start.0,
                    high_watermark: it.high_watermark.0,
                    retained_bytes: it.retained_bytes,
                })
                .collect(),
        }
    }
}

fn show_age(age_ms: Option<u64>) -> String {
    age_ms.map_or("none".into(), |ms| show_duration(Duration::from_millis(ms)))
}

fn show_compaction(spec: &StreamSpec) -> String {
    let grace = || show_duration(Duration::from_millis(spec.tombstone_grace_ms));
    if spec.compact { format!("newest record of each key, tombstones for {}", grace()) } else { "none".into() }
}

fn list_table(streams: &[StreamInfo]) -> String {
    let head = ["STREAM", ">SHARDS", "DURABILITY", ">RETENTION", ">AGE", ">BATCH MAX", ">VERSION", "CREATED"];
    let mut table = Table::new(&head);
    for info in streams {
        table.row(vec![
            info.name.to_string(),
            info.spec.shards.to_string(),
            durability_name(info.spec.durability).into(),
            show_size(info.spec.retention_bytes),
            show_age(info.spec.retention_age_ms),
            show_size(info.spec.batch_bytes_max.into()),
            info.version.to_string(),
            show_time_short(info.created),
        ]);
    }
    table.show()
}

fn describe_text(info: &StreamInfo, shards: &[ShardStatus]) -> String {
    let sums = Described::new(info, shards);
    let mut text = facts(&[
        ("name", info.name.to_string()),
        ("id", info.id.to_string()),
        ("shards", info.spec.shards.to_string()),
        ("durability", durability_name(info.spec.durability).into()),
        ("loss window", info.spec.loss_window()),
        ("compaction", show_compaction(&info.spec)),
        ("at rest", if info.spec.encrypt { "encrypted under a key of the tenant" } else { "in clear" }.into()),
        (
            "retention",
            format!("{} per shard, age {}", show_size(info.spec.retention_bytes), show_age(info.spec.retention_age_ms)),
        ),
        ("batch max", show_size(info.spec.batch_bytes_max.into())),
        ("version", info.version.to_string()),
        ("created", show_time(info.created)),
        ("records", sums.records.to_string()),
        ("retained", show_size(sums.retained_bytes)),
    ]);
    text.push('\n');
    let head = [">SHARD", ">ID", ">CORE", ">LINEAGE", ">EPOCH", ">LOG START", ">HIGH WATERMARK", ">RETAINED"];
    let mut table = Table::new(&head);
    for it in &sums.shard_status {
        table.row(vec![
            it.index.to_string(),
            it.id.to_string(),
            it.core.to_string(),
            it.lineage.to_string(),
            it.epoch.to_string(),
            it.log_start.to_string(),
            it.high_watermark.to_string(),
            show_size(it.retained_bytes),
        ]);
    }
    text + &table.show()
}

fn stream_done(out: &mut Out, reply: &Reply, verb: &str) -> Result<Exit, Failure> {
    let Reply::StreamDone { stream, .. } = reply else { return Err(Failure::odd_reply("a change of a stream")) };
    if out.json() {
        out.value(&Shown::from(stream))?;
    } else {
        let spec = &stream.spec;
        out.line(format_args!(
            "{verb} {} ({} shard(s), {}, keeps {} per shard, age {}, version {})",
            stream.name,
            spec.shards,
            durability_name(spec.durability),
            show_size(spec.retention_bytes),
            show_age(spec.retention_age_ms),
            stream.version
        ))?;
    }
    Ok(Exit::Success)
}

fn spec_of(args: &CreateArgs) -> Result<StreamSpec, Failure> {
    let durability = match args.durability {
        _ if args.ephemeral => Durability::Ephemeral,
        Stored::Each => Durability::Each,
        Stored::Group => Durability::Group,
        Stored::Interval => Durability::Interval,
        Stored::None => Durability::None,
    };
    if args.interval_ms.is_some() && durability != Durability::Interval {
        return Err(Failure::usage("--interval-ms needs --durability interval"));
    }
    let defaults = StreamSpec::default();
    Ok(StreamSpec {
        shards: args.shards,
        durability,
        retention_bytes: args.retention_bytes,
        retention_age_ms: args.retention_age.0,
        batch_bytes_max: args.batch_bytes_max.unwrap_or(defaults.batch_bytes_max),
        interval_ms: args.interval_ms.unwrap_or(defaults.interval_ms),
        compact: args.compact,
        tombstone_grace_ms: args
            .tombstone_grace
            .map_or(defaults.tombstone_grace_ms, |span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
        encrypt: args.encrypt,
    })
}

fn create(globals: &Globals, args: &CreateArgs, out: &mut Out) -> Result<Exit, Failure> {
    let spec = spec_of(args)?;
    let client = connect(globals)?;
    let command = Command::CreateStream { name: args.name.clone(), spec, create_parents: !args.no_parents };
    stream_done(out, &ask(&client, command)?, "created")
}

fn list(globals: &Globals, scope: Option<&Scope>, out: &mut Out) -> Result<Exit, Failure> {
    let client = connect(globals)?;
    let streams = ask_all(
        &client,
        |last: Option<&StreamInfo>| Command::ListStreams {
            tenant: scope.map(|scope| scope.tenant.clone()),
            namespace: scope.and_then(|scope| scope.namespace.clone()),
            after: last.map(|info| info.name.clone()),
        },
        |reply| match reply {
            Reply::Streams { streams, more } => Some((streams, more)),
            _ => None,
        },
    )?;
    if out.json() {
        for info in &streams {
            out.value(&Shown::from(info))?;
        }
    } else {
        out.bytes(list_table(&streams).as_bytes())?;
    }
    Ok(Exit::Success)
}

fn describe(globals: &Globals, name: &StreamName, out: &mut Out) -> Result<Exit, Failure> {
    let client = connect(globals)?;
    let reply = ask(&client, Command::DescribeStream { name: name.clone() })?;
    let Reply::Stream { stream, shards } = reply else { return Err(Failure::odd_reply("describe")) };
    if out.json() {
        out.value(&Described::new(&stream, &shards))?;
    } else {
        out.bytes(describe_text(&stream, &shards).as_bytes())?;
    }
    Ok(Exit::Success)
}

fn alter(globals: &Globals, args: &AlterArgs, out: &mut Out) -> Result<Exit, Failure> {
    let changes = StreamChanges {
        retention_bytes: args.retention_bytes,
        retention_age_ms: args.retention_age.map(|age| age.0),
        batch_bytes_max: args.batch_bytes_max,
    };
    if changes == StreamChanges::default() {
        return Err(Failure::usage("nothing to change; give --retention-bytes, --retention-age or --batch-bytes-max"));
    }
    let client = connect(globals)?;
    let command = Command::AlterStream { name: args.name.clone(), changes, if_version: args.if_version };
    stream_done(out, &ask(&client, command)?, "altered")
}

fn delete(globals: &Globals, name: &StreamName, yes: bool, out: &mut Out) -> Result<Exit, Failure> {
    let text = name.to_string();
    confirm(&format!("delete {text} and its data"), &text, yes)?;
    let client = connect(globals)?;
    let version = match ask(&client, Command::DeleteStream { name: name.clone() })? {
        Reply::Done { version } | Reply::StreamDone { version, .. } => version,
        _ => return Err(Failure::odd_reply("delete")),
    };
    if out.json() {
        out.value(&Written { created: None, deleted: Some(&text), version })?;
    } else {
        out.line(format_args!("deleted {text}"))?;
    }
    Ok(Exit::Success)
}

/// Runs a verb of `stream`.
pub fn run(globals: &Globals, args: &StreamArgs, out: &mut Out) -> Result<Exit, Failure> {
    match &args.verb {
        StreamVerb::Create(args) => create(globals, args, out),
        StreamVerb::List { scope } => list(globals, scope.as_ref(), out),
        StreamVerb::Describe { name } => describe(globals, name, out),
        StreamVerb::Alter(args) => alter(globals, args, out),
        StreamVerb::Delete { name, yes } => delete(globals, name, *yes, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use felix_client::protocol::ids::{CoreId, ShardId, ShardIndex, StreamId};
    use felix_client::protocol::position::{Epoch, Lineage, Offset};

    fn info() -> StreamInfo {
        StreamInfo {
            id: StreamId(7),
            name: StreamName::parse("acme/md/quotes").unwrap(),
            spec: StreamSpec { shards: 2, retention_age_ms: Some(600_000), ..StreamSpec::default() },
            version: 3,
            created: Timestamp(1_769_860_800_123_456_789),
        }
    }

    fn shard(index: u32) -> ShardStatus {
        ShardStatus {
            index: ShardIndex(index),
            shard: ShardId(10 + u64::from(index)),
            core: CoreId(index as u8),
            lineage: Lineage(1),
            epoch: Epoch(2),
            log_start: Offset(100),
            high_watermark: Offset(150),
            retained_bytes: 2_048,
        }
    }

    #[test]
    fn json_to_the_byte() {
        assert_eq!(
            serde_json::to_string(&Shown::from(&info())).unwrap(),
            concat!(
                r#"{"name":"acme/md/quotes","id":7,"shards":2,"durability":"ephemeral","interval_ms":null,"#,
                r#""loss_window":"in memory: a restart of the broker loses every record","retention_bytes":67108864,"#,
                r#""retention_age_ms":600000,"compact":false,"tombstone_grace_ms":null,"encrypt":false,"#,
                r#""batch_bytes_max":1024000,"version":3,"#,
                r#""created":"2026-01-31T12:00:00.123456789Z"}"#
            )
        );
        let described = serde_json::to_string(&Described::new(&info(), &[shard(0), shard(1)])).unwrap();
        assert!(described.starts_with(r#"{"name":"acme/md/quotes","id":7,"#));
        assert!(described.ends_with(concat!(
            r#","records":100,"retained_bytes":4096,"shard_status":["#,
            r#"{"index":0,"id":10,"core":0,"lineage":1,"epoch":2,"log_start":100,"high_watermark":150,"retained_bytes":2048},"#,
            r#"{"index":1,"id":11,"core":1,"lineage":1,"epoch":2,"log_start":100,"high_watermark":150,"retained_bytes":2048}"#,
            "]}"
        )));
    }

    #[test]
    fn text_for_people() {
        let expected = "\
STREAM          SHARDS  DURABILITY  RETENTION  AGE  BATCH MAX  VERSION  CREATED
acme/md/quotes       2  ephemeral      64 MiB  10m   1000 KiB        3  2026-01-31T12:00:00Z
";
        assert_eq!(list_table(&[info()]), expected);
        let expected = "\
name         acme/md/quotes
id           7
shards       2
durability   ephemeral
loss window  in memory: a restart of the broker loses every record
compaction   none
at rest      in clear
retention    64 MiB per shard, age 10m
batch max    1000 KiB
version      3
created      2026-01-31T12:00:00.123456789Z
records      50
retained     2 KiB

SHARD  ID  CORE  LINEAGE  EPOCH  LOG START  HIGH WATERMARK  RETAINED
    0  10     0        1      2        100             150     2 KiB
";
        assert_eq!(describe_text(&info(), &[shard(0)]), expected);
    }

    /// A command line as clap reads it.
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: CreateArgs,
    }

    fn asked(options: &[&str]) -> Result<StreamSpec, String> {
        use clap::Parser;
        let line = Line::try_parse_from([&["felix", "acme/md/quotes"], options].concat());
        let line = line.map_err(|error| error.to_string())?;
        spec_of(&line.args).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn what_is_asked_for_is_what_is_made() {
        let base = StreamSpec { durability: Durability::Group, ..StreamSpec::default() };
        let interval = StreamSpec { durability: Durability::Interval, ..base };
        for (options, expected) in [
            (&[][..], base),
            (&["--ephemeral"], StreamSpec::default()),
            (&["--durability", "each"], StreamSpec { durability: Durability::Each, ..base }),
            (&["--durability", "none"], StreamSpec { durability: Durability::None, ..base }),
            (&["--durability", "interval"], interval),
            (&["--durability", "interval", "--interval-ms", "50"], StreamSpec { interval_ms: 50, ..interval }),
            (&["--compact", "--encrypt"], StreamSpec { compact: true, encrypt: true, ..base }),
            (
                &["--compact", "--tombstone-grace", "7d"],
                StreamSpec { compact: true, tombstone_grace_ms: 604_800_000, ..base },
            ),
        ] {
            assert_eq!(asked(options), Ok(expected), "{options:?}");
        }
        for (options, hint) in [
            (&["--ephemeral", "--durability", "group"][..], "cannot be used with"),
            (&["--ephemeral", "--compact"], "cannot be used with"),
            (&["--ephemeral", "--encrypt"], "cannot be used with"),
            (&["--ephemeral", "--interval-ms", "5"], "cannot be used with"),
            (&["--interval-ms", "5"], "--interval-ms needs --durability interval"),
            (&["--tombstone-grace", "1d"], "--compact"),
            (&["--durability", "ephemeral"], "possible values"),
        ] {
            let error = asked(options).unwrap_err();
            assert!(error.contains(hint), "{options:?} does not say {hint:?}: {error}");
        }
    }

    #[test]
    fn the_loss_window_in_words() {
        let words = |durability| StreamSpec { durability, ..StreamSpec::default() }.loss_window();
        assert!(words(Durability::Group).starts_with("none: an ack comes after fdatasync"));
        assert!(words(Durability::Each).starts_with("none: an ack comes after fdatasync"));
        let spec = StreamSpec { durability: Durability::Interval, interval_ms: 250, ..StreamSpec::default() };
        assert_eq!(spec.loss_window(), "synced every 250 ms: up to 250 ms of acked records at a power failure");
        assert!(words(Durability::None).starts_with("never synced: a power failure loses"));
        let info = StreamInfo {
            spec: StreamSpec { durability: Durability::Group, compact: true, encrypt: true, ..StreamSpec::default() },
            ..info()
        };
        let text = describe_text(&info, &[shard(0)]);
        for line in [
            "durability   group\n",
            "loss window  none: an ack comes after fdatasync, which waiting batches share\n",
            "compaction   newest record of each key, tombstones for 1d\n",
            "at rest      encrypted under a key of the tenant\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in:\n{text}");
        }
    }

    #[test]
    fn scopes() {
        let scope = |tenant: &str, namespace: Option<&str>| Scope {
            tenant: tenant.into(),
            namespace: namespace.map(Into::into),
        };
        assert_eq!(parse_scope("acme"), Ok(scope("acme", None)));
        assert_eq!(parse_scope("acme/md"), Ok(scope("acme", Some("md"))));
        for bad in ["", "Acme", "acme/", "/md", "acme/md/quotes"] {
            assert!(parse_scope(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ages() {
        assert_eq!(parse_age("none"), Ok(Age(None)));
        assert_eq!(parse_age("10m"), Ok(Age(Some(600_000))));
        for bad in ["", "0s", "1us", "10"] {
            assert!(parse_age(bad).is_err(), "{bad}");
        }
    }
}
