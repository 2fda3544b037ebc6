//! **What**: the numbers of the broker, and how they become the Prometheus text of `/metrics`.
//!
//! Each core owns a block of words that only it writes: a count costs a load and a store, no lock and no locked
//! instruction. The HTTP side reads the blocks of all cores and labels each sample with its core.
//!
//! **Invariants**: a block has one writer; blocks of two cores share no cache line; a new number is one line in the list
//! below; the numbers of one scrape need not be of one moment.
//!
//! **Never**: a label whose values grow with use (stream, tenant, address); a lock; a number that nobody sets.
//!
//! **See**: `http.rs`, which serves the text.

use crate::io::mesh::MeshCounters;
use crate::io::transmit::TransmitCounters;
use crate::io::udp::ReceiveCounters;
use crate::io::wait::WaitCounters;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    /// Adds. Only from the block's own core.
    pub fn add(&self, more: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(more), Relaxed);
    }

    /// Sets. Only from the block's own core.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Reads, from any thread.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What a number is: `counter` only grows, `gauge` goes up and down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// One line of the list: what a number is called and where it is.
pub struct Metric<B> {
    /// Prometheus name.
    pub name: &'static str,
    /// Help text, one sentence.
    pub help: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// Where it is in a block.
    pub read: fn(&B) -> u64,
}

/// One number per counter of a QUIC endpoint, in the order of its list.
#[derive(Debug)]
pub struct QuicBlock(Box<[Number]>);

impl Default for QuicBlock {
    fn default() -> QuicBlock {
        QuicBlock(felix_quic::Counters::default().each().map(|_| Number::default()).collect())
    }
}

