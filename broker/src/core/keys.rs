//! **What**: data keys on their way to the storage of a core.
//!
//! **Invariants**: a tenant whose keys are all gone has none: nothing is sealed with what an operator destroyed.
//!
//! **Never**: a key kept here. A file.
//!
//! **See**: `../keyring_file.rs`, where they come from; `felix_shard::store`, which uses them.

use super::Core;
use felix_wal::at_rest::AtRestScope;
use felix_wal::keyring::Keyring;
use std::collections::BTreeSet;

impl Core {
    /// Keys came, or changed. `tenant`: only its keys may have.
    pub(super) fn on_keys(&mut self, keyring: &Keyring, tenant: Option<&str>) {
        let all: BTreeSet<&str> = match tenant {
            Some(tenant) => BTreeSet::from([tenant]),
            None => keyring.entries().map(|it| it.tenant).collect(),
        };
        for tenant in all {
            let number = self.routes.tenant_keys(tenant);
            let scope = AtRestScope::new(&self.config.identity.region, tenant);
            // Every key was tried before the keyring was given; one that does not open all the same is one that is missing.
            let keys = keyring.data_keys(tenant).unwrap_or_default();
            if let Some(store) = self.shards.store_mut() {
                store.set_keys(number, scope, keys);
            }
        }
    }
}
