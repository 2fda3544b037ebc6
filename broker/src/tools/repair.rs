//! **What**: `felix-broker repair`: one decision of a person about a damaged shard or WAL, first as a dry run, then, told that
//! its cost is understood, on the folder.
//!
//! ```text
//! lock -> dry run over the read-only disk -> what is given up, the steps
//!      -> --i-understand says the same? -> report "begun" -> copies of what is written anew -> the work -> report "done"
//! ```
//!
//! **Invariants**: without the words of the dry run nothing is changed, and with other words neither (but for an empty lock
//! file where there was none): what is done is what was shown. Every file that goes or is written anew is in quarantine afterwards. The report is durable before the first change.
//!
//! **Never**: a choice made here; a removal.
//!
//! **See**: `dry_run.rs`, `wal/src/repair.rs`, `wal/src/retire.rs`.

use super::args::{Choose, RepairArgs, Target};
use super::dry_run::{DryRunDisk, Step};
use super::folder::{self, DataFolder, ToolError};
use super::{CLEAN, HARMLESS, now, shown, wal_entries};
use crate::offline_disk::Access;
use felix_protocol::ids::ShardId;
use felix_protocol::time::Timestamp;
use felix_shard::recovery::leave_out_lost;
use felix_wal::disk::{Disk, DiskError, DiskOk, DiskOp, FilePath, REPLACE_BYTES_MAX};
use felix_wal::format::names::{Name, WAL_FOLDER, WalId};
use felix_wal::log::Maker;
use felix_wal::repair::{Choice, RepairReport, repair};
use felix_wal::retire::Retire;
use serde_json::{Value, json};
use std::io::{self, Write};

/// Folder of the reports.
const REPORTS: &str = "repairs";

/// What is to be done, in the words of `felix_wal`.
#[derive(Clone, Copy)]
enum Work {
    Shard(ShardId, Choice),
    Wal(WalId),
}

/// What it costs, and the words that say so.
struct Cost {
    words: String,
    text: String,
}

/// Repairs, or says what a repair would do. Returns the exit code.
pub fn run(args: &RepairArgs) -> Result<u8, ToolError> {
    let work = work(args)?;
    // What is carried out was run dry under the same lock: nothing comes in between.
    let access = if args.i_understand.is_some() { Access::ReadWrite } else { Access::ReadOnly };
    let folder = DataFolder::open(&args.data, access)?;
    let mut below = folder.disk(Access::ReadOnly);
    let Some((identity, session)) = folder::identity(&mut below) else {
        let path = shown(&folder.root.to_string_lossy());
        return Err(ToolError::Refused(format!(
            "no file of {path} says whose it is; restore DATA/format from a backup"
        )));
    };
    let maker = Maker { identity, session };
    let now = now();
    let mut dry = DryRunDisk::new(below);
    let (cost, _) = match perform(&mut dry, maker, work, now) {
        Ok(done) => done,
        Err(error) => {
            let _ = writeln!(io::stderr(), "felix-broker repair: nothing was done: {}", shown(&error));
            return Ok(HARMLESS);
        }
    };
    let mut out = io::stdout().lock();
    let Some(understood) = &args.i_understand else {
        writeln!(out, "DRY RUN: nothing was changed. {}", cost.text)?;
        steps(&mut out, &dry.steps)?;
        let target = shown(&target_name(args));
        let at = args.at.map_or_else(String::new, |at| format!(" --at {at}"));
        let choice =
            clap::ValueEnum::to_possible_value(&args.choose).map_or_else(String::new, |it| it.get_name().into());
        writeln!(
            out,
            "To do it:\n  felix-broker repair {} {target} --choose {choice}{at} --i-understand {}",
            quoted(&args.data.to_string_lossy()),
            cost.words
        )?;
        return Ok(CLEAN);
    };
    if *understood != cost.words {
        let (words, text) = (&cost.words, &cost.text);
        let line =
            format!("nothing was done: --i-understand says `{}`, but it must say `{words}`: {text}", shown(understood));
        let _ = writeln!(io::stderr(), "felix-broker repair: {line}");
        return Ok(HARMLESS);
    }
    carry_out(&folder, maker, work, now, &cost, &dry.steps, &mut out)
}

