//! **What**: the keys at rest of a running node: the keyring as it was last read, a data key for each tenant that needs one,
//! and the keyring read again when an operator changed it.
//!
//! ```text
//! start   keyring (made if no sealed data can exist) -> checked against keys-used -> a key for each tenant of sealed
//!         streams that never had one -> every core, before the streams
//! CreateStream --encrypt   a tenant without a key gets one -> on disk -> every core -> the proposal
//! SIGHUP  read again -> checked -> every core        refused: the old one stays, the log says why
//! ```
//!
//! **Invariants**: a keyring is given to cores only after every key of it was tried and `keys-used` names them all.
//!
//! **Never**: a key for a command that the metadata would refuse anyway: a client must not fill the keyring.
//!
//! **See**: `keyring_file.rs`, `control_thread.rs`.

use crate::keyring_file::{KeyringFile, KeyringFileError, KeysUsed, random};
use felix_wal::keyring::Keyring;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// The keyring of a running node.
#[derive(Debug)]
pub struct NodeKeys {
    file: KeyringFile,
    used: KeysUsed,
    ring: Arc<Keyring>,
}

impl NodeKeys {
    /// Opens the keyring, or makes it. `sealed_tenants`: those with streams that are sealed at rest.
    pub fn open(
        data: &Path,
        file: KeyringFile,
        sealed_tenants: &BTreeSet<String>,
    ) -> Result<NodeKeys, KeyringFileError> {
        let has_sealed = !sealed_tenants.is_empty();
        let mut used = KeysUsed::read(data, has_sealed)?;
        let ring = match file.read()? {
            Some(ring) => ring,
            None if has_sealed || !used.is_empty() => {
                return Err(KeyringFileError::Missing(file.path().to_path_buf()));
            }
            None => file.make()?,
        };
        if file.is_open_to_others() {
            let path = file.path().display().to_string();
            crate::log::warn("others than its owner may read the keyring: chmod 600", &[("keyring", &path)]);
        }
        used.take(&file, &ring)?;
        let mut keys = NodeKeys { file, used, ring: Arc::new(ring) };
        // Nothing of them was sealed, else the keyring would name their key, also a destroyed one.
        let keyless = |tenant: &&String| keys.ring.entries().all(|it| it.tenant != **tenant);
        for tenant in sealed_tenants.iter().filter(keyless).collect::<Vec<_>>() {
            keys.ensure(tenant)?;
            crate::log::warn("a tenant with sealed streams had no data key: it was made", &[("tenant", tenant)]);
        }
        Ok(keys)
    }

    /// The keyring.
    pub fn ring(&self) -> Arc<Keyring> {
        self.ring.clone()
    }

    /// Whether a tenant has a key to seal with.
    pub fn has(&self, tenant: &str) -> bool {
        has_key(&self.ring, tenant)
    }

    /// Sees to it that a tenant has a key to seal with. Durable when this returns.
    pub fn ensure(&mut self, tenant: &str) -> Result<(), KeyringFileError> {
        if self.has(tenant) {
            return Ok(());
        }
        // Another may have changed the file since it was read: what is written holds that too.
        let (ring, ()) = self.file.change(|ring| {
            if !has_key(ring, tenant) {
                ring.add_data_key(tenant, random()?, random()?)?;
            }
            Ok(())
        })?;
        self.used.take(&self.file, &ring)?;
        self.ring = Arc::new(ring);
        Ok(())
    }

    /// Reads the file again. False: it says the same.
    pub fn reload(&mut self) -> Result<bool, KeyringFileError> {
        let ring = self.file.read()?.ok_or_else(|| KeyringFileError::Missing(self.file.path().to_path_buf()))?;
        if ring.print() == self.ring.print() {
            return Ok(false);
        }
        self.used.take(&self.file, &ring)?;
        self.ring = Arc::new(ring);
        Ok(true)
    }
}

fn has_key(ring: &Keyring, tenant: &str) -> bool {
    ring.entries().any(|it| it.tenant == tenant && it.region_key.is_some())
}
