//! **What**: a real broker process for tests: on ports and a data folder of its own over restarts, started and ready, stopped
//! in good order or killed.
//!
//! **Invariants**: the data folder lies on a disk, not in memory: a broker refuses the latter. It is kept if the test fails.
//!
//! **Never**: a fixed port; a process that outlives its test.
//!
//! **See**: `durable_records.rs`, `durable_metadata.rs`, `at_rest.rs`.
#![allow(dead_code, reason = "each test file that includes this uses a part of it")]

pub mod acked;
pub mod ports;

use self::ports::Port;
use felix_client::protocol::names::StreamName;
use felix_client::{Client, ClientConfig, Context};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// A broker of one test alone.
pub struct Broker {
    pub child: Option<Child>,
    pub data: PathBuf,
    /// What it says; never on the disk that is tried.
    pub log_path: PathBuf,
    pub listen: SocketAddr,
    pub http: SocketAddr,
    ports: [Port; 2],
    pub cores: u8,
    /// More options of `dev`.
    pub more: Vec<String>,
}

impl Broker {
    pub fn new(name: &str, cores: u8) -> Broker {
        let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let data = root.join(format!("broker-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&data);
        fs::create_dir_all(&data).unwrap();
        let ports = [Port::take(), Port::take()];
        let log_path = data.with_extension("log");
        let [listen, http] = ports.each_ref().map(Port::address);
        Broker { child: None, data, log_path, listen, http, ports, cores, more: Vec::new() }
    }

    pub fn command(&self) -> Process {
        let mut command = Process::new(env!("CARGO_BIN_EXE_felix-broker"));
        // More cores than CPUs are allowed by name only: they share then.
        let cpus: Vec<&str> = (0..self.cores).map(|_| "0").collect();
        command
            .args(["dev", "--wait", "park", "--drain-ms", "500", "--cores", &self.cores.to_string()])
            .args(["--cpus", &cpus.join(","), "--listen", &self.listen.to_string(), "--http", &self.http.to_string()])
            .arg("--data")
            .arg(&self.data)
            .args(&self.more)
            .stdout(Stdio::null());
        command
    }

    pub fn start(&mut self) {
        let log = fs::File::options().create(true).append(true).open(&self.log_path).unwrap();
        self.child = Some(self.command().stderr(log).spawn().unwrap());
        self.wait_until_ready();
    }

    pub fn wait_until_ready(&mut self) {
        let give_up = Instant::now() + PATIENCE;
        while !get(self.http, "/readyz").starts_with("HTTP/1.0 200") {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < give_up, "it does not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What a start that is refused says.
    pub fn refusal(&self) -> String {
        let output = self.command().output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        text
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log_path).unwrap_or_default()
    }

    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Process::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// SIGTERM, and the end in good order.
    pub fn stop(&mut self) {
        self.signal("-TERM");
        let mut child = self.child.take().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{}", self.log());
    }

    pub fn config(&self) -> ClientConfig {
        let context = Context::load(self.data.join("context.toml")).unwrap();
        ClientConfig::from_context(&context).unwrap()
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.config().request_timeout(PATIENCE)).unwrap()
    }

    /// Sum over all cores.
    pub fn metric(&self, name: &str) -> u64 {
        let text = get(self.http, "/metrics");
        let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    pub fn wait_for(&self, what: &str, mut done: impl FnMut() -> bool) {
        let give_up = Instant::now() + PATIENCE;
        while !done() {
            if Instant::now() >= give_up {
                let metrics = get(self.http, "/metrics");
                let store: Vec<&str> = metrics.lines().filter(|it| it.starts_with("felix_store")).collect();
                panic!("not in time: {what}: {store:#?} {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.data);
            let _ = fs::remove_file(&self.log_path);
        }
    }
}

pub fn get(http: SocketAddr, path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(http) {
        let _ = stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

pub fn name(text: &str) -> StreamName {
    StreamName::parse(text).unwrap()
}
