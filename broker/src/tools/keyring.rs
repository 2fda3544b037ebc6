//! **What**: `felix-broker keyring`: lists, rotates and destroys keys at rest, on the file alone.
//!
//! **Invariants**: one change under the keyring's lock, whole and durable, or none. Destroying needs the words that the dry
//! run prints, and leaves a key to seal with unless it was the last.
//!
//! **Never**: key bytes in the output. A keyring made here: only a start may, which knows whether there are sealed data.
//!
//! **See**: `../keyring_file.rs`.

use super::args::{KeyringAction, KeyringArgs};
use super::folder::ToolError;
use super::{CLEAN, HARMLESS};
use crate::data_folder;
use crate::keyring_file::{KeyringFile, KeyringFileError, random};
use felix_wal::keyring::Keyring;
use std::fmt::Display;
use std::io::{self, Write};

const RELOAD: &str = "A running broker goes on with the keys it has until it gets SIGHUP.";

fn refused(error: impl Display) -> ToolError {
    ToolError::Refused(error.to_string())
}

/// Runs `keyring`.
pub fn run(args: &KeyringArgs) -> Result<u8, ToolError> {
    let mut out = io::stdout().lock();
    run_into(args, &mut out)
}

fn run_into(args: &KeyringArgs, out: &mut impl Write) -> Result<u8, ToolError> {
    let data = args.data.canonicalize().map_err(|error| ToolError::NotThere(args.data.clone(), error))?;
    let identity = data_folder::identity(&data).map_err(refused)?.ok_or(ToolError::NotOurs(data.clone()))?;
    let file = KeyringFile::new(&data, args.keyring.as_deref(), identity.region);
    match &args.action {
        KeyringAction::List => {
            let missing = || refused(KeyringFileError::Missing(file.path().to_path_buf()));
            let ring = file.read().map_err(refused)?.ok_or_else(missing)?;
            list(&ring, out)?;
            Ok(CLEAN)
        }
        KeyringAction::RotateRegion => {
            let (_, id) = file.change(|ring| Ok(ring.rotate_region(random()?)?)).map_err(refused)?;
            writeln!(
                out,
                "region key {id} wraps the data keys that are made from now on; `rewrap` wraps the others with it"
            )?;
            Ok(CLEAN)
        }
        KeyringAction::Rewrap => {
            let (_, count) = file.change(rewrap).map_err(refused)?;
            writeln!(out, "{count} data key(s) were wrapped anew")?;
            Ok(if count > 0 { CLEAN } else { HARMLESS })
        }
        KeyringAction::AddKey { tenant } => {
            let (_, id) = file.change(|ring| Ok(ring.add_data_key(tenant, random()?, random()?)?)).map_err(refused)?;
            writeln!(
                out,
                "data key {id} of {tenant} seals new records; the older ones still open what they sealed\n{RELOAD}"
            )?;
            Ok(CLEAN)
        }
        KeyringAction::Destroy { tenant, number, i_understand } => {
            destroy(&file, tenant, *number, i_understand.as_deref(), out)
        }
    }
}

fn list(ring: &Keyring, out: &mut impl Write) -> io::Result<()> {
    let keys: Vec<u32> = ring.region_key_ids().collect();
    writeln!(out, "region {}", ring.region())?;
    for id in &keys {
        let count = ring.entries().filter(|it| it.region_key == Some(*id)).count();
        let newest = if keys.last() == Some(id) { ", wraps new ones" } else { "" };
        writeln!(out, "region key {id}: wraps {count} data key(s){newest}")?;
    }
    let mut entries: Vec<_> = ring.entries().collect();
    entries.sort_by_key(|it| (it.tenant, it.id));
    for entry in &entries {
        let seals = sealing_key(ring, entry.tenant) == Some(entry.id);
        let what = match entry.region_key {
            None => "destroyed".to_string(),
            Some(kek) if seals => format!("wrapped with region key {kek}, seals new records"),
            Some(kek) => format!("wrapped with region key {kek}"),
        };
        writeln!(out, "{} data key {}: {what}", entry.tenant, entry.id)?;
    }
    Ok(())
}

fn sealing_key(ring: &Keyring, tenant: &str) -> Option<u32> {
    ring.entries().filter(|it| it.tenant == tenant && it.region_key.is_some()).map(|it| it.id).max()
}

fn rewrap(ring: &mut Keyring) -> Result<usize, KeyringFileError> {
    let newest = ring.region_key_ids().last();
    let old: Vec<(String, u32)> = ring
        .entries()
        .filter(|it| it.region_key.is_some() && it.region_key != newest)
        .map(|it| (it.tenant.to_string(), it.id))
        .collect();
    for (tenant, id) in &old {
        ring.rewrap(tenant, *id, random()?)?;
    }
    Ok(old.len())
}

fn destroy(
    file: &KeyringFile,
    tenant: &str,
    number: u32,
    words: Option<&str>,
    out: &mut impl Write,
) -> Result<u8, ToolError> {
    let missing = || refused(KeyringFileError::Missing(file.path().to_path_buf()));
    let ring = file.read().map_err(refused)?.ok_or_else(missing)?;
    may_destroy(&ring, tenant, number).map_err(ToolError::Refused)?;
    let expected = format!("{tenant}-{number}");
    match words {
        Some(found) if found == expected => {
            // Looked at again under the lock: another may have changed the file.
            let (_, outcome) = file
                .change(|ring| match may_destroy(ring, tenant, number) {
                    Ok(()) => Ok(ring.destroy(tenant, number).map_err(|error| error.to_string())),
                    Err(why) => Ok(Err(why)),
                })
                .map_err(refused)?;
            outcome.map_err(ToolError::Refused)?;
            writeln!(
                out,
                "data key {number} of {tenant} is destroyed; backups of the keyring still hold it\n{RELOAD}"
            )?;
            Ok(CLEAN)
        }
        Some(_) => Err(ToolError::Refused(format!("the words are not --i-understand {expected}; nothing was changed"))),
        None => {
            writeln!(
                out,
                "Every record of {tenant} that data key {number} sealed would be lost for ever: readers meet it as a gap.\n\
                 Nothing was changed. To do it: --i-understand {expected}"
            )?;
            Ok(HARMLESS)
        }
    }
}

/// A key that seals is not destroyed while older ones are there: records would be sealed with an older key again.
fn may_destroy(ring: &Keyring, tenant: &str, number: u32) -> Result<(), String> {
    let entry = ring.entries().find(|it| it.tenant == tenant && it.id == number);
    let entry = entry.ok_or_else(|| format!("there is no data key {number} of {tenant}; see `list`"))?;
    if entry.region_key.is_none() {
        return Err(format!("data key {number} of {tenant} is destroyed already"));
    }
    let others = ring.entries().filter(|it| it.tenant == tenant && it.region_key.is_some()).count() > 1;
    if others && sealing_key(ring, tenant) == Some(number) {
        return Err(format!(
            "data key {number} seals new records of {tenant}: `add-key {tenant}` first, or destroy the older"
        ));
    }
    Ok(())
}
