//! **What**: the loop of one core: take all that waits, handle each, then send the effects.
//!
//! ```text
//! turn: timers -> datagrams (recvmmsg) -> disk -> mesh -> QUIC events -> Core::end_turn -> disk, packets (sendmmsg)
//! then: worked -> next turn          nothing found -> wait (busy, hybrid, park)
//! ```
//!
//! **Invariants**: packets are made once per turn, after all its events, so that an acknowledgement rides with data and
//! one connection's data makes one train. Nothing but `wait` yields.
//!
//! **Never**: a decision about sessions or shards: that is `core.rs`, which the simulator runs too.
//!
//! **See**: `io/wait.rs` for the three ways to wait, `core.rs`.

use crate::core::Core;
use crate::io::disk::DiskPort;
use crate::io::executor::CoreHandle;
use crate::io::mesh::MeshPort;
use crate::io::transmit::{Pushed, Transmit, TransmitOptions, TransmitQueue};
use crate::io::udp::UdpSocket;
use crate::io::wait::Until;
use crate::links::{LinkError, Links, Read};
use crate::message::{FromControl, MeshMessage};
use crate::metrics::CoreMetrics;
use crate::principal::principal_of;
use felix_protocol::time::{Now, Time, Timestamp};
use felix_quic::{ConnId, DatagramError, Endpoint, Event, LentBytes, Route, StreamError};
use felix_shard::event::ConnKey;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Receive calls of one turn: after so many, deliveries get their share.
const RECEIVES_PER_TURN: usize = 4;
/// Mesh messages of one turn.
const MAIL_PER_TURN: usize = 1_024;
/// Packets or trains built before they are sent, first and at most: the first receivers work while the next packets are made,
/// and a call for few packets costs more per packet.
const SEND_FIRST: usize = 2;
const SEND_TOGETHER: usize = 16;
/// Disk completions of one turn.
const COMPLETIONS_PER_TURN: usize = 256;
/// Time that the last writes get at a stop.
const CLOSE_TIME: Duration = Duration::from_secs(10);
/// Turns between two copies of the counters into the metrics.
const METRICS_EVERY: u32 = 64;
/// Longest time the metrics of an idle core stay as they were.
const METRICS_INTERVAL: Duration = Duration::from_millis(500);

/// The clocks of a core, read once per turn.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    base: Instant,
}

impl Clock {
    /// A clock whose monotonic time counts from `base`; all cores of a broker share one.
    pub fn new(base: Instant) -> Clock {
        Clock { base }
    }

    fn now(&self, at: Instant) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { time: Time(at.duration_since(self.base).as_nanos() as u64), wall: Timestamp(wall.as_nanos() as u64) }
    }

    fn instant(&self, time: Time) -> Instant {
        self.base + Duration::from_nanos(time.0)
    }
}

/// A core with its endpoint, socket and mesh port.
pub struct CoreLoop {
    core: Core,
    endpoint: Endpoint,
    socket: UdpSocket,
    transmit: TransmitQueue,
    port: MeshPort<MeshMessage>,
    disk: DiskPort,
    clock: Clock,
    metrics: Arc<CoreMetrics>,
    turns: u64,
    work_ns: u64,
    since_metrics: u32,
    metrics_at: Instant,
    refusing: bool,
}

/// The endpoint and the mesh as the core sees them.
struct RealLinks<'a> {
    endpoint: &'a mut Endpoint,
    port: &'a mut MeshPort<MeshMessage>,
}

fn id(conn: ConnKey) -> ConnId {
    ConnId::from_u64(conn.0)
}

fn link_error(error: StreamError) -> LinkError {
    match error {
        StreamError::WouldBlock => LinkError::WouldBlock,
        StreamError::StreamLimit => LinkError::StreamLimit,
        StreamError::Closed | StreamError::UnknownConnection => LinkError::Closed,
        StreamError::Reset(_) | StreamError::Stopped(_) | StreamError::UnknownStream | StreamError::Finished => {
            LinkError::StreamClosed
        }
    }
}

