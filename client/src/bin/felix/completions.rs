//! **What**: `felix completions`: the script that makes a shell complete verbs and options.
//!
//! **Invariants**: made from the same definitions that parse, so it cannot be out of date.
//!
//! **Never**: a connection: completing must not wait for a broker.
//!
//! **See**: `cli.rs`.

use crate::cli::Cli;
use crate::failure::{Exit, Failure};
use crate::output::Out;
use clap::{Args, CommandFactory, ValueEnum};

/// Options of `completions`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  felix completions bash > ~/.local/share/bash-completion/completions/felix
  felix completions zsh > ~/.zfunc/_felix
  felix completions fish > ~/.config/fish/completions/felix.fish")]
pub struct CompletionsArgs {
    /// Shell to make them for
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Prints the script.
pub fn run(args: &CompletionsArgs, out: &mut Out) -> Result<Exit, Failure> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "felix", &mut script);
    out.bytes(&script)?;
    Ok(Exit::Success)
}