/// Declares a block of numbers: `field: Kind "prometheus_name" "Help.";` per number.
macro_rules! block {
    ($(#[$meta:meta])* $block:ident { $($field:ident: $kind:ident $name:literal $help:literal;)* }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct $block {
            $(#[doc = $help] pub $field: Number,)*
            /// What the QUIC endpoint counts.
            pub quic: QuicBlock,
        }

        impl $block {
            /// All numbers of the block, in the order of the text.
            pub const LIST: &[Metric<$block>] = &[
                $(Metric { name: $name, help: $help, kind: Kind::$kind, read: |block| block.$field.get() },)*
            ];
        }
    };
}

block! {
    /// One core's numbers.
    CoreMetrics {
        turns: Counter "felix_core_turns_total" "Turns of the core's loop.";
        work_ns: Counter "felix_core_work_nanoseconds_total" "Time in turns that found something to do: what a core that polls for ever really works.";
        wait_spins: Counter "felix_core_spins_total" "Turns that found nothing and polled on.";
        wait_parks: Counter "felix_core_parks_total" "Turns that found nothing and parked the core.";
        receive_calls: Counter "felix_udp_receive_calls_total" "System calls that asked for datagrams.";
        receive_empty_calls: Counter "felix_udp_receive_empty_calls_total" "System calls that found no datagram.";
        receive_messages: Counter "felix_udp_receive_messages_total" "Datagrams or merged trains received.";
        receive_datagrams: Counter "felix_udp_receive_datagrams_total" "Datagrams received.";
        receive_bytes: Counter "felix_udp_receive_bytes_total" "Bytes of datagrams received.";
        receive_dropped_by_kernel: Counter "felix_udp_receive_dropped_by_kernel_total" "Datagrams the kernel dropped since the socket's buffer was full.";
        receive_dropped_bad: Counter "felix_udp_receive_dropped_bad_total" "Datagrams dropped since they were empty or cut off.";
        receive_misrouted: Counter "felix_udp_receive_misrouted_total" "Datagrams that belong to another core and were handed over.";
        transmit_calls: Counter "felix_udp_transmit_calls_total" "System calls that sent datagrams.";
        transmit_messages: Counter "felix_udp_transmit_messages_total" "Datagrams or trains sent.";
        transmit_datagrams: Counter "felix_udp_transmit_datagrams_total" "Datagrams sent.";
        transmit_bytes: Counter "felix_udp_transmit_bytes_total" "Bytes of datagrams sent.";
        transmit_blocked: Counter "felix_udp_transmit_blocked_total" "System calls that found the socket's send buffer full.";
        transmit_dropped_too_big: Counter "felix_udp_transmit_dropped_too_big_total" "Datagrams larger than the path takes, path MTU probes included.";
        transmit_dropped_unreachable: Counter "felix_udp_transmit_dropped_unreachable_total" "Datagrams without a route, or refused.";
        transmit_dropped_no_buffers: Counter "felix_udp_transmit_dropped_no_buffers_total" "Datagrams the kernel had no memory for.";
        transmit_dropped_other: Counter "felix_udp_transmit_dropped_other_total" "Datagrams the kernel refused for another reason.";
        mesh_sent: Counter "felix_mesh_sent_total" "Messages sent to other cores.";
        mesh_received: Counter "felix_mesh_received_total" "Messages received from other cores.";
        disk_written_bytes: Counter "felix_disk_written_bytes_total" "Bytes written to files.";
        disk_read_bytes: Counter "felix_disk_read_bytes_total" "Bytes read from files.";
        disk_syncs: Counter "felix_disk_syncs_total" "Data syncs that succeeded.";
        disk_failed: Counter "felix_disk_failed_total" "Disk requests that failed.";
        store_failed: Gauge "felix_store_failed" "1: a write or sync of the write-ahead log failed, nothing durable is acknowledged any more.";
        store_disk_full: Gauge "felix_store_disk_full" "1: the disk is full, durable publishes are refused.";
        store_opening: Gauge "felix_store_opening_shards" "Durable shards that are not open yet.";
        store_unflushed_bytes: Gauge "felix_store_unflushed_bytes" "Bytes of batches in memory that are in the write-ahead log and not in segments yet.";
        store_wal_files: Gauge "felix_store_wal_files" "Files of the write-ahead log that are still needed.";
        store_entries: Counter "felix_store_entries_total" "Batches given to the write-ahead log.";
        store_flushes: Counter "felix_store_flushes_total" "Flushes of shards into segments.";
        store_flushed_bytes: Counter "felix_store_flushed_bytes_total" "Bytes of batches flushed into segments.";
        store_history_batches: Counter "felix_store_history_batches_total" "Batches read from segments for subscribers.";
        store_history_bytes: Counter "felix_store_history_bytes_total" "Bytes of batches read from segments for subscribers.";
        store_refused_busy: Counter "felix_store_refused_busy_total" "Batches refused since the write-ahead log or the memory for it had no room.";
        store_refused_full: Counter "felix_store_refused_full_total" "Batches refused since the disk is full.";
        store_refused_failed: Counter "felix_store_refused_failed_total" "Batches refused by storage for another reason.";
        store_retained_segments: Counter "felix_store_retained_segments_total" "Segments that retention took out of service.";
        store_compactions: Counter "felix_store_compactions_total" "Compactions of a shard that came to their end.";
        store_compactions_failed: Counter "felix_store_compactions_failed_total" "Compactions of a shard that did not.";
        store_compacted_records: Counter "felix_store_compacted_records_total" "Records that compaction took out.";
        store_compacted_segments: Counter "felix_store_compacted_segments_total" "Segments that compaction replaced.";
        store_swept_files: Counter "felix_store_swept_files_total" "Files removed from quarantine.";
        mesh_full: Counter "felix_mesh_full_total" "Sends refused since the other core's ring was full.";
        mesh_wakes: Counter "felix_mesh_wakes_total" "Wake-ups given to sleeping cores.";
        connections: Gauge "felix_connections" "Client sessions.";
        subscriptions: Gauge "felix_subscriptions" "Open subscriptions.";
        shards: Gauge "felix_shards" "Shards led by the core.";
        outbox_messages: Gauge "felix_mesh_outbox_messages" "Messages that wait for room in another core's ring.";
        sessions_opened: Counter "felix_sessions_opened_total" "Sessions that said Hello.";
        protocol_errors: Counter "felix_protocol_errors_total" "Sessions closed since the client broke the protocol.";
        hello_timeouts: Counter "felix_hello_timeouts_total" "Sessions closed since no Hello came in time.";
        frames_in: Counter "felix_frames_received_total" "Frames received.";
        publish_batches: Counter "felix_publish_batches_total" "Batches received from publishers.";
        publish_refused: Counter "felix_publish_refused_total" "Batches refused with a typed error.";
        publish_forwarded: Counter "felix_publish_forwarded_total" "Batches forwarded to the core that owns their shard.";
        publish_stalls: Counter "felix_publish_stalls_total" "Times a channel was not read on since a bound was hit.";
        requests_refused: Counter "felix_requests_refused_total" "Requests refused with a typed error.";
        permissions_denied: Counter "felix_permissions_denied_total" "Requests refused for lack of permission.";
        deliver_batches: Counter "felix_deliver_batches_total" "Batches handed to subscribers.";
        deliver_gaps: Counter "felix_deliver_gaps_total" "Gap notices given to subscribers.";
        deliver_disconnects: Counter "felix_deliver_disconnects_total" "Subscriptions closed since their consumer was too slow.";
        deliver_fetches: Counter "felix_deliver_fetches_total" "Reads of history behind a core's tail.";
        deliver_datagrams_dropped: Counter "felix_deliver_datagrams_dropped_total" "Deliveries dropped since a datagram queue was full.";
        commits_stalled: Counter "felix_mesh_commits_stalled_total" "Commits that waited for room in another core's ring.";
        receive_misrouted_dropped: Counter "felix_udp_receive_misrouted_dropped_total" "Datagrams for another core dropped since its ring was full.";
        quic_connections: Gauge "felix_quic_connections" "QUIC connections, handshakes included.";
        quic_ids: Gauge "felix_quic_connection_ids" "QUIC connection ids.";
    }
}

impl CoreMetrics {
    /// Takes over the plain counters of the edge. Called by the core now and then, say once per millisecond of work.
    pub fn take_edge(
        &self,
        receive: &ReceiveCounters,
        transmit: &TransmitCounters,
        mesh: &MeshCounters,
        wait: &WaitCounters,
    ) {
        self.receive_calls.set(receive.calls);
        self.receive_empty_calls.set(receive.empty_calls);
        self.receive_messages.set(receive.messages);
        self.receive_datagrams.set(receive.datagrams);
        self.receive_bytes.set(receive.bytes);
        self.receive_dropped_by_kernel.set(receive.dropped_by_kernel);
        self.receive_dropped_bad.set(receive.dropped_truncated + receive.dropped_empty);
        self.transmit_calls.set(transmit.calls);
        self.transmit_messages.set(transmit.messages);
        self.transmit_datagrams.set(transmit.datagrams);
        self.transmit_bytes.set(transmit.bytes);
        self.transmit_blocked.set(transmit.blocked);
        self.transmit_dropped_too_big.set(transmit.dropped_too_big);
        self.transmit_dropped_unreachable.set(transmit.dropped_unreachable);
        self.transmit_dropped_no_buffers.set(transmit.dropped_no_buffers);
        self.transmit_dropped_other.set(transmit.dropped_other);
        self.mesh_sent.set(mesh.sent);
        self.mesh_received.set(mesh.received);
        self.mesh_full.set(mesh.full);
        self.mesh_wakes.set(mesh.wakes);
        self.wait_spins.set(wait.spins);
        self.wait_parks.set(wait.parks);
    }
}

impl CoreMetrics {
    /// Takes over what the core counted.
    pub fn take_core(&self, core: &crate::core::Core) {
        let counters = &core.counters;
        let fan_out = core.fan_out_counters();
        self.connections.set(core.session_count() as u64);
        self.subscriptions.set(core.subscription_count() as u64);
        self.shards.set(core.shard_count() as u64);
        self.outbox_messages.set(core.outbox_len() as u64);
        self.sessions_opened.set(counters.sessions_opened);
        self.protocol_errors.set(counters.protocol_errors);
        self.hello_timeouts.set(counters.hello_timeouts);
        self.frames_in.set(counters.frames_in);
        self.publish_batches.set(counters.batches_in);
        self.publish_refused.set(counters.batches_refused);
        self.publish_forwarded.set(counters.batches_forwarded);
        self.publish_stalls.set(counters.channel_stalls);
        self.requests_refused.set(counters.requests_refused);
        self.permissions_denied.set(counters.permissions_denied);
        self.deliver_batches.set(counters.deliveries);
        self.deliver_gaps.set(fan_out.gaps);
        self.deliver_disconnects.set(fan_out.disconnects);
        self.deliver_fetches.set(fan_out.fetches);
        self.deliver_datagrams_dropped.set(counters.datagrams_dropped);
        self.commits_stalled.set(counters.commits_stalled);
        self.receive_misrouted.set(counters.datagrams_handed_over);
        self.receive_misrouted_dropped.set(counters.handovers_dropped);
    }

    /// Takes over what storage counted.
    pub fn take_disk(&self, core: &crate::core::Core, disk: &crate::io::disk::DiskCounters) {
        self.disk_written_bytes.set(disk.written_bytes);
        self.disk_read_bytes.set(disk.read_bytes);
        self.disk_syncs.set(disk.syncs);
        self.disk_failed.set(disk.failed);
        let Some(store) = core.store() else { return };
        let counters = &store.counters;
        self.store_failed.set(u64::from(store.wal().poison().is_some()));
        self.store_disk_full.set(u64::from(store.is_full()));
        self.store_opening.set(store.opening_count() as u64);
        self.store_unflushed_bytes.set(store.unflushed_bytes() as u64);
        self.store_wal_files.set(store.wal().files_held() as u64);
        self.store_entries.set(counters.entries);
        self.store_flushes.set(counters.flushes);
        self.store_flushed_bytes.set(counters.flushed_bytes);
        self.store_history_batches.set(counters.history_batches);
        self.store_history_bytes.set(counters.history_bytes);
        self.store_refused_busy.set(counters.refused_busy);
        self.store_refused_full.set(counters.refused_full);
        self.store_refused_failed.set(counters.refused_failed);
        self.store_retained_segments.set(counters.retained_segments);
        self.store_compactions.set(counters.compactions);
        self.store_compactions_failed.set(counters.compactions_failed);
        self.store_compacted_records.set(counters.compacted_records);
        self.store_compacted_segments.set(counters.compacted_segments);
        self.store_swept_files.set(counters.swept_files);
    }

    /// Takes over what the QUIC endpoint counted.
    pub fn take_endpoint(&self, endpoint: &felix_quic::Endpoint) {
        self.quic_connections.set(endpoint.connection_count() as u64);
        self.quic_ids.set(endpoint.id_count() as u64);
        for (number, (_, value)) in self.quic.0.iter().zip(endpoint.counters().each()) {
            number.set(value);
        }
    }
}

/// The blocks of all cores, and facts that do not change.
pub struct Metrics {
    cores: Vec<Arc<CoreMetrics>>,
    version: &'static str,
    started_seconds: u64,
    /// Size of the data folder's file system. The control thread writes it.
    pub disk_total_bytes: Number,
    /// What can still be written there. The control thread writes it.
    pub disk_available_bytes: Number,
}

impl Metrics {
    /// Blocks for `cores` cores. `started_seconds`: Unix time of the start.
    pub fn new(cores: usize, version: &'static str, started_seconds: u64) -> Metrics {
        let (disk_total_bytes, disk_available_bytes) = Default::default();
        let cores = (0..cores).map(|_| Arc::default()).collect();
        Metrics { cores, version, started_seconds, disk_total_bytes, disk_available_bytes }
    }

    /// The block of one core; give it to that core and nobody else.
    pub fn core(&self, index: usize) -> Arc<CoreMetrics> {
        self.cores[index].clone()
    }

    /// The sum of one number over all cores.
    pub fn sum(&self, read: fn(&CoreMetrics) -> u64) -> u64 {
        self.cores.iter().map(|core| read(core)).sum()
    }

    /// Appends the Prometheus text, format 0.0.4.
    pub fn render(&self, out: &mut String) {
        header(out, "felix_build_info", Kind::Gauge, "The running version.");
        let _ = writeln!(out, "felix_build_info{{version=\"{}\"}} 1", self.version);
        header(out, "felix_start_time_seconds", Kind::Gauge, "Unix time of the start.");
        let _ = writeln!(out, "felix_start_time_seconds {}", self.started_seconds);
        for (name, help, number) in [
            ("felix_disk_total_bytes", "Size of the data folder's file system.", &self.disk_total_bytes),
            ("felix_disk_available_bytes", "Bytes that can still be written there.", &self.disk_available_bytes),
        ] {
            header(out, name, Kind::Gauge, help);
            let _ = writeln!(out, "{name} {}", number.get());
        }
        for metric in CoreMetrics::LIST {
            header(out, metric.name, metric.kind, metric.help);
            for (index, core) in self.cores.iter().enumerate() {
                let _ = writeln!(out, "{}{{core=\"{index}\"}} {}", metric.name, (metric.read)(core));
            }
        }
        for (at, (name, _)) in felix_quic::Counters::default().each().enumerate() {
            let gauge = matches!(name, "connections" | "handshakes_in_flight");
            let (kind, end) = if gauge { (Kind::Gauge, "") } else { (Kind::Counter, "_total") };
            let name = format!("felix_quic_{}{end}", name.trim_end_matches("_total"));
            if gauge && name == "felix_quic_connections" {
                continue;
            }
            header(out, &name, kind, "Counted by the QUIC endpoint.");
            for (index, core) in self.cores.iter().enumerate() {
                let _ = writeln!(out, "{name}{{core=\"{index}\"}} {}", core.quic.0[at].get());
            }
        }
    }
}

/// Appends the two comment lines of a metric. Others who add to the text use it too.
pub fn header(out: &mut String, name: &str, kind: Kind, help: &str) {
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
    };
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_text_has_every_number_once_per_core() {
        let metrics = Metrics::new(2, "0.1.0", 1_700_000_000);
        metrics.core(0).sessions_opened.add(5);
        metrics.core(1).sessions_opened.add(7);
        metrics.core(1).sessions_opened.add(1);
        metrics.core(1).connections.set(3);
        metrics.disk_available_bytes.set(9);
        assert_eq!(metrics.sum(|core| core.sessions_opened.get()), 13);
        let mut text = String::new();
        metrics.render(&mut text);
        for line in [
            "felix_build_info{version=\"0.1.0\"} 1",
            "felix_start_time_seconds 1700000000",
            "felix_disk_available_bytes 9",
            "# TYPE felix_sessions_opened_total counter",
            "felix_sessions_opened_total{core=\"0\"} 5",
            "felix_sessions_opened_total{core=\"1\"} 8",
            "# TYPE felix_connections gauge",
            "felix_connections{core=\"1\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let names: Vec<&str> = samples.clone().map(|line| line.rsplit_once(' ').unwrap().0).collect();
        assert_eq!(names.len(), names.iter().collect::<HashSet<_>>().len(), "a sample appears twice");
    }

    #[test]
    fn names_follow_the_rules() {
        let mut seen = HashSet::new();
        for metric in CoreMetrics::LIST {
            assert!(seen.insert(metric.name), "{} appears twice", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.name.starts_with("felix_") && metric.help.ends_with('.'), "{}", metric.name);
            assert!(metric.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{}", metric.name);
        }
    }

    #[test]
    fn blocks_share_no_cache_line() {
        assert_eq!(align_of::<CoreMetrics>(), 128);
        assert_eq!(size_of::<CoreMetrics>() % 128, 0);
    }
}
