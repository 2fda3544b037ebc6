//! **What**: the `felix-broker` program.
//!
//! **Invariants**: exit code 0 only after an orderly stop; an error is one sentence on stderr and code 1. The offline tools
//! have codes of their own (their help).
//! A panic on any thread aborts the process: a broken invariant must not serve. The one exception is a panic of
//! raft-engine, its way to tell of a failed disk, which `felix_control` catches and tells as an error.
//!
//! **Never**: logic.
//!
//! **See**: `boot.rs`.

use clap::Parser;
use felix_broker::boot;
use felix_broker::config::{Cli, Command};
use felix_broker::io::bind::SocketBuffers;
use felix_broker::tools;
use std::process::ExitCode;

fn main() -> ExitCode {
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default_hook(info);
        if !felix_control::node::panic_is_caught() {
            std::process::abort();
        }
    }));
    let result = match Cli::parse().command {
        Command::Dev(args) => boot::run_dev(&args),
        Command::SelfCheck(args) => {
            let cores = args.cores.unwrap_or_else(boot::default_cores);
            boot::check_machine(cores.into(), None, &SocketBuffers::default()).map(|cpus| {
                println!("this machine can run a broker with {cores} core(s); CPUs {cpus:?}");
            })
        }
        Command::Check(args) => return tools::exit("check", tools::check(&args)),
        Command::Dump(args) => return tools::exit("dump", tools::dump(&args)),
        Command::Restore(args) => return tools::exit("restore", tools::restore(&args)),
        Command::Keyring(args) => return tools::exit("keyring", tools::keyring(&args)),
        Command::Repair(args) => return tools::exit("repair", tools::repair(&args)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("felix-broker: {error}");
            ExitCode::FAILURE
        }
    }
}
