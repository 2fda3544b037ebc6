//! The broker as a process: what an operator sees of start, refusal, reload and stop.

#[path = "broker_process/ports.rs"]
mod ports;

use ports::Port;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use felix_client::protocol::names::StreamName;
use felix_client::{Client, ClientConfig, Context, Shards, SubscribeOptions};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("felix-process-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Broker {
    child: Child,
    listen: SocketAddr,
    http: SocketAddr,
    _ports: [Port; 2],
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(data: &Path, listen: SocketAddr, http: SocketAddr) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_felix-broker"));
    command
        .args(["dev", "--cores", "2", "--wait", "park", "--drain-ms", "2000"])
        .args(["--listen", &listen.to_string(), "--http", &http.to_string()])
        .arg("--data")
        .arg(data)
        .stdout(Stdio::piped())
        .stderr(fs::File::create(data.join("log")).unwrap());
    command
}

fn start(data: &Path) -> Broker {
    start_as(data, |command| command)
}

/// `change`: the command that is started in the place of the plain one.
fn start_as(data: &Path, change: impl FnOnce(Command) -> Command) -> Broker {
    let ports = [Port::take(), Port::take()];
    let [listen, http] = ports.each_ref().map(Port::address);
    let child = change(command(data, listen, http)).spawn().unwrap();
    let broker = Broker { child, listen, http, _ports: ports };
    wait_for("the broker is ready", || get(http, "GET", "/readyz").starts_with("HTTP/1.0 200"));
    broker
}

fn get(http: SocketAddr, method: &str, path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(http) {
        let _ = stream.write_all(format!("{method} {path} HTTP/1.0\r\n\r\n").as_bytes());
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < give_up, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(broker: &Broker, name: &str) {
    assert!(Command::new("kill").args([name, &broker.child.id().to_string()]).status().unwrap().success());
}

fn refusal(mut command: Command) -> String {
    command.stderr(Stdio::piped());
    let Output { status, stderr, .. } = command.output().unwrap();
    assert_eq!(status.code(), Some(1));
    String::from_utf8(stderr).unwrap()
}

#[test]
fn a_second_broker_is_told_what_is_in_its_way() {
    let (first, second) = (Folder::new("first"), Folder::new("second"));
    let broker = start(&first.0);
    let others = [Port::take(), Port::take()];
    let [other_udp, other_tcp] = others.each_ref().map(Port::address);
    let text = refusal(command(&first.0, other_udp, other_tcp));
    assert!(text.contains(first.0.file_name().unwrap().to_str().unwrap()), "names the folder: {text}");
    let text = refusal(command(&second.0, broker.listen, other_tcp));
    assert!(text.contains(&broker.listen.to_string()), "names the address: {text}");
    let text = refusal(command(&second.0, other_udp, broker.http));
    assert!(text.contains(&broker.http.to_string()) && text.contains("--http"), "names the option: {text}");
}

/// The usual soft limit, 1,024, is below what many cores need.
#[test]
fn a_soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let folder = Folder::new("files");
    let log = folder.0.join("log");
    let limited = |command: Command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -S -n 400 && ulimit -H -n 1000 && exec \"$@\"", "sh"]).arg(command.get_program());
        shell.args(command.get_args()).stdout(Stdio::piped()).stderr(fs::File::create(&log).unwrap());
        shell
    };
    let broker = start_as(&folder.0, limited);
    let limits = fs::read_to_string(format!("/proc/{}/limits", broker.child.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>()[3..], ["1000", "1000", "files"]);
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("1000 files may be open") && said.contains("LimitNOFILE="), "{said}");
}

#[test]
fn the_http_door_answers_and_refuses() {
    let folder = Folder::new("http");
    let broker = start(&folder.0);
    assert!(get(broker.http, "GET", "/healthz").starts_with("HTTP/1.0 200"));
    assert!(get(broker.http, "GET", "/nothing").starts_with("HTTP/1.0 404"));
    assert!(get(broker.http, "POST", "/metrics").starts_with("HTTP/1.0 405"));
    let metrics = get(broker.http, "GET", "/metrics");
    for name in ["felix_build_info{", "felix_core_turns_total{core=\"1\"}", "felix_quic_handshakes_total{core=\"0\"}"] {
        assert!(metrics.contains(name), "{name} is not among the metrics");
    }
}

#[test]
fn sigterm_drains_and_tells_clients() {
    let folder = Folder::new("drain");
    let mut broker = start(&folder.0);
    let context = Context::load(folder.0.join("context.toml")).unwrap();
    let client = Client::connect(ClientConfig::from_context(&context).unwrap()).unwrap();
    let name = StreamName::parse("a/b/c").unwrap();
    let spec = felix_client::protocol::metadata::StreamSpec { shards: 2, ..Default::default() };
    client
        .admin(felix_client::protocol::metadata::Command::CreateStream {
            name: name.clone(),
            spec,
            create_parents: true,
        })
        .unwrap();
    let mut subscriber =
        client.subscribe(&name, SubscribeOptions { shards: Shards::All, ..Default::default() }).unwrap();
    signal(&broker, "-TERM");
    wait_for("readiness tells that it drains", || {
        let answer = get(broker.http, "GET", "/readyz");
        answer.starts_with("HTTP/1.0 503") || answer.is_empty()
    });
    let mut code = None;
    wait_for("the broker stops", || {
        let _ = subscriber.next_item(Some(Duration::from_millis(10)));
        code = broker.child.try_wait().unwrap();
        code.is_some()
    });
    assert_eq!(code.unwrap().code(), Some(0));
    let log = fs::read_to_string(folder.0.join("log")).unwrap();
    for word in ["\"draining\"", "\"stopped\""] {
        assert!(log.contains(word), "{word} is not in the log: {log}");
    }
}

#[test]
fn sighup_takes_new_certificates_and_keeps_the_old_ones_if_they_are_bad() {
    let folder = Folder::new("reload");
    let broker = start(&folder.0);
    let cert = folder.0.join("dev-pki/server.crt");
    let good = fs::read(&cert).unwrap();
    fs::write(&cert, b"not a certificate").unwrap();
    signal(&broker, "-HUP");
    let log = || fs::read_to_string(folder.0.join("log")).unwrap();
    wait_for("the log tells of bad files", || log().contains("not reloaded"));
    let context = Context::load(folder.0.join("context.toml")).unwrap();
    Client::connect(ClientConfig::from_context(&context).unwrap()).expect("the old certificate still serves").close();
    // A chain of twice the same certificate is another file with the same meaning.
    fs::write(&cert, [good.as_slice(), good.as_slice()].concat()).unwrap();
    signal(&broker, "-HUP");
    wait_for("the log tells of the reload", || log().contains("certificates reloaded"));
    Client::connect(ClientConfig::from_context(&context).unwrap()).expect("the new certificate serves").close();
}
