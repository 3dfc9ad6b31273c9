//! [`SlotFiles`]: the two files of a snapshot, one slot a block.
//!
//! A digest is stored under a mask of its file's name and its block's number: if a faulty disk returns a slot at another place,
//! block and digest together, they do not match there.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use sha2::{Digest as _, Sha256};

use crate::block::{BLOCK_SIZE, BlockIndex, Digest, ZERO_BLOCK};
use crate::files::{data_after, punch, read_padded};

/// Bytes of a stored digest.
const DIGEST: u64 = 32;
/// Blocks that are evicted together: their digests fill one page of a filesystem, 4,096 bytes.
const SEGMENT: u32 = 128;
/// Bytes of a block.
const BLOCK: u64 = BLOCK_SIZE as u64;
/// The most disk bytes of one block: its data, and a new page of 4 KiB for its digest.
pub(super) const SLOT_BYTES: u64 = BLOCK + DIGEST * SEGMENT as u64;

/// The segment of a block.
pub(super) fn segment_of(index: BlockIndex) -> u32 {
    index.0 / SEGMENT
}

/// The record of a block in the file of digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recorded {
    /// It is not kept.
    Nothing,
    /// It reads as zeroes; its bytes are not kept.
    Zero,
    /// Its bytes have this digest.
    Data(Digest),
}

/// The open files of a snapshot.
#[derive(Debug)]
pub(super) struct SlotFiles {
    blocks: File,
    digests: File,
    key: Digest,
}

impl SlotFiles {
    /// The files called `name`.
    pub(super) fn new(name: &str, blocks: File, digests: File) -> Self {
        let key = Sha256::new().chain_update(b"ebsfs block cache 1\0");
        Self {
            blocks,
            digests,
            key: key.chain_update(name).finalize().into(),
        }
    }

    /// The digest as it is stored; a second application restores it.
    fn masked(&self, index: BlockIndex, digest: Digest) -> Digest {
        let mask = Sha256::new().chain_update(self.key);
        let mask: Digest = mask.chain_update(index.0.to_le_bytes()).finalize().into();
        std::array::from_fn(|at| {
            let of = |digest: &Digest| digest.get(at).copied().unwrap_or_default();
            of(&digest) ^ of(&mask)
        })
    }

    /// The record of a block.
    pub(super) fn recorded(&self, index: BlockIndex) -> io::Result<Recorded> {
        let mut stored = Digest::default();
        read_padded(&self.digests, &mut stored, u64::from(index.0) * DIGEST)?;
        if stored == Digest::default() {
            return Ok(Recorded::Nothing);
        }
        Ok(match self.masked(index, stored) {
            ZERO_BLOCK => Recorded::Zero,
            digest => Recorded::Data(digest),
        })
    }

    /// The unchecked bytes of a block, and the digest that they must have; no bytes for a block of zeroes.
    pub(super) fn read(
        &self,
        index: BlockIndex,
        len: usize,
    ) -> io::Result<Option<(Digest, Vec<u8>)>> {
        Ok(match self.recorded(index)? {
            Recorded::Nothing => None,
            Recorded::Zero => Some((ZERO_BLOCK, Vec::new())),
            Recorded::Data(digest) => {
                let mut bytes = vec![0; len];
                read_padded(&self.blocks, &mut bytes, u64::from(index.0) * BLOCK)?;
                Some((digest, bytes))
            }
        })
    }

    /// Writes a block, and only then its digest.
    pub(super) fn write(&self, index: BlockIndex, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        if self.recorded(index)? != Recorded::Nothing {
            self.forget(index)?;
        }
        self.blocks
            .write_all_at(bytes, u64::from(index.0) * BLOCK)?;
        self.store(index, &self.masked(index, digest))
    }

    /// Drops a block. Its bytes stay allocated until it is written again or evicted.
    pub(super) fn forget(&self, index: BlockIndex) -> io::Result<()> {
        self.store(index, &Digest::default())
    }

    fn store(&self, index: BlockIndex, stored: &Digest) -> io::Result<()> {
        self.digests
            .write_all_at(stored, u64::from(index.0) * DIGEST)
    }

    /// Gives a segment back to the filesystem, the digests first.
    pub(super) fn evict(&self, segment: u32) -> io::Result<()> {
        for (file, len) in [(&self.digests, DIGEST), (&self.blocks, BLOCK)] {
            let len = len * u64::from(SEGMENT);
            if !punch(file, u64::from(segment) * len, len)? {
                return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
            }
        }
        Ok(())
    }

    /// The first segment from `from` on that takes space.
    pub(super) fn next_segment(&self, from: u32) -> io::Result<Option<u32>> {
        let next = |file: &File, len: u64| -> io::Result<Option<u64>> {
            let len = len * u64::from(SEGMENT);
            let data = data_after(file, u64::from(from) * len)?;
            Ok(data.map(|data| data.start / len))
        };
        let found = [next(&self.blocks, BLOCK)?, next(&self.digests, DIGEST)?];
        let first = found.into_iter().flatten().min();
        Ok(first.and_then(|first| u32::try_from(first).ok()))
    }

    /// Bytes that the files take of the disk.
    pub(super) fn allocated(&self) -> io::Result<u64> {
        let (blocks, digests) = (self.blocks.metadata()?, self.digests.metadata()?);
        Ok((blocks.blocks() + digests.blocks()) * 512)
    }
}
