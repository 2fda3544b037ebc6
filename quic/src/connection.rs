//! One QUIC connection, server or client side: what quiche does not keep for us.
//!
//! **What.** Life cycle, deadlines, delayed acknowledgements and the events of one connection.
//!
//! ```text
//!   Handshaking --established--> Open --close, error, peer's close--> Over --drained--> removed
//!        |                                                             ^
//!        +-------------------- failed, timed out ---------------------+
//! ```
//!
//! **Invariants.** `Open` is entered at most once and left for good. Nothing is sent from here: a
//! connection only says whether it wants to be (`Attention`).
//!
//! **Never.** A call into quiche per packet that walks all streams: its queues are edges, and we take
//! what changed.
//!
//! **See** `streams.rs` (reads and writes), `train.rs` (packets out), `endpoint.rs` (who calls).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::buffers::QuicheConnection;
use crate::conn_id::ConnId;
use crate::event::{CloseReason, Event};
use crate::settings::AckDelay;
use crate::stateless::Path;
use crate::streams::StreamMarks;
use crate::tls::ALPN;

/// After a loss, acknowledgements go out at once for so long: what we wait for may be a retransmission
/// that the next packet unlocks.
const NO_ACK_DELAY_AFTER_LOSS: Duration = Duration::from_secs(1);

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Handshaking,
    Open,
    /// Its end was told (or, on a server, never needed to be).
    Over,
}

/// Whether a connection must be looked at by `poll_transmit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attention {
    /// It may have something to send.
    Send,
    /// Only an acknowledgement, and that may wait for its deadline.
    Later,
}

/// Figures of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnStats {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Lowest round-trip time seen.
    pub rtt_min: Option<Duration>,
    /// Congestion window.
    pub congestion_window_bytes: usize,
    /// Largest UDP payload known to pass.
    pub path_mtu_bytes: usize,
    /// Packets sent.
    pub packets_sent: usize,
    /// Packets received.
    pub packets_received: usize,
    /// Packets declared lost.
    pub packets_lost: usize,
    /// Datagrams that wait to be sent.
    pub datagrams_unsent: usize,
}

pub(crate) struct Connection {
    pub(crate) quic: QuicheConnection,
    pub(crate) marks: StreamMarks,
    peer: SocketAddr,
    phase: Phase,
    handshake_deadline: Instant,
    /// Application code of our own close.
    closed_with: Option<u64>,
    /// An end that quiche does not know of.
    cut_off: Option<CloseReason>,
    last_heard: Instant,
    keep_alive: Option<Duration>,
    ack: AckWait,
}

/// Per-connection settings that quiche does not take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Habits {
    pub(crate) handshake_timeout: Duration,
    pub(crate) keep_alive: Option<Duration>,
    pub(crate) ack_delay: Option<AckDelay>,
}

#[derive(Default)]
struct AckWait {
    delay: Option<AckDelay>,
    due: Option<Instant>,
    datagrams: u16,
    lost_seen: usize,
    at_once_until: Option<Instant>,
}

