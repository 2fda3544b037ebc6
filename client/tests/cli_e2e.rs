//! **What**: the tool `felix` against a real broker process, as scripts use it.
//!
//! **Invariants**: needs `felix-broker` beside the tool (`cargo build -p felix-broker`); without it the tests say so and
//! pass, because the tool must be testable alone. `FELIX_E2E=1` makes a missing broker a failure. Every wait has a bound.
//!
//! **Never**: a fixed port; a process that outlives its test.
//!
//! **See**: `cli.rs` for what needs no broker.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Longest wait for anything that should happen at once.
const PATIENCE: Duration = Duration::from_secs(30);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A broker of its own for a test.
struct Broker {
    process: Child,
    data: PathBuf,
}

/// How a run ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    stdout: Vec<u8>,
    stderr: String,
}

impl Ended {
    /// What it printed, given that it succeeded.
    fn text(self) -> String {
        assert_eq!(self.code, 0, "{}", self.stderr);
        String::from_utf8(self.stdout).unwrap()
    }

    /// The JSON lines it printed, given that it succeeded.
    fn json(self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Broker {
    /// A broker that is ready; None: there is no binary.
    fn start() -> Option<Broker> {
        let binary = Path::new(env!("CARGO_BIN_EXE_felix")).with_file_name("felix-broker");
        if !binary.exists() {
            assert!(std::env::var_os("FELIX_E2E").is_none(), "no {}: cargo build -p felix-broker", binary.display());
            eprintln!("skipped: no {}", binary.display());
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let data = std::env::temp_dir().join(format!("felix-cli-e2e-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&data);
        std::fs::create_dir_all(&data).unwrap();
        // A port that was free a moment ago; the broker needs to be told one, or nobody knows where to ask.
        let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let process = Command::new(binary)
            .args(["dev", "--listen", "127.0.0.1:0", "--cores", "2", "--wait", "park", "--drain-ms", "200"])
            .args(["--http", &http.to_string(), "--data", data.to_str().unwrap()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(data.join("broker.log")).unwrap())
            .spawn()
            .unwrap();
        let mut broker = Broker { process, data };
        let started = Instant::now();
        while !is_ready(http) {
            let log = || std::fs::read_to_string(broker.data.join("broker.log")).unwrap_or_default();
            assert_eq!(broker.process.try_wait().unwrap(), None, "the broker ended: {}", log());
            assert!(started.elapsed() < PATIENCE, "the broker is not ready: {}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(broker)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_felix"));
        command.args(arguments).env_clear().env("FELIX_CONTEXT", self.data.join("context.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the tool to its end.
    fn felix(&self, arguments: &[&str]) -> Ended {
        self.felix_with(arguments, b"")
    }

    /// Runs the tool to its end with an input.
    fn felix_with(&self, arguments: &[&str], input: &[u8]) -> Ended {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            // A run that ends early does not read all of it.
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        Ended {
            code: output.status.code().expect("it ends by itself, not by a signal"),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Starts `felix sub` and waits until it is live. It ends by itself if a test waits in vain.
    fn subscribe(&self, arguments: &[&str]) -> Running {
        let mut child = self.command(&[&["sub", "--verbose", "--timeout", "25s"], arguments].concat()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("subscribed to") {
            line.clear();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "it ended before it was live");
        }
        Running { child, stdout, stderr }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

fn is_ready(http: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&http, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer.starts_with("HTTP/1.1 200"))
    };
    ask().unwrap_or(false)
}

/// A `felix sub` that runs.
struct Running {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Running {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Exit code and the rest of stderr.
    fn end(mut self) -> (i32, String) {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        (status.code().expect("it ends by itself"), rest)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines of market data: 20 symbols in turn.
fn quotes(count: usize) -> String {
    (0..count).map(|seq| format!("{{\"symbol\":\"XNAS.S{}\",\"seq\":{seq}}}\n", seq % 20)).collect()
}

fn fields(object: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_stream_from_its_making_to_its_end() {
    let Some(broker) = Broker::start() else { return };
    let created = broker.felix(&[
        "stream",
        "create",
        "acme/md/quotes",
        "--shards",
        "2",
        "--ephemeral",
        "--retention-bytes",
        "8MiB",
        "--json",
    ]);
    let created = &created.json()[0];
    assert_eq!((created["name"].as_str(), created["shards"].as_u64()), (Some("acme/md/quotes"), Some(2)));
    assert_eq!((created["retention_bytes"].as_u64(), created["retention_age_ms"].as_u64()), (Some(8 << 20), None));

    let again = broker.felix(&["stream", "create", "acme/md/quotes", "--ephemeral"]);
    assert_eq!((again.code, again.stdout.len()), (6, 0), "{again:?}");
    let orphan = broker.felix(&["stream", "create", "other/md/quotes", "--ephemeral", "--no-parents"]);
    assert_eq!(orphan.code, 5, "{orphan:?}");
    for arguments in [&["stream", "describe"][..], &["sub"], &["pub"]] {
        let absent = broker.felix(&[arguments, &["acme/md/absent"]].concat());
        assert_eq!(absent.code, 5, "{arguments:?}: {absent:?}");
        assert!(absent.stderr.starts_with("error: ") && absent.stderr.contains("acme/md/absent"), "{absent:?}");
    }

    let version = created["version"].as_u64().unwrap().to_string();
    let alter = ["stream", "alter", "acme/md/quotes", "--retention-age", "10m", "--if-version", &version, "--json"];
    assert_eq!(broker.felix(&alter).json()[0]["retention_age_ms"].as_u64(), Some(600_000));
    let stale = broker.felix(&alter);
    assert_eq!(stale.code, 1, "{stale:?}");

    broker.felix(&["stream", "create", "acme/other/trades", "--ephemeral"]).text();
    for (scope, expected) in [("acme", 2), ("acme/md", 1)] {
        assert_eq!(broker.felix(&["stream", "list", scope, "--json"]).json().len(), expected, "{scope}");
    }
    let table = broker.felix(&["stream", "list"]).text();
    assert_eq!(table.lines().count(), 3, "{table}");
    let described = &broker.felix(&["stream", "describe", "acme/md/quotes", "--json"]).json()[0];
    assert_eq!(described["shard_status"].as_array().unwrap().len(), 2);

    assert_eq!(broker.felix(&["tenant", "list", "--json"]).json()[0]["name"], "acme");
    assert_eq!(broker.felix(&["namespace", "list", "acme"]).text(), "NAMESPACE\nacme/md\nacme/other\n");
    assert_eq!(broker.felix(&["namespace", "delete", "acme/md"]).code, 1, "it is not empty");
    assert_eq!(broker.felix(&["stream", "delete", "acme/md/quotes"]).code, 2, "nobody said yes");
    assert_eq!(broker.felix(&["stream", "delete", "acme/md/quotes", "--yes"]).text(), "deleted acme/md/quotes\n");
    assert_eq!(broker.felix(&["stream", "delete", "acme/md/quotes", "--yes"]).code, 5);
    broker.felix(&["stream", "delete", "acme/other/trades", "--yes", "--json"]).json();
    broker.felix(&["namespace", "delete", "acme/md"]).text();
    broker.felix(&["namespace", "delete", "acme/other"]).text();
    assert_eq!(broker.felix(&["tenant", "delete", "acme"]).text(), "deleted acme\n");
}

#[test]
fn what_is_published_is_read_in_order() {
    let Some(broker) = Broker::start() else { return };
    broker.felix(&["stream", "create", "acme/md/quotes", "--shards", "2", "--ephemeral"]).text();
    let published = broker.felix_with(&["pub", "acme/md/quotes", "--key-field", "symbol"], quotes(5_000).as_bytes());
    assert_eq!((published.code, published.stdout.len()), (0, 0), "{published:?}");
    assert!(published.stderr.starts_with("published 5000 records to acme/md/quotes in "), "{published:?}");
    assert!(published.stderr.ends_with(", 0 refused\n"), "{published:?}");

    let sub = ["sub", "acme/md/quotes", "--from", "earliest", "--json", "--timeout", "20s"];
    let records = broker.felix(&[&sub[..], &["--count", "5000"]].concat()).json();
    assert_eq!(records.len(), 5_000);
    let mut next = [0, 0];
    let mut last_of_key = std::collections::HashMap::new();
    for record in &records {
        assert_eq!(fields(record), ["key", "offset", "shard", "stream", "time", "value"]);
        let shard = record["shard"].as_u64().unwrap() as usize;
        assert_eq!(record["offset"].as_u64(), Some(next[shard]), "offsets of a shard have no hole");
        next[shard] += 1;
        let value: Value = serde_json::from_str(record["value"].as_str().unwrap()).unwrap();
        assert_eq!(record["key"], value["symbol"]);
        let before = last_of_key.insert(record["key"].as_str().unwrap(), value["seq"].as_u64());
        assert!(before.flatten() < value["seq"].as_u64(), "the order of a key is kept");
    }
    assert!(next.iter().all(|count| *count > 0), "both shards have records: {next:?}");

    let filtered = broker.felix(&[&sub[..], &["--count", "250", "--filter", "*.S7"]].concat()).json();
    assert!(filtered.iter().all(|record| record["key"] == "XNAS.S7"));
    let from = ["--shard", "1", "--from", "offset:10", "--count", "1", "--verbose", "--parse-json"];
    let mut one = broker.felix(&[&["sub", "acme/md/quotes", "--json"], &from[..]].concat()).json();
    let one = one.remove(0);
    let names = ["headers", "key", "lineage", "offset", "shard", "stream", "time", "ttl", "value"];
    assert_eq!(fields(&one), names);
    assert_eq!(
        (one["offset"].as_u64(), one["shard"].as_u64(), &one["value"]["symbol"]),
        (Some(10), Some(1), &one["key"])
    );
    let counted = broker.felix(&["sub", "acme/md/quotes", "--from", "earliest", "--idle-exit", "500ms", "--quiet"]);
    assert_eq!(counted.text(), "5000\n");
    let ambiguous = broker.felix(&["sub", "acme/md/quotes", "--from", "offset:10"]);
    assert_eq!(ambiguous.code, 2, "{ambiguous:?}");
    assert_eq!(broker.felix(&["sub", "acme/md/quotes", "--shard", "2"]).code, 5);
}

#[test]
fn bytes_headers_and_keys_arrive_as_they_were() {
    let Some(broker) = Broker::start() else { return };
    broker.felix(&["stream", "create", "a/b/c", "--ephemeral"]).text();
    let options = ["pub", "a/b/c", "--header", "source=test", "--ttl", "1h", "--key-separator", "\\t", "--json"];
    for compression in ["none", "lz4", "zstd"] {
        let arguments = [&options[..], &["--compression", compression]].concat();
        let summary = broker.felix_with(&arguments, b"k1\tplain\r\n\nk\xc3\xa4\t\xff\xfe\n\ttail").json().remove(0);
        assert_eq!((summary["records"].as_u64(), summary["bad_lines"].as_u64()), (Some(3), Some(0)), "{summary}");
    }
    assert_eq!(broker.felix_with(&["pub", "a/b/c", "--no-ack"], b"no key").code, 0);
    let records = broker.felix(&["sub", "a/b/c", "--from", "earliest", "--count", "10", "--json", "-v"]).json();
    for three in records[..9].chunks(3) {
        let pairs: Vec<(&Value, &Value)> = three.iter().map(|record| (&record["key"], &record["value"])).collect();
        let base64 = serde_json::json!({"base64": "//4="});
        let (plain, tail) = (Value::from("plain\r"), Value::from("tail"));
        assert_eq!(pairs, [(&"k1".into(), &plain), (&"kä".into(), &base64), (&"".into(), &tail)]);
        assert!(three.iter().all(|record| record["headers"]["source"] == "test" && record["ttl"] == "1h"));
    }
    assert_eq!((&records[9]["key"], &records[9]["ttl"]), (&Value::Null, &Value::Null));
    let plain = broker.felix(&["sub", "a/b/c", "--from", "earliest", "--count", "3", "--with-key"]);
    assert_eq!(plain.stdout, b"k1\tplain\r\nk\xc3\xa4\t\xff\xfe\n\ttail\n");
}

#[test]
fn a_bad_line_is_told_and_nothing_else_is_lost() {
    let Some(broker) = Broker::start() else { return };
    broker.felix(&["stream", "create", "a/b/c", "--ephemeral"]).text();
    let input = b"{\"k\":\"1\"}\nnot json\n{\"k\":\"2\"}\n{\"x\":1}\n{\"k\":3}\n";
    let stopped = broker.felix_with(&["pub", "a/b/c", "--key-field", "k"], input);
    assert_eq!(stopped.code, 1);
    assert!(stopped.stderr.contains("error: line 2: not a JSON object"), "{stopped:?}");
    assert!(stopped.stderr.contains("published 1 records"), "{stopped:?}");
    let skipped = broker.felix_with(&["pub", "a/b/c", "--key-field", "k", "--on-bad", "skip", "--json"], input);
    assert_eq!(skipped.code, 1, "a bad line is never a success");
    assert!(skipped.stderr.contains("error: line 4: no field \"k\""), "{skipped:?}");
    let summary: Value = serde_json::from_slice(&skipped.stdout).unwrap();
    assert_eq!((summary["records"].as_u64(), summary["bad_lines"].as_u64()), (Some(3), Some(2)));
    let long = vec![b'x'; 2_000_000];
    let too_long = broker.felix_with(&["pub", "a/b/c"], &long);
    assert_eq!(too_long.code, 1);
    assert!(too_long.stderr.contains("error: line 1: longer than"), "{too_long:?}");
    assert_eq!(broker.felix(&["sub", "a/b/c", "--from", "earliest", "--idle-exit", "500ms", "-q"]).text(), "4\n");
}

#[test]
fn a_pipe_is_live_and_ends_in_order() {
    let Some(broker) = Broker::start() else { return };
    broker.felix(&["stream", "create", "a/b/c", "--ephemeral"]).text();
    let mut live = broker.subscribe(&["a/b/c", "--latency"]);
    for word in ["one\n", "two\n"] {
        assert_eq!(broker.felix_with(&["pub", "a/b/c"], word.as_bytes()).code, 0);
        assert_eq!(live.line(), word, "it is there before the next one is sent");
    }
    live.signal("-INT");
    let (code, stderr) = live.end();
    assert_eq!(code, 0, "a signal is how a subscription without a count ends");
    assert!(stderr.contains("latency of 2 records: p50 "), "{stderr}");

    let counting = broker.subscribe(&["a/b/c", "--count", "5"]);
    counting.signal("-TERM");
    assert_eq!(counting.end().0, 130);

    // A reader that goes away: the next write ends it, quietly and well.
    let mut left = broker.subscribe(&["a/b/c"]);
    drop(std::mem::replace(&mut left.stdout, BufReader::new(no_stdout())));
    assert_eq!(broker.felix_with(&["pub", "a/b/c"], b"three\n").code, 0);
    let (code, stderr) = left.end();
    assert_eq!(code, 0);
    assert!(!stderr.contains("error") && !stderr.contains("panic"), "{stderr}");

    let late = broker.felix(&["sub", "a/b/c", "--count", "1", "--timeout", "300ms"]);
    assert_eq!(late.code, 4, "{late:?}");
    let idle = broker.felix(&["sub", "a/b/c", "--count", "99", "--from", "earliest", "--idle-exit", "300ms"]);
    assert_eq!((idle.code, idle.stdout.as_slice()), (4, &b"one\ntwo\nthree\n"[..]), "{idle:?}");
    assert_eq!(broker.felix(&["sub", "a/b/c", "--timeout", "300ms"]).text(), "");

    // A stream that is deleted ends its subscriptions.
    let orphan = broker.subscribe(&["a/b/c"]);
    broker.felix(&["stream", "delete", "a/b/c", "--yes"]).text();
    assert_eq!(orphan.end().0, 5);
}

/// The stdout of a process that has ended.
fn no_stdout() -> std::process::ChildStdout {
    let mut child = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    child.wait().unwrap();
    stdout
}

#[test]
fn the_pace_and_what_top_sees_of_it() {
    let Some(broker) = Broker::start() else { return };
    broker.felix(&["stream", "create", "a/b/c", "--ephemeral"]).text();
    let reader = broker.subscribe(&["a/b/c"]);
    let started = Instant::now();
    let mut paced = broker
        .command(&["pub", "a/b/c", "--rate", "500/s", "--batch", "100"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    paced.stdin.take().unwrap().write_all(quotes(1_000).as_bytes()).unwrap();
    let top = &broker.felix(&["top", "--once", "--interval", "1s", "--json"]).json()[0];
    let row = &top["streams"][0];
    assert_eq!((row["stream"].as_str(), row["subscriptions"].as_u64()), (Some("a/b/c"), Some(1)), "{top}");
    let rate = row["records_in_per_s"].as_f64().unwrap();
    assert!(rate > 100.0 && rate < 1_000.0, "about 500 per second, found {rate}");
    assert!(paced.wait().unwrap().success());
    let elapsed = started.elapsed();
    assert!(elapsed > Duration::from_millis(1_990) && elapsed < PATIENCE, "1000 records at 500/s took {elapsed:?}");
    drop(reader);

    let table = broker.felix(&["top", "--once", "--interval", "100ms", "--sort", "retained"]).text();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].contains(" up ") && lines[2].starts_with("STREAM ") && lines[3].starts_with("a/b/c "), "{table}");

    let check = &broker.felix(&["context", "check", "--json"]).json()[0];
    assert_eq!(check["cluster"].as_str().map(str::len), Some(32), "{check}");
    assert!(check["rtt_ms"].as_f64().unwrap() > 0.0 && check["principal"].is_string() && check["region"].is_string());
    assert!(broker.felix(&["context", "check"]).text().contains("round trip "));
}

#[test]
fn a_broker_that_dies_leaves_nobody_waiting() {
    let Some(mut broker) = Broker::start() else { return };
    broker.felix(&["stream", "create", "a/b/c", "--ephemeral"]).text();
    let mut publishing =
        broker.command(&["pub", "a/b/c", "--timeout", "1s", "--json"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = publishing.stdin.take().unwrap();
    stdin.write_all(b"before\n").unwrap();
    let seen = broker.felix(&["sub", "a/b/c", "--from", "earliest", "--count", "1", "--timeout", "20s"]);
    assert_eq!(seen.text(), "before\n");
    broker.kill();
    stdin.write_all(b"after\n").unwrap();
    drop(stdin);
    let started = Instant::now();
    let output = publishing.wait_with_output().unwrap();
    assert!(started.elapsed() < PATIENCE);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(4), "{summary}");
    assert_eq!(summary["records"].as_u64(), Some(1), "{summary}");
    let lost = summary["expired"].as_u64().unwrap() + summary["unknown"].as_u64().unwrap();
    assert_eq!(lost, 1, "{summary}");
    let gone = broker.felix(&["stream", "list", "--timeout", "500ms"]);
    assert_eq!(gone.code, 3, "{gone:?}");
}
