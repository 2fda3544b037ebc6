//! **What**: the tool `felix` as a process, as far as it goes without a broker: help, completions, usage errors, which
//! context holds, and what happens when nobody answers.
//!
//! **Invariants**: every run here ends by itself within seconds.
//!
//! **Never**: the user's own context or environment.
//!
//! **See**: `cli_e2e.rs` for what needs a broker.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How a run ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_felix"));
    command.args(arguments).env_clear().env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}

fn finish(mut command: Command) -> Ended {
    let output = command.output().expect("the tool was built beside this test");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the tool writes UTF-8");
    Ended {
        code: output.status.code().expect("it ends by itself, not by a signal"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

fn felix(arguments: &[&str]) -> Ended {
    finish(command(arguments))
}

/// A folder of its own for a test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("felix-cli-test-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn write(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_string()
    }

    /// A context for a server, with an authority that is well-formed and knows nobody.
    fn context(&self, server: &str) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = rcgen::CertificateParams::new(vec!["nobody.example".into()]).unwrap().self_signed(&key).unwrap();
        self.write("ca.pem", &ca.pem());
        self.write("context.toml", &format!("server = \"{server}\"\nca = \"ca.pem\"\n"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn help_is_a_result_and_has_examples() {
    let root = felix(&["--help"]);
    assert_eq!((root.code, root.stderr.as_str()), (0, ""));
    let verbs = ["stream", "namespace", "tenant", "pub", "sub", "top", "context", "completions"];
    for word in verbs.iter().chain(&["Exit codes:", "Examples:", "--context", "FELIX_TOKEN", "~/.config/felix"]) {
        assert!(root.stdout.contains(word), "{word} is missing in\n{}", root.stdout);
    }
    for verb in [
        &["stream", "create"][..],
        &["stream", "list"],
        &["stream", "describe"],
        &["stream", "alter"],
        &["stream", "delete"],
        &["tenant", "create"],
        &["tenant", "list"],
        &["tenant", "delete"],
        &["namespace", "create"],
        &["namespace", "list"],
        &["namespace", "delete"],
        &["pub"],
        &["sub"],
        &["top"],
        &["context", "show"],
        &["context", "check"],
        &["completions"],
    ] {
        for flag in ["--help", "-h"] {
            let help = felix(&[verb, &[flag]].concat());
            assert_eq!(help.code, 0, "{verb:?}");
            assert!(help.stdout.contains("Examples:\n  felix "), "{verb:?} {flag} has no example");
        }
    }
    let version = felix(&["--version"]);
    assert_eq!(version.stdout, concat!("felix ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn secrets_of_the_environment_are_not_in_the_help() {
    let mut command = command(&["--help"]);
    command.env("FELIX_TOKEN", "very-secret");
    let help = finish(command);
    assert_eq!(help.code, 0);
    assert!(!help.stdout.contains("very-secret"));
}

#[test]
fn completions_for_each_shell() {
    for (shell, mark) in [("bash", "complete -F"), ("zsh", "#compdef felix"), ("fish", "complete -c felix")] {
        let script = felix(&["completions", shell]);
        assert_eq!((script.code, script.stderr.as_str()), (0, ""), "{shell}");
        assert!(script.stdout.contains(mark), "{shell}");
        assert!(script.stdout.contains("retention-bytes"), "{shell} knows the options of verbs");
    }
    assert_eq!(felix(&["completions", "tcsh"]).code, 2);
}

#[test]
fn wrong_usage_is_told_on_stderr_with_exit_code_2() {
    for (arguments, hint) in [
        (&[][..], "Usage:"),
        (&["frobnicate"], "unrecognized subcommand"),
        (&["stream"], "Usage:"),
        (&["stream", "create"], "<NAME>"),
        (&["stream", "create", "quotes", "--ephemeral"], "tenant/namespace/stream"),
        (&["stream", "create", "Acme/md/quotes", "--ephemeral"], "character 1 is not allowed"),
        (&["stream", "create", "a/b/c", "--ephemeral", "--retention-bytes", "64mb"], "write it like 64MiB"),
        (&["stream", "create", "a/b/c", "--ephemeral", "--retention-age", "10"], "no unit"),
        (&["stream", "create", "a/b/c", "--ephemeral", "--shards", "two"], "--shards"),
        (&["stream", "list", "a/b/c"], "stream describe"),
        (&["tenant", "create", "a_b"], "not allowed"),
        (&["namespace", "create", "acme"], "found 1 part"),
        (&["pub", "a/b/c", "--key", "K", "--key-field", "f"], "cannot be used with"),
        (&["pub", "a/b/c", "--header", "novalue"], "name=value"),
        (&["pub", "a/b/c", "--rate", "fast"], "1000/s"),
        (&["pub", "a/b/c", "--on-bad", "cry"], "stop, skip"),
        (&["pub", "a/b/c", "--batch", "0"], "--batch"),
        (&["sub", "a/b/c", "--from", "start"], "earliest, latest, offset:N"),
        (&["sub", "a/b/c", "--filter", "a..b"], "empty token"),
        (&["sub", "a/b/c", "--policy", "wait"], "drop-oldest"),
        (&["sub", "a/b/c", "--count", "0"], "--count"),
        (&["sub", "a/b/c", "--with-key", "--json"], "cannot be used with"),
        (&["sub", "a/b/c", "--parse-json"], "add --json"),
        (&["top", "--interval", "0s"], "above zero"),
        (&["-q", "-v", "top"], "cannot be used with"),
        (&["--timeout", "soon", "top"], "10s"),
    ] {
        let ended = felix(arguments);
        assert_eq!(ended.code, 2, "{arguments:?}: {ended:?}");
        assert_eq!(ended.stdout, "", "{arguments:?}");
        assert!(ended.stderr.contains(hint), "{arguments:?} does not say {hint:?}:\n{}", ended.stderr);
    }
}

#[test]
fn what_cannot_be_is_told_before_it_connects() {
    let interval = felix(&["stream", "create", "acme/md/quotes", "--interval-ms", "50"]);
    assert_eq!((interval.code, interval.stderr.as_str()), (2, "error: --interval-ms needs --durability interval\n"));
    let both = felix(&["stream", "create", "acme/md/quotes", "--ephemeral", "--durability", "group"]);
    assert_eq!(both.code, 2);
    assert!(both.stderr.contains("cannot be used with"), "{}", both.stderr);
    let alter = felix(&["stream", "alter", "acme/md/quotes"]);
    assert_eq!(alter.code, 2);
    assert!(alter.stderr.contains("nothing to change"));
}

#[test]
fn nothing_is_deleted_without_a_yes() {
    let ended = felix(&["stream", "delete", "acme/md/quotes"]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("add --yes"), "{}", ended.stderr);
}

#[test]
fn a_context_that_is_missing_or_broken() {
    let folder = Folder::new("contexts");
    let absent = folder.0.join("none.toml");
    let absent = absent.to_str().unwrap();
    let ended = felix(&["--context", absent, "stream", "list"]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.starts_with(&format!("error: no context file {absent}; give --context FILE")), "{ended:?}");

    let default = felix(&["stream", "list"]);
    assert_eq!(default.code, 2);
    assert!(default.stderr.contains("/nonexistent/.config/felix/context.toml"), "{}", default.stderr);

    let broken = folder.write("broken.toml", "server = \"a:1\"\nca = \"ca.pem\"\nsevrer = 1\n");
    let ended = felix(&["--context", &broken, "stream", "list"]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("broken.toml line 3"), "{}", ended.stderr);

    let half = folder.write("half.toml", "server = \"127.0.0.1:1\"\nca = \"absent.pem\"\n");
    let ended = felix(&["--context", &half, "stream", "list"]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("absent.pem cannot be read"), "{}", ended.stderr);
    let ended = felix(&["--context", &half, "--cert", "me.pem", "stream", "list"]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("cert and key belong together"), "{}", ended.stderr);

    let ca = folder.write("junk.pem", "this is no certificate\n");
    let ended = felix(&["--server", "127.0.0.1:1", "--ca", &ca, "--timeout", "1s", "stream", "list"]);
    assert!(matches!(ended.code, 2 | 3), "{ended:?}");
}

#[test]
fn the_context_is_found_and_shown() {
    let folder = Folder::new("show");
    let path = folder.context("broker.example:7447");
    let expected = |file: &str, server: &str| {
        format!(
            "{{\"file\":\"{file}\",\"server\":\"{server}\",\"server_name\":null,\"ca\":\"{}\",\"cert\":null,\"key\":null,\
             \"token\":false}}\n",
            folder.0.join("ca.pem").display()
        )
    };
    let shown = felix(&["--context", &path, "context", "show", "--json"]);
    assert_eq!(shown.stdout, expected(&path, "broker.example:7447"), "{shown:?}");

    let mut by_environment = command(&["context", "show", "--json", "--server", "other:1"]);
    by_environment.env("FELIX_CONTEXT", &path);
    assert_eq!(finish(by_environment).stdout, expected(&path, "other:1"));

    let home = folder.0.join("home");
    std::fs::create_dir_all(home.join(".config/felix")).unwrap();
    let default = home.join(".config/felix/context.toml");
    std::fs::copy(&path, &default).unwrap();
    let mut by_home = command(&["context", "show"]);
    by_home.env("HOME", &home).env("FELIX_CONTEXT", "").env("FELIX_TOKEN", "very-secret");
    let shown = finish(by_home);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.stdout.contains(default.to_str().unwrap()) && shown.stdout.contains("token        set"), "{shown:?}");
    assert!(!shown.stdout.contains("very-secret"));
}

fn check_no_connection(context: &str, arguments: &[&str], patience: Duration) {
    let started = Instant::now();
    let ended = felix(&[&["--context", context, "--timeout", "700ms"], arguments].concat());
    let elapsed = started.elapsed();
    assert_eq!(ended.code, 3, "{arguments:?}: {ended:?}");
    assert_eq!(ended.stdout, "", "{arguments:?}");
    assert!(ended.stderr.contains("check"), "it says what to do: {}", ended.stderr);
    assert!(elapsed < patience, "{arguments:?} took {elapsed:?}");
}

#[test]
fn nobody_listens() {
    let folder = Folder::new("nobody");
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let context = folder.context(&format!("127.0.0.1:{port}"));
    let patience = Duration::from_secs(4);
    check_no_connection(&context, &["stream", "list"], patience);
    check_no_connection(&context, &["context", "check"], patience);
    check_no_connection(&context, &["pub", "a/b/c"], patience);
    check_no_connection(&context, &["sub", "a/b/c"], patience);
    check_no_connection(&context, &["top", "--once"], patience);
}

#[test]
fn somebody_listens_and_never_answers() {
    let folder = Folder::new("mute");
    let mute = UdpSocket::bind("127.0.0.1:0").unwrap();
    let context = folder.context(&mute.local_addr().unwrap().to_string());
    check_no_connection(&context, &["stream", "list"], Duration::from_secs(4));
    check_no_connection(&context, &["sub", "a/b/c", "--count", "1"], Duration::from_secs(4));
}

#[test]
fn an_input_that_cannot_be_read() {
    let folder = Folder::new("input");
    let context = folder.context("127.0.0.1:1");
    let ended = felix(&["--context", &context, "pub", "a/b/c", "--file", "/nonexistent/quotes.jsonl"]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("/nonexistent/quotes.jsonl cannot be read"), "{}", ended.stderr);
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    for arguments in [&["completions", "bash"][..], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = command(arguments);
        command.stdout(writer).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
    // A closed stderr is no reason to panic.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = command(&["stream", "create", "a/b/c"]);
    command.stdout(Stdio::null()).stderr(writer);
    assert_eq!(command.status().unwrap().code(), Some(2));
    assert!(Path::new(env!("CARGO_BIN_EXE_felix")).exists());
}
