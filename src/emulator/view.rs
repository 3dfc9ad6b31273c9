//! The blocks of a snapshot, to be listed without the lock of the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::synthetic::SyntheticVolume;

/// A block that a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoredBlock {
    /// Number of the snapshot that wrote it.
    pub(super) writer: u32,
    pub(super) digest: [u8; 32],
}

/// The blocks of a snapshot.
#[derive(Debug)]
pub(super) struct View {
    synthetic: Option<SyntheticVolume>,
    blocks: Arc<BTreeMap<u32, StoredBlock>>,
}

impl View {
    pub(super) fn new(
        synthetic: Option<SyntheticVolume>,
        blocks: Arc<BTreeMap<u32, StoredBlock>>,
    ) -> Self {
        Self { synthetic, blocks }
    }

    /// At most `max` indexes of held blocks, from `start` on.
    pub(super) fn indexes(&self, start: u32, max: usize) -> Vec<u32> {
        match &self.synthetic {
            Some(synthetic) => (start..synthetic.blocks)
                .filter(|index| synthetic.is_held(*index))
                .take(max)
                .collect(),
            None => self
                .blocks
                .range(start..)
                .map(|(index, _)| *index)
                .take(max)
                .collect(),
        }
    }

    /// Whether it holds a block.
    pub(super) fn holds(&self, index: u32) -> bool {
        match &self.synthetic {
            Some(synthetic) => synthetic.is_held(index),
            None => self.blocks.contains_key(&index),
        }
    }

    /// At most `max` indexes of blocks that either holds and that were written between the two, from `start` on.
    pub(super) fn changed(&self, other: &Self, start: u32, max: usize) -> Vec<u32> {
        if let (Some(a), Some(b)) = (&self.synthetic, &other.synthetic) {
            return (start..a.blocks.max(b.blocks))
                .filter(|index| a.differs(b, *index))
                .take(max)
                .collect();
        }
        let mut all: Vec<u32> = Vec::with_capacity(max);
        let mut a = self.blocks.range(start..).peekable();
        let mut b = other.blocks.range(start..).peekable();
        while all.len() < max {
            match (a.peek(), b.peek()) {
                (None, None) => break,
                (Some((i, x)), Some((j, y))) if i == j => {
                    if x.writer != y.writer {
                        all.push(**i);
                    }
                    a.next();
                    b.next();
                }
                (Some((i, _)), other) if other.is_none_or(|(j, _)| i < j) => {
                    all.push(**i);
                    a.next();
                }
                (_, Some((j, _))) => {
                    all.push(**j);
                    b.next();
                }
                (Some(_), None) => break,
            }
        }
        all
    }
}
