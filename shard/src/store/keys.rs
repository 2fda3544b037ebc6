//! **What**: the keys of encryption at rest that a core holds, and what is done with them: sealing on the way to the disk,
//! opening on the way back.
//!
//! **Invariants**: every sealer has a salt of its own, from one random number of this core and start, and its counter is
//! never set back, so no nonce is used twice (DECISIONS 4). A keyring that is given again changes nothing that is the same.
//!
//! **Never**: a sealed stream written in clear because a key is missing: appends are refused.
//!
//! **See**: `felix_wal::at_rest`.

use crate::event::TenantKeys;
use felix_protocol::ids::ShardId;
use felix_wal::at_rest::{AtRest, AtRestError, AtRestScope, DataKey, Opener, Sealer};
use felix_wal::format::entry::SealedBy;
use felix_wal::format::stored::StoredBatch;
use std::collections::{BTreeMap, BTreeSet};

/// Shards and keys whose want was told, at most; beyond it some are told again.
const TOLD_MAX: usize = 1_024;

#[derive(Debug)]
struct Tenant {
    opener: Opener,
    /// None: every data key was destroyed.
    sealer: Option<(u32, u128, Sealer)>,
    /// The one before that: what was appended under it goes to segments under it, where nobody can open it.
    former: Option<Sealer>,
}

/// Keys by tenant.
#[derive(Debug)]
pub(crate) struct Keys {
    tenants: BTreeMap<TenantKeys, Tenant>,
    /// Random bits of this core and start, moved on by each sealer: one that comes back after another was used for a while
    /// begins to count anew, so it must not have the same key.
    next_salt: u128,
    generation: u64,
    told: BTreeSet<(ShardId, u32)>,
    sealed: Vec<u8>,
    opened: Vec<u8>,
}

impl Keys {
    pub(crate) fn new(salt: u128) -> Keys {
        Keys {
            tenants: BTreeMap::new(),
            next_salt: salt,
            generation: 0,
            told: BTreeSet::new(),
            sealed: Vec::new(),
            opened: Vec::new(),
        }
    }

    /// All data keys of a tenant that exist, the one to seal with last.
    pub(crate) fn set(&mut self, tenant: TenantKeys, scope: AtRestScope, keys: Vec<DataKey>) {
        let (mut before, mut former) = self.tenants.remove(&tenant).map_or((None, None), |it| (it.sealer, it.former));
        if keys.is_empty() {
            former = before.take().map(|(_, _, sealer)| sealer).or(former);
        } else {
            former = None;
        }
        let sealer = keys.last().map(|key| match before {
            // The same key: its counter goes on.
            Some((id, salt, sealer)) if id == key.id => (id, salt, sealer),
            _ => {
                let salt = self.next_salt;
                self.next_salt = salt.wrapping_add(1);
                (key.id, salt, Sealer::new(scope, key, salt))
            }
        });
        self.generation += 1;
        self.told.clear();
        self.tenants.insert(tenant, Tenant { opener: Opener::new(scope, keys), sealer, former });
    }

    /// A clear batch as it is stored, and where its key comes from.
    pub(crate) fn seal(&mut self, tenant: TenantKeys, batch: &[u8]) -> Result<(SealedBy, &[u8]), AtRestError> {
        let missing = AtRestError::OtherKey { key_id: 0 };
        let (_, salt, sealer) = self.tenants.get_mut(&tenant).and_then(|it| it.sealer.as_mut()).ok_or(missing)?;
        self.sealed.clear();
        sealer.seal(batch, &mut self.sealed)?;
        let stored = StoredBatch::split_first(&self.sealed, true).map_err(|_| missing)?.0;
        let counter = stored.sealed.map_or(0, |it| it.counter);
        Ok((SealedBy { salt_id: *salt as u64, counter }, &self.sealed))
    }

