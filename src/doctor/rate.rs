//! The rate of blocks: a sample of GetSnapshotBlock over some seconds.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::time::{Instant, timeout_at};

use super::row::RowFinding;
use crate::block::{BLOCK_SIZE, BlockIndex};
use crate::error::Error;
use crate::source::BlockSource;

/// Different blocks of a sample; a small snapshot is read again and again.
const MOST_BLOCKS: usize = 8192;

/// What a sample came to.
#[derive(Debug, Default)]
pub(super) struct RateSample {
    /// How long each block took.
    times: Vec<Duration>,
    took: Duration,
    failure: Option<Error>,
}

/// Reads blocks from `first` on for this time, so many at once.
pub(super) async fn sample(
    source: &Arc<dyn BlockSource>,
    first: BlockIndex,
    in_flight: usize,
    limit: Duration,
) -> RateSample {
    let since = Instant::now();
    let until = since + limit;
    let mut found = RateSample::default();
    let blocks = match timeout_at(until, held(source, first)).await {
        Ok(Ok(blocks)) => blocks,
        Ok(Err(error)) => {
            found.failure = Some(error);
            return found;
        }
        Err(_) => return found,
    };
    let reads = stream::iter(blocks.iter().cycle()).map(|index| async move {
        let since = Instant::now();
        source.read_block(*index).await.map(|_| since.elapsed())
    });
    let mut reads = std::pin::pin!(reads.buffer_unordered(in_flight.max(1)));
    while let Ok(Some(read)) = timeout_at(until, reads.next()).await {
        match read {
            Ok(time) => found.times.push(time),
            Err(error) => {
                found.failure = Some(error);
                break;
            }
        }
    }
    found.took = since.elapsed();
    found
}

/// The first blocks that the snapshot holds.
async fn held(
    source: &Arc<dyn BlockSource>,
    first: BlockIndex,
) -> crate::error::Result<Vec<BlockIndex>> {
    let mut blocks = vec![first];
    let mut from = BlockIndex(first.0.saturating_add(1));
    while blocks.len() < MOST_BLOCKS
        && from.0 < source.geometry().block_count()
        && let Some(extent) = source.next_extent(from).await?
    {
        let room = MOST_BLOCKS - blocks.len();
        blocks.extend(extent.blocks().take(room));
        from = extent.end();
    }
    Ok(blocks)
}

/// The row of a rate.
pub(super) fn decide(sample: &RateSample) -> RowFinding {
    let mut times = sample.times.clone();
    times.sort_unstable();
    let seconds = sample.took.as_secs_f64();
    let count = times.len();
    if let Some(error) = &sample.failure {
        let finding = RowFinding::of_error(error);
        let seen = format!("{count} blocks in {seconds:.1} s, then: {}", finding.seen);
        return RowFinding { seen, ..finding };
    }
    if count == 0 {
        return RowFinding::unknown("no block arrived in the time that was left");
    }
    let rate = count as f64 / seconds.max(0.001);
    let mib = rate * f64::from(BLOCK_SIZE) / f64::from(1 << 20);
    let of = |percent: usize| {
        let at = (count * percent).div_ceil(100).max(1) - 1;
        times.get(at).map_or(0, Duration::as_millis)
    };
    RowFinding::good(format!(
        "{rate:.0} blocks a second ({mib:.0} MiB/s; the quota of an account is 1,000 blocks): half of them within {} ms, 95 % \
         within {} ms, 99 % within {} ms",
        of(50),
        of(95),
        of(99)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::row::RowState;
    use crate::error::Kind;

    #[test]
    fn a_sample_says_its_rate_and_percentiles() {
        let sample = |count: u64, failure| RateSample {
            times: (1..=count).rev().map(Duration::from_millis).collect(),
            took: Duration::from_secs(2),
            failure,
        };
        let good = decide(&sample(200, None));
        assert_eq!(good.state, RowState::Good);
        let words = "100 blocks a second (50 MiB/s";
        assert!(good.seen.contains(words), "{good:?}");
        let words = "half of them within 100 ms, 95 % within 190 ms, 99 % within 198 ms";
        assert!(good.seen.contains(words), "{good:?}");
        assert_eq!(decide(&sample(0, None)).state, RowState::Unknown);
        let throttled = Error::new(Kind::Throttled, "too many");
        let failed = decide(&sample(3, Some(throttled)));
        assert_eq!(failed.state, RowState::Failed);
        assert!(failed.seen.starts_with("3 blocks in 2.0 s, then: too many"));
    }
}
