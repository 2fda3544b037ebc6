//! **What**: `felix tenant`: create, list, delete.
//!
//! **Invariants**: a tenant is deleted only when it is empty; the broker sees to that.
//!
//! **Never**: deleting what is in it.
//!
//! **See**: `namespace.rs`, `stream.rs`.

use crate::cli::Globals;
use crate::failure::{Exit, Failure};
use crate::link::{ask, ask_all, connect};
use crate::output::Out;
use crate::table::Table;
use crate::units::{parse_size, show_size};
use clap::{Args, Subcommand};
use felix_client::protocol::metadata::{TenantInfo, TenantLimits};
use felix_client::protocol::names::check_label;
use felix_client::{Client, Command, Reply};
use serde::Serialize;

/// Verbs of `tenant`.
#[derive(Args, Debug)]
#[command(arg_required_else_help = true)]
pub struct TenantArgs {
    #[command(subcommand)]
    verb: TenantVerb,
}

#[derive(Debug, Subcommand)]
enum TenantVerb {
    /// Make a tenant
    #[command(after_help = "\
Examples:
  felix tenant create acme
  felix tenant create acme --streams-max 100 --retained-bytes-max 10GiB")]
    Create(CreateArgs),
    /// List tenants
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  felix tenant list
  felix tenant list --json"
    )]
    List,
    /// Delete an empty tenant
    #[command(
        visible_alias = "rm",
        after_help = "\
Examples:
  felix tenant delete acme"
    )]
    Delete(DeleteArgs),
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// Name: a-z, 0-9 and '-'
    #[arg(value_parser = parse_tenant)]
    name: String,
    /// Largest number of streams
    #[arg(long, value_name = "N", default_value_t = TenantLimits::default().streams_max)]
    streams_max: u32,
    /// Largest number of shards over all streams
    #[arg(long, value_name = "N", default_value_t = TenantLimits::default().shards_max)]
    shards_max: u32,
    /// Largest sum of retention over all shards, like 64GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "64GiB")]
    retained_bytes_max: u64,
}

#[derive(Args, Debug)]
struct DeleteArgs {
    /// Name
    #[arg(value_parser = parse_tenant)]
    name: String,
    /// For symmetry with `stream delete`; an empty tenant is deleted without asking
    #[arg(long, hide = true)]
    yes: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    streams: u32,
    streams_max: u32,
    shards_max: u32,
    retained_bytes_max: u64,
}

impl<'a> From<&'a TenantInfo> for Shown<'a> {
    fn from(info: &'a TenantInfo) -> Shown<'a> {
        Shown {
            name: &info.name,
            streams: info.streams,
            streams_max: info.limits.streams_max,
            shards_max: info.limits.shards_max,
            retained_bytes_max: info.limits.retained_bytes_max,
        }
    }
}

/// What a write did, for JSON.
#[derive(Serialize)]
pub struct Written<'a> {
    /// What was made, if that was it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<&'a str>,
    /// What was deleted, if that was it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted: Option<&'a str>,
    /// Metadata version.
    pub version: u64,
}

/// Tells what a write did.
pub fn written(out: &mut Out, reply: &Reply, created: bool, name: &str) -> Result<Exit, Failure> {
    let Reply::Done { version } = reply else { return Err(Failure::odd_reply("a change")) };
    if out.json() {
        let (made, gone) = if created { (Some(name), None) } else { (None, Some(name)) };
        out.value(&Written { created: made, deleted: gone, version: *version })?;
    } else {
        out.line(format_args!("{} {name}", if created { "created" } else { "deleted" }))?;
    }
    Ok(Exit::Success)
}

/// Reads a tenant's name.
pub fn parse_tenant(text: &str) -> Result<String, String> {
    check_label(text).map(|()| text.to_string()).map_err(|error| error.to_string())
}

/// Every tenant.
pub fn all_tenants(client: &Client) -> Result<Vec<TenantInfo>, Failure> {
    ask_all(
        client,
        |last: Option<&TenantInfo>| Command::ListTenants { after: last.map(|info| info.name.clone()) },
        |reply| match reply {
            Reply::Tenants { tenants, more } => Some((tenants, more)),
            _ => None,
        },
    )
}

/// Runs a verb of `tenant`.
pub fn run(globals: &Globals, args: &TenantArgs, out: &mut Out) -> Result<Exit, Failure> {
    let client = connect(globals)?;
    match &args.verb {
        TenantVerb::Create(args) => {
            let limits = TenantLimits {
                streams_max: args.streams_max,
                shards_max: args.shards_max,
                retained_bytes_max: args.retained_bytes_max,
            };
            let reply = ask(&client, Command::CreateTenant { tenant: args.name.clone(), limits })?;
            written(out, &reply, true, &args.name)
        }
        TenantVerb::Delete(args) => {
            let reply = ask(&client, Command::DeleteTenant { tenant: args.name.clone() })?;
            written(out, &reply, false, &args.name)
        }
        TenantVerb::List => {
            let tenants = all_tenants(&client)?;
            if out.json() {
                for tenant in &tenants {
                    out.value(&Shown::from(tenant))?;
                }
                return Ok(Exit::Success);
            }
            let mut table = Table::new(&["TENANT", ">STREAMS", ">STREAMS MAX", ">SHARDS MAX", ">RETAINED MAX"]);
            for tenant in &tenants {
                table.row(vec![
                    tenant.name.clone(),
                    tenant.streams.to_string(),
                    tenant.limits.streams_max.to_string(),
                    tenant.limits.shards_max.to_string(),
                    show_size(tenant.limits.retained_bytes_max),
                ]);
            }
            out.bytes(table.show().as_bytes())?;
            Ok(Exit::Success)
        }
    }
}
