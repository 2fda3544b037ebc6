//! Writes market-data-like JSON lines: trades and quotes of a few hundred symbols on four venues, from a fixed seed, so
//! that every machine has the same input. `market_data COUNT > lines.jsonl`

use std::io::{self, BufWriter, Write};

/// splitmix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn main() -> io::Result<()> {
    let count: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(100_000);
    let mut random = Random(2_026);
    let venues = ["XNAS", "XNYS", "XLON", "XETR"];
    let mut prices: Vec<(String, u64)> = (0..400)
        .map(|i| {
            let name: String = (0..4).map(|_| char::from(b'A' + random.below(26) as u8)).collect();
            (format!("{}.{name}", venues[i % venues.len()]), 1_000 + random.below(90_000))
        })
        .collect();
    let mut out = BufWriter::new(io::stdout().lock());
    let mut time_us = 1_764_000_000_000_000u64;
    for sequence in 0..count {
        time_us += 1 + random.below(40);
        // A few symbols trade much more than the others.
        let pick = random.below(400).min(random.below(400)) as usize;
        let (symbol, cents) = &mut prices[pick];
        *cents = (*cents + random.below(21)).saturating_sub(10).max(100);
        let size = 100 * (1 + random.below(20));
        let price = format!("{}.{:02}", *cents / 100, *cents % 100);
        match random.below(3) {
            0 => writeln!(
                out,
                r#"{{"symbol":"{symbol}","kind":"trade","seq":{sequence},"ts_us":{time_us},"price":{price},"size":{size}}}"#
            )?,
            _ => {
                let ask = *cents + 1 + random.below(5);
                writeln!(
                    out,
                    r#"{{"symbol":"{symbol}","kind":"quote","seq":{sequence},"ts_us":{time_us},"bid":{price},"ask":{}.{:02},"size":{size}}}"#,
                    ask / 100,
                    ask % 100
                )?;
            }
        }
    }
    out.flush()
}
