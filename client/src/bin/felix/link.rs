//! **What**: from global options to a connected client: which context, what wins, how long to wait.
//!
//! **Invariants**: an option on the command line wins over the context file; a file that was named must be there.
//!
//! **Never**: a connection to a place that neither the user nor a context named.
//!
//! **See**: `felix_client::Context`.

use crate::cli::Globals;
use crate::failure::{Exit, Failure};
use felix_client::{Client, ClientConfig, Command, Context, ContextError, Reply, RequestError};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time to connect and for a request unless `--timeout` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A context and where it came from.
#[derive(Debug)]
pub struct Found {
    /// The file; None: everything was on the command line.
    pub path: Option<PathBuf>,
    /// What holds, options included.
    pub context: Context,
}

/// Finds the context and puts the options of the command line over it.
pub fn find_context(globals: &Globals) -> Result<Found, Failure> {
    let named = globals.context.clone().or_else(|| set("FELIX_CONTEXT").map(PathBuf::from));
    let named = named.as_deref();
    let loaded = match named {
        Some(path) => Context::load(path).map(|context| (path.to_path_buf(), context)),
        None => Context::path_from_env().and_then(|path| Context::load(&path).map(|context| (path, context))),
    };
    let (path, mut context) = match (loaded, &globals.server, &globals.ca) {
        (Ok((path, context)), _, _) => (Some(path), context),
        (Err(error), Some(server), Some(ca)) if named.is_none() && is_absent(&error) => {
            let (server, ca) = (server.clone(), ca.clone());
            (None, Context { server, ca, cert: None, key: None, token: None, server_name: None })
        }
        (Err(error), _, _) if is_absent(&error) => return Err(no_context(named, &error)),
        (Err(error), _, _) => return Err(error.into()),
    };
    if let Some(server) = &globals.server {
        context.server.clone_from(server);
    }
    if let Some(ca) = &globals.ca {
        context.ca.clone_from(ca);
    }
    if globals.cert.is_some() {
        context.cert.clone_from(&globals.cert);
    }
    if globals.private_key.is_some() {
        context.key.clone_from(&globals.private_key);
    }
    let from_environment = || set("FELIX_TOKEN").map(|token| token.into_string());
    if let Some(token) = globals.token.clone().map(Ok).or_else(from_environment) {
        context.token = Some(token.map_err(|_| Failure::usage("FELIX_TOKEN is no text; set it to the token"))?);
    }
    if globals.server_name.is_some() {
        context.server_name.clone_from(&globals.server_name);
    }
    Ok(Found { path, context })
}

