//! **What**: `felix-broker check`: what `felix_wal::check` finds, for people and for programs: where, which offsets, what it
//! means, what to do.
//!
//! **Invariants**: the exit code follows from the findings and nothing else. A place that could not be read is never counted
//! as clean.
//!
//! **Never**: a write; an end at the first finding.
//!
//! **See**: `repair.rs`, `wal/src/check.rs`.

use super::args::CheckArgs;
use super::folder::{self, DataFolder, ToolError};
use super::{CANNOT_READ, CLEAN, DAMAGE, HARMLESS, shown};
use crate::data_folder::{self, DataFolderError};
use crate::offline_disk::{Access, disk_error};
use felix_protocol::ids::{ClusterId, NodeId};
use felix_protocol::position::OffsetRange;
use felix_wal::check::{CheckReport, Consequence, Finding, What, check};
use felix_wal::disk::DiskError;
use felix_wal::format::header::{Identity, Region};
use felix_wal::format::names::{Name, SegmentId};
use felix_wal::judge::{Damage, WalEnd, WalReport};
use felix_wal::recover::RecoverError;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::Path;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    Harmless,
    Unread,
    Damage,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Severity::Harmless => "harmless",
            Severity::Unread => "unread",
            Severity::Damage => "damage",
        }
    }
}

/// One finding, ready to be shown.
struct Item {
    severity: Severity,
    path: String,
    at: u64,
    shard: Option<u64>,
    range: Option<OffsetRange>,
    what: String,
    consequence: String,
    advice: String,
}

/// Checks a folder. Returns the exit code.
pub fn run(args: &CheckArgs) -> Result<u8, ToolError> {
    let folder = DataFolder::open(&args.data, Access::ReadOnly)?;
    let mut disk = folder.disk(Access::ReadOnly);
    let known = folder::identity(&mut disk).map(|(identity, _)| identity);
    // Without any readable header every file is reported for its own damage, before identities are compared.
    let nobody = || Region::new("unknown").map(|region| Identity { cluster: ClusterId(0), node: NodeId(0), region });
    let Some(identity) = known.or_else(nobody) else { return Ok(CANNOT_READ) };
    let report = check(&mut disk, &identity);
    let mut items = items(&report);
    if let Err(error) = data_folder::inspect(&folder.root) {
        items.insert(0, refusal(&error, &folder.root));
    }
    let worst = items.iter().map(|it| it.severity).max();
    let code = match worst {
        None => CLEAN,
        Some(Severity::Harmless) => HARMLESS,
        Some(Severity::Unread) => CANNOT_READ,
        Some(Severity::Damage) => DAMAGE,
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let root = shown(&folder.root.to_string_lossy());
    match args.json {
        true => writeln!(out, "{}", as_json(&root, known, &report, &items, code))?,
        false => as_text(&mut out, &root, known, &report, &items)?,
    }
    out.flush()?;
    Ok(code)
}

fn items(report: &CheckReport) -> Vec<Item> {
    let mut items: Vec<Item> = report.findings.iter().map(item).collect();
    report.wals.wals.iter().for_each(|wal| wal_items(wal, &mut items));
    for (wal, _) in &report.wals.retired {
        items.push(Item {
            severity: Severity::Harmless,
            path: Name::RetiredWal(*wal).to_string(),
            at: 0,
            shard: None,
            range: None,
            what: "a WAL that counts no longer and is not removed yet".into(),
            consequence: Consequence::Space.to_string(),
            advice: "nothing: the next start removes it".into(),
        });
    }
    items.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.path.cmp(&b.path)).then(a.at.cmp(&b.at)));
    items
}

/// What the broker itself would say at its start.
fn refusal(error: &DataFolderError, root: &Path) -> Item {
    let path = match error {
        DataFolderError::File(error) => &error.path,
        DataFolderError::BadNode { path, .. }
        | DataFolderError::BadFormat { path, .. }
        | DataFolderError::BadSession { path }
        | DataFolderError::Missing { path, .. }
        | DataFolderError::BadKey { path, .. }
        | DataFolderError::InUse { path, .. } => path,
        DataFolderError::NoRandom => root,
    };
    let unread = matches!(error, DataFolderError::File(error) if is_unread(&disk_error(&error.source)));
    Item {
        severity: if unread { Severity::Unread } else { Severity::Damage },
        path: shown(&path.strip_prefix(root).unwrap_or(path).to_string_lossy()),
        at: 0,
        shard: None,
        range: None,
        what: shown(&error.to_string()),
        consequence: Consequence::NoStart.to_string(),
        advice: "restore it from a backup that was made together with the rest of the folder".into(),
    }
}

/// The disk refused for a reason that says nothing about the data: rights, limits.
fn is_unread(error: &DiskError) -> bool {
    matches!(error, DiskError::Io { errno } if *errno != libc::EIO)
}

fn severity(finding: &Finding) -> Severity {
    match &finding.what {
        // A decision that was made; it is told again, not judged again.
        What::Gap => Severity::Harmless,
        What::Disk(error) | What::Wal(RecoverError::Disk { error, .. }) if is_unread(error) => Severity::Unread,
        _ if finding.consequence >= Consequence::Unreadable => Severity::Damage,
        _ => Severity::Harmless,
    }
}

