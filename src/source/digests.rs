//! [`HeldDigests`]: what a volume holds, by the digests of its blocks. Where a base cannot be listed any more, they still show what
//! differs.

use futures_util::future::BoxFuture;

use crate::block::{Change, Digest, Extent, Geometry};
use crate::error::Result;

/// What is known of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldDigest {
    /// It reads as zeroes.
    Zero,
    /// It may hold anything.
    Unknown,
    /// It holds bytes with this SHA-256.
    Data(Digest),
}

/// The digests of all blocks of a volume.
pub trait HeldDigests: Send + Sync {
    /// The volume's size.
    fn geometry(&self) -> Geometry;

    /// What is known of the blocks of a run, in their order. Blocks beyond the volume are zeroes.
    ///
    /// # Errors
    /// Why the digests cannot be read.
    fn held_digests(&self, extent: Extent) -> BoxFuture<'_, Result<Vec<HeldDigest>>>;
}

impl HeldDigest {
    /// What such a block needs to hold bytes with the digest `wanted`, or zeroes where that is none.
    pub(crate) fn change_to(self, wanted: Option<Digest>) -> Option<Change> {
        match (self, wanted) {
            (Self::Zero, None) => None,
            (Self::Data(held), Some(wanted)) if held == wanted => None,
            (_, Some(_)) => Some(Change::Write),
            (Self::Data(_) | Self::Unknown, None) => Some(Change::Zero),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_left_alone_only_where_its_digest_is_the_wanted_one() {
        let (a, b) = ([0xaa; 32], [0xbb; 32]);
        for (held, wanted, change) in [
            (HeldDigest::Zero, None, None),
            (HeldDigest::Zero, Some(a), Some(Change::Write)),
            (HeldDigest::Data(a), Some(a), None),
            (HeldDigest::Data(a), Some(b), Some(Change::Write)),
            (HeldDigest::Data(a), None, Some(Change::Zero)),
            (HeldDigest::Unknown, Some(a), Some(Change::Write)),
            (HeldDigest::Unknown, None, Some(Change::Zero)),
        ] {
            assert_eq!(held.change_to(wanted), change, "{held:?} {wanted:?}");
        }
    }
}
