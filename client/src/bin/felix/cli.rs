//! **What**: the command line: global options and the list of verbs. The options of a verb are in its own file.
//!
//! **Invariants**: every verb has examples in its help; options of the connection win over the context file.
//!
//! **Never**: the value of a token in a help text.
//!
//! **See**: `main.rs`, which dispatches; `link.rs`, which uses the global options.

use crate::failure::EXIT_CODES;
use crate::units::parse_positive_duration;
use crate::{backup, completions, context, namespace, publish, stream, subscribe, tenant, top};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  felix stream create acme/md/quotes --shards 2 --ephemeral
  felix pub acme/md/quotes --key-field symbol < quotes.jsonl
  felix sub acme/md/quotes --from earliest --count 10 --json
  felix top

A context file says where the broker is and who you are:
  server = \"broker.example:7447\"
  ca = \"ca.pem\"                     relative to the file
  cert = \"client.pem\"               optional, with key
  key = \"client.key\"
It is the file given with --context, else $FELIX_CONTEXT, else
~/.config/felix/context.toml.

Results go to stdout, talk goes to stderr. With --json every result is one JSON
object per line.
";

/// Command-line tool of Felix: publish, subscribe, look, administer.
#[derive(Debug, Parser)]
#[command(name = "felix", version, max_term_width = 110, after_help = format!("{EXAMPLES}\n{EXIT_CODES}"))]
#[command(subcommand_required = true, arg_required_else_help = true, infer_subcommands = false)]
pub struct Cli {
    /// Options of every verb.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Context file: where the broker is and who you are [env: FELIX_CONTEXT]
    #[arg(long, global = true, value_name = "FILE")]
    pub context: Option<PathBuf>,
    /// Address of the broker, instead of the context's
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub server: Option<String>,
    /// Certificate authority of the broker, PEM
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Your certificate chain, PEM
    #[arg(long, global = true, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Your private key, PEM (in front of the verb: `pub --key` is the key of records)
    #[arg(long = "key", id = "private_key", value_name = "FILE")]
    pub private_key: Option<PathBuf>,
    /// Bearer token; the environment keeps it out of the process list [env: FELIX_TOKEN]
    #[arg(long, global = true, value_name = "TOKEN")]
    pub token: Option<String>,
    /// Name in the broker's certificate, if it is not the host of --server
    #[arg(long, global = true, value_name = "NAME")]
    pub server_name: Option<String>,
    /// Time for connecting and for a request [default: 5s]; for `pub` until a record is acknowledged [default: 30s];
    /// for `sub` until it ends
    #[arg(long, global = true, value_name = "SPAN", value_parser = parse_positive_duration)]
    pub timeout: Option<Duration>,
    /// Print results as JSON, one object per line
    #[arg(long, global = true)]
    pub json: bool,
    /// Say less: nothing but errors on stderr; `sub` only counts
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more: what is done on stderr, more fields with --json
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub verbose: bool,
}

impl Globals {
    /// Tells people something, unless they asked for quiet.
    pub fn say(&self, line: std::fmt::Arguments<'_>) {
        if !self.quiet {
            crate::output::say(line);
        }
    }

    /// Tells people more, if they asked for it.
    pub fn explain(&self, line: std::fmt::Arguments<'_>) {
        if self.verbose {
            crate::output::say(line);
        }
    }
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create, list, describe, alter and delete streams
    Stream(stream::StreamArgs),
    /// Create, list and delete namespaces
    Namespace(namespace::NamespaceArgs),
    /// Create, list and delete tenants
    Tenant(tenant::TenantArgs),
    /// Publish lines of stdin or a file, one record each
    Pub(publish::PubArgs),
    /// Subscribe: print records as they come
    Sub(subscribe::SubArgs),
    /// Watch the streams: rates, subscriptions, lag, gaps
    Top(top::TopArgs),
    /// Save metadata and records of a running broker in a folder, or verify such a folder
    Backup(backup::BackupArgs),
    /// Show the context, or check it against the broker
    Context(context::ContextArgs),
    /// Print completions for a shell
    Completions(completions::CompletionsArgs),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, error::ErrorKind};

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    fn visit(command: &clap::Command, path: &str, check: &mut dyn FnMut(&str, &clap::Command)) {
        check(path, command);
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            visit(sub, &format!("{path} {}", sub.get_name()), check);
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_leaf_has_examples_that_parse() {
        let mut command = Cli::command();
        command.build();
        visit(&command, "felix", &mut |path, command| {
            if command.has_subcommands() && path != "felix" {
                return;
            }
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples: Vec<&str> = help.lines().filter(|line| line.starts_with("  felix ")).collect();
            assert!(!examples.is_empty(), "{path} has no examples");
            for example in examples {
                let line = example.split(['<', '|', '>']).next().unwrap().replace('\'', "").replace("$SHELL", "bash");
                // A pipe inside quotes ends the line early; what is left must still parse.
                if let Err(error) = parse(&line) {
                    panic!("{path}: {example:?}: {error}");
                }
            }
        });
    }

    #[test]
    fn the_two_keys_do_not_meet() {
        let cli = parse("felix --key me.key pub a/b/c --key K").unwrap();
        assert_eq!(cli.globals.private_key, Some("me.key".into()));
        let Verb::Pub(args) = cli.verb else { panic!("not pub") };
        assert_eq!(args.key.as_deref(), Some("K"));
        let cli = parse("felix pub a/b/c --key K").unwrap();
        assert_eq!(cli.globals.private_key, None);
    }

    #[test]
    fn globals_go_before_and_after_the_verb() {
        for line in ["felix --timeout 3s --json -v top", "felix top --timeout 3s --json -v"] {
            let cli = parse(line).unwrap();
            assert_eq!(cli.globals.timeout, Some(Duration::from_secs(3)));
            assert!(cli.globals.json && cli.globals.verbose);
        }
        assert_eq!(parse("felix -q -v top").unwrap_err().kind(), ErrorKind::ArgumentConflict);
        assert_eq!(parse("felix top --timeout 0s").unwrap_err().kind(), ErrorKind::ValueValidation);
    }
}
