//! Names and key filters: what is accepted prints as it was written, and matching never panics. Input: text, 0, key.
#![no_main]

use felix_protocol::names::{NamespaceName, StreamName, check_label, check_stream_part};
use felix_protocol::pattern::Pattern;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (text, key) = match bytes.iter().position(|byte| *byte == 0) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, bytes),
    };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let _ = (check_label(text), check_stream_part(text));
    if let Ok(name) = StreamName::parse(text) {
        assert_eq!(name.to_string(), text);
        assert!(text.len() <= 255 && check_stream_part(name.stream()).is_ok());
    }
    if let Ok(name) = NamespaceName::parse(text) {
        assert_eq!(name.to_string(), text);
    }
    if let Ok(pattern) = Pattern::parse(text) {
        assert_eq!(pattern.as_str(), text);
        let tokens = |bytes: &[u8]| bytes.split(|byte| *byte == b'.').count();
        if pattern.matches(key) {
            let (wanted, found) = (tokens(text.as_bytes()), tokens(key));
            assert!(if text.ends_with('>') { found >= wanted } else { found == wanted });
        }
        if !text.contains(['*', '>']) {
            assert_eq!(pattern.matches(key), key == text.as_bytes());
        }
    }
});