    /// The same for what was appended before, also under a key that was destroyed since.
    pub(crate) fn seal_appended(&mut self, tenant: TenantKeys, batch: &[u8]) -> Result<&[u8], AtRestError> {
        let tenant = self.tenants.get_mut(&tenant);
        let sealer = tenant.and_then(|it| it.sealer.as_mut().map(|(_, _, sealer)| sealer).or(it.former.as_mut()));
        self.sealed.clear();
        sealer.ok_or(AtRestError::OtherKey { key_id: 0 })?.seal(batch, &mut self.sealed)?;
        Ok(&self.sealed)
    }

    /// Changes whenever keys come or go.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// What compaction of this tenant's logs needs; None: keys are missing.
    pub(crate) fn at_rest(&mut self, tenant: TenantKeys) -> Option<AtRest<'_>> {
        let Tenant { opener, sealer, .. } = self.tenants.get_mut(&tenant)?;
        let (_, _, sealer) = sealer.as_mut()?;
        Some(AtRest { opener, sealer })
    }

    /// Whether nobody was told yet that this shard needs this key.
    pub(crate) fn is_news(&mut self, shard: ShardId, key_id: u32) -> bool {
        if self.told.len() >= TOLD_MAX {
            self.told.clear();
        }
        self.told.insert((shard, key_id))
    }

    /// The clear bytes of a stored batch.
    pub(crate) fn open<'a>(
        &'a mut self,
        tenant: Option<TenantKeys>,
        stored: &StoredBatch<'a>,
    ) -> Result<&'a [u8], AtRestError> {
        let Some(envelope) = stored.sealed else { return Ok(stored.bytes) };
        let missing = AtRestError::OtherKey { key_id: envelope.key_id };
        let opener = tenant.and_then(|it| self.tenants.get_mut(&it)).ok_or(missing)?;
        self.opened.clear();
        opener.opener.open(stored, &mut self.opened)?;
        Ok(&self.opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::stamped;

    fn keys(count: u32) -> Vec<DataKey> {
        (1..=count).map(|id| DataKey::new(id, [id as u8; 32])).collect()
    }

    #[test]
    fn a_nonce_is_never_used_again_when_the_keyring_is_read_again() {
        let scope = AtRestScope::new("eu", "acme");
        let batch = stamped(&mut crate::batch_pool::BatchPool::new(1 << 20), 0, 1, 100);
        let mut held = Keys::new(5);
        let tenant = TenantKeys(1);
        held.set(tenant, scope, keys(1));
        let first = held.seal(tenant, batch.bytes()).unwrap().0;
        held.set(tenant, scope, keys(1));
        let second = held.seal(tenant, batch.bytes()).unwrap().0;
        assert!(second.counter > first.counter, "{first:?} {second:?}");
        // A new data key is another key, and what the old one sealed still opens.
        let old = held.seal(tenant, batch.bytes()).unwrap().1.to_vec();
        held.set(tenant, scope, keys(2));
        let stored = StoredBatch::split_first(&old, true).unwrap().0;
        assert_eq!(held.open(Some(tenant), &stored).unwrap(), batch.bytes());
        // Without the tenant's keys nothing is sealed and nothing opens.
        assert!(held.seal(TenantKeys(9), batch.bytes()).is_err());
        assert!(held.open(Some(TenantKeys(9)), &stored).is_err() && held.open(None, &stored).is_err());
        // A key that seals again after another did so begins to count anew, under another salt.
        let before = held.seal(tenant, batch.bytes()).unwrap().0;
        held.set(tenant, scope, keys(1));
        let again = held.seal(tenant, batch.bytes()).unwrap().0;
        assert!(again.salt_id != first.salt_id && again.salt_id != before.salt_id, "{first:?} {before:?} {again:?}");
        held.set(tenant, scope, Vec::new());
        assert!(held.seal(tenant, batch.bytes()).is_err() && held.open(Some(tenant), &stored).is_err());
    }
}
