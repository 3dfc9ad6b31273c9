//! Packs: up to 64 blocks in one object, each as zstd or as it is.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use zstd::bulk::Compressor;

use super::header::{self, HEADER, Magic, Salt};
use crate::block::{BLOCK_SIZE, BlockIndex, Digest};

/// The most blocks in a pack; one fewer of incompressible blocks, because the table must fit too.
pub(super) const MOST_BLOCKS: usize = 64;
/// The most bytes of a pack: every store takes that many in one PUT.
pub(super) const MOST_BYTES: u64 = 32 << 20;
/// zstd's own default: faster ones save a third of its time and lose a tenth of what it saves, on demo disks.
const LEVEL: i32 = 3;
const MAGIC: &Magic = b"ebsfpak2";
const END: &[u8; 8] = b"ebsfend2";
/// The bit of a length that says that the block is stored as zstd.
const ZSTD: u32 = 1 << 31;
/// Bytes of the table for each block: SHA-256, offset, length.
const ENTRY: usize = 40;

/// The name of a pack, by its table, or of a segment: the SHA-256 of the object.
pub(super) type Name = Digest;

/// Where a block is in its pack, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Spot {
    /// Bytes from the pack's beginning.
    pub(super) offset: u32,
    /// As it is written: bytes, and the bit for zstd.
    pub(super) length: u32,
}

impl Spot {
    /// Bytes stored.
    pub(super) fn len(self) -> u32 {
        self.length & !ZSTD
    }

    /// Whether a block can be there.
    pub(super) fn is_sound(self) -> bool {
        let is_block = (1..=BLOCK_SIZE).contains(&self.len());
        is_block && self.offset as usize >= HEADER && self.end() <= MOST_BYTES
    }

    /// The first byte behind it.
    pub(super) fn end(self) -> u64 {
        u64::from(self.offset) + u64::from(self.len())
    }
}

/// A block as it is stored.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) bytes: Bytes,
    is_zstd: bool,
}

/// Compresses one block after the other in the same memory, some 2 MB. A new compressor for each block took a quarter of the
/// CPU time of a sync, and left holes between the blocks on the heap that made the process half as large again.
pub(super) struct Packer {
    compressor: Compressor<'static>,
    out: Vec<u8>,
}

impl Packer {
    /// # Errors
    /// The error of zstd.
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            compressor: Compressor::new(LEVEL)?,
            out: Vec::with_capacity(zstd::zstd_safe::compress_bound(BLOCK_SIZE as usize)),
        })
    }

    /// Compresses a block if that saves at least an eighth: other blocks are read faster uncompressed.
    pub(super) fn pack(&mut self, block: Bytes) -> Stored {
        self.out.clear();
        match self.compressor.compress_to_buffer(&block, &mut self.out) {
            Ok(len) if len <= block.len() - block.len() / 8 => Stored {
                bytes: Bytes::copy_from_slice(&self.out),
                is_zstd: true,
            },
            _ => Stored {
                bytes: block,
                is_zstd: false,
            },
        }
    }
}

impl Stored {
    /// The stored bytes of a block.
    pub(super) fn read(bytes: Bytes, spot: Spot) -> Self {
        Self {
            bytes,
            is_zstd: spot.length & ZSTD != 0,
        }
    }

    /// The block's bytes, at most a whole block's; none when they are not a stored block.
    pub(super) fn open(self) -> Option<Bytes> {
        if !self.is_zstd {
            return Some(self.bytes);
        }
        let opened = zstd::bulk::decompress(&self.bytes, BLOCK_SIZE as usize);
        opened.ok().map(Bytes::from)
    }
}

/// A pack being filled.
#[derive(Debug, Default)]
pub(super) struct OpenPack {
    blocks: Vec<(BlockIndex, Digest, Stored)>,
    bytes: u64,
    /// The memory of its blocks, released when it is dropped.
    places: Vec<OwnedSemaphorePermit>,
}

/// A pack ready to be written.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) name: Name,
    /// Its bytes, in pieces.
    pub(super) pieces: Vec<Bytes>,
    pub(super) spots: Vec<(BlockIndex, Digest, Spot)>,
    _places: Vec<OwnedSemaphorePermit>,
}