fn work(args: &RepairArgs) -> Result<Work, ToolError> {
    let refused = |text: &str| Err(ToolError::Refused(text.to_string()));
    match (&args.target, args.choose, args.at) {
        (Target::Shard(shard), Choose::TruncateAtDamage, None) => Ok(Work::Shard(*shard, Choice::TruncateAtDamage)),
        (Target::Shard(shard), Choose::QuarantineSegment, Some(at)) => {
            Ok(Work::Shard(*shard, Choice::QuarantineSegment(at)))
        }
        (Target::Shard(shard), Choose::RebuildIndex, Some(at)) => Ok(Work::Shard(*shard, Choice::RebuildIndex(at))),
        (Target::Wal(name), Choose::QuarantineWal, None) => {
            match Name::parse(&FilePath(format!("{WAL_FOLDER}/{name}"))) {
                Some(Name::Wal(wal)) => Ok(Work::Wal(wal)),
                _ => refused("the WAL is named as `check` names it: wal/SESSION-CORE, 16 and 2 hex digits"),
            }
        }
        (Target::Shard(_), Choose::QuarantineWal, _) => refused("quarantine-wal takes a WAL: wal/SESSION-CORE"),
        (Target::Wal(_), _, _) => refused("for a WAL there is only --choose quarantine-wal, without --at"),
        (_, Choose::TruncateAtDamage, Some(_)) => refused("truncate-at-damage finds the place itself: leave --at out"),
        (_, Choose::QuarantineSegment | Choose::RebuildIndex, None) => {
            refused("which segment? --at takes its first offset, as `check` shows it")
        }
    }
}

fn target_name(args: &RepairArgs) -> String {
    match &args.target {
        Target::Shard(shard) => format!("{:016x}", shard.0),
        Target::Wal(wal) => format!("{WAL_FOLDER}/{wal}"),
    }
}

