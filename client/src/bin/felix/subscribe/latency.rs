//! **What**: how old records were when they came: receive time less the producer's time, as percentiles.
//!
//! **Invariants**: three significant digits from 1 ns to one hour; longer counts as one hour.
//!
//! **Never**: a record of the future counted as fast: the clocks differ, and that is told.
//!
//! **See**: `../subscribe.rs`.

use crate::failure::{Exit, Failure};
use crate::units::show_latency;
use felix_client::protocol::time::Timestamp;
use hdrhistogram::Histogram;
use std::fmt;
use std::time::Duration;

/// Longest latency told apart.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// Percentiles of latency.
pub struct Latency {
    histogram: Histogram<u64>,
    from_the_future: u64,
}

impl Latency {
    /// With nothing recorded.
    pub fn new() -> Result<Latency, Failure> {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)
            .map_err(|error| Failure::new(Exit::Failed, format!("no histogram: {error}; leave --latency out")))?;
        Ok(Latency { histogram, from_the_future: 0 })
    }

    /// Counts a record.
    pub fn record(&mut self, sent: Timestamp, received: Timestamp) {
        match received.0.checked_sub(sent.0) {
            Some(ns) => self.histogram.saturating_record(ns),
            None => self.from_the_future += 1,
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |quantile| show_latency(Duration::from_nanos(self.histogram.value_at_quantile(quantile)));
        match self.histogram.len() {
            0 => f.write_str("latency: no records")?,
            count => write!(
                f,
                "latency of {count} records: p50 {}, p99 {}, p99.9 {}, max {}",
                at(0.5),
                at(0.99),
                at(0.999),
                show_latency(Duration::from_nanos(self.histogram.max()))
            )?,
        }
        match self.from_the_future {
            0 => Ok(()),
            count => write!(f, "; {count} more came before their own time: the clocks of the machines differ"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let mut latency = Latency::new().unwrap();
        assert_eq!(latency.to_string(), "latency: no records");
        for us in 1..=1_000 {
            latency.record(Timestamp(1_000_000_000), Timestamp(1_000_000_000 + us * 1_000));
        }
        let text = latency.to_string();
        assert_eq!(text, "latency of 1000 records: p50 500 us, p99 990 us, p99.9 999 us, max 1.00 ms");
        latency.record(Timestamp(2), Timestamp(1));
        latency.record(Timestamp(0), Timestamp(u64::MAX));
        let text = latency.to_string();
        assert!(text.contains("of 1001 records"), "{text}");
        assert!(text.ends_with("; 1 more came before their own time: the clocks of the machines differ"), "{text}");
    }
}
