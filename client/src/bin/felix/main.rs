//! `felix`, the command-line tool: publish, subscribe, look and administer.
//!
//! **What**: parse, run one verb, turn its end into an exit code.
//!
//! **Invariants**: results go to stdout and talk to stderr; exit code 0 only on success (`failure.rs` has the others).
//! Every error says what was wrong and what to do next.
//!
//! **Never**: a prompt when stdin is not a terminal; a token or a private key in any output.
//!
//! **See**: `cli.rs` for the verbs, then the file of a verb; `link.rs` for how it reaches a broker.
#![deny(unsafe_code)]

mod backup;
mod cli;
mod completions;
mod context;
mod failure;
mod input;
mod key;
mod link;
mod namespace;
mod output;
mod publish;
mod record;
mod signals;
mod start;
mod stream;
mod subscribe;
mod table;
mod tenant;
mod text;
mod top;
mod units;

use clap::Parser;
use cli::{Cli, Verb};
use failure::{Exit, Failure};
use output::{Out, say};
use std::process::ExitCode;

fn run(cli: Cli, out: &mut Out) -> Result<Exit, Failure> {
    let globals = &cli.globals;
    match &cli.verb {
        Verb::Stream(args) => stream::run(globals, args, out),
        Verb::Namespace(args) => namespace::run(globals, args, out),
        Verb::Tenant(args) => tenant::run(globals, args, out),
        Verb::Pub(args) => publish::run(globals, args, out),
        Verb::Sub(args) => subscribe::run(globals, args, out),
        Verb::Top(args) => top::run(globals, args, out),
        Verb::Backup(args) => backup::run(globals, args, out),
        Verb::Context(args) => context::run(globals, args, out),
        Verb::Completions(args) => completions::run(args, out),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = Out::stdout(cli.globals.json);
    // What was written before a failure is a result too, so it is flushed in any case.
    let ended = run(cli, &mut out);
    let flushed = out.flush();
    match ended.and_then(|exit| flushed.map(|()| exit)) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if let Some(message) = failure.message() {
                say(format_args!("error: {message}"));
            }
            failure.exit().into()
        }
    }
}
