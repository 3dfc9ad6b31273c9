//! Deltas by comparing bytes, where a listing cannot give them: volumes without a common history, and blocks that
//! were rewritten with what they held.

use std::time::{Duration, Instant};

use futures_util::future::try_join;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tracing::info;

use crate::block::{BlockIndex, Change, Delta, Extent};
use crate::error::{Error, Result};
use crate::source::{BlockSource, held};

/// Blocks compared at once; each is two in memory.
const AT_ONCE: usize = 64;
/// Time between two log lines about the progress.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// What `base` needs to become `head`, by what each holds and, where both hold a block, by its bytes.
///
/// # Errors
/// Why one of the two cannot be listed or read.
pub async fn unrelated(base: &dyn BlockSource, head: &dyn BlockSource) -> Result<Delta> {
    let (old, new) = (held(base).await?, held(head).await?);
    let mut all = Delta::new(Some(base.geometry()), head.geometry());
    for (set, change) in [(&new, Change::Write), (&old, Change::Zero)] {
        let runs = set.runs_in(BlockIndex(0), BlockIndex(u32::MAX));
        for index in runs.flat_map(Extent::blocks) {
            if change == Change::Write || !new.contains(index) {
                all.insert(index, change);
            }
        }
    }
    all.zero_what_grew();
    exact(&all, base, head).await
}

/// `delta` without the blocks that hold in `head` what they hold in `base`. A block that the base is known not to hold is
/// kept without being read.
///
/// # Errors
/// Why a block cannot be read.
pub(crate) async fn exact(
    delta: &Delta,
    base: &dyn BlockSource,
    head: &dyn BlockSource,
) -> Result<Delta> {
    let (mut compared, mut alike) = (0u64, 0u64);
    let mut logged = Instant::now();
    let blocks = delta
        .runs()
        .flat_map(|(extent, change)| extent.blocks().map(move |index| (index, change)));
    let look = |(index, change)| async move {
        let found = match change {
            Change::Write => look_at(index, base, head).await?,
            Change::Zero => Found::NotCompared,
        };
        Ok::<_, Error>((index, change, found))
    };
    let mut kept = Delta::new(delta.base(), delta.head());
    let mut results = stream::iter(blocks).map(look).buffer_unordered(AT_ONCE);
    while let Some((index, change, found)) = results.try_next().await? {
        if found != Found::Alike {
            kept.insert(index, change);
        }
        compared += u64::from(found != Found::NotCompared);
        alike += u64::from(found == Found::Alike);
        if logged.elapsed() >= LOG_EVERY {
            logged = Instant::now();
            info!("{compared} blocks compared so far, {alike} of them alike");
        }
    }
    Ok(kept)
}

/// What reading a block in both found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Alike,
    Different,
    NotCompared,
}

async fn look_at(
    index: BlockIndex,
    base: &dyn BlockSource,
    head: &dyn BlockSource,
) -> Result<Found> {
    if index.0 >= base.geometry().block_count() || base.is_known_zero(index) {
        return Ok(Found::NotCompared);
    }
    let (old, new) = try_join(base.read_block(index), head.read_block(index)).await?;
    Ok(if old == new {
        Found::Alike
    } else {
        Found::Different
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use futures_util::FutureExt;
    use futures_util::future::{BoxFuture, ready};
    use parking_lot::Mutex;

    use crate::block::{Block, BlockSet, Geometry};

    /// A volume whose blocks are one byte each in spirit; it counts what is read.
    struct Volume(u64, BTreeMap<u32, u8>, Mutex<BlockSet>);

    impl Volume {
        fn new(blocks: u64, held: &[(u32, u8)]) -> Self {
            Self(blocks, held.iter().copied().collect(), Mutex::default())
        }
    }

    impl BlockSource for Volume {
        fn geometry(&self) -> Geometry {
            Geometry::new(self.0 << 19).unwrap()
        }

        fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
            self.2.lock().insert(index);
            let byte = self.1.get(&index.0).copied().unwrap_or(0);
            ready(Ok(match byte {
                0 => Block::Zero,
                byte => Block::Data(Bytes::from(vec![byte; 512]), [byte; 32]),
            }))
            .boxed()
        }

        fn next_extent(&self, from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
            let next = self.1.range(from.0..).next();
            let found = next.and_then(|(i, _)| Extent::new(BlockIndex(*i), BlockIndex(i + 1)));
            ready(Ok(found)).boxed()
        }

        fn is_known_zero(&self, index: BlockIndex) -> bool {
            !self.1.contains_key(&index.0)
        }

        fn prefetch(&self, _blocks: &[BlockIndex]) -> usize {
            0
        }
    }

    #[tokio::test]
    async fn volumes_without_a_history_are_compared_and_only_where_both_hold_a_block() {
        // Equal, written, zeroed, new, data overwritten with zeroes, beyond the end of the head.
        let base = Volume::new(1000, &[(1, 1), (2, 2), (3, 3), (5, 5), (999, 9)]);
        let head = Volume::new(100, &[(1, 1), (2, 7), (4, 4), (5, 0)]);
        let delta = unrelated(&base, &head).await.unwrap();
        let found: Vec<_> = delta
            .runs()
            .map(|(e, change)| (e.start().0, e.count(), change))
            .collect();
        assert_eq!(
            found,
            [
                (2, 1, Change::Write),
                (3, 1, Change::Zero),
                (4, 2, Change::Write)
            ]
        );
        assert_eq!((base.2.lock().len(), head.2.lock().len()), (3, 3));
    }

    #[tokio::test]
    async fn ranges_cover_the_whole_volume() {
        let blocks: Vec<(u32, u8)> = (0..400_000).step_by(7_001).map(|i| (i, 1)).collect();
        let volume = Volume::new(400_001, &blocks);
        let held = held(&volume).await.unwrap();
        assert_eq!(held.len(), blocks.len() as u64);
        assert!(blocks.iter().all(|(i, _)| held.contains(BlockIndex(*i))));
    }
}
