//! A real broker under the kernel's own trace points: each ack of a durable stream leaves the process after the fdatasync
//! that covers it, and that sync began after the write of the record had ended.
//!
//! Needs root and a kernel whose trace points can be used; without them the test says so and passes. The trace file system
//! is mounted in a mount namespace of the test's own, so that nothing of the machine changes.

#[path = "broker_process/ports.rs"]
mod ports;

use felix_client::protocol::metadata::{Durability, StreamSpec};
use felix_client::protocol::names::StreamName;
use felix_client::{Client, ClientConfig, Command, Context, PublisherOptions, RecordToPublish};
use ports::Port;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

/// Set in the process that may look at the trace.
const INSIDE: &str = "FELIX_TRACE_INSIDE";
const ROUNDS: usize = 60;
const PATIENCE: Duration = Duration::from_secs(60);
const TRACING: &str = "/sys/kernel/tracing";

#[test]
fn every_ack_leaves_after_the_sync_that_covers_it() {
    if std::env::var_os(INSIDE).is_some() {
        return;
    }
    let script = format!("mount -t tracefs tracefs {TRACING} || exit 77; exec \"$0\" \"$@\"");
    let inside = Process::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .args(["inside_the_namespace", "--exact", "--nocapture", "--test-threads", "1"])
        .env(INSIDE, "1")
        .output();
    let output = match inside {
        Ok(output) => output,
        Err(error) => return eprintln!("skipped: no unshare ({error})"),
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    if output.status.code() == Some(77) || said.contains("Operation not permitted") {
        return eprintln!("skipped: tracefs cannot be mounted here: {said}");
    }
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
    println!("{said}");
}

/// Not a test of its own: what the one above runs.
#[test]
fn inside_the_namespace() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let data = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("durable-trace-{}", std::process::id()));
    let _ = fs::remove_dir_all(&data);
    fs::create_dir_all(&data).unwrap();
    let broker = Broker::start(&data);
    let context = Context::load(data.join("context.toml")).unwrap();
    let client = Client::connect(ClientConfig::from_context(&context).unwrap().request_timeout(PATIENCE)).unwrap();
    for (text, durability) in [("t/n/each", Durability::Each), ("t/n/group", Durability::Group)] {
        let name = StreamName::parse(text).unwrap();
        let spec = StreamSpec { durability, ..StreamSpec::default() };
        client.admin(Command::CreateStream { name: name.clone(), spec, create_parents: true }).unwrap();
        let publisher = client.publisher(&name, PublisherOptions::default()).unwrap();
        let send = |value: &[u8]| {
            let ack = publisher.send_acked(&RecordToPublish { value, ..Default::default() }).unwrap();
            ack.wait(Instant::now() + PATIENCE).unwrap();
        };
        // The channel and the first file of the log are not what is looked at.
        send(b"first");
        let trace = match Trace::begin(&data) {
            Ok(trace) => trace,
            Err(error) => return println!("skipped: the trace points cannot be used ({error}); 1 passed"),
        };
        for round in 0..ROUNDS {
            trace.mark(&format!("felix-publish {round}"));
            send(format!("record {round}").as_bytes());
            trace.mark(&format!("felix-acked {round}"));
            // Past the seal of the group before, whose write and sync must not be taken for those of the next.
            std::thread::sleep(Duration::from_millis(8));
        }
        let text = trace.end();
        check(&text, &broker.threads());
    }
    drop(broker);
    fs::remove_dir_all(&data).unwrap();
}

/// What happened, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Publish(usize),
    Acked(usize),
    WriteBegan,
    WriteEnded,
    SyncBegan,
    SyncEnded,
    Sent,
}

fn after<'a>(line: &'a str, what: &str) -> Option<&'a str> {
    line.split_once(what).map(|(_, rest)| rest.split([',', ' ', ')']).next().unwrap_or(rest))
}

fn steps(trace: &str, broker: &BTreeSet<u32>) -> Vec<Step> {
    let thread_of = |line: &str| {
        // "   core-0-1234  [000] ..... 1.5: event: ..."; a thread's name may have hyphens.
        line.split_once(" [").and_then(|(head, _)| head.trim().rsplit('-').next()?.parse::<u32>().ok())
    };
    // The thread that syncs the log is the one whose writes are looked at: others write other files.
    let syncs = trace.lines().filter(|line| line.contains("ext4_sync_file_enter:") && line.contains("datasync 1"));
    let committers: BTreeSet<Option<u32>> = syncs.map(thread_of).collect();
    let mut syncing = BTreeSet::new();
    let mut steps = Vec::new();
    for line in trace.lines().filter(|line| !line.starts_with('#')) {
        if let Some(number) = after(line, "felix-publish ") {
            steps.push(Step::Publish(number.trim().parse().unwrap()));
        } else if let Some(number) = after(line, "felix-acked ") {
            steps.push(Step::Acked(number.trim().parse().unwrap()));
        }
        let thread = thread_of(line);
        let call = after(line, "NR ").and_then(|number| number.parse::<i64>().ok());
        let is_write = call == Some(libc::SYS_pwrite64) && committers.contains(&thread);
        if line.contains("sys_enter:") && is_write {
            steps.push(Step::WriteBegan);
        } else if line.contains("sys_exit:") && is_write {
            let result: i64 = line.rsplit(" = ").next().unwrap().trim().parse().unwrap();
            assert!(result > 0, "a write failed: {line}\n{trace}");
            steps.push(Step::WriteEnded);
        } else if line.contains("ext4_sync_file_enter:") {
            // The helper makes the next file of the log durable meanwhile; that is another sync.
            if line.contains("datasync 1") {
                syncing.insert(thread);
                steps.push(Step::SyncBegan);
            }
        } else if line.contains("ext4_sync_file_exit:") && syncing.remove(&thread) {
            assert!(line.contains("ret 0"), "{line}");
            steps.push(Step::SyncEnded);
        } else if line.contains("sys_enter:") && thread.is_some_and(|thread| broker.contains(&thread)) {
            steps.push(Step::Sent);
        }
    }
    steps
}

