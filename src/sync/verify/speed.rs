//! [`estimate`]: how long a comparison takes, by its first blocks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::{Digests, IN_FLIGHT, VolumeStep, compare_step, same_size};
use crate::block::{BlockIndex, Extent};
use crate::error::Result;
use crate::source::{BlockSource, held};
use crate::target::Stop;

/// Blocks that are compared to measure the speed: 64 MiB.
const SAMPLE: usize = 128;
/// The longest time that a measurement takes, for a device slower than 64 MiB/s.
const MOST: Duration = Duration::from_secs(1);

/// Compares the first blocks of a target with its digests, 64 MiB or a second of them, and returns how long all of it takes at
/// that speed. What differs is for the comparison itself to find. Holes take no time.
///
/// # Errors
/// `Stopped`; `Invalid` when the two are of different sizes; why a block or a digest cannot be read.
pub(crate) async fn estimate(
    reader: Arc<dyn BlockSource>,
    digests: &Digests,
    stop: &Stop,
) -> Result<Duration> {
    let geometry = same_size(reader.geometry(), digests.geometry())?;
    let held = stop.unless(held(&*reader)).await?;
    let end = BlockIndex(geometry.block_count());
    let blocks = held.runs_in(BlockIndex(0), end).flat_map(Extent::blocks);
    let started = Instant::now();
    let mut compared = stream::iter(blocks.take(SAMPLE))
        .map(|index| compare_step(&*reader, digests, VolumeStep::Block(index)))
        .buffered(IN_FLIGHT);
    let mut sampled = 0;
    while started.elapsed() < MOST && stop.unless(compared.try_next()).await?.is_some() {
        sampled += 1;
    }
    Ok(extrapolated(started.elapsed(), sampled, held.len()))
}

/// How long `all` blocks take if the first `sampled` took `elapsed`.
fn extrapolated(elapsed: Duration, sampled: u32, all: u64) -> Duration {
    match sampled {
        0 => Duration::ZERO,
        sampled => elapsed.div_f64(sampled.into()).mul_f64(all as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_grows_with_the_blocks_and_nothing_takes_none() {
        let second = Duration::from_secs(1);
        assert_eq!(extrapolated(second, 128, 1280), 10 * second);
        assert_eq!(extrapolated(second, 128, 128), second);
        assert_eq!(extrapolated(second, 0, 0), Duration::ZERO);
        // 64 TiB of which one block was read in a second: no overflow.
        assert_eq!(extrapolated(second, 1, 1 << 27), (1 << 27) * second);
    }
}