impl Links for RealLinks<'_> {
    fn stream_recv(&mut self, conn: ConnKey, stream: u64, buffer: &mut [u8]) -> Result<Read, LinkError> {
        let read = self.endpoint.stream_recv(id(conn), stream, buffer).map_err(link_error)?;
        Ok(Read { bytes: read.bytes, fin: read.fin })
    }

    fn stream_send(&mut self, conn: ConnKey, stream: u64, bytes: &[u8], fin: bool) -> Result<usize, LinkError> {
        self.endpoint.stream_send(id(conn), stream, bytes, fin).map_err(link_error)
    }

    fn stream_lend(&mut self, conn: ConnKey, stream: u64, bytes: LentBytes) -> Result<usize, LinkError> {
        self.endpoint.stream_lend(id(conn), stream, bytes).map_err(link_error)
    }

    fn stream_capacity(&mut self, conn: ConnKey, stream: u64) -> usize {
        self.endpoint.stream_capacity(id(conn), stream).unwrap_or(0)
    }

    fn stream_wait(&mut self, conn: ConnKey, stream: u64) -> Result<bool, LinkError> {
        self.endpoint.stream_wait(id(conn), stream).map_err(link_error)
    }
    fn stop_reading(&mut self, conn: ConnKey, stream: u64, code: u16) {
        // A stream that is over already needs no stopping.
        let _ = self.endpoint.stream_shutdown_read(id(conn), stream, u64::from(code));
    }

    fn reset(&mut self, conn: ConnKey, stream: u64, code: u16) {
        let _ = self.endpoint.stream_reset(id(conn), stream, u64::from(code));
    }

    fn open_uni(&mut self, conn: ConnKey) -> Result<u64, LinkError> {
        self.endpoint.open_uni(id(conn)).map_err(link_error)
    }

    fn datagram_send(&mut self, conn: ConnKey, bytes: &[u8]) -> Result<(), LinkError> {
        self.endpoint.datagram_send(id(conn), bytes).map_err(|error| match error {
            DatagramError::TooLarge { .. } | DatagramError::Unsupported => LinkError::TooLarge,
            DatagramError::Closed | DatagramError::UnknownConnection => LinkError::Closed,
            DatagramError::Full | DatagramError::WouldBlock | DatagramError::BufferTooSmall { .. } => {
                LinkError::WouldBlock
            }
        })
    }

    fn close(&mut self, conn: ConnKey, code: u16, reason: &str) {
        self.endpoint.close(id(conn), u64::from(code), reason.as_bytes());
    }

    fn mesh_send(&mut self, to: usize, message: MeshMessage) -> Result<(), MeshMessage> {
        self.port.try_send(to, message).map_err(|full| full.0)
    }
}

impl CoreLoop {
    /// Puts a core together.
    pub fn new(
        core: Core,
        endpoint: Endpoint,
        socket: UdpSocket,
        port: MeshPort<MeshMessage>,
        disk: DiskPort,
        clock: Clock,
        metrics: Arc<CoreMetrics>,
    ) -> CoreLoop {
        CoreLoop {
            core,
            endpoint,
            socket,
            transmit: TransmitQueue::new(TransmitOptions::default()),
            port,
            disk,
            clock,
            metrics,
            turns: 0,
            work_ns: 0,
            since_metrics: 0,
            metrics_at: Instant::now(),
            refusing: false,
        }
    }

    /// Runs until the control thread says stop.
    pub async fn run(mut self, handle: CoreHandle) -> std::io::Result<()> {
        let mut waiter = handle.waiter(&self.socket)?;
        waiter.attach_disk(&self.disk)?;
        let mut closing_since: Option<Instant> = None;
        let mut working_since: Option<Instant> = None;
        loop {
            let now = Instant::now();
            if let Some(since) = working_since.take() {
                self.work_ns += now.duration_since(since).as_nanos() as u64;
            }
            let (worked, again) = self.turn(now)?;
            if self.core.is_stopped() {
                if closing_since.is_none() {
                    self.core.shut_down_disk();
                }
                let since = *closing_since.get_or_insert(now);
                if self.core.is_disk_closed() || now.duration_since(since) >= CLOSE_TIME {
                    self.stop(now);
                    return Ok(());
                }
            }
            self.since_metrics += 1;
            if self.since_metrics >= METRICS_EVERY || now.duration_since(self.metrics_at) >= METRICS_INTERVAL {
                self.publish_metrics(now, &waiter.counters());
            }
            if worked || again {
                working_since = Some(now);
                waiter.worked().await;
            } else {
                let until = Until { deadline: self.next_deadline(now), writable: !self.transmit.is_empty() };
                waiter.wait_with_disk(&mut self.port, &mut self.disk, until).await;
            }
        }
    }

    /// One turn. Returns whether it found work, and whether it must run again at once.
    fn turn(&mut self, at: Instant) -> std::io::Result<(bool, bool)> {
        self.turns += 1;
        let now = self.clock.now(at);
        let mut worked = false;
        if self.endpoint.next_timeout().is_some_and(|deadline| deadline <= at) {
            self.endpoint.on_timeout(at);
            worked = true;
        }
        worked |= self.receive(at)?;
        worked |= self.take_completions(now);
        worked |= self.take_mail(at, now) > 0;
        worked |= self.take_events(now);
        let mut links = RealLinks { endpoint: &mut self.endpoint, port: &mut self.port };
        let again = self.core.end_turn(now, &mut links);
        if self.core.is_draining() && !self.refusing {
            self.refusing = true;
            self.endpoint.stop_accepting();
        }
        // Before the packets: the device works while they are made.
        worked |= self.submit();
        worked |= self.send(at);
        Ok((worked, again))
    }

    fn take_completions(&mut self, now: Now) -> bool {
        let mut any = false;
        for _ in 0..COMPLETIONS_PER_TURN {
            let Some(done) = self.disk.poll() else { break };
            self.core.on_disk(now, done);
            any = true;
        }
        any
    }

    fn submit(&mut self) -> bool {
        let mut any = false;
        for request in self.core.take_disk_requests() {
            self.disk.submit(request);
            any = true;
        }
        if any {
            self.disk.flush();
        }
        while let Some(alarm) = self.core.take_alarm() {
            crate::storage_log::tell(&alarm);
        }
        any
    }

