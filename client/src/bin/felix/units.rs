//! **What**: sizes, durations and rates as people write and read them.
//!
//! ```text
//! size      64MiB  1.5GiB  512KiB  100MB  64Mi  1048576      B, kB MB GB TB (or k M G T), KiB MiB GiB TiB (or Ki Mi ..)
//! duration  10m  1h30m  1.5s  250ms  7d                      ns us ms s m h d w, largest first or not
//! rate      1000/s  2.5k/s  60/m  1000                       per ms, s, m, h; per second if nothing is said
//! ```
//!
//! **Invariants**: what `show_*` prints for an exact value is read back as the same value; a number without a unit is a
//! size in bytes or a rate per second, never a duration.
//!
//! **Never**: rounding of what the user wrote: a fraction that is no whole byte or nanosecond is refused.
//!
//! **See**: `cli.rs`, which names these as value parsers.

use std::time::Duration;

const SIZES: &[(&str, u64)] = &[
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("k", 1_000),
    ("MB", 1_000_000),
    ("M", 1_000_000),
    ("GB", 1_000_000_000),
    ("G", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("T", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("Ki", 1 << 10),
    ("MiB", 1 << 20),
    ("Mi", 1 << 20),
    ("GiB", 1 << 30),
    ("Gi", 1 << 30),
    ("TiB", 1 << 40),
    ("Ti", 1 << 40),
];

const SPANS: &[(&str, u64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
    ("w", 604_800_000_000_000),
];

/// Digits after the point that still make sense: nanoseconds of a second, and then some.
const DECIMALS_MAX: usize = 12;

/// A decimal number at the start of a text: mantissa, power of ten below it, what follows.
fn number(text: &str) -> Option<(u128, u128, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || decimals.contains('.') || decimals.len() > DECIMALS_MAX || whole.len() > 20 {
        return None;
    }
    if digits.ends_with('.') {
        return None;
    }
    let mantissa: u128 = format!("{whole}{decimals}").parse().ok()?;
    Some((mantissa, 10u128.pow(decimals.len() as u32), rest))
}

fn scaled(mantissa: u128, divisor: u128, unit: u64) -> Option<u64> {
    let product = mantissa.checked_mul(u128::from(unit))?;
    if product.is_multiple_of(divisor) { u64::try_from(product / divisor).ok() } else { None }
}

/// Reads a number of bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size; write it like 64MiB, 512KiB, 100MB or 1048576");
    let (mantissa, divisor, unit) = number(text.trim()).ok_or_else(bad)?;
    let unit = unit.trim();
    let factor = match unit {
        "" => 1,
        unit => SIZES.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?.1,
    };
    scaled(mantissa, divisor, factor).ok_or_else(|| format!("{text:?} is no whole number of bytes, or too large"))
}

/// Reads a number of bytes that fits 32 bits.
pub fn parse_size_u32(text: &str) -> Result<u32, String> {
    u32::try_from(parse_size(text)?).map_err(|_| format!("{text:?} is too large; at most 4 GiB"))
}

/// Reads a span of time.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no duration; write it like 10s, 250ms, 5m, 1h30m or 7d");
    let mut rest = text.trim();
    let mut total = 0u64;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let (mantissa, divisor, after) = number(rest).ok_or_else(bad)?;
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        if unit.trim().is_empty() {
            return Err(format!("{text:?} has no unit; write it like {}s or {}ms", text.trim(), text.trim()));
        }
        let (_, factor) = SPANS.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(bad)?;
        total = scaled(mantissa, divisor, *factor)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(|| format!("{text:?} is too long, or finer than a nanosecond"))?;
        rest = next;
    }
    Ok(Duration::from_nanos(total))
}

/// Reads a span of time that is not zero.
pub fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err(format!("{text:?} is nothing; give a time above zero")),
        span => Ok(span),
    }
}

/// Reads records per second.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    let bad = || format!("{text:?} is no rate; write it like 1000/s, 2.5k/s or 60/m");
    let (count, per) = text.trim().split_once('/').unwrap_or((text.trim(), "s"));
    let (mantissa, divisor, factor) = number(count.trim()).ok_or_else(bad)?;
    let factor = match factor.trim() {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        _ => return Err(bad()),
    };
    let seconds = match per.trim() {
        "ms" => 1e-3,
        "s" | "sec" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        _ => return Err(bad()),
    };
    let rate = mantissa as f64 / divisor as f64 * factor / seconds;
    if rate > 0.0 { Ok(rate) } else { Err(format!("{text:?} is nothing; leave --rate out for full speed")) }
}