/// In each round, in this order: the record is published, a write of the log begins and ends, a sync of the log's file
/// begins and ends, the broker sends, the client has its ack.
fn check(trace: &str, broker: &BTreeSet<u32>) {
    let steps = steps(trace, broker);
    for round in 0..ROUNDS {
        let from = steps.iter().position(|step| *step == Step::Publish(round)).expect("the round is in the trace");
        let to = steps.iter().position(|step| *step == Step::Acked(round)).expect("the round is in the trace");
        let told = || format!("round {round}: {:#?}", &steps[from..=to]);
        let mut rest = steps[from..to].iter();
        assert!(rest.any(|step| *step == Step::WriteBegan), "acknowledged without a write; {}", told());
        assert!(rest.any(|step| *step == Step::WriteEnded), "no end of the write; {}", told());
        assert!(rest.any(|step| *step == Step::SyncBegan), "acknowledged without a sync; {}", told());
        assert!(rest.any(|step| *step == Step::SyncEnded), "acknowledged before the sync ended; {}", told());
        assert!(rest.any(|step| *step == Step::Sent), "the ack left before the sync ended; {}", told());
    }
}

/// A trace buffer of our own in the kernel, removed at the end.
struct Trace(PathBuf);

impl Trace {
    fn begin(data: &Path) -> std::io::Result<Trace> {
        let trace = Trace(Path::new(TRACING).join("instances").join(format!("felix-broker-{}", std::process::id())));
        fs::create_dir(&trace.0)?;
        fs::write(trace.0.join("buffer_size_kb"), "16384")?;
        let inodes: Vec<String> = wal_files(data).iter().map(|inode| format!("ino == {inode}")).collect();
        assert!(!inodes.is_empty(), "the broker has no log");
        let events = trace.0.join("events");
        for (event, filter) in [
            ("ext4/ext4_sync_file_enter", inodes.join(" || ")),
            ("ext4/ext4_sync_file_exit", inodes.join(" || ")),
            (
                "raw_syscalls/sys_enter",
                format!("id == {} || id == {} || id == {}", libc::SYS_pwrite64, libc::SYS_sendmsg, libc::SYS_sendmmsg),
            ),
            ("raw_syscalls/sys_exit", format!("id == {}", libc::SYS_pwrite64)),
        ] {
            fs::write(events.join(event).join("filter"), filter)?;
            fs::write(events.join(event).join("enable"), "1")?;
        }
        Ok(trace)
    }

    fn mark(&self, text: &str) {
        let marker = fs::File::options().write(true).open(self.0.join("trace_marker"));
        marker.unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn end(self) -> String {
        fs::write(self.0.join("tracing_on"), "0").unwrap();
        let text = fs::read_to_string(self.0.join("trace")).unwrap();
        assert!(!text.contains("LOST"), "the trace buffer was too small");
        text
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Inodes of the files of all write-ahead logs.
fn wal_files(data: &Path) -> Vec<u64> {
    let logs = fs::read_dir(data.join("wal")).unwrap().map(|it| it.unwrap().path());
    logs.flat_map(|log| fs::read_dir(log).unwrap()).map(|it| it.unwrap().metadata().unwrap().ino()).collect()
}

struct Broker(Child, #[expect(dead_code, reason = "held for as long as it runs")] [Port; 2]);

impl Broker {
    fn start(data: &Path) -> Broker {
        let ports = [Port::take(), Port::take()];
        let [listen, http] = ports.each_ref().map(Port::address);
        let child = Process::new(env!("CARGO_BIN_EXE_felix-broker"))
            .args(["dev", "--wait", "park", "--cores", "1", "--listen", &listen.to_string()])
            .args(["--http", &http.to_string()])
            .arg("--data")
            .arg(data)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut broker = Broker(child, ports);
        let give_up = Instant::now() + PATIENCE;
        while !is_ready(http) {
            assert!(broker.0.try_wait().unwrap().is_none() && Instant::now() < give_up, "it does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        broker
    }

    fn threads(&self) -> BTreeSet<u32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        tasks.map(|it| it.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_ready(http: SocketAddr) -> bool {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(http) {
        let _ = stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n");
        let _ = stream.read_to_string(&mut answer);
    }
    answer.starts_with("HTTP/1.0 200")
}
