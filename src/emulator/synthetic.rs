//! Volumes whose bytes are computed: 64 TiB cost nothing to keep.
//!
//! A block is one of 16 patterns but for its last 64 bytes, which hold seed and index. So its SHA-256 is that of the
//! pattern's start, computed once, continued over one more step.

use std::sync::OnceLock;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::BLOCK;

const PATTERNS: usize = 16;
const TAIL: usize = 64;

/// A computed volume: how large it is and which blocks it holds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct Synthetic {
    pub(super) blocks: u32,
    /// Blocks held, in a million.
    pub(super) density: u32,
    pub(super) seed: u64,
}

struct Pattern {
    bytes: Bytes,
    hasher: Sha256,
}

fn patterns() -> &'static [Pattern] {
    static ALL: OnceLock<Vec<Pattern>> = OnceLock::new();
    ALL.get_or_init(|| {
        (0..PATTERNS as u64)
            .map(|number| {
                let mut bytes = vec![0; BLOCK - TAIL];
                fastrand::Rng::with_seed(number).fill(&mut bytes);
                let hasher = Sha256::new().chain_update(&bytes);
                Pattern {
                    bytes: bytes.into(),
                    hasher,
                }
            })
            .collect()
    })
}

impl Synthetic {
    pub(super) fn is_held(&self, index: u32) -> bool {
        let mixed = mix(self.seed ^ u64::from(index));
        index < self.blocks && mixed % 1_000_000 < u64::from(self.density)
    }

    /// How many blocks are held, by counting them.
    pub(super) fn count_held(&self) -> u64 {
        if self.density >= 1_000_000 {
            return self.blocks.into();
        }
        (0..self.blocks)
            .filter(|index| self.is_held(*index))
            .count() as u64
    }

    pub(super) fn read(&self, index: u32) -> (Bytes, [u8; 32]) {
        let which = mix(self.seed ^ 0xb10c ^ u64::from(index)) % PATTERNS as u64;
        let mut tail = [0; TAIL];
        for (to, from) in tail
            .chunks_mut(8)
            .zip([self.seed, index.into()].into_iter().cycle())
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
}

/// SplitMix64: neighbours in, nothing alike out.
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
        let volume = Synthetic {
            blocks: 10_000,
            density: 500_000,
            seed: 7,
        };
        let (one, digest) = volume.read(1);
        assert_eq!(one.len(), BLOCK);
        assert_eq!(Sha256::digest(&one).as_slice(), digest);
        assert_ne!(volume.read(2).0, one);
        let held = volume.count_held();
        assert!((4_700..5_300).contains(&held), "{held}");
        assert!(!volume.is_held(10_000));
    }
}