    fn receive(&mut self, at: Instant) -> std::io::Result<bool> {
        let CoreLoop { socket, endpoint, port, core, .. } = self;
        let mut any = false;
        for _ in 0..RECEIVES_PER_TURN {
            let count = socket.recv(|datagram, from, to| match endpoint.route(datagram) {
                Route::Core(other) => {
                    // Rare: no steering, a NAT that changed the path, or a train of several connections.
                    let message = MeshMessage::Datagram { bytes: datagram.to_vec(), from, to };
                    match port.try_send(usize::from(other), message) {
                        Ok(()) => core.counters.datagrams_handed_over += 1,
                        Err(_) => core.counters.handovers_dropped += 1,
                    }
                }
                Route::Local | Route::Junk => endpoint.on_datagram(at, datagram, from, to),
            })?;
            any |= count > 0;
            if count == 0 {
                break;
            }
        }
        Ok(any)
    }

    fn take_mail(&mut self, at: Instant, now: Now) -> usize {
        let CoreLoop { port, core, endpoint, .. } = self;
        port.drain(MAIL_PER_TURN, |from, message| match message {
            MeshMessage::Datagram { mut bytes, from, to } => endpoint.on_datagram(at, &mut bytes, from, to),
            MeshMessage::FromControl(message) => match *message {
                FromControl::ReloadTls(tls) => {
                    // The control thread checked the files on an endpoint of its own; a failure here keeps the old ones.
                    let _ = endpoint.reload_tls(&tls);
                }
                message => core.on_mesh(now, from, MeshMessage::FromControl(Box::new(message))),
            },
            message => core.on_mesh(now, from, message),
        })
    }

    fn take_events(&mut self, now: Now) -> bool {
        let mut any = false;
        while let Some(event) = self.endpoint.poll_event() {
            any = true;
            let mut links = RealLinks { endpoint: &mut self.endpoint, port: &mut self.port };
            let core = &mut self.core;
            let key = |conn: ConnId| ConnKey(conn.to_u64());
            match event {
                Event::Connected { conn, peer_cert, .. } => {
                    let principal = peer_cert.as_deref().and_then(principal_of).map(Arc::new);
                    core.on_connected(now, key(conn), principal);
                }
                Event::StreamReadable { conn, stream } => core.on_readable(now, key(conn), stream, &mut links),
                Event::StreamWritable { conn, stream } => core.on_writable(key(conn), stream),
                Event::DatagramReadable { conn } => core.on_datagram(key(conn), &mut links),
                Event::StreamReset { conn, stream, .. } | Event::StreamStopped { conn, stream, .. } => {
                    core.on_stream_ended(key(conn), stream, &mut links);
                }
                Event::Closed { conn, .. } => core.on_closed(key(conn)),
            }
        }
        any
    }

    fn send(&mut self, at: Instant) -> bool {
        let mut any = false;
        let mut together = SEND_FIRST;
        loop {
            let endpoint = &mut self.endpoint;
            let pushed = self.transmit.push(|buffer| {
                endpoint.poll_transmit(at, buffer).map(|it| Transmit {
                    bytes: it.bytes,
                    segment_bytes: it.segment_bytes,
                    to: it.to,
                    from: Some(it.from.ip()),
                })
            });
            match pushed {
                Pushed::Added => {
                    any = true;
                    if self.transmit.waiting() >= together {
                        together = (together * 2).min(SEND_TOGETHER);
                        if self.transmit.flush(&self.socket).blocked {
                            return any;
                        }
                    }
                }
                Pushed::Full => {
                    if self.transmit.flush(&self.socket).blocked {
                        return any;
                    }
                }
                Pushed::Nothing => {
                    self.transmit.flush(&self.socket);
                    return any;
                }
            }
        }
    }

    fn next_deadline(&mut self, at: Instant) -> Option<Instant> {
        let now = self.clock.now(at);
        let core = self.core.next_deadline(now).map(|time| self.clock.instant(time));
        // An idle core shows its last numbers before it sleeps for long.
        let metrics = (self.since_metrics > 0).then(|| self.metrics_at + METRICS_INTERVAL);
        [self.endpoint.next_timeout(), core, metrics].into_iter().flatten().min()
    }

    /// Closes what is left and sends the closing packets once; their loss costs a client its idle timeout.
    fn stop(&mut self, at: Instant) {
        let code = u64::from(felix_protocol::error_code::ErrorCode::Draining.number());
        self.endpoint.close_all(code, b"the broker shut down");
        self.send(at);
        self.transmit.flush(&self.socket);
    }

    fn publish_metrics(&mut self, at: Instant, wait: &crate::io::wait::WaitCounters) {
        self.since_metrics = 0;
        self.metrics_at = at;
        let metrics = &self.metrics;
        metrics.take_edge(&self.socket.counters(), &self.transmit.counters(), &self.port.counters(), wait);
        metrics.turns.set(self.turns);
        metrics.work_ns.set(self.work_ns);
        metrics.take_core(&self.core);
        metrics.take_disk(&self.core, &self.disk.counters());
        metrics.take_endpoint(&self.endpoint);
    }
}