fn item(finding: &Finding) -> Item {
    let (path, at) = match &finding.what {
        What::Wal(RecoverError::Disk { path, .. } | RecoverError::Header { path, .. }) => (path, 0),
        What::Wal(
            RecoverError::Group { path, at, .. }
            | RecoverError::Entry { path, at, .. }
            | RecoverError::Changed { path, at },
        ) => (path, *at),
        _ => (&finding.path, finding.at),
    };
    let severity = severity(finding);
    Item {
        severity,
        path: shown(&path.0),
        at,
        shard: finding.shard.map(|shard| shard.0),
        range: finding.range,
        what: shown(&finding.what.to_string()),
        consequence: match (&finding.what, severity) {
            (_, Severity::Unread) => "not looked at: nothing is known about it".into(),
            (What::Gap, _) => "readers meet these offsets as a gap, as was decided".into(),
            _ => finding.consequence.to_string(),
        },
        advice: advice(finding, severity),
    }
}

/// What a person may do about a finding.
fn advice(finding: &Finding, severity: Severity) -> String {
    if severity == Severity::Unread {
        return "run the check as the user of the broker, on a machine that can read the file".into();
    }
    let shard = finding.shard.map_or_else(String::new, |shard| format!("{:016x}", shard.0));
    let repair = |choice: &str| format!("felix-broker repair DATA {shard} --choose {choice}");
    let segment = match Name::parse(&finding.path) {
        Some(Name::Segment(_, SegmentId { base_offset, .. }) | Name::Index(_, SegmentId { base_offset, .. })) => {
            Some(base_offset)
        }
        _ => None,
    };
    let at = segment.map_or_else(String::new, |base| format!(" --at {base}"));
    match (&finding.what, finding.consequence) {
        (What::Wal(_), _) => "restore the folder from a backup, or the node from its replicas; a newer build may be \
                              needed to read it"
            .into(),
        (_, Consequence::NoStart) => "restore the folder from a backup, or the node from its replicas".into(),
        (What::MetaOlder(_), _) => "put the newest meta back; an old copy would lose what came after it".into(),
        (_, Consequence::Closed) => {
            format!(
                "restore {} from a backup, or the shard from a replica",
                Name::Shard(finding.shard.unwrap_or_default())
            )
        }
        (What::Gap, _) => "nothing".into(),
        (What::Missing, _) => format!(
            "put the segment back, or fetch the shard from a replica; else {} gives up all that follows the hole",
            repair("truncate-at-damage")
        ),
        (_, Consequence::Unreadable) => format!(
            "put the segment back, or fetch the shard from a replica; else {} keeps what follows this segment, {} ends \
             the log here",
            repair(&format!("quarantine-segment{at}")),
            repair("truncate-at-damage")
        ),
        (_, Consequence::Slower) => {
            format!("{} makes it again; nothing is lost", repair(&format!("rebuild-index{at}")))
        }
        (What::Foreign, _) => "move it away if you do not know it; the broker leaves it alone".into(),
        (What::Stray, _) => "nothing: the next start moves it to quarantine".into(),
        (What::TornTail(_) | What::UnacknowledgedTail, _) => {
            "nothing: a crash left it behind the end of the log, and the next flush writes over it".into()
        }
        (What::UnfinishedSwitch, _) => "nothing: the next start ends it".into(),
        _ => "nothing".into(),
    }
}

fn wal_items(wal: &WalReport, items: &mut Vec<Item>) {
    let folder = Name::Wal(wal.wal).to_string();
    let advice = format!(
        "restore the node from its replicas or a backup; else felix-broker repair DATA {folder} --choose quarantine-wal \
         gives up what is in no segment yet"
    );
    let make = |severity, at: Option<felix_wal::judge::Place>, what: String, consequence: &str, advice: &str| Item {
        severity,
        path: at.map_or_else(|| folder.clone(), |place| Name::WalFile(wal.wal, place.number).to_string()),
        at: at.map_or(0, |place| place.at),
        shard: None,
        range: None,
        what,
        consequence: consequence.to_string(),
        advice: advice.to_string(),
    };
    for damage in &wal.damage {
        let what = missing_groups(damage);
        let place = damage.after.or(damage.before);
        items.push(make(
            Severity::Damage,
            place,
            what,
            "acknowledged records are gone; their shards must not serve",
            &advice,
        ));
    }
    if wal.unreadable {
        let what = "no file of this WAL has a readable header".to_string();
        let consequence = "all that is in it and in no segment is gone";
        items.push(make(Severity::Damage, None, what, consequence, &advice));
    }
    if wal.bad_headers > 0 && !wal.unreadable {
        let what = format!("{} file(s) with a bad header block", wal.bad_headers);
        let consequence = "harmless: no group that counts is missing, else it stands in a finding of its own";
        items.push(make(
            Severity::Harmless,
            None,
            what,
            consequence,
            "nothing: the WAL is retired after the next start",
        ));
    }
    if let WalEnd::TornOrDamaged { sequence, place, dropped } = wal.end {
        let what = format!("group {sequence} and {dropped} valid one(s) behind it do not count");
        let consequence = "torn or damaged: a write that a crash cut off, which nobody was told about, or damage to the \
                           very last groups; nothing on disk tells the two apart";
        items.push(make(
            Severity::Harmless,
            place,
            what,
            consequence,
            "nothing, if the broker was killed or lost power",
        ));
    }
}

