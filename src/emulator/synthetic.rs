//! Volumes whose bytes are computed: 64 TiB cost nothing to keep.
//!
//! A block is one of 16 patterns but for its last 64 bytes, which hold seed and index. So its SHA-256 is that of the
//! pattern's start, computed once, continued over one more step.

use std::sync::OnceLock;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::BLOCK;
use super::record::PER_GIB;

const PATTERNS: usize = 16;
const TAIL: usize = 64;
/// The bit of a seed that makes each pattern one repeated page, which zstd compresses well.
pub(crate) const REPETITIVE: u64 = 1 << 63;
const PAGE: usize = 4096;

/// One of this many blocks that a step changes is freed.
const FREED_ONE_IN: u64 = 8;

/// A computed volume: how large it is and which blocks it holds.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct SyntheticVolume {
    pub(super) blocks: u32,
    /// Blocks held, in a million.
    pub(super) density: u32,
    pub(super) seed: u64,
    /// What was changed since, oldest first.
    pub(super) steps: Vec<SyntheticStep>,
}

/// The changes from one snapshot to the next.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct SyntheticStep {
    /// Blocks changed, in a million.
    pub(super) changed: u32,
    pub(super) seed: u64,
}

struct Pattern {
    bytes: Bytes,
    hasher: Sha256,
}

fn patterns() -> &'static [Pattern] {
    static ALL: OnceLock<Vec<Pattern>> = OnceLock::new();
    ALL.get_or_init(|| {
        (0..2 * PATTERNS)
            .map(|number| {
                let mut bytes = vec![0; BLOCK - TAIL];
                let random = if number < PATTERNS {
                    BLOCK - TAIL
                } else {
                    PAGE
                };
                let (random, rest) = bytes.split_at_mut(random);
                fastrand::Rng::with_seed(number as u64).fill(random);
                for page in rest.chunks_mut(PAGE) {
                    page.copy_from_slice(random.get(..page.len()).unwrap_or_default());
                }
                let hasher = Sha256::new().chain_update(&bytes);
                Pattern {
                    bytes: bytes.into(),
                    hasher,
                }
            })
            .collect()
    })
}

impl SyntheticVolume {
    /// A volume of `gib`, of whose blocks `density` in a million are held, before any change.
    pub(super) fn new(gib: u32, density: u32, seed: u64) -> Self {
        Self {
            blocks: gib.saturating_mul(PER_GIB),
            density,
            seed,
            steps: Vec::new(),
        }
    }

    /// The last step that changed the block, and the hash that chooses its effect.
    fn last_change(&self, index: u32) -> Option<(usize, u64)> {
        let changes = self.steps.iter().enumerate().rev();
        changes
            .map(|(number, step)| (number, step, mix(step.seed ^ u64::from(index))))
            .find(|(_, step, mixed)| mixed % 1_000_000 < u64::from(step.changed))
            .map(|(number, _, mixed)| (number, mixed / 1_000_000))
    }

    pub(super) fn is_held(&self, index: u32) -> bool {
        let is_held = match self.last_change(index) {
            Some((_, mixed)) => mixed % FREED_ONE_IN != 0,
            None => mix(self.seed ^ u64::from(index)) % 1_000_000 < u64::from(self.density),
        };
        index < self.blocks && is_held
    }

    /// Whether a block differs from the same in a volume of the same origin: written, freed, or both.
    pub(super) fn differs(&self, other: &Self, index: u32) -> bool {
        let step = |volume: &Self| volume.last_change(index).map(|(number, _)| number);
        step(self) != step(other) && (self.is_held(index) || other.is_held(index))
    }

    /// The seed that makes the bytes of a block differ from those of others.
    pub(super) fn seed_of(&self, index: u32) -> u64 {
        let step = self
            .last_change(index)
            .and_then(|(number, _)| self.steps.get(number));
        step.map_or(self.seed, |step| step.seed)
    }

    /// How many blocks are held, by counting them.
    pub(super) fn count_held(&self) -> u64 {
        if self.density >= 1_000_000 && self.steps.is_empty() {
            return self.blocks.into();
        }
        (0..self.blocks)
            .filter(|index| self.is_held(*index))
            .count() as u64
    }
}

/// The bytes of a block and their SHA-256.
pub(super) fn read(seed: u64, index: u32) -> (Bytes, [u8; 32]) {
    let which = mix(seed ^ 0xb10c ^ u64::from(index)) % PATTERNS as u64;
    let which = which
        + if seed & REPETITIVE == 0 {
            0
        } else {
            PATTERNS as u64
        };
    let mut tail = [0; TAIL];
    for (to, from) in tail
        .chunks_mut(8)
        .zip([seed, index.into()].into_iter().cycle())
    {
        to.copy_from_slice(&from.to_le_bytes());
    }
    let Some(pattern) = patterns().get(usize::try_from(which).unwrap_or(0)) else {
        return (Bytes::new(), [0; 32]);
    };
    let mut bytes = BytesMut::with_capacity(BLOCK);
    bytes.extend_from_slice(&pattern.bytes);
    bytes.extend_from_slice(&tail);
    let digest = pattern.hasher.clone().chain_update(tail).finalize();
    (bytes.freeze(), digest.into())
}

/// SplitMix64: neighbouring inputs give unrelated outputs.
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_their_digest_and_differ_from_each_other() {
        let volume = SyntheticVolume {
            blocks: 10_000,
            density: 500_000,
            seed: 7,
            steps: Vec::new(),
        };
        let (one, digest) = read(volume.seed_of(1), 1);
        assert_eq!(one.len(), BLOCK);
        assert_eq!(Sha256::digest(&one).as_slice(), digest);
        assert_ne!(read(volume.seed_of(2), 2).0, one);
        let (page, digest) = read(REPETITIVE | 7, 1);
        assert_eq!(Sha256::digest(&page).as_slice(), digest);
        assert_eq!(page[..PAGE], page[PAGE..2 * PAGE]);
        let held = volume.count_held();
        assert!((4_700..5_300).contains(&held), "{held}");
        assert!(!volume.is_held(10_000));
    }

    #[test]
    fn a_child_differs_where_its_step_says_and_in_nothing_else() {
        let parent = SyntheticVolume {
            blocks: 100_000,
            density: 500_000,
            seed: 7,
            steps: Vec::new(),
        };
        let mut child = parent.clone();
        child.steps.push(SyntheticStep {
            changed: 10_000,
            seed: 8,
        });
        let (mut written, mut zeroed) = (0, 0);
        for index in 0..parent.blocks {
            if !parent.differs(&child, index) {
                assert_eq!(parent.is_held(index), child.is_held(index));
                assert!(!child.is_held(index) || parent.seed_of(index) == child.seed_of(index));
            } else if child.is_held(index) {
                written += 1;
            } else {
                zeroed += 1;
            }
        }
        assert!((800..1000).contains(&written), "{written}");
        assert!((30..100).contains(&zeroed), "{zeroed}");
    }
}
