//! **What**: the options of the offline tools and their help.
//!
//! **Invariants**: every help shows examples, exit codes and what is changed.
//!
//! **Never**: an option that nothing reads.
//!
//! **See**: `../config.rs`, which lists the tools as commands.

use clap::{Args, Subcommand, ValueEnum};
use felix_protocol::ids::ShardId;
use felix_protocol::position::Offset;
use std::path::PathBuf;

/// Help of `check`.
pub const CHECK_HELP: &str = "Examples:
  felix-broker check /var/lib/felix
  felix-broker check /var/lib/felix --json | jq '.findings[] | select(.severity == \"damage\")'

Every meta, segment, index and WAL is read and every checksum verified; nothing is changed. Stop the broker first.

Exit codes:
  0  clean
  1  harmless findings only (wasted space, a lost index, what a crash leaves)
  2  damage: data is missing or unreadable, or a shard or the node does not start
  3  the folder cannot be read, is no data folder, or a broker has it open";

/// Help of `dump`.
pub const DUMP_HELP: &str = "Examples:
  felix-broker dump /var/lib/felix shards/0000000000000001/00000001-0000000000000000.seg
  felix-broker dump /var/lib/felix shards/0000000000000001/00000001-0000000000000000.seg --values text | less
  felix-broker dump /var/lib/felix shards/0000000000000001/meta
  felix-broker dump /var/lib/felix wal          every entry of the WALs that counts, in order

PATH is relative to DATA (or an absolute path below it): a segment (.seg), a shard's meta, or `wal`.
Batches that fail their checksums are named and not shown. Nothing is changed.
Exit codes: 0 shown to the end, 2 damage on the way, 3 cannot read.";

/// Help of `repair`.
pub const REPAIR_HELP: &str = "Examples:
  felix-broker repair /var/lib/felix 1 --choose truncate-at-damage
      a dry run: says what would be given up and moved, and changes nothing
  felix-broker repair /var/lib/felix 1 --choose truncate-at-damage --i-understand 120..200
      does it, if it still is what the dry run said
  felix-broker repair /var/lib/felix 1 --choose quarantine-segment --at 100 --i-understand 100..160
      gives a whole segment up: readers meet offsets 100..160 as a gap, what follows stays
  felix-broker repair /var/lib/felix 1 --choose rebuild-index --at 100 --i-understand nothing
      loses nothing
  felix-broker repair /var/lib/felix wal/0000000000000007-00 --choose quarantine-wal --i-understand 0000000000000007-00
      gives up all of a damaged WAL that no segment has yet

Run `felix-broker check` first; it names the shard, the offsets and the choices. A replica or a backup is better than any
repair: what is given up here is gone for clients. Files are moved to DATA/quarantine, never removed, and files that are
written anew are copied there first. A report is written to DATA/repairs.
Exit codes: 0 done (or dry run), 1 nothing was done, 3 cannot read.";

/// Help of `restore`.
pub const RESTORE_HELP: &str = "Examples:
  felix-broker restore /backups/2026-11-26 --data /var/lib/felix
  felix-broker dev --data /var/lib/felix

Every checksum of the backup is verified before anything is written. The data folder must be missing or empty; it is made
beside its place as DATA.restoring and renamed when all of it is on disk, so it is there whole or not at all.

Offsets, lineages, keys and settings are what they were: a client goes on at the position it saved. Records that were
published after the backup are not there: every shard leaves 2^32 offsets out behind its end, so none of theirs is given
again, and a client that read some of them is told of a gap. Cluster and region are those of the backup, the node is new. Never let the old and the restored
broker serve the same clients.

Records of streams with encryption at rest are in clear in a backup. They are restored with --in-clear only, as streams
without it: there are no keys of the tenant in a new data folder.
Exit codes: 0 restored, 2 the backup is damaged or incomplete, 3 it cannot be read or the data folder cannot be written.";

/// Options of `restore`.
#[derive(Clone, Debug, Args)]
pub struct RestoreArgs {
    /// Folder that `felix backup` made.
    #[arg(value_name = "BACKUP")]
    pub backup: PathBuf,
    /// Data folder to make.
    #[arg(long, value_name = "NEW")]
    pub data: PathBuf,
    /// Restore streams that were encrypted at rest without encryption.
    #[arg(long)]
    pub in_clear: bool,
}

/// Help of `keyring`.
pub const KEYRING_HELP: &str = "Examples:
  felix-broker keyring /var/lib/felix list
  felix-broker keyring /var/lib/felix rotate-region       a new region key; then:
  felix-broker keyring /var/lib/felix rewrap              wraps every data key with it; no data are written
  felix-broker keyring /var/lib/felix add-key acme        from now on new records of acme are sealed with a new key
  felix-broker keyring /var/lib/felix destroy acme 1      says what would be lost, and changes nothing
  felix-broker keyring /var/lib/felix destroy acme 1 --i-understand acme-1
  kill -HUP PID                                           a running broker reads the keyring again

