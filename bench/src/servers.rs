//! **What**: starts who is measured: the broker or the bare relay, as a process of its own on CPU 0.
//!
//! **Invariants**: a server is killed when its handle is dropped; its folder is temporary.
//!
//! **Never**: a server that this run did not start.
//!
//! **See**: `floors/relay.rs`.

use crate::{Common, Error, Wait};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// CPU of the clients; servers are told to run on CPU 0.
pub const CLIENT_CPU: usize = 1;

/// A running server.
pub struct Server {
    child: Child,
    /// Its UDP address.
    pub addr: SocketAddr,
    /// Folder with its certificates.
    pub pki: PathBuf,
    /// It is the broker, not the floor.
    pub is_broker: bool,
    folder: PathBuf,
    http: Option<SocketAddr>,
}

impl Server {
    /// Starts a broker with one core.
    pub fn broker(common: &Common) -> Result<Server, Error> {
        Server::broker_with(common, &[])
    }

    /// Starts a broker with one core and further options.
    pub fn broker_with(common: &Common, more: &[&str]) -> Result<Server, Error> {
        let folder = fresh_folder()?;
        let (addr, http) = (free_port()?, free_port()?);
        let mut command = Command::new(&common.broker);
        on_every_cpu(&mut command);
        let child = command
            .args(["dev", "--cores", "1", "--cpus", "0", "--wait", common.wait.name()])
            .args(["--listen", &addr.to_string(), "--http", &http.to_string()])
            .args(["--udp-payload-max", &common.udp_payload.to_string()])
            .args(more)
            .arg("--data")
            .arg(&folder)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("log"))?)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", common.broker.display()))?;
        let server = Server { child, addr, pki: folder.join("dev-pki"), is_broker: true, folder, http: Some(http) };
        let give_up = Instant::now() + Duration::from_secs(20);
        while !is_ready(http) {
            if Instant::now() > give_up {
                return Err(format!("the broker did not start; see {}", server.folder.join("log").display()).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Starts the bare relay with certificates of a broker.
    pub fn floor(common: &Common, pki: &Path) -> Result<Server, Error> {
        let folder = fresh_folder()?;
        let addr = free_port()?;
        let wait = if common.wait == Wait::Busy { "busy" } else { "park" };
        let mut command = Command::new(std::env::current_exe()?);
        on_every_cpu(&mut command);
        let child = command
            .args(["floor", "--listen", &addr.to_string(), "--wait", wait, "--cpu", "0"])
            .args(["--udp-payload", &common.udp_payload.to_string()])
            .arg("--report")
            .arg(folder.join("work"))
            .arg("--pki")
            .arg(pki)
            .spawn()?;
        std::thread::sleep(Duration::from_millis(200));
        Ok(Server { child, addr, pki: pki.to_path_buf(), is_broker: false, folder, http: None })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Time it spent in turns that found something to do, ns. Polling for nothing does not count.
    pub fn work_ns(&self) -> Result<u64, Error> {
        // Both publish the number when they were idle for a moment.
        std::thread::sleep(Duration::from_millis(700));
        let Some(http) = self.http else {
            return Ok(std::fs::read_to_string(self.folder.join("work"))?.trim().parse()?);
        };
        let text = get(http, "/metrics").ok_or("the broker does not serve /metrics")?;
        let line = text.lines().find(|line| line.starts_with("felix_core_work_nanoseconds_total{core=\"0\"}"));
        Ok(line.and_then(|line| line.rsplit(' ').next()).ok_or("the broker does not tell its work")?.parse()?)
    }

    /// For tables.
    pub fn name(&self) -> &'static str {
        if self.is_broker { "felix" } else { "bare quiche" }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The clients' pinning is not inherited: a server pins itself.
fn on_every_cpu(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only one system call is made, on a set that lives on the stack.
    unsafe {
        command.pre_exec(|| {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            for cpu in 0..libc::CPU_SETSIZE as usize {
                libc::CPU_SET(cpu, &mut set);
            }
            match libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

fn fresh_folder() -> Result<PathBuf, Error> {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    let folder = std::env::temp_dir().join(format!("felix-bench-{}-{nanos}", std::process::id()));
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