/// As a word of a shell.
fn quoted(text: &str) -> String {
    let plain = |it: char| it.is_ascii_alphanumeric() || "/._-+@:".contains(it);
    if !text.is_empty() && text.chars().all(plain) { text.into() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// Does the work on a disk, which may be the one that only remembers.
fn perform(disk: &mut dyn Disk, maker: Maker, work: Work, now: Timestamp) -> Result<(Cost, Vec<FilePath>), String> {
    match work {
        Work::Shard(shard, choice) => {
            let in_wal = match choice {
                Choice::TruncateAtDamage => wal_entries::of_shard(disk, maker.identity, shard)?,
                Choice::QuarantineSegment(_) | Choice::RebuildIndex(_) => None,
            };
            let report = repair(disk, maker, shard, choice, in_wal, now).map_err(|error| error.to_string())?;
            Ok((shard_cost(shard, &report), report.quarantined))
        }
        Work::Wal(wal) => {
            let (report, shards) =
                wal_entries::appended(disk, maker.identity, wal).map_err(|error| error.to_string())?;
            let found = report.wals.iter().find(|it| it.wal == wal).ok_or_else(|| format!("there is no WAL {wal}"))?;
            if !found.is_damaged() {
                return Err(format!("the WAL {wal} is not damaged: a start replays it, which loses nothing"));
            }
            // Offsets that were acknowledged from it must not be given to other records.
            let left_out = leave_out_lost(disk, maker, now).map_err(|error| error.to_string())?;
            let mut retire = Retire::quarantine(found, now, u32::MAX - 3);
            let mut requests = Vec::new();
            while !retire.is_done() {
                retire.plan(&mut requests);
                if requests.is_empty() {
                    break;
                }
                requests.drain(..).for_each(|request| disk.submit(request));
                if let Some(done) = disk.wait() {
                    retire.on_done(done);
                }
            }
            if let Some((path, error)) = retire.failed() {
                return Err(format!("{path}: {error}"));
            }
            let mut text = format!("WAL {wal} is given up: what was damaged in it, and of what is whole");
            for (shard, (range, batches)) in shards.iter().take(64) {
                text += &format!(
                    "\n  shard {:016x}: up to {batches} batch(es) of offsets {}..{} that may be in no segment yet",
                    shard.0, range.from, range.to
                );
            }
            match shards.len() {
                0 => text += " nothing",
                count if count > 64 => text += &format!("\n  and {} more shard(s)", count - 64),
                _ => {}
            }
            text += &format!(
                "\nEvery shard ({left_out}) leaves 2^32 offsets out behind its end, so that no offset is given twice."
            );
            Ok((Cost { words: wal.to_string(), text }, vec![Name::Wal(wal).path()]))
        }
    }
}

fn shard_cost(shard: ShardId, report: &RepairReport) -> Cost {
    let name = Name::Shard(shard);
    match report.given_up.filter(|range| range.from < range.to) {
        Some(range) => {
            let words = format!("{}..{}", range.from, range.to);
            let after = match report.goes_on_at {
                Some(at) => format!("the log goes on at {at}, so that no offset is given twice; readers meet a gap"),
                None => "readers meet them as a gap".to_string(),
            };
            Cost { text: format!("{name}: offsets {words} are given up, {after}."), words }
        }
        None => Cost { words: "nothing".into(), text: format!("{name}: nothing is given up.") },
    }
}

fn carry_out(
    folder: &DataFolder,
    maker: Maker,
    work: Work,
    now: Timestamp,
    cost: &Cost,
    planned: &[Step],
    out: &mut dyn Write,
) -> Result<u8, ToolError> {
    let mut disk = folder.disk(Access::ReadWrite);
    let report = FilePath(format!("{REPORTS}/{:016x}.json", now.0));
    let write = |disk: &mut dyn Disk, state: &str, more: Value| {
        let content = json!({
            "state": state, "time_ns": now.0, "given_up": cost.words, "meaning": cost.text,
            "steps": planned.iter().map(step).collect::<Vec<_>>(), "result": more,
        });
        disk.call(DiskOp::Replace { path: report.clone(), bytes: format!("{content:#}\n").into_bytes() })
    };
    let cannot = |what: &str, error: DiskError| ToolError::Refused(format!("{what}: {error}"));
    write(&mut disk, "begun", Value::Null)
        .map_err(|error| cannot("cannot write the report, nothing was done", error))?;
    let mut copies = Vec::new();
    for step in planned {
        if let Step::Replace(path, _) = step
            && let Some(copy) = keep_copy(&mut disk, path, now)
                .map_err(|error| cannot("cannot copy to quarantine, nothing was done", error))?
        {
            copies.push(copy);
        }
    }
    match perform(&mut disk, maker, work, now) {
        Ok((_, quarantined)) => {
            let names = |list: &[FilePath]| list.iter().map(|it| it.0.clone()).collect::<Vec<_>>();
            let result = json!({ "quarantined": names(&quarantined), "copies": names(&copies) });
            let reported = write(&mut disk, "done", result);
            writeln!(out, "Done. {}", cost.text)?;
            steps(out, planned)?;
            for copy in &copies {
                writeln!(out, "  copied before  {}", shown(&copy.0))?;
            }
            match reported {
                Ok(_) => writeln!(out, "Report: {}", shown(&folder.root.join(&report.0).to_string_lossy()))?,
                Err(error) => writeln!(out, "The report could not be finished: {error}")?,
            }
            Ok(CLEAN)
        }
        Err(error) => {
            let _ = write(&mut disk, "failed", json!(error));
            Err(ToolError::Refused(format!(
                "it failed on the way: {}; run `felix-broker check`; {report} tells what was to be done",
                shown(&error)
            )))
        }
    }
}

/// Copies a file that will be written anew to quarantine. None: there is none.
fn keep_copy(disk: &mut dyn Disk, path: &FilePath, now: Timestamp) -> Result<Option<FilePath>, DiskError> {
    match disk.call(DiskOp::Load { path: path.clone(), bytes_max: REPLACE_BYTES_MAX }) {
        Ok(DiskOk::Bytes(bytes)) => {
            let copy = Name::quarantined(now, path).path();
            disk.call(DiskOp::Replace { path: copy.clone(), bytes })?;
            Ok(Some(copy))
        }
        Ok(_) | Err(DiskError::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn step(step: &Step) -> String {
    match step {
        Step::Replace(path, bytes) => format!("write {} anew ({bytes} bytes)", shown(&path.0)),
        Step::Move(from, to) => format!("move {} to {}", shown(&from.0), shown(&to.0)),
        Step::Remove(path) => format!("remove {}", shown(&path.0)),
    }
}

fn steps(out: &mut dyn Write, list: &[Step]) -> io::Result<()> {
    list.iter().try_for_each(|it| writeln!(out, "  {}", step(it)))
}
