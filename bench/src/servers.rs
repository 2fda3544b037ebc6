//! **What**: starts who is measured: the broker, the bare relay or a peer, as a process of its own on CPU 0.
//!
//! **Invariants**: a server is killed when its handle is dropped; its folder is temporary.
//!
//! **Never**: a server that this run did not start.
//!
//! **See**: `floors/relay.rs`, `peers/start.rs`.

use crate::party::System;
use crate::{Common, Error, Wait};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// CPU of the clients; servers are told to run on CPU 0.
pub const CLIENT_CPU: usize = 1;
/// CPU of the servers.
pub const SERVER_CPU: usize = 0;

/// Where a server is and how to speak with it: all that a client needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// What it is.
    pub system: System,
    /// Its address: UDP for QUIC, TCP for the peers.
    pub addr: SocketAddr,
    /// Folder with its certificates.
    pub pki: PathBuf,
}

impl Target {
    /// It is the broker.
    pub fn is_broker(&self) -> bool {
        self.system == System::Felix
    }
}

/// A running server.
pub struct Server {
    child: Child,
    /// Where it is.
    pub target: Target,
    /// Its settings that matter, and why, in one line.
    pub settings: String,
    folder: PathBuf,
    http: Option<SocketAddr>,
}

impl Server {
    /// Starts a system. Floor and peers use the certificates below `pki`; the broker makes its own.
    pub fn start(system: System, common: &Common, pki: &Path) -> Result<Server, Error> {
        match system {
            System::Felix => Server::broker(common),
            System::Floor => Server::floor(common, pki),
            peer => Server::peer(peer, pki),
        }
    }

    /// Starts a broker.
    pub fn broker(common: &Common) -> Result<Server, Error> {
        Server::broker_in(common, &std::env::temp_dir())
    }