The keyring is a file of its own: every change is whole and durable, and made under a lock, so a running broker needs not be
stopped; it goes on with what it read last until SIGHUP. Keys are never shown. Keep a backup of the keyring, apart from
that of the data: without it nothing that is sealed can be read. A destroyed key comes back with such a backup, so replace
those too.
Exit codes: 0 done, 1 nothing was changed (dry run, nothing to do), 3 refused or cannot be read.";

/// Options of `keyring`.
#[derive(Clone, Debug, Args)]
pub struct KeyringArgs {
    /// The data folder.
    pub data: PathBuf,
    /// The keyring, if the broker runs with --keyring.
    #[arg(long, value_name = "FILE", global = true)]
    pub keyring: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub action: KeyringAction,
}

/// What is done to a keyring.
#[derive(Clone, Debug, Subcommand)]
pub enum KeyringAction {
    /// Shows the numbers of all keys, and what wraps them.
    List,
    /// Adds a region key: data keys made from now on are wrapped with it.
    RotateRegion,
    /// Wraps every data key with the newest region key.
    Rewrap,
    /// Adds a data key for a tenant: new records are sealed with it, the older keys still open what they sealed.
    AddKey {
        /// Whose.
        tenant: String,
    },
    /// Forgets a data key for ever: what it sealed reads as a gap. A dry run without --i-understand.
    Destroy {
        /// Whose.
        tenant: String,
        /// Its number, as `list` shows it.
        number: u32,
        /// Carry it out. The dry run prints the words that belong here.
        #[arg(long, value_name = "WHAT")]
        i_understand: Option<String>,
    },
}

/// Options of `check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// The data folder.
    pub data: PathBuf,
    /// One JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Options of `dump`.
#[derive(Clone, Debug, Args)]
pub struct DumpArgs {
    /// The data folder.
    pub data: PathBuf,
    /// A segment or meta file, or `wal`.
    pub path: PathBuf,
    /// How values are shown; `none` shows their lengths.
    #[arg(long, value_enum, default_value_t = ShowValues::None)]
    pub values: ShowValues,
}

/// How values are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ShowValues {
    /// Only their lengths.
    None,
    /// As text with escapes.
    Text,
    /// As hex digits.
    Hex,
}

/// Options of `repair`.
#[derive(Clone, Debug, Args)]
pub struct RepairArgs {
    /// The data folder.
    pub data: PathBuf,
    /// The shard, as `check` names it (hex digits), or `wal/SESSION-CORE`.
    #[arg(value_parser = target)]
    pub target: Target,
    /// What to do.
    #[arg(long, value_enum)]
    pub choose: Choose,
    /// First offset of the segment, for `quarantine-segment` and `rebuild-index`.
    #[arg(long, value_name = "OFFSET", value_parser = offset)]
    pub at: Option<Offset>,
    /// Carry it out. The dry run prints the words that belong here: what is given up.
    #[arg(long, value_name = "WHAT")]
    pub i_understand: Option<String>,
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Choose {
    /// The log ends at its first damage; everything behind is given up.
    TruncateAtDamage,
    /// The segment that begins at --at is given up; the log goes on behind it with a gap.
    QuarantineSegment,
    /// The index of the segment that begins at --at is made again from the segment.
    RebuildIndex,
    /// A whole WAL is taken out of service.
    QuarantineWal,
}

/// What is repaired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A shard.
    Shard(ShardId),
    /// The folder of a WAL, without `wal/`.
    Wal(String),
}

fn offset(text: &str) -> Result<Offset, String> {
    text.parse().map(Offset).map_err(|_| format!("`{text}` is no offset: a decimal number, as `check` shows it"))
}

fn target(text: &str) -> Result<Target, String> {
    if let Some(wal) = text.strip_prefix("wal/") {
        return Ok(Target::Wal(wal.trim_end_matches('/').to_string()));
    }
    let digits = text.trim_start_matches("shards/").trim_end_matches('/');
    let hex = !digits.is_empty() && digits.len() <= 16 && digits.bytes().all(|it| it.is_ascii_hexdigit());
    let number = hex.then(|| u64::from_str_radix(digits, 16).ok()).flatten();
    number
        .map(|number| Target::Shard(ShardId(number)))
        .ok_or_else(|| format!("`{text}` is neither a shard (up to 16 hex digits) nor wal/SESSION-CORE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_named_as_check_names_them() {
        for text in ["9", "0000000000000009", "shards/0000000000000009", "shards/0000000000000009/"] {
            assert_eq!(target(text), Ok(Target::Shard(ShardId(9))), "{text}");
        }
        assert_eq!(target("ff"), Ok(Target::Shard(ShardId(255))));
        assert_eq!(target("wal/0000000000000001-00"), Ok(Target::Wal("0000000000000001-00".into())));
        for text in ["", "x", "-1", "+1", "00000000000000001", "../9"] {
            assert!(target(text).is_err(), "{text}");
        }
        assert_eq!(offset("12"), Ok(Offset(12)));
        assert!(offset("-1").is_err() && offset("0x1").is_err());
    }
}
