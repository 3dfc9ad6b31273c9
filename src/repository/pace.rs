//! Chooses the size of packs and the number of concurrent uploads by the rate and the latency of the line.

use std::time::Duration;

use super::pack::{MOST_BLOCKS, MOST_BYTES};
use super::store::KnownLine;
use crate::block::BLOCK_SIZE;

/// Concurrent uploads on a line without delay, and the most on any line.
const LANES: u32 = 4;
const MOST_LANES: u32 = 24;
/// The latency for which one more upload is sent. A connection begins with 14 KB per round trip and doubles that up to some 3 MB (the
/// largest send buffer of Linux is 4 MiB). It carries nothing while the store answers the PUT and the HEAD that verifies it.
const LATENCY_OF_A_LANE: Duration = Duration::from_millis(15);
/// Seconds in which one upload sends a pack, and which a broken connection costs.
const PACK_SECONDS: u64 = 10;
/// The least bytes per second of each of several uploads.
const LEAST_RATE: u64 = 256 << 10;
/// Blocks in packs in memory, one pack being filled and others in flight: 72 MiB. A block waits for room before a pack takes it.
pub(super) const HELD: usize = 2 * MOST_BLOCKS + 16;
/// Bytes of those blocks.
const HELD_BYTES: u64 = HELD as u64 * BLOCK_SIZE as u64;

/// Shares of the line, which concurrent uploads divide evenly.
pub(super) const SHARES: u32 = 240;

/// How packs are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PackPace {
    /// Uploads at once.
    pub(super) lanes: u32,
    /// The most bytes of a pack: from about a block to what every store takes.
    pub(super) most_bytes: u64,
}

impl PackPace {
    /// The pace for a line.
    pub(super) fn of(line: KnownLine) -> Self {
        let by_latency = line.latency.map_or(0, |latency| {
            let lanes = latency.as_millis() / LATENCY_OF_A_LANE.as_millis();
            u32::try_from(lanes).unwrap_or(MOST_LANES)
        });
        let by_latency = by_latency.clamp(LANES, MOST_LANES);
        let lanes = line.upload_rate.map_or(by_latency, |rate| {
            let lanes = u32::try_from(rate / LEAST_RATE).unwrap_or(MOST_LANES);
            lanes.clamp(1, by_latency)
        });
        // Where more than LANES uploads run, they and the pack being filled share the memory of HELD blocks.
        let room = match lanes > LANES {
            true => HELD_BYTES / u64::from(lanes + 1),
            false => MOST_BYTES,
        };
        let sent = line.upload_rate.map_or(MOST_BYTES, |rate| {
            (rate / u64::from(lanes)).saturating_mul(PACK_SECONDS)
        });
        Self {
            lanes,
            most_bytes: sent.min(room).clamp(BLOCK_SIZE.into(), MOST_BYTES),
        }
    }

    /// The shares of one upload.
    pub(super) fn shares(self) -> u32 {
        SHARES / self.lanes.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_fit_ten_seconds_of_upload_and_high_latency_gets_more_at_once() {
        let ms = |latency| Some(Duration::from_millis(latency));
        const MIB: u64 = 1 << 20;
        for (upload_rate, latency, lanes, most_bytes) in [
            (None, None, 4, MOST_BYTES),
            (None, ms(70), 4, MOST_BYTES),
            (None, ms(150), 10, 72 * MIB / 11),
            (None, ms(300), 20, 72 * MIB / 21),
            (None, ms(100_000), 24, 72 * MIB / 25),
            (Some(1), None, 1, 512 << 10),
            // 256 kbit/s, 1.6 Mbit/s, 4 Mbit/s, 16 Mbit/s; a satellite's delay makes no slow line fast.
            (Some(32_000), ms(600), 1, 512 << 10),
            (Some(200_000), ms(20), 1, 2_000_000),
            (Some(500_000), ms(20), 1, 5_000_000),
            (Some(2_000_000), ms(20), 4, 5_000_000),
            (Some(2_000_000), ms(600), 7, 2_857_140),
            // 200 Mbit/s at 300 ms; a gigabit nearby, and far away.
            (Some(25_000_000), ms(300), 20, 72 * MIB / 21),
            (Some(125_000_000), ms(1), 4, MOST_BYTES),
            (Some(u64::MAX), ms(400), 24, 72 * MIB / 25),
        ] {
            let pace = PackPace::of(KnownLine {
                upload_rate,
                latency,
            });
            let expected = PackPace { lanes, most_bytes };
            assert_eq!(pace, expected, "{upload_rate:?} {latency:?}");
            assert_eq!(SHARES / pace.shares(), lanes);
        }
    }
}