impl OpenPack {
    /// Whether one more block may not fit into a pack of this many bytes.
    pub(super) fn is_full(&self, most_bytes: u64) -> bool {
        let table = (MOST_BLOCKS * ENTRY + 64) as u64;
        self.blocks.len() >= MOST_BLOCKS || self.bytes + table + u64::from(BLOCK_SIZE) > most_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    pub(super) fn push(
        &mut self,
        index: BlockIndex,
        digest: Digest,
        block: Stored,
        place: OwnedSemaphorePermit,
    ) {
        self.places.push(place);
        self.bytes += block.bytes.len() as u64;
        self.blocks.push((index, digest, block));
    }

    /// Neighbours of the volume are neighbours in the pack, in whatever order they came. With the salt of a run no other run
    /// makes a pack of the same name.
    pub(super) fn pack(mut self, run: &Salt) -> Packed {
        self.blocks.sort_by_key(|(index, _, _)| *index);
        let mut pieces = vec![Bytes::new()];
        let mut spots = Vec::with_capacity(self.blocks.len());
        let mut table = Vec::with_capacity(self.blocks.len() * ENTRY + 12);
        let mut offset = HEADER;
        for (index, digest, block) in self.blocks {
            let len = block.bytes.len();
            // A pack is shorter than 32 MiB.
            let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let zstd = if block.is_zstd { ZSTD } else { 0 };
            let spot = Spot {
                offset: number(offset),
                length: number(len) | zstd,
            };
            table.extend_from_slice(&digest);
            table.extend_from_slice(&spot.offset.to_le_bytes());
            table.extend_from_slice(&spot.length.to_le_bytes());
            spots.push((index, digest, spot));
            pieces.push(block.bytes);
            offset += len;
        }
        table.extend_from_slice(&u32::try_from(spots.len()).unwrap_or(0).to_le_bytes());
        table.extend_from_slice(END);
        let head = header::encode(MAGIC, run, &table);
        let name = named(&head, &table);
        if let Some(first) = pieces.first_mut() {
            *first = Bytes::copy_from_slice(&head);
        }
        pieces.push(table.into());
        Packed {
            name,
            pieces,
            spots,
            _places: self.places,
        }
    }
}

/// The name of a pack: the digest of its header and its table. Each block is verified by its own SHA-256, so that
/// not every byte is hashed twice.
fn named(head: &[u8], table: &[u8]) -> Name {
    let hasher = Sha256::new().chain_update(head).chain_update(table);
    hasher.finalize().into()
}

/// The name that a whole pack should have, and its blocks: each one's SHA-256 and where it is; none when it is no pack.
pub(super) fn table(pack: &[u8]) -> Option<(Name, Vec<(Digest, Spot)>)> {
    let (head, rest) = header::split(MAGIC, pack)?;
    let (rest, count) = rest.strip_suffix(END)?.split_last_chunk::<4>()?;
    let count = u32::from_le_bytes(*count) as usize;
    let table = rest.len().checked_sub(count.checked_mul(ENTRY)?)?;
    let (blocks, table) = rest.split_at(table);
    let start = HEADER as u64;
    let end = start + blocks.len() as u64;
    let name = named(head, pack.get(usize::try_from(end).ok()?..)?);
    let entries = table.chunks_exact(ENTRY).map(|entry| {
        let (digest, spot) = entry.split_first_chunk::<32>()?;
        let (offset, length) = spot.split_first_chunk::<4>()?;
        let spot = Spot {
            offset: u32::from_le_bytes(*offset),
            length: u32::from_le_bytes(length.try_into().ok()?),
        };
        (spot.is_sound() && spot.end() <= end).then_some((*digest, spot))
    });
    Some((name, entries.collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> OwnedSemaphorePermit {
        let held = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
        held.try_acquire_owned().unwrap()
    }

    #[test]
    fn a_pack_holds_what_was_put_into_it_and_damage_is_found() {
        let (mut filling, mut packer) = (OpenPack::default(), Packer::new().unwrap());
        let mut blocks = Vec::new();
        for number in (0..5u8).rev() {
            let mut bytes = vec![number; BLOCK_SIZE as usize];
            if number % 2 == 0 {
                fastrand::Rng::with_seed(number.into()).fill(&mut bytes);
            }
            let bytes = Bytes::from(bytes);
            let digest: Digest = Sha256::digest(&bytes).into();
            blocks.push((BlockIndex(number.into()), digest, bytes.clone()));
            let place = place();
            let stored = packer.pack(bytes);
            filling.push(BlockIndex(number.into()), digest, stored, place);
        }
        let packed = filling.pack(&[7; 16]);
        let whole = packed.pieces.concat();
        let (name, entries) = table(&whole).unwrap();
        assert_eq!(packed.name, name);
        assert!(packed.spots.is_sorted_by_key(|(index, ..)| *index));
        for (index, digest, bytes) in &blocks {
            let (_, _, spot) = packed.spots.iter().find(|(i, ..)| i == index).unwrap();
            let end = (spot.offset + spot.len()) as usize;
            let stored = &whole[spot.offset as usize..end];
            let stored = Stored::read(Bytes::copy_from_slice(stored), *spot);
            assert_eq!(
                stored.is_zstd,
                index.0 % 2 == 1,
                "random bytes stay as they are"
            );
            assert_eq!(stored.open().unwrap(), bytes);
            assert!(entries.contains(&(*digest, *spot)));
        }
        for cut in [0, 7, 8, 20, whole.len() / 2, whole.len() - 1] {
            assert!(table(&whole[..cut]).is_none());
        }
        assert!(
            Stored {
                bytes: Bytes::from_static(b"no zstd"),
                is_zstd: true
            }
            .open()
            .is_none()
        );
    }

    #[test]
    fn a_full_pack_is_not_larger_than_one_put_may_be() {
        let mut filling = OpenPack::default();
        let bytes = Bytes::from(vec![7; BLOCK_SIZE as usize]);
        while !filling.is_full(MOST_BYTES) {
            let stored = Stored {
                bytes: bytes.clone(),
                is_zstd: false,
            };
            filling.push(BlockIndex(0), [0; 32], stored, place());
        }
        assert_eq!(filling.blocks.len(), MOST_BLOCKS - 1);
        let packed: usize = filling.pack(&[0; 16]).pieces.iter().map(Bytes::len).sum();
        assert!(packed as u64 <= MOST_BYTES);
    }
}
