//! [`Ranks`]: how many blocks of a set are before a block, and which block has a number of them before it.

use crate::block::{BlockIndex, BlockSet, Extent};

/// Blocks between two counts: 64 TiB have 2^17 counts, 512 KiB.
const STEP: u32 = 1024;

/// Counts of the blocks of a set, at each multiple of [`STEP`].
#[derive(Clone, Debug)]
pub(super) struct Ranks {
    /// How many blocks are before the multiple; ascending.
    before: Vec<u32>,
}

impl Ranks {
    /// The counts of a set of a volume of `blocks` blocks.
    pub(super) fn of(set: &BlockSet, blocks: u32) -> Self {
        let mut before = Vec::with_capacity((blocks / STEP) as usize + 2);
        let (mut count, mut at) = (0, 0u32);
        while at < blocks {
            before.push(count);
            let end = at.saturating_add(STEP).min(blocks);
            let step = Extent::new(BlockIndex(at), BlockIndex(end));
            count += step.map_or(0, |step| set.count_in(step));
            at = end;
        }
        before.push(count);
        Self { before }
    }

    /// Bytes of memory that they take.
    pub(super) fn memory(&self) -> usize {
        self.before.capacity() * size_of::<u32>()
    }

    /// How many blocks of the set are before `index`.
    pub(super) fn rank(&self, set: &BlockSet, index: BlockIndex) -> u32 {
        let start = index.0 - index.0 % STEP;
        let before = self.before.get((index.0 / STEP) as usize);
        let within = Extent::new(BlockIndex(start), index);
        before.copied().unwrap_or(0) + within.map_or(0, |within| set.count_in(within))
    }

    /// The block of the set with `rank` blocks before it.
    pub(super) fn select(&self, set: &BlockSet, rank: u32) -> Option<BlockIndex> {
        let after = self.before.partition_point(|before| *before <= rank);
        let step = u32::try_from(after.checked_sub(1)?).ok()?;
        let mut left = rank - self.before.get(step as usize)?;
        let start = BlockIndex(step.checked_mul(STEP)?);
        let end = BlockIndex(start.0.saturating_add(STEP));
        for run in set.runs_in(start, end) {
            if left < run.count() {
                return Some(BlockIndex(run.start().0 + left));
            }
            left -= run.count();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_and_select_are_the_inverse_of_each_other() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let blocks = 9 * STEP + 17;
        let mut set = BlockSet::new();
        let mut at = 0;
        while at < blocks {
            let run = random.u32(1..700);
            let end = at.saturating_add(run).min(blocks);
            if random.bool() {
                set.insert_extent(Extent::new(BlockIndex(at), BlockIndex(end)).unwrap());
            }
            at = end;
        }
        let ranks = Ranks::of(&set, blocks);
        let all = set.runs().flat_map(Extent::blocks);
        let mut count = 0;
        for (rank, index) in (0..).zip(all) {
            assert_eq!(ranks.rank(&set, index), rank);
            assert_eq!(ranks.select(&set, rank), Some(index));
            count += 1;
        }
        assert_eq!(u64::from(count), set.len());
        assert_eq!(ranks.select(&set, count), None);
        assert_eq!(ranks.rank(&set, BlockIndex(blocks)), count);
    }
}
