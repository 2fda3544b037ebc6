//! **What**: stdout for results, stderr for talk, and the question before something is destroyed.
//!
//! **Invariants**: stdout is locked and buffered; whoever waits for input flushes first, so that pipes are live.
//!
//! **Never**: a panic because stderr is closed; a question when nobody can answer.
//!
//! **See**: `table.rs` and `record.rs`, which make the bytes.

use crate::failure::Failure;
use std::fmt;
use std::io::{BufRead, BufWriter, IsTerminal, Write};

/// Bytes gathered before a write to stdout: a few hundred records.
const BUFFER_BYTES: usize = 64 << 10;

/// Tells people something on stderr. A closed stderr is no reason to stop.
pub fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Where results go.
pub struct Out {
    inner: BufWriter<Box<dyn Write>>,
    json: bool,
}

impl Out {
    /// The process's stdout, locked.
    pub fn stdout(json: bool) -> Out {
        Out::new(Box::new(std::io::stdout().lock()), json)
    }

    /// Any writer.
    pub fn new(inner: Box<dyn Write>, json: bool) -> Out {
        Out { inner: BufWriter::with_capacity(BUFFER_BYTES, inner), json }
    }

    /// Whether the user asked for JSON.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.inner.write_all(bytes).map_err(Failure::output)
    }

    /// One line.
    pub fn line(&mut self, line: impl fmt::Display) -> Result<(), Failure> {
        writeln!(self.inner, "{line}").map_err(Failure::output)
    }

    /// One JSON value on a line of its own.
    pub fn value(&mut self, value: &impl serde::Serialize) -> Result<(), Failure> {
        serde_json::to_writer(&mut self.inner, value).map_err(|error| Failure::output(error.into()))?;
        self.bytes(b"\n")
    }

    /// Hands everything to the reader.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.inner.flush().map_err(Failure::output)
    }
}

/// Asks before something is destroyed. `yes`: the user answered on the command line.
pub fn confirm(what: &str, name: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::usage(format!(
            "nothing was deleted: stdin is no terminal to ask at; add --yes to {what}"
        )));
    }
    let _ = write!(std::io::stderr().lock(), "This will {what}. Type the name to confirm: ");
    let mut answer = String::new();
    let read = stdin.lock().read_line(&mut answer);
    match read {
        Ok(_) if answer.trim() == name => Ok(()),
        _ => Err(Failure::new(crate::failure::Exit::Failed, "nothing was deleted: the name was not confirmed")),
    }
}
