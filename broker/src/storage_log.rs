//! **What**: alarms of storage as log lines that say what happened and what to do.
//!
//! **Invariants**: one line per alarm.
//!
//! **Never**: a decision; the shards have made it.
//!
//! **See**: `felix_shard::store::Alarm`.

use felix_shard::store::Alarm;

/// Tells the operator.
pub fn tell(alarm: &Alarm) {
    match alarm {
        Alarm::WalPoisoned(poison) => crate::log::error(
            "storage failed: no durable publish is acknowledged by this core any more; look at the device, then restart",
            &[("why", &poison.to_string())],
        ),
        Alarm::ShardFailed { shard, why } => crate::log::error(
            "a shard takes nothing more; what is readable stays so; run `felix-broker check` when the broker is stopped",
            &[("shard", &shard.to_string()), ("why", why)],
        ),
        Alarm::ShardDamaged { shard, range, why } => crate::log::error(
            "a shard is damaged and read-only; the offsets are told as a gap; see `felix-broker repair --help`",
            &[
                ("shard", &shard.to_string()),
                ("from", &range.from.to_string()),
                ("to", &range.to.to_string()),
                ("why", why),
            ],
        ),
        Alarm::DiskFull => {
            crate::log::error("the disk is full: durable publishes are refused until there is room again", &[]);
        }
        Alarm::DiskFreed => crate::log::info("there is room on the disk again", &[]),
        Alarm::Unopened { shard, from, key_id, why } => crate::log::warn(
            "records are sealed with a data key that was destroyed or is not in the keyring; they are told as a gap; see \
             `felix-broker keyring DATA list`",
            &[
                ("shard", &shard.to_string()),
                ("from", &from.to_string()),
                ("data_key", &key_id.to_string()),
                ("why", &why.to_string()),
            ],
        ),
        Alarm::Note { shard, what } => crate::log::warn(what, &[("shard", &shard.to_string())]),
    }
}
