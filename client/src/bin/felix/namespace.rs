//! **What**: `felix namespace`: create, list, delete.
//!
//! **Invariants**: a namespace is deleted only when it is empty; the broker sees to that.
//!
//! **Never**: making a tenant on the way: only `stream create` makes parents.
//!
//! **See**: `tenant.rs`, `stream.rs`.

use crate::cli::Globals;
use crate::failure::{Exit, Failure};
use crate::link::{ask, ask_all, connect};
use crate::output::Out;
use crate::table::Table;
use crate::tenant::{all_tenants, parse_tenant, written};
use clap::{Args, Subcommand};
use felix_client::protocol::names::NamespaceName;
use felix_client::{Client, Command, Reply};
use serde::Serialize;

/// Verbs of `namespace`.
#[derive(Args, Debug)]
#[command(arg_required_else_help = true)]
pub struct NamespaceArgs {
    #[command(subcommand)]
    verb: NamespaceVerb,
}

#[derive(Debug, Subcommand)]
enum NamespaceVerb {
    /// Make a namespace
    #[command(after_help = "\
Examples:
  felix namespace create acme/md")]
    Create {
        /// Name: tenant/namespace
        #[arg(value_name = "TENANT/NAMESPACE")]
        name: NamespaceName,
    },
    /// List the namespaces of a tenant, or all
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  felix namespace list
  felix namespace list acme --json"
    )]
    List {
        /// Only of this tenant
        #[arg(value_parser = parse_tenant)]
        tenant: Option<String>,
    },
    /// Delete an empty namespace
    #[command(
        visible_alias = "rm",
        after_help = "\
Examples:
  felix namespace delete acme/md"
    )]
    Delete {
        /// Name: tenant/namespace
        #[arg(value_name = "TENANT/NAMESPACE")]
        name: NamespaceName,
        /// For symmetry with `stream delete`; an empty namespace is deleted without asking
        #[arg(long, hide = true)]
        yes: bool,
    },
}

#[derive(Serialize)]
struct Shown<'a> {
    name: String,
    tenant: &'a str,
    namespace: &'a str,
}

fn namespaces_of(client: &Client, tenant: &str) -> Result<Vec<NamespaceName>, Failure> {
    ask_all(
        client,
        |last: Option<&NamespaceName>| Command::ListNamespaces {
            tenant: tenant.to_string(),
            after: last.map(|name| name.namespace().to_string()),
        },
        |reply| match reply {
            Reply::Namespaces { names, more } => Some((names, more)),
            _ => None,
        },
    )
}

/// Runs a verb of `namespace`.
pub fn run(globals: &Globals, args: &NamespaceArgs, out: &mut Out) -> Result<Exit, Failure> {
    let client = connect(globals)?;
    match &args.verb {
        NamespaceVerb::Create { name } => {
            let reply = ask(&client, Command::CreateNamespace { name: name.clone() })?;
            written(out, &reply, true, &name.to_string())
        }
        NamespaceVerb::Delete { name, yes: _ } => {
            let reply = ask(&client, Command::DeleteNamespace { name: name.clone() })?;
            written(out, &reply, false, &name.to_string())
        }
        NamespaceVerb::List { tenant } => {
            let tenants = match tenant {
                Some(tenant) => vec![tenant.clone()],
                None => all_tenants(&client)?.into_iter().map(|info| info.name).collect(),
            };
            let mut table = Table::new(&["NAMESPACE"]);
            for tenant in &tenants {
                for name in namespaces_of(&client, tenant)? {
                    if out.json() {
                        let shown =
                            Shown { name: name.to_string(), tenant: name.tenant(), namespace: name.namespace() };
                        out.value(&shown)?;
                    } else {
                        table.row(vec![name.to_string()]);
                    }
                }
            }
            if !out.json() {
                out.bytes(table.show().as_bytes())?;
            }
            Ok(Exit::Success)
        }
    }
}
