//! Requests of one connection against a core without a network: frames in, frames and mesh messages out.

use super::*;
use crate::admission::Admission;
use crate::core::{CoreConfig, Identity};
use crate::links::Read;
use crate::message::{FromControl, MeshMessage};
use felix_control::authorise::{Principal, Roles};
use felix_protocol::frame_stream::FrameStream;
use felix_protocol::ids::{ClusterId, CoreId, NodeId, NodeSession};
use felix_protocol::time::{Time, Timestamp};
use felix_quic::LentBytes;
use std::collections::HashMap;
use std::sync::Arc;

const NOW: Now = Now { time: Time(1), wall: Timestamp(1) };

/// Control streams, and what went to the control thread.
#[derive(Default)]
struct Wire {
    input: HashMap<ConnKey, Vec<u8>>,
    output: HashMap<ConnKey, Vec<u8>>,
    asked: Vec<MeshMessage>,
}

impl Links for Wire {
    fn stream_recv(&mut self, conn: ConnKey, _: u64, buffer: &mut [u8]) -> Result<Read, LinkError> {
        let input = self.input.remove(&conn).ok_or(LinkError::WouldBlock)?;
        buffer[..input.len()].copy_from_slice(&input);
        Ok(Read { bytes: input.len(), fin: false })
    }
    fn stream_send(&mut self, conn: ConnKey, _: u64, bytes: &[u8], _: bool) -> Result<usize, LinkError> {
        self.output.entry(conn).or_default().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn stream_lend(&mut self, _: ConnKey, _: u64, _: LentBytes) -> Result<usize, LinkError> {
        unreachable!("nobody subscribes")
    }
    fn stream_capacity(&mut self, _: ConnKey, _: u64) -> usize {
        usize::MAX
    }
    fn stream_wait(&mut self, _: ConnKey, _: u64) -> Result<bool, LinkError> {
        Ok(true)
    }
    fn stop_reading(&mut self, _: ConnKey, _: u64, _: u16) {}
    fn reset(&mut self, _: ConnKey, _: u64, _: u16) {}
    fn open_uni(&mut self, _: ConnKey) -> Result<u64, LinkError> {
        unreachable!("nobody subscribes")
    }
    fn datagram_send(&mut self, _: ConnKey, _: &[u8]) -> Result<(), LinkError> {
        unreachable!("nobody subscribes")
    }
    fn close(&mut self, _: ConnKey, code: u16, reason: &str) {
        panic!("the core closed a connection: {code} {reason}");
    }
    fn mesh_send(&mut self, to: usize, message: MeshMessage) -> Result<(), MeshMessage> {
        assert_eq!(to, 1, "there is only the control thread");
        self.asked.push(message);
        Ok(())
    }
}

struct Lab {
    core: Core,
    wire: Wire,
}

impl Lab {
    fn new() -> Lab {
        let identity =
            Identity { cluster: ClusterId(1), node: NodeId(1), session: NodeSession(1), region: "local".to_string() };
        let core = Core::new(CoreConfig {
            me: CoreId(0),
            core_count: 1,
            identity,
            admission: Admission::default(),
            shard_limits: felix_shard::limits::Limits::default(),
            roles: Arc::new(Roles::default()),
        });
        Lab { core, wire: Wire::default() }
    }

    fn connect(&mut self, conn: ConnKey) {
        self.core.on_connected(NOW, conn, Some(Arc::new(Principal::admin())));
        let (version_min, version_max) = (WireVersion::LOWEST.0, WireVersion::HIGHEST.0);
        let hello = Hello { version_min, version_max, features: 0, cluster: None, client_name: "", token: &[] };
        assert!(matches!(self.ask(conn, 0, &Frame::Hello(hello))[..], [(0, None)]));
    }

    /// Sends a request; what comes back at once.
    fn ask(&mut self, conn: ConnKey, request_id: u32, frame: &Frame<'_>) -> Vec<(u32, Option<ErrorCode>)> {
        let mut bytes = Vec::new();
        frame.encode(request_id, &mut bytes);
        self.wire.input.insert(conn, bytes);
        self.core.on_readable(NOW, conn, CONTROL_STREAM, &mut self.wire);
        self.answers(conn)
    }

    fn tell(&mut self, message: FromControl) {
        self.core.on_mesh(NOW, 1, MeshMessage::FromControl(Box::new(message)));
    }

    /// Numbers of the answered requests, with their error.
    fn answers(&mut self, conn: ConnKey) -> Vec<(u32, Option<ErrorCode>)> {
        self.core.end_turn(NOW, &mut self.wire);
        let mut frames = FrameStream::new();
        frames.push(&self.wire.output.remove(&conn).unwrap_or_default());
        let mut answers = Vec::new();
        while let Some(frame) = frames.next_frame().unwrap() {
            let (envelope, frame) = Frame::decode(frame).unwrap();
            let code = if let Frame::Error(error) = &frame { Some(error.code) } else { None };
            answers.push((envelope.request_id, code));
        }
        answers
    }

    /// How often ids were asked for since the last look.
    fn asked_for_ids(&mut self) -> usize {
        let is_for_ids =
            |it: &MeshMessage| matches!(it, MeshMessage::ToControl(it) if matches!(**it, ToControl::NeedProducers));
        std::mem::take(&mut self.wire.asked).iter().filter(|it| is_for_ids(it)).count()
    }
}

fn none_left() -> FromControl {
    FromControl::NoProducers { code: ErrorCode::Internal, detail: "the metadata stopped".to_string() }
}

#[test]
fn who_waits_for_a_producer_id_that_does_not_come_is_told() {
    let mut lab = Lab::new();
    let conn = ConnKey(1);
    lab.connect(conn);
    for request_id in 1..=3 {
        assert_eq!(lab.ask(conn, request_id, &Frame::GetProducer), []);
    }
    assert_eq!(lab.asked_for_ids(), 1, "one question at a time");
    lab.tell(none_left());
    let expected: Vec<_> = (1..=3).map(|request_id| (request_id, Some(ErrorCode::Internal))).collect();
    assert_eq!(lab.answers(conn), expected);
    assert_eq!(ErrorCode::Internal.class(), Class::Retry);
    // Who comes again asks again.
    assert_eq!(lab.ask(conn, 4, &Frame::GetProducer), []);
    assert_eq!(lab.asked_for_ids(), 1);
    lab.tell(FromControl::Producers { first: 100, count: 1_000 });
    assert_eq!(lab.answers(conn), [(4, None)]);
    assert_eq!(lab.core.sessions.get(conn).unwrap().requests, 0);
}

#[test]
fn who_is_gone_does_not_wait_for_a_producer_id() {
    let mut lab = Lab::new();
    for at in 1..=10 {
        let conn = ConnKey(at);
        lab.connect(conn);
        assert_eq!(lab.ask(conn, 1, &Frame::GetProducer), []);
        if at > 1 {
            lab.core.on_closed(conn);
        }
    }
    assert_eq!(lab.core.producer_waiting.len(), 1);
    lab.tell(FromControl::Producers { first: 100, count: 1_000 });
    assert_eq!(lab.answers(ConnKey(1)), [(1, None)]);
    assert_eq!(lab.core.producer_ids.start, 101, "none was given to who is gone");
}
