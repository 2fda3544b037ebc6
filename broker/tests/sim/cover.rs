//! What a run came through. A run that never meets a full ring proves nothing about full rings, so each count must be
//! above zero over the seeds.

macro_rules! cover {
    ($($name:ident,)*) => {
        #[derive(Clone, Copy, Debug, Default)]
        pub struct Cover { $(pub $name: u64,)* }

        impl Cover {
            pub fn each(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }

            pub fn add(&mut self, other: &Cover) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

cover! {
    events, mesh_messages, mesh_full, commits_stalled, channel_stalls, jumps, fetches, histories_dropped,
    batches_acked, batches_refused, duplicate_acks, resent, forwarded, deliveries, derived, compressed_derived,
    gaps, slow_disconnects, progress, credit_waits, ttl_skips, datagrams_lost, datagrams_dropped, gap_too_large,
    connections, deaths_seen_late, deaths_seen_soon, reconnects, resumes, streams_remade, streams_altered, stream_gone,
    lineage_resets, future_offsets, wrong_shard, corrupt_batch, epochs_raised, early_channels, channels_finished,
    hello_timeouts, rogues_closed, pieces_lost, pieces_doubled, pieces_disordered, short_sends, stalls_of_clients,
    reports, evictions, no_ack_batches, thousand_clients,
}
