//! The control thread without its loop: messages in, proposals awaited, what the core finds in its ring.

use super::*;
use crate::data_folder::files::tests::folder;
use crate::io::mesh::{Mesh, MeshLimits};
use crate::metrics::Metrics;
use felix_protocol::ids::{ClusterId, NodeId};
use felix_protocol::metadata::{Durability, StreamSpec, TenantLimits};
use felix_protocol::names::{NamespaceName, StreamName};
use felix_wal::format::header::Region;
use std::path::Path;

/// A control thread of a broker with one core, and that core's end of the mesh.
struct Bench {
    control: ControlThread,
    core: MeshPort<MeshMessage>,
    requests: u32,
}

impl Bench {
    async fn open(data: &Path, session: u64) -> Bench {
        let limits = MeshLimits { capacity: 1_024, reserved: 1_024 };
        let mut ports = Mesh::<MeshMessage>::ports(2, limits);
        let control_port = ports.pop().unwrap();
        let region = Region::new("local").unwrap();
        let settings = ControlSettings {
            cores: 1,
            identity: Identity { cluster: ClusterId(7), node: NodeId(9) },
            session: NodeSession(session),
            folder: data.join("control"),
            raise_floors: false,
            durable_streams: true,
            drain: Duration::ZERO,
            tls: TlsFiles::new(PathBuf::new(), PathBuf::new(), PathBuf::new()),
            space: SpaceKeeper::new(data, 1, Arc::new(Metrics::new(1, "", 0))),
            data: data.to_path_buf(),
            keyring: KeyringFile::new(data, None, region),
        };
        let control = ControlThread::open(settings, control_port, Arc::default()).await.unwrap();
        let mut bench = Bench { control, core: ports.pop().unwrap(), requests: 0 };
        bench.heard();
        bench
    }

    /// A client's command, not waited for.
    fn send(&mut self, command: Command) {
        self.requests += 1;
        let (conn, request_id) = (ConnKey(1), self.requests);
        let principal = Arc::new(Principal::admin());
        self.control.on_message(0, ToControl::Admin { conn, request_id, principal, idempotency_key: 0, command });
    }

    /// What the core finds once nothing is under way any more.
    async fn settled(&mut self) -> Vec<FromControl> {
        while let Some(ended) = self.control.proposals.join_next().await {
            self.control.on_joined(ended);
        }
        self.heard()
    }

    fn heard(&mut self) -> Vec<FromControl> {
        let mut heard = Vec::new();
        self.core.drain(1_024, |_, message| match message {
            MeshMessage::FromControl(message) => heard.push(*message),
            other => panic!("{other:?}"),
        });
        heard
    }

    async fn close(self) {
        self.control.node.shutdown().await;
    }
}

fn name() -> StreamName {
    StreamName::parse("t/n/s").unwrap()
}

fn spec(encrypt: bool) -> StreamSpec {
    StreamSpec { durability: Durability::Group, encrypt, ..StreamSpec::default() }
}

fn create(encrypt: bool, create_parents: bool) -> Command {
    Command::CreateStream { name: name(), spec: spec(encrypt), create_parents }
}

fn create_tenant(streams_max: u32) -> Command {
    let limits = TenantLimits { streams_max, ..TenantLimits::default() };
    Command::CreateTenant { tenant: "t".to_string(), limits }
}

fn data(label: &str) -> PathBuf {
    let data = folder(label);
    std::fs::create_dir(data.join("secrets")).unwrap();
    data
}

fn on_runtime<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Every answer is a success; and the key of the sealed stream came before the stream.
fn check_sealed(heard: &[FromControl]) {
    let failed = heard.iter().find(|it| matches!(it, FromControl::AdminReply { result: Err(_), .. }));
    assert!(failed.is_none(), "{failed:?}");
    let key =
        heard.iter().position(|it| matches!(it, FromControl::Keys { tenant: Some(tenant), .. } if &**tenant == "t"));
    let is_sealed = |it: &Change| matches!(it, Change::StreamPut { stream, .. } if stream.info.spec.encrypt);
    let stream =
        heard.iter().position(|it| matches!(it, FromControl::Changes { changes, .. } if changes.iter().any(is_sealed)));
    assert!(stream.is_some(), "{heard:?}");
    assert!(key.is_some() && key < stream, "the key at {key:?}, the stream at {stream:?}");
}

/// The last commands come from one client that does not wait for answers.
fn sealed_after(label: &str, before: Vec<Command>, commands: Vec<Command>) {
    let data = data(label);
    on_runtime(async {
        let mut bench = Bench::open(&data, 1).await;
        before.into_iter().for_each(|command| bench.send(command));
        bench.settled().await;
        commands.into_iter().for_each(|command| bench.send(command));
        check_sealed(&bench.settled().await);
        bench.close().await;
        Bench::open(&data, 2).await.close().await;
    });
    std::fs::remove_dir_all(data).unwrap();
}

#[test]
fn a_sealed_stream_behind_its_tenant_has_a_key() {
    let namespace = Command::CreateNamespace { name: NamespaceName::parse("t/n").unwrap() };
    sealed_after("pipelined-parents", vec![], vec![create_tenant(1), namespace, create(true, false)]);
}

/// Name and quota are taken until the deletion is applied.
#[test]
fn a_sealed_stream_behind_the_end_of_a_clear_one_has_a_key() {
    let delete = Command::DeleteStream { name: name() };
    sealed_after("pipelined-delete", vec![create_tenant(1), create(false, true)], vec![delete, create(true, true)]);
}

/// Metadata of a version that made such streams; the record of used keys is there because of another tenant.
#[test]
fn a_start_makes_the_key_that_a_sealed_stream_never_had() {
    let data = data("keyless-stream");
    on_runtime(async {
        let mut bench = Bench::open(&data, 1).await;
        bench.send(create(true, true));
        check_sealed(&bench.settled().await);
        let keyless =
            Command::CreateStream { name: StreamName::parse("u/n/s").unwrap(), spec: spec(true), create_parents: true };
        let made = bench.control.node.propose(wall(), &Principal::admin(), 0, keyless).await.unwrap();
        made.outcome.unwrap();
        assert!(!bench.control.keys.has("u"));
        bench.close().await;
        let bench = Bench::open(&data, 2).await;
        assert!(bench.control.keys.has("u") && bench.control.keys.has("t"));
        bench.close().await;
    });
    std::fs::remove_dir_all(data).unwrap();
}

#[test]
fn a_core_that_gets_no_producer_ids_is_told() {
    let data = data("no-producers");
    on_runtime(async {
        let mut bench = Bench::open(&data, 1).await;
        let stopped = ProposeError::Stopped { detail: "the disk failed".to_string() };
        bench.control.on_proposal(Origin::Producers { core: 0 }, Err(stopped));
        let heard = bench.heard();
        assert!(matches!(heard[..], [FromControl::NoProducers { code: ErrorCode::Internal, .. }]), "{heard:?}");
        bench.close().await;
    });
    std::fs::remove_dir_all(data).unwrap();
}
