//! **What**: `felix context`: what the context says, and what the broker says to it.
//!
//! **Invariants**: `show` needs no broker; `check` proves a connection and a request.
//!
//! **Never**: the token or the content of a key file in the output.
//!
//! **See**: `link.rs` for which context holds.

use crate::cli::Globals;
use crate::failure::{Exit, Failure};
use crate::link::{Found, connect, find_context, was_answered};
use crate::output::Out;
use crate::table::facts;
use crate::text::serialize_time;
use crate::units::show_latency;
use clap::{Args, Subcommand};
use felix_client::protocol::time::Timestamp;
use felix_client::{Client, Command, RequestError, Welcome};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Requests of which the fastest is the round trip time told.
const PROBES: u32 = 5;

/// Verbs of `context`.
#[derive(Args, Debug)]
#[command(arg_required_else_help = true)]
pub struct ContextArgs {
    #[command(subcommand)]
    verb: ContextVerb,
}

#[derive(Debug, Subcommand)]
enum ContextVerb {
    /// Show which context holds, options of the command line included
    #[command(after_help = "\
Examples:
  felix context show
  felix --context prod/context.toml context show --json")]
    Show,
    /// Connect, and show who you are, where, and how far away it is
    #[command(after_help = "\
Examples:
  felix context check
  felix context check --timeout 1s --json")]
    Check,
}

#[derive(Serialize)]
struct Shown<'a> {
    file: Option<&'a Path>,
    server: &'a str,
    server_name: Option<&'a str>,
    ca: &'a Path,
    cert: Option<&'a Path>,
    key: Option<&'a Path>,
    token: bool,
}

#[derive(Serialize)]
struct Checked<'a> {
    server: &'a str,
    principal: &'a str,
    region: &'a str,
    cluster: String,
    node: String,
    core: u8,
    cores: u8,
    wire_version: u8,
    routing_version: u64,
    #[serde(serialize_with = "serialize_time")]
    time: Timestamp,
    connect_ms: f64,
    rtt_ms: f64,
}

fn shown(found: &Found) -> Shown<'_> {
    let context = &found.context;
    Shown {
        file: found.path.as_deref(),
        server: &context.server,
        server_name: context.server_name.as_deref(),
        ca: &context.ca,
        cert: context.cert.as_deref(),
        key: context.key.as_deref(),
        token: context.token.is_some(),
    }
}

fn show_text(found: &Found) -> String {
    let path = |path: &Option<PathBuf>| path.as_ref().map_or("-".into(), |path| path.display().to_string());
    let context = &found.context;
    facts(&[
        ("file", path(&found.path)),
        ("server", context.server.clone()),
        ("server name", context.server_name.clone().unwrap_or("(host of server)".into())),
        ("ca", context.ca.display().to_string()),
        ("cert", path(&context.cert)),
        ("key", path(&context.key)),
        ("token", if context.token.is_some() { "set" } else { "-" }.into()),
    ])
}

fn milliseconds(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}

/// The fastest of a few requests. A refusal is an answer too.
fn round_trip(client: &Client) -> Result<Duration, Failure> {
    let mut fastest = Duration::MAX;
    for _ in 0..PROBES {
        let asked = Instant::now();
        let list = Command::ListStreams { tenant: None, namespace: None, after: None };
        let answer: Result<_, RequestError> = client.admin(list);
        if !was_answered(&answer) {
            answer?;
        }
        fastest = fastest.min(asked.elapsed());
    }
    Ok(fastest)
}

fn check(globals: &Globals, out: &mut Out) -> Result<Exit, Failure> {
    let server = find_context(globals)?.context.server;
    let started = Instant::now();
    let client = connect(globals)?;
    let connected = started.elapsed();
    let rtt = round_trip(&client)?;
    let welcome: Welcome = client.welcome();
    if out.json() {
        out.value(&Checked {
            server: &server,
            principal: &welcome.principal,
            region: &welcome.region,
            cluster: format!("{:032x}", welcome.cluster.0),
            node: format!("{:032x}", welcome.node.0),
            core: welcome.core.0,
            cores: welcome.core_count,
            wire_version: welcome.version,
            routing_version: welcome.routing_version,
            time: welcome.time,
            connect_ms: milliseconds(connected),
            rtt_ms: milliseconds(rtt),
        })?;
    } else {
        let text = facts(&[
            ("server", server),
            ("principal", welcome.principal),
            ("region", welcome.region),
            ("cluster", format!("{:032x}", welcome.cluster.0)),
            ("node", format!("{:032x}", welcome.node.0)),
            ("core", format!("{} of {}", welcome.core, welcome.core_count)),
            ("wire version", welcome.version.to_string()),
            ("connected in", show_latency(connected)),
            ("round trip", format!("{} (fastest of {PROBES} requests)", show_latency(rtt))),
        ]);
        out.bytes(text.as_bytes())?;
    }
    Ok(Exit::Success)
}

/// Runs a verb of `context`.
pub fn run(globals: &Globals, args: &ContextArgs, out: &mut Out) -> Result<Exit, Failure> {
    match args.verb {
        ContextVerb::Check => check(globals, out),
        ContextVerb::Show => {
            let found = find_context(globals)?;
            if out.json() {
                out.value(&shown(&found))?;
            } else {
                out.bytes(show_text(&found).as_bytes())?;
            }
            Ok(Exit::Success)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use felix_client::Context;

    #[test]
    fn a_token_is_never_shown() {
        let context = Context {
            server: "broker.example:7447".into(),
            ca: "/etc/felix/ca.pem".into(),
            cert: None,
            key: None,
            token: Some("secret".into()),
            server_name: None,
        };
        let found = Found { path: Some("/etc/felix/context.toml".into()), context };
        let expected = "\
file         /etc/felix/context.toml
server       broker.example:7447
server name  (host of server)
ca           /etc/felix/ca.pem
cert         -
key          -
token        set
";
        assert_eq!(show_text(&found), expected);
        assert_eq!(
            serde_json::to_string(&shown(&found)).unwrap(),
            concat!(
                r#"{"file":"/etc/felix/context.toml","server":"broker.example:7447","server_name":null,"#,
                r#""ca":"/etc/felix/ca.pem","cert":null,"key":null,"token":true}"#
            )
        );
    }
}
