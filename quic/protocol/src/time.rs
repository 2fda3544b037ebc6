//! **What**: points in time and spans, in nanoseconds. No clock: time is always an argument.
//!
//! **Invariants**: `Timestamp` is wall-clock (Unix epoch) and crosses machines; `Time` is monotonic and never leaves a process.
//!
//! **Never**: a call to the operating system.
//!
//! **See**: `broker/src/core_loop.rs`, which reads the clocks once per turn.

/// Wall-clock time, nanoseconds since the Unix epoch (1970-01-01T00:00:00Z). Good until the year 2554.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The later of the two; append times never run backwards within a shard.
    pub fn max(self, other: Timestamp) -> Timestamp {
        Timestamp(self.0.max(other.0))
    }

    /// This time less a span, stopping at zero.
    pub fn saturating_sub_ns(self, span_ns: u64) -> Timestamp {
        Timestamp(self.0.saturating_sub(span_ns))
    }

    /// This time plus a span, stopping at the largest value.
    pub fn saturating_add_ns(self, span_ns: u64) -> Timestamp {
        Timestamp(self.0.saturating_add(span_ns))
    }
}

/// Monotonic time, nanoseconds since an arbitrary start of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// This time plus a span, stopping at the largest value.
    pub fn after_ns(self, span_ns: u64) -> Time {
        Time(self.0.saturating_add(span_ns))
    }

    /// Nanoseconds since an earlier time; zero if it is not earlier.
    pub fn since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// What a core is told about time, once per turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, for deadlines.
    pub time: Time,
    /// Wall clock, for append times.
    pub wall: Timestamp,
}
