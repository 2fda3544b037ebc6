//! Who may open a connection: the limit per source address.
//!
//! **What.** How many connections each source has: an IPv4 address, or an IPv6 /64.
//!
//! **Invariants.** Only sources that proved their address are counted (by a Retry token or a complete
//! handshake), so nobody can use up the share of an address that he cannot receive at.
//!
//! **Never.** An entry with a count of zero.
//!
//! **See** `accept.rs`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// A source address as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Source(u64, bool);

impl Source {
    pub(crate) fn of(ip: IpAddr) -> Source {
        match ip {
            IpAddr::V4(ip) => Source(u64::from(u32::from(ip)), true),
            IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
                Some(ip) => Source(u64::from(u32::from(ip)), true),
                None => Source(high_half(ip), false),
            },
        }
    }
}

fn high_half(ip: Ipv6Addr) -> u64 {
    (u128::from(ip) >> 64) as u64
}

/// Connections by source.
pub(crate) struct Sources {
    counts: HashMap<Source, u32>,
    max: usize,
}

impl Sources {
    pub(crate) fn new(max: usize) -> Sources {
        Sources { counts: HashMap::new(), max }
    }

    /// Whether the source is at its limit.
    pub(crate) fn is_full(&self, source: Source) -> bool {
        self.counts.get(&source).is_some_and(|&count| count as usize >= self.max)
    }

    /// Counts one more; false (and not counted) at the limit.
    pub(crate) fn add(&mut self, source: Source) -> bool {
        if self.is_full(source) {
            return false;
        }
        *self.counts.entry(source).or_insert(0) += 1;
        true
    }

    /// Counts one less.
    pub(crate) fn remove(&mut self, source: Source) {
        if let Some(count) = self.counts.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&source);
            }
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.counts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_addresses_and_prefixes_and_forgets_them() {
        let source = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
        assert_eq!(source("2001:db8:1:2::1"), source("2001:db8:1:2:ffff::9"));
        assert_ne!(source("2001:db8:1:2::1"), source("2001:db8:1:3::1"));
        assert_ne!(source("0.0.0.1"), source("::1:0:0:0:0"), "an IPv4 address is no IPv6 prefix");
        let mut sources = Sources::new(2);
        assert!(sources.add(source("10.0.0.1")) && sources.add(source("10.0.0.1")));
        assert!(!sources.add(source("10.0.0.1")) && sources.is_full(source("10.0.0.1")));
        assert!(sources.add(source("10.0.0.2")));
        sources.remove(source("10.0.0.1"));
        assert!(!sources.is_full(source("10.0.0.1")));
        sources.remove(source("10.0.0.1"));
        sources.remove(source("10.0.0.2"));
        assert_eq!(sources.len(), 0);
    }
}