/// Bytes with the largest binary unit that is exact, else with one decimal.
pub fn show_size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let exact = |size: u64| bytes >= size && bytes.is_multiple_of(size) && bytes / size < 10_000;
    if let Some((unit, size)) = UNITS.iter().find(|(_, size)| exact(*size)) {
        return format!("{} {unit}", bytes / size);
    }
    match UNITS.iter().find(|(_, size)| bytes >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", bytes as f64 / *size as f64),
        None => format!("{bytes} B"),
    }
}

/// A span as `parse_duration` reads it, exact.
pub fn show_duration(span: Duration) -> String {
    let mut left = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    if left == 0 {
        return "0s".into();
    }
    let mut text = String::new();
    for unit in ["d", "h", "m", "s", "ms", "us", "ns"] {
        let size = SPANS.iter().find(|(name, _)| *name == unit).map_or(1, |found| found.1);
        if left >= size {
            text += &format!("{}{unit}", left / size);
            left %= size;
        }
    }
    text
}

/// A span to read at a glance, three digits or so.
pub fn show_latency(span: Duration) -> String {
    let ns = span.as_nanos() as f64;
    let (value, unit) = match ns {
        ns if ns < 1e3 => return format!("{ns:.0} ns"),
        ns if ns < 1e6 => (ns / 1e3, "us"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    match value {
        value if value < 10.0 => format!("{value:.2} {unit}"),
        value if value < 100.0 => format!("{value:.1} {unit}"),
        value => format!("{value:.0} {unit}"),
    }
}

/// A number per second to read at a glance.
pub fn show_rate(per_second: f64) -> String {
    match per_second {
        0.0 => "0".into(),
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate => format!("{rate:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("64MiB", 64 << 20),
            ("64Mi", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1.5GiB", 3 << 29),
            ("100MB", 100_000_000),
            ("2k", 2_000),
            ("0.5KiB", 512),
            ("7B", 7),
            ("16777215TiB", 16_777_215 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "MiB",
            "-1",
            "1.",
            ".5MiB",
            "1.2.3k",
            "64mib",
            "64 Mebi",
            "1.5B",
            "16777216TiB",
            "9".repeat(30).as_str(),
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert!(parse_size_u32("4GiB").is_err());
        assert_eq!(parse_size_u32("1000KiB"), Ok(1_024_000));
    }

    #[test]
    fn durations() {
        for (text, ns) in [
            ("10s", 10_000_000_000),
            ("10m", 600_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1.5s", 1_500_000_000),
            ("250ms", 250_000_000),
            ("1us", 1_000),
            ("1µs", 1_000),
            ("3ns", 3),
            ("7d", 604_800_000_000_000),
            ("1w", 604_800_000_000_000),
            ("0s", 0),
            ("1m 30s", 90_000_000_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(ns)), "{text}");
        }
        for bad in ["", "s", "10", "-5s", "10 parsecs", "1.5ns", "40000w", "10m5", "1e3s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert!(parse_duration("10").unwrap_err().contains("no unit"));
        assert!(parse_positive_duration("0s").is_err());
    }

    #[test]
    fn rates() {
        for (text, rate) in
            [("1000/s", 1e3), ("1000", 1e3), ("2.5k/s", 2.5e3), ("1M/s", 1e6), ("60/m", 1.0), ("1/ms", 1e3)]
        {
            assert_eq!(parse_rate(text), Ok(rate), "{text}");
        }
        for bad in ["", "/s", "0/s", "10/parsec", "10x/s", "-1/s"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_shown_can_be_read_back() {
        for bytes in [0, 1, 1_023, 1_024, 64 << 20, 1_000 << 10, 3 << 40] {
            assert_eq!(parse_size(&show_size(bytes)), Ok(bytes), "{bytes}");
        }
        for ns in [0, 1, 999, 1_500_000_000, 90_000_000_000, 86_400_000_000_000, 86_399_999_999_999, u64::MAX] {
            let span = Duration::from_nanos(ns);
            assert_eq!(parse_duration(&show_duration(span)), Ok(span), "{ns}");
        }
    }

    #[test]
    fn what_is_shown() {
        assert_eq!(show_size(64 << 20), "64 MiB");
        assert_eq!(show_size(1_000 << 10), "1000 KiB");
        assert_eq!(show_size(1_500_000), "1.4 MiB");
        assert_eq!(show_size(900), "900 B");
        assert_eq!(show_duration(Duration::from_secs(5_400)), "1h30m");
        assert_eq!(show_latency(Duration::from_nanos(999)), "999 ns");
        assert_eq!(show_latency(Duration::from_nanos(12_340)), "12.3 us");
        assert_eq!(show_latency(Duration::from_micros(1_500)), "1.50 ms");
        assert_eq!(show_latency(Duration::from_secs(120)), "120 s");
        assert_eq!(show_rate(0.0), "0");
        assert_eq!(show_rate(3.06), "3.1");
        assert_eq!(show_rate(123_456.7), "123457");
    }
}