impl Connection {
    pub(crate) fn new(quic: QuicheConnection, peer: SocketAddr, now: Instant, habits: Habits) -> Connection {
        let marks = StreamMarks::new(quic.is_server());
        Connection {
            quic,
            marks,
            peer,
            phase: Phase::Handshaking,
            handshake_deadline: now + habits.handshake_timeout,
            closed_with: None,
            cut_off: None,
            last_heard: now,
            keep_alive: habits.keep_alive,
            ack: AckWait { delay: habits.ack_delay, ..AckWait::default() },
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Address the connection was accepted from or made to.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Takes a datagram. An error inside is quiche's reason to close; it is seen by `end`.
    pub(crate) fn heard(&mut self, now: Instant, datagram: &mut [u8], path: Path) -> Attention {
        if self.is_cut_off() {
            return Attention::Later;
        }
        let info = quiche::RecvInfo { from: path.peer, to: path.local };
        let _ = self.quic.recv(datagram, info);
        self.last_heard = now;
        self.attention(now)
    }

    fn attention(&mut self, now: Instant) -> Attention {
        let Some(delay) = self.ack.delay else { return Attention::Send };
        let has_own = self.marks.is_write_blocked() || self.quic.dgram_send_queue_len() > 0;
        if self.phase != Phase::Open || has_own {
            return Attention::Send;
        }
        let lost = self.quic.stats().lost;
        if lost != self.ack.lost_seen {
            self.ack.lost_seen = lost;
            self.ack.at_once_until = Some(now + NO_ACK_DELAY_AFTER_LOSS);
        }
        self.ack.datagrams += 1;
        if self.ack.at_once_until.is_some_and(|until| now < until) || self.ack.datagrams >= delay.datagrams_max {
            return Attention::Send;
        }
        self.ack.due.get_or_insert(now + delay.wait_max);
        Attention::Later
    }

    /// What a read by the application asks for: window updates ride with a waiting acknowledgement.
    pub(crate) fn attention_after_read(&self) -> Attention {
        if self.ack.due.is_some() { Attention::Later } else { Attention::Send }
    }

    /// Everything that waited was sent.
    pub(crate) fn flushed(&mut self) {
        self.ack.due = None;
        self.ack.datagrams = 0;
    }

    /// When this connection must be looked at, if nothing comes.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let ours = match self.phase {
            Phase::Handshaking => Some(self.handshake_deadline),
            Phase::Open => {
                [self.keep_alive.map(|interval| self.last_heard + interval), self.ack.due].into_iter().flatten().min()
            }
            Phase::Over => None,
        };
        [self.quic.timeout_instant(), ours].into_iter().flatten().min()
    }

    /// Handles what is due. `Later` if nothing was.
    pub(crate) fn on_timeout(&mut self, now: Instant) -> Attention {
        let mut attention = Attention::Later;
        if self.phase == Phase::Handshaking && self.handshake_deadline <= now {
            self.cut_off(CloseReason::HandshakeTimeout);
            return Attention::Send;
        }
        if self.quic.timeout_instant().is_some_and(|at| at <= now) {
            self.quic.on_timeout();
            attention = Attention::Send;
        }
        if self.phase == Phase::Open {
            if self.ack.due.is_some_and(|at| at <= now) {
                attention = Attention::Send;
            }
            if self.keep_alive.is_some_and(|interval| self.last_heard + interval <= now) {
                // Counted from here on, so that a silent peer is asked once per interval.
                self.last_heard = now;
                if self.quic.send_ack_eliciting().is_ok() {
                    attention = Attention::Send;
                }
            }
        }
        attention
    }

    /// Ends the connection for a reason that quiche does not see.
    pub(crate) fn cut_off(&mut self, reason: CloseReason) {
        self.cut_off.get_or_insert(reason);
    }

