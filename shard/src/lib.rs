//! felix-shard
