//! How large packs are, and how many are sent at once, by the rate of the line.

use super::pack::MOST_BYTES;
use crate::block::BLOCK_SIZE;

/// Uploads at once, at most.
pub(super) const LANES: u32 = 4;
/// Seconds in which one upload sends a pack: what a connection that breaks costs.
const PACK_SECONDS: u64 = 10;
/// Bytes per second of one upload below which packs go one at a time.
const SLOW: u64 = 256 << 10;

/// The most bytes of a pack at an upload rate in bytes per second: from about a block to what every store takes.
pub(super) fn most_bytes(rate: Option<u64>) -> u64 {
    let least = u64::from(BLOCK_SIZE);
    rate.map_or(MOST_BYTES, |rate| {
        rate.saturating_mul(PACK_SECONDS).clamp(least, MOST_BYTES)
    })
}

/// Whether packs go one at a time.
pub(super) fn is_slow(rate: Option<u64>) -> bool {
    rate.is_some_and(|rate| rate < SLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_is_what_a_line_sends_in_ten_seconds() {
        for (rate, most, slow) in [
            (None, MOST_BYTES, false),
            (Some(1), 512 << 10, true),
            // 256 kbit/s, 1.6 Mbit/s, 16 Mbit/s.
            (Some(32 << 10), 512 << 10, true),
            (Some(200_000), 2_000_000, true),
            (Some(2_000_000), 20_000_000, false),
            (Some(u64::MAX), MOST_BYTES, false),
        ] {
            assert_eq!((most_bytes(rate), is_slow(rate)), (most, slow), "{rate:?}");
        }
    }
}
