//! **What**: how each peer is set up, and why: one CPU like Felix, nothing written to disk, no message dropped.
//!
//! | peer | settings | why |
//! |---|---|---|
//! | NATS | `GOMAXPROCS=1`; `max_pending` 256 MB | one CPU without the Go scheduler looking for others; a burst does not end a subscriber |
//! | Redis | `save ""`, `appendonly no`; `client-output-buffer-limit pubsub 0 0 0` | no disk; a burst does not end a subscriber |
//! | Mosquitto | `set_tcp_nodelay true`; `max_queued_messages 0`, `max_queued_bytes 0`; `sys_interval 0`, `persistence false` | no delayed small packets (off by default); nothing dropped; no disk, no work of its own |
//! | JetStream | `sync_interval: always`, file store | an ack after the sync, as with durability `each` and `group` |
//! | Redis Streams | `appendonly yes`, `appendfsync always`, `auto-aof-rewrite-percentage 0` | an answer after the sync; no rewriting of the file meanwhile |
//! | all with TLS | TLS 1.3, the development certificate, no client certificate | as lean as TLS gets; Felix also checks the client's |
//!
//! **Invariants**: a peer listens on loopback, on a port of its own, and keeps everything below its folder.
//!
//! **Never**: the distribution's service or configuration.
//!
//! **See**: `../servers.rs`.

use crate::Error;
use crate::party::System;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

/// The same with records on disk, synced before they are acknowledged; everything lies below `folder`. `nats` is a server
/// of version 2.10 or later: older ones sync every two minutes, whatever is configured.
pub fn durable(
    system: System,
    nats: &Path,
    addr: SocketAddr,
    pki: &Path,
    folder: &Path,
) -> Result<(Command, String), Error> {
    let (mut command, settings) = command(system, addr, pki, folder)?;
    let file = folder.join("conf");
    let mut text = fs::read_to_string(&file)?;
    let settings = match system {
        System::NatsTls | System::Nats => {
            let store = folder.join("jetstream");
            text += &format!(
                "jetstream {{ store_dir: \"{}\", sync_interval: always, max_mem: 64MB, max_file: 16GB }}\n",
                store.display()
            );
            command = Command::new(nats);
            command.arg("-c").arg(&file).env("GOMAXPROCS", "1");
            format!("{settings}, JetStream file store, sync_interval always")
        }
        System::RedisTls | System::Redis => {
            text += "appendonly yes\nappendfsync always\nauto-aof-rewrite-percentage 0\n";
            "save \"\", appendonly yes, appendfsync always".to_string()
        }
        _ => return Err(format!("{} has no durable form", system.name()).into()),
    };
    fs::write(&file, text)?;
    Ok((command, settings))
}

/// The command that serves, and its settings in one line.
pub fn command(system: System, addr: SocketAddr, pki: &Path, folder: &Path) -> Result<(Command, String), Error> {
    let (ca, cert, key) = (pki.join("ca.crt"), pki.join("server.crt"), pki.join("server.key"));
    let (ca, cert, key) = (ca.display(), cert.display(), key.display());
    let port = addr.port();
    let file = folder.join("conf");
    let tls = system.is_encrypted();
    match system {
        System::NatsTls | System::Nats => {
            let mut text = format!("listen: \"{addr}\"\nmax_pending: 256MB\nwrite_deadline: \"10s\"\n");
            if tls {
                text += &format!(
                    "tls {{ cert_file: \"{cert}\", key_file: \"{key}\", ca_file: \"{ca}\", verify: false, timeout: 10 }}\n"
                );
            }
            fs::write(&file, text)?;
            let mut command = Command::new("nats-server");
            command.arg("-c").arg(&file).env("GOMAXPROCS", "1");
            Ok((command, "GOMAXPROCS=1, max_pending 256MB".to_string()))
        }
        System::RedisTls | System::Redis => {
            let mut text = format!(
                "bind 127.0.0.1\nsave \"\"\nappendonly no\nclient-output-buffer-limit pubsub 0 0 0\ndir {}\n",
                folder.display()
            );
            text += &match tls {
                false => format!("port {port}\n"),
                true => format!(
                    "port 0\ntls-port {port}\ntls-cert-file {cert}\ntls-key-file {key}\ntls-ca-cert-file {ca}\n\
                     tls-auth-clients no\ntls-protocols \"TLSv1.3\"\n"
                ),
            };
            fs::write(&file, text)?;
            let mut command = Command::new("redis-server");
            command.arg(&file);
            Ok((command, "save \"\", appendonly no, client-output-buffer-limit pubsub 0 0 0".to_string()))
        }
        System::MosquittoTls | System::Mosquitto => {
            let mut text = format!(
                "listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\npersistence false\n\
                 max_queued_messages 0\nmax_queued_bytes 0\nsys_interval 0\nlog_type error\nlog_dest stderr\n"
            );
            // Started as root it would become another user, who may not read the key.
            // SAFETY: the call only returns a number.
            if unsafe { libc::geteuid() } == 0 {
                text += "user root\n";
            }
            if tls {
                text += &format!("cafile {ca}\ncertfile {cert}\nkeyfile {key}\ntls_version tlsv1.3\n");
            }
            fs::write(&file, text)?;
            // Debian keeps it where only root's PATH leads.
            let name = if Path::new("/usr/sbin/mosquitto").exists() { "/usr/sbin/mosquitto" } else { "mosquitto" };
            let mut command = Command::new(name);
            command.arg("-c").arg(&file);
            Ok((command, "set_tcp_nodelay true, max_queued_messages 0, sys_interval 0".to_string()))
        }
        System::Felix | System::Floor => Err("not a peer".into()),
    }
}