    /// Whether `cut_off` was called: nothing goes out any more and nothing is taken in.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.cut_off.is_some()
    }

    /// Closes with an application code. Later calls change nothing.
    pub(crate) fn close(&mut self, code: u64, reason: &[u8]) {
        /// Longer reasons would not fit beside the rest of the packet.
        const REASON_BYTES_MAX: usize = 256;
        let reason = &reason[..reason.len().min(REASON_BYTES_MAX)];
        if self.quic.close(true, code, reason).is_ok() {
            self.closed_with = Some(code);
        }
    }

    /// Closes with a transport code.
    pub(crate) fn close_transport(&mut self, code: u64) {
        let _ = self.quic.close(false, code, b"");
    }

    /// Enters `Open` when the handshake is complete. True once.
    pub(crate) fn opens(&mut self) -> bool {
        // A peer that already closed again still opened: what it sent before is read first.
        let broken = self.cut_off.is_some() || self.quic.local_error().is_some();
        if self.phase != Phase::Handshaking || !self.quic.is_established() || broken {
            return false;
        }
        if self.quic.application_proto() != ALPN {
            // BoringSSL refuses this before; belt and braces.
            const NO_APPLICATION_PROTOCOL: u64 = 0x178;
            self.close_transport(NO_APPLICATION_PROTOCOL);
            return false;
        }
        self.phase = Phase::Open;
        true
    }

    /// The `Connected` event of this connection.
    pub(crate) fn connected(&self, conn: ConnId) -> Event {
        let peer_cert = self.quic.peer_cert().map(<[u8]>::to_vec);
        Event::Connected { conn, peer: self.peer, peer_cert }
    }

    /// Why the connection is over, if it is.
    pub(crate) fn end(&self) -> Option<CloseReason> {
        if let Some(reason) = &self.cut_off {
            return Some(reason.clone());
        }
        if let Some(error) = self.quic.peer_error() {
            let (code, reason) = (error.error_code, error.reason.clone());
            return Some(if error.is_app {
                CloseReason::PeerApplication { code, reason }
            } else {
                CloseReason::PeerTransport { code, reason }
            });
        }
        if let Some(code) = self.closed_with {
            return Some(CloseReason::Local { code });
        }
        if let Some(error) = self.quic.local_error() {
            return Some(CloseReason::LocalTransport { code: error.error_code });
        }
        if self.quic.is_closed() {
            return Some(if self.quic.is_timed_out() { CloseReason::IdleTimeout } else { CloseReason::PathLost });
        }
        None
    }

    /// Enters `Over` when the connection ended. Gives the reason once.
    pub(crate) fn ends(&mut self) -> Option<CloseReason> {
        if self.phase == Phase::Over {
            return None;
        }
        let reason = self.end()?;
        self.phase = Phase::Over;
        Some(reason)
    }

    /// Whether nothing is left to wait for: the state can go.
    pub(crate) fn is_gone(&self) -> bool {
        self.quic.is_closed() || self.cut_off.is_some()
    }

    /// Turns what changed in quiche into events, for an `Open` connection.
    pub(crate) fn collect(&mut self, conn: ConnId, events: &mut VecDeque<Event>) {
        while let Some(stream) = self.quic.stream_readable_next() {
            events.push_back(self.readable_event(conn, stream));
        }
        while let Some(stream) = self.quic.stream_writable_next() {
            if let Some(event) = self.writable_event(conn, stream) {
                events.push_back(event);
            }
        }
        if self.marks.announce_datagrams(self.quic.dgram_recv_queue_len()) {
            events.push_back(Event::DatagramReadable { conn });
        }
    }

    /// Takes quiche's path events; the number of times the peer moved.
    pub(crate) fn take_path_events(&mut self) -> PathNews {
        let mut news = PathNews::default();
        while let Some(event) = self.quic.path_event_next() {
            match event {
                quiche::PathEvent::PeerMigrated(..) => news.peer_moved += 1,
                quiche::PathEvent::Validated(local, _) => news.validated = Some(local),
                _ => {}
            }
        }
        news
    }

    pub(crate) fn stats(&self) -> ConnStats {
        let path = self.quic.path_stats().find(|path| path.active);
        let all = self.quic.stats();
        ConnStats {
            rtt: path.as_ref().map_or(Duration::ZERO, |path| path.rtt),
            rtt_min: path.as_ref().and_then(|path| path.min_rtt),
            congestion_window_bytes: path.as_ref().map_or(0, |path| path.cwnd),
            path_mtu_bytes: path.as_ref().map_or(0, |path| path.pmtu),
            packets_sent: all.sent,
            packets_received: all.recv,
            packets_lost: all.lost,
            datagrams_unsent: self.quic.dgram_send_queue_len(),
        }
    }
}

/// What happened to the network paths of a connection.
#[derive(Debug, Default)]
pub(crate) struct PathNews {
    pub(crate) peer_moved: u64,
    /// Local address of a path that was validated.
    pub(crate) validated: Option<SocketAddr>,
}