    /// Starts a broker whose data folder is made below `parent`.
    pub fn broker_in(common: &Common, parent: &Path) -> Result<Server, Error> {
        let folder = fresh_folder(parent)?;
        let (addr, http) = (free_port()?, std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?);
        let cpu_of = |core: usize| if common.one_cpu { 0 } else { core };
        let cpus = (0..common.cores).map(|core| cpu_of(core).to_string()).collect::<Vec<_>>().join(",");
        let mut command = Command::new(&common.broker);
        on_cpus(&mut command, None);
        let child = command
            .args(["dev", "--cores", &common.cores.to_string(), "--cpus", &cpus, "--wait", common.wait.name()])
            .args(["--listen", &addr.to_string(), "--http", &http.to_string()])
            .args(["--udp-payload-max", &common.udp_payload.to_string()])
            .arg("--data")
            .arg(&folder)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("log"))?)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", common.broker.display()))?;
        let settings = format!("--cores {} --cpus {cpus} --wait {}", common.cores, common.wait.name());
        let target = Target { system: System::Felix, addr, pki: folder.join("dev-pki") };
        let server = Server { child, target, settings, folder, http: Some(http) };
        server.wait_until("the broker did not start", || is_ready(http), Duration::from_secs(20))?;
        Ok(server)
    }

    /// Starts the bare relay with certificates of a broker.
    pub fn floor(common: &Common, pki: &Path) -> Result<Server, Error> {
        let folder = fresh_folder(&std::env::temp_dir())?;
        let addr = free_port()?;
        let mut command = Command::new(std::env::current_exe()?);
        on_cpus(&mut command, None);
        let child = command
            .args(["floor", "--listen", &addr.to_string(), "--wait", common.wait.name()])
            .args(["--cpu", &SERVER_CPU.to_string()])
            .args(["--udp-payload", &common.udp_payload.to_string()])
            .arg("--report")
            .arg(folder.join("work"))
            .arg("--pki")
            .arg(pki)
            .spawn()?;
        let settings = format!("one thread, quiche, wait {}", common.wait.name());
        let target = Target { system: System::Floor, addr, pki: pki.to_path_buf() };
        let server = Server { child, target, settings, folder, http: None };
        std::thread::sleep(Duration::from_millis(200));
        Ok(server)
    }

    fn peer(system: System, pki: &Path) -> Result<Server, Error> {
        Server::peer_in(system, pki, &std::env::temp_dir(), |addr, folder| {
            crate::peers::start::command(system, addr, pki, folder)
        })
    }

    /// Starts a peer that syncs before it acknowledges, with its data below `parent`.
    pub fn durable_peer(system: System, nats: &Path, pki: &Path, parent: &Path) -> Result<Server, Error> {
        Server::peer_in(system, pki, parent, |addr, folder| {
            crate::peers::start::durable(system, nats, addr, pki, folder)
        })
    }

    fn peer_in(
        system: System,
        pki: &Path,
        parent: &Path,
        command: impl FnOnce(SocketAddr, &Path) -> Result<(Command, String), Error>,
    ) -> Result<Server, Error> {
        let folder = fresh_folder(parent)?;
        let addr = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let (mut command, settings) = command(addr, &folder)?;
        on_cpus(&mut command, Some(SERVER_CPU));
        let log = std::fs::File::create(folder.join("log"))?;
        let program = command.get_program().to_string_lossy().to_string();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("cannot start {program}: {error}; scripts/setup.sh bench installs it"))?;
        let target = Target { system, addr, pki: pki.to_path_buf() };
        let mut server = Server { child, target, settings, folder, http: None };
        server.wait_for_peer(addr)?;
        Ok(server)
    }

    /// A configuration that a peer does not take ends it: said at once, with its own words.
    fn wait_for_peer(&mut self, addr: SocketAddr) -> Result<(), Error> {
        let give_up = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(addr).is_err() {
            let ended = self.child.try_wait()?.is_some();
            if ended || Instant::now() > give_up {
                self.wait_until("the peer did not start", || false, Duration::ZERO)?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn wait_until(&self, what: &str, ready: impl Fn() -> bool, patience: Duration) -> Result<(), Error> {
        let give_up = Instant::now() + patience;
        while !ready() {
            if Instant::now() > give_up {
                let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                let last = log.lines().rev().take(3).collect::<Vec<_>>().join(" | ");
                return Err(format!("{what}: {last}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Time it spent in turns that found something to do, ns. Polling for nothing does not count. `None`: it does not tell.
    pub fn work_ns(&self) -> Result<Option<u64>, Error> {
        match self.target.system {
            System::Floor => Ok(Some(std::fs::read_to_string(self.folder.join("work"))?.trim().parse()?)),
            System::Felix => {
                let http = self.http.ok_or("a broker without an HTTP address")?;
                let text = get(http, "/metrics").ok_or("the broker does not serve /metrics")?;
                let lines = text.lines().filter(|line| line.starts_with("felix_core_work_nanoseconds_total{"));
                let mut cores = lines.map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<u64>()).peekable();
                cores.peek().ok_or("the broker does not tell its work")?;
                Ok(Some(cores.sum::<Result<u64, _>>()?))
            }
            _ => Ok(None),
        }
    }
}

/// Broker and floor publish their work when they were idle for a moment.
pub const WORK_IS_TOLD_AFTER: Duration = Duration::from_millis(700);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Certificates of a broker's development authority, made once for floor and peers of a run.
pub fn certificates(common: &Common) -> Result<Server, Error> {
    Server::broker(&Common { wait: Wait::Park, cores: 1, one_cpu: false, ..common.clone() })
}

/// The clients' pinning is not inherited: a server pins itself, or runs on one CPU.
fn on_cpus(command: &mut Command, one: Option<usize>) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only one system call is made, on a set that lives on the stack.
    unsafe {
        command.pre_exec(move || {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            for cpu in 0..libc::CPU_SETSIZE as usize {
                if one.is_none_or(|one| one == cpu) {
                    libc::CPU_SET(cpu, &mut set);
                }
            }
            match libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

fn fresh_folder(parent: &Path) -> Result<PathBuf, Error> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    let folder = parent.join(format!("felix-bench-{}-{nanos}-{count}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn free_port() -> Result<SocketAddr, Error> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?)
}

fn is_ready(http: SocketAddr) -> bool {
    get(http, "/readyz").is_some_and(|answer| answer.contains(" 200 "))
}

fn get(http: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(http).ok()?;
    let mut answer = String::new();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
