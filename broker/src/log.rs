//! **What**: the broker's log lines: one JSON object per line on stderr.
//!
//! ```text
//! {"time":"2026-11-24T03:00:00.123Z","level":"info","message":"ready","listen":"127.0.0.1:4433"}
//! ```
//!
//! **Invariants**: a value from outside is escaped; a line is written in one call, so lines of threads do not mix.
//!
//! **Never**: a line per message, connection or packet: those are counters.
//!
//! **See**: `metrics.rs`.

use std::fmt::Write as _;
use std::io::Write as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Something an operator may want to know.
pub fn info(message: &str, fields: &[(&str, &str)]) {
    line("info", message, fields);
}

/// Something that could be better and may need a hand.
pub fn warn(message: &str, fields: &[(&str, &str)]) {
    line("warn", message, fields);
}

/// Something that went wrong.
pub fn error(message: &str, fields: &[(&str, &str)]) {
    line("error", message, fields);
}

fn line(level: &str, message: &str, fields: &[(&str, &str)]) {
    let mut out = String::with_capacity(160);
    let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let _ = write!(out, "{{\"time\":\"{time}\",\"level\":\"{level}\",\"message\":");
    escape(&mut out, message);
    for (name, value) in fields {
        out.push(',');
        escape(&mut out, name);
        out.push(':');
        escape(&mut out, value);
    }
    out.push_str("}\n");
    // Nobody is left to tell when stderr is closed.
    let _ = std::io::stderr().write_all(out.as_bytes());
}

fn escape(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            control if control.is_control() => {
                let _ = write!(out, "\\u{:04x}", control as u32);
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn hostile_text_stays_in_its_string() {
        let mut out = String::new();
        escape(&mut out, "a\"b\\c\nd\u{1b}é");
        assert_eq!(out, "\"a\\\"b\\\\c\\u000ad\\u001bé\"");
    }
}