/// A variable of the environment, if it is not empty: scripts unset one by setting it to nothing.
fn set(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn is_absent(error: &ContextError) -> bool {
    match error {
        ContextError::Unreadable { kind, .. } => *kind == std::io::ErrorKind::NotFound,
        ContextError::NoHome => true,
        _ => false,
    }
}

fn no_context(named: Option<&Path>, error: &ContextError) -> Failure {
    let what = match (named, error) {
        (Some(path), _) => format!("no context file {}", path.display()),
        (None, ContextError::Unreadable { path, .. }) => format!("no context file {}", path.display()),
        _ => "no context file: HOME is not set".into(),
    };
    Failure::usage(format!(
        "{what}; give --context FILE or set FELIX_CONTEXT, or give --server HOST:PORT and --ca FILE"
    ))
}

/// A client, connected. `patience`: time to connect and for each request.
pub fn connect_within(globals: &Globals, patience: Duration) -> Result<Client, Failure> {
    let context = find_context(globals)?.context;
    let config = ClientConfig::from_context(&context)?
        .request_timeout(patience)
        .client_name(concat!("felix-cli/", env!("CARGO_PKG_VERSION")));
    globals.explain(format_args!("connecting to {}", config.server()));
    Ok(Client::connect(config)?)
}

/// A client, connected, with the patience of `--timeout`.
pub fn connect(globals: &Globals) -> Result<Client, Failure> {
    connect_within(globals, globals.timeout.unwrap_or(TIMEOUT))
}

/// A client for a verb whose `--timeout` bounds the whole run: connecting takes at most the usual time of it.
pub fn connect_for_run(globals: &Globals) -> Result<Client, Failure> {
    connect_within(globals, globals.timeout.unwrap_or(TIMEOUT).min(TIMEOUT))
}

/// Runs one metadata request.
pub fn ask(client: &Client, command: Command) -> Result<Reply, Failure> {
    client.admin(command).map_err(Failure::from)
}

/// Fetches a list page by page. `command`: the request for what follows an item; `page`: items and whether there are
/// more.
pub fn ask_all<T>(
    client: &Client,
    mut command: impl FnMut(Option<&T>) -> Command,
    mut page: impl FnMut(Reply) -> Option<(Vec<T>, bool)>,
) -> Result<Vec<T>, Failure> {
    let mut all: Vec<T> = Vec::new();
    loop {
        let reply = ask(client, command(all.last()))?;
        let (items, more) = page(reply).ok_or_else(|| Failure::odd_reply("a list"))?;
        let empty = items.is_empty();
        all.extend(items);
        // A broker that promises more and sends nothing would keep us for ever.
        if !more || empty {
            return Ok(all);
        }
    }
}

/// Whether a shard exists is told by the route; a wrong number is the user's, so it is said as such.
pub fn check_shard(shard: Option<u32>, shards: usize, name: &impl std::fmt::Display) -> Result<(), Failure> {
    match shard {
        Some(shard) if shard as usize >= shards => Err(Failure::new(
            Exit::NotFound,
            format!("{name} has {shards} shard(s), there is no shard {shard}; give --shard 0 to {}", shards - 1),
        )),
        _ => Ok(()),
    }
}

/// The broker answered, be it with a refusal.
pub fn was_answered<T>(result: &Result<T, RequestError>) -> bool {
    matches!(result, Ok(_) | Err(RequestError::Refused { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("felix-cli-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("context.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn options_win_over_the_file() {
        let path = file("wins", "server = \"a:1\"\nca = \"ca.pem\"\ntoken = \"old\"\n");
        let globals = Globals { context: Some(path.clone()), ..Globals::default() };
        let found = find_context(&globals).unwrap();
        assert_eq!(found.path.as_ref(), Some(&path));
        assert_eq!((found.context.server.as_str(), found.context.token.as_deref()), ("a:1", Some("old")));
        let globals = Globals {
            server: Some("b:2".into()),
            ca: Some("other.pem".into()),
            cert: Some("me.pem".into()),
            private_key: Some("me.key".into()),
            token: Some("new".into()),
            server_name: Some("b".into()),
            ..globals
        };
        let context = find_context(&globals).unwrap().context;
        let expected = Context {
            server: "b:2".into(),
            ca: "other.pem".into(),
            cert: Some("me.pem".into()),
            key: Some("me.key".into()),
            token: Some("new".into()),
            server_name: Some("b".into()),
        };
        assert_eq!(context, expected);
    }

    #[test]
    fn a_named_file_must_be_there() {
        let globals = Globals {
            context: Some("/nonexistent/context.toml".into()),
            server: Some("a:1".into()),
            ca: Some("ca.pem".into()),
            ..Globals::default()
        };
        let failure = find_context(&globals).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(failure.message().unwrap().starts_with("no context file /nonexistent/context.toml; give --context"));
    }

    #[test]
    fn a_shard_that_is_not_there() {
        assert_eq!(check_shard(None, 2, &"a/b/c"), Ok(()));
        assert_eq!(check_shard(Some(1), 2, &"a/b/c"), Ok(()));
        let failure = check_shard(Some(2), 2, &"a/b/c").unwrap_err();
        assert_eq!(failure.exit(), Exit::NotFound);
        assert_eq!(failure.message(), Some("a/b/c has 2 shard(s), there is no shard 2; give --shard 0 to 1"));
    }
}