fn missing_groups(damage: &Damage) -> String {
    let mut what = format!("groups {}..={} were durable and are not there", damage.from, damage.to);
    if let (Some(first), Some(next)) = (damage.first_lsn, damage.next_lsn) {
        what += &format!(", entries {first}..{next}");
    }
    let suspects = &damage.suspects;
    let named: Vec<String> = suspects.shards.iter().take(16).map(|shard| format!("{:016x}", shard.0)).collect();
    match (named.is_empty(), suspects.more || suspects.shards.len() > named.len()) {
        (true, _) => what += "; any shard of the WAL may be concerned",
        (false, true) => what += &format!("; shards {} and maybe others", named.join(", ")),
        (false, false) => what += &format!("; shards {}", named.join(", ")),
    }
    what
}

fn end_name(wal: &WalReport) -> &'static str {
    match wal.end {
        WalEnd::Empty => "never used",
        WalEnd::Clean => "shut down cleanly",
        WalEnd::Sealed => "sealed while idle",
        WalEnd::Unsealed => "not sealed: the broker was killed while it wrote",
        WalEnd::TornOrDamaged { .. } => "torn or damaged at the end",
    }
}

fn as_text(
    out: &mut dyn Write,
    root: &str,
    identity: Option<Identity>,
    report: &CheckReport,
    items: &[Item],
) -> io::Result<()> {
    match identity {
        Some(it) => {
            writeln!(out, "{root}: cluster {:032x}, node {:032x}, region {}", it.cluster.0, it.node.0, it.region)?
        }
        None => writeln!(out, "{root}: no file says whose it is")?,
    }
    if report.shards == 0 && report.wals.wals.is_empty() {
        writeln!(out, "no durable data")?;
    }
    writeln!(
        out,
        "{} shard(s), {} segment(s), {} good batch(es), {:.1} MiB of metas, segments and indexes read",
        report.shards,
        report.segments,
        report.batches,
        report.bytes as f64 / f64::from(1 << 20)
    )?;
    for wal in &report.wals.wals {
        writeln!(
            out,
            "WAL {}: {} file(s), groups {}..={}, {}",
            wal.wal,
            wal.files.len(),
            wal.needed_from,
            wal.end_sequence,
            end_name(wal)
        )?;
    }
    if report.wals.unreadable_blocks > 0 {
        writeln!(out, "{} block(s) of WAL files could not be read", report.wals.unreadable_blocks)?;
    }
    for item in items {
        write!(out, "\n{:<8}  {}  byte {}", item.severity.name().to_uppercase(), item.path, item.at)?;
        if let Some(shard) = item.shard {
            write!(out, "  shard {shard:016x}")?;
        }
        if let Some(range) = item.range {
            write!(out, "  offsets {}..{}", range.from, range.to)?;
        }
        writeln!(out, "\n  what:  {}\n  means: {}\n  do:    {}", item.what, item.consequence, item.advice)?;
    }
    let count = |severity| items.iter().filter(|it| it.severity == severity).count();
    let (damage, unread, harmless) = (count(Severity::Damage), count(Severity::Unread), count(Severity::Harmless));
    match (damage, unread, harmless) {
        (0, 0, 0) => writeln!(out, "clean"),
        _ => writeln!(out, "\n{damage} damage, {unread} not read, {harmless} harmless"),
    }
}

fn as_json(root: &str, identity: Option<Identity>, report: &CheckReport, items: &[Item], code: u8) -> Value {
    let identity = identity.map(|it| {
        json!({
            "cluster": format!("{:032x}", it.cluster.0),
            "node": format!("{:032x}", it.node.0),
            "region": it.region.as_str(),
        })
    });
    let wals: Vec<Value> = report
        .wals
        .wals
        .iter()
        .map(|wal| {
            json!({
                "wal": wal.wal.to_string(), "files": wal.files.len(), "first_group": wal.needed_from.0,
                "last_group": wal.end_sequence.0, "end": end_name(wal), "damaged": wal.is_damaged(),
            })
        })
        .collect();
    let findings: Vec<Value> = items
        .iter()
        .map(|item| {
            json!({
                "severity": item.severity.name(), "path": item.path, "byte": item.at,
                "shard": item.shard.map(|shard| format!("{shard:016x}")),
                "from_offset": item.range.map(|range| range.from.0), "to_offset": item.range.map(|range| range.to.0),
                "what": item.what, "consequence": item.consequence, "do": item.advice,
            })
        })
        .collect();
    json!({
        "folder": root, "identity": identity, "shards": report.shards, "segments": report.segments,
        "good_batches": report.batches, "bytes_read": report.bytes, "wals": wals,
        "wal_blocks_unreadable": report.wals.unreadable_blocks, "findings": findings, "exit_code": code,
    })
}
