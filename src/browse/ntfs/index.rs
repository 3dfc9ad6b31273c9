//! [`FolderIndex`]: the names of a folder: those in its record, and those in the blocks of its index that are in use.
//!
//! The crate `ntfs` descends from block to block. It takes block numbers for clusters, but they count sectors of 512 bytes if a
//! cluster is larger than a block, so it cannot read a large folder of a volume with clusters of 8 KiB or more. This module reads
//! all blocks in their order on the disk, as ntfs-3g does; a page of a folder begins where the last one ended.

use ntfs::{Ntfs, NtfsAttributeType, NtfsFile};

use super::super::reader::{DiskWindow, FsFailure, FsResult, WindowStream, le16, le32, le64};
use super::attributes::{is_named, value_of, visit};
use super::stream::{DataStream, fix_up};

/// The name of the index of a folder.
const NAME: [u16; 4] = [0x24, 0x49, 0x33, 0x30];
/// Bytes of the root of an index, at most: it is in a record of the MFT.
const MOST_ROOT: usize = 64 << 10;
/// Bytes of the bitmap of an index, at most: 2^23 blocks of 4 KiB are more names than an MFT has records.
const MOST_BITMAP: usize = 1 << 20;
/// Bytes of a block of an index.
const BLOCK_SIZES: std::ops::RangeInclusive<u64> = 512..=64 << 10;
/// Where a block has the header of its entries, and the root.
const BLOCK_HEADER: usize = 24;
const ROOT_HEADER: usize = 16;
/// The flag of the entry behind the last name.
const LAST: u16 = 0x2;
/// The flag of an entry that names a block with the names before it.
const SUBNODE: u16 = 0x1;
/// The unit of the numbers of blocks that are smaller than a cluster.
const SECTOR: u64 = 512;
/// The namespace of short DOS names.
const DOS: u8 = 2;

/// A name in a folder: in UTF-16, and the id of its file.
pub(super) struct IndexedName {
    pub(super) name: Vec<u16>,
    pub(super) id: u64,
}

/// The index of a folder.
pub(super) struct FolderIndex {
    root: Vec<u8>,
    block_size: u64,
    /// Bytes in which the numbers of blocks count.
    unit: u64,
    blocks: DataStream,
    /// A bit for each block: whether it is in use.
    bitmap: Vec<u8>,
}

impl FolderIndex {
    /// Finds the parts of the index of a folder.
    ///
    /// # Errors
    /// When it is damaged, or the file is no folder.
    pub(super) fn open(
        ntfs: &Ntfs,
        stream: &mut WindowStream,
        window: &DiskWindow,
        file: &NtfsFile<'_>,
    ) -> FsResult<Self> {
        let mut root = None;
        let (mut blocks, mut bitmap) = (DataStream::default(), DataStream::default());
        visit(ntfs, stream, window, file, None, &mut |part, stream| {
            if !is_named(&part.attribute, &NAME) {
                return Ok(());
            }
            match part.attribute.ty().ok() {
                Some(NtfsAttributeType::IndexRoot) => {
                    root = Some(value_of(&part.attribute, stream, MOST_ROOT)?);
                    Ok(())
                }
                Some(NtfsAttributeType::IndexAllocation) => blocks.add(ntfs, stream, window, part),
                Some(NtfsAttributeType::Bitmap) => bitmap.add(ntfs, stream, window, part),
                _ => Ok(()),
            }
        })?;
        let root = root.ok_or_else(|| FsFailure::damaged("a folder has no index"))?;
        let block_size = u64::from(le32(&root, 8));
        if !block_size.is_power_of_two() || !BLOCK_SIZES.contains(&block_size) {
            return Err(wrong());
        }
        let len = usize::try_from(bitmap.size()).unwrap_or(usize::MAX);
        if len > MOST_BITMAP {
            return Err(wrong());
        }
        let bitmap = bitmap.content(window, 0, len)?;
        let cluster = u64::from(ntfs.cluster_size());
        Ok(Self {
            root,
            block_size,
            unit: if cluster > block_size {
                SECTOR
            } else {
                cluster
            },
            blocks,
            bitmap,
        })
    }

    /// The number of the part behind one.
    pub(super) fn after(&self, number: u64) -> Option<u64> {
        self.in_use(number).map(|block| block + 1)
    }

    /// The names of the part with this number: 0 for the root, then the blocks that are in use. Also whether each block that it
    /// names is in use: the names of one that is not would be missing without a trace.
    ///
    /// # Errors
    /// When it is damaged.
    pub(super) fn part(
        &self,
        window: &DiskWindow,
        number: u64,
    ) -> FsResult<(Vec<IndexedName>, bool)> {
        let Some(block) = number.checked_sub(1) else {
            return self.names(&self.root, ROOT_HEADER);
        };
        let at = block.checked_mul(self.block_size).ok_or_else(wrong)?;
        let len = usize::try_from(self.block_size).map_err(|_| wrong())?;
        let mut bytes = self.blocks.content(window, at, len)?;
        fix_up(&mut bytes, b"INDX").ok_or_else(wrong)?;
        self.names(&bytes, BLOCK_HEADER)
    }

    /// The names of a part. Each block that it names is read as a part of its own.
    fn names(&self, part: &[u8], header: usize) -> FsResult<(Vec<IndexedName>, bool)> {
        let (names, subnodes) = entries(part, header)?;
        let are_read = subnodes.into_iter().all(|number| {
            let at = number.checked_mul(self.unit);
            let block = at.filter(|at| at % self.block_size == 0);
            block
                .map(|at| at / self.block_size)
                .is_some_and(|block| self.in_use(block) == Some(block))
        });
        Ok((names, are_read))
    }

    /// The first block from this one on that is in use.
    fn in_use(&self, from: u64) -> Option<u64> {
        let most = (self.blocks.size() / self.block_size).min(self.bitmap.len() as u64 * 8);
        (from..most).find(|block| {
            let byte = usize::try_from(block / 8).ok();
            let byte = byte.and_then(|at| self.bitmap.get(at));
            byte.is_some_and(|byte| byte >> (block % 8) & 1 == 1)
        })
    }
}

pub(super) fn wrong() -> FsFailure {
    FsFailure::damaged("the index of a folder is damaged")
}

/// The names of a part, whose header is at `header`, and the numbers of the blocks that it names. Short DOS names are left out: their files have a long name too.
fn entries(part: &[u8], header: usize) -> FsResult<(Vec<IndexedName>, Vec<u64>)> {
    let word = |at: usize| usize::try_from(le32(part, at)).unwrap_or(usize::MAX);
    let (start, len) = (word(header), word(header + 4));
    let used = part.get(header..).and_then(|rest| rest.get(start..len));
    let mut rest = used.ok_or_else(wrong)?;
    let (mut found, mut subnodes) = (Vec::new(), Vec::new());
    loop {
        let (entry_len, key_len) = (usize::from(le16(rest, 8)), usize::from(le16(rest, 10)));
        if rest.len() < 16 || entry_len < 16 || entry_len > rest.len() {
            return Err(wrong());
        }
        let flags = le16(rest, 12);
        if flags & SUBNODE != 0 {
            // Behind the name, at the end of the entry.
            let at = entry_len.checked_sub(8).filter(|at| *at >= 16);
            subnodes.push(le64(rest, at.ok_or_else(wrong)?));
        }
        if flags & LAST != 0 {
            return Ok((found, subnodes));
        }
        let key = rest.get(16..entry_len).and_then(|key| key.get(..key_len));
        let key = key.ok_or_else(wrong)?;
        let &[name_len, namespace] = key
            .get(64..)
            .and_then(|rest| rest.first_chunk::<2>())
            .ok_or_else(wrong)?;
        let name = key
            .get(66..)
            .and_then(|rest| rest.get(..usize::from(name_len) * 2));
        let name = name.ok_or_else(wrong)?;
        if namespace != DOS {
            let units = name.chunks_exact(2).map(|pair| le16(pair, 0));
            found.push(IndexedName {
                name: units.collect(),
                id: le64(rest, 0),
            });
        }
        rest = rest.get(entry_len..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry of a name, or the last one.
    fn entry(id: u64, name: Option<(&str, u8)>) -> Vec<u8> {
        let mut key = Vec::new();
        if let Some((name, namespace)) = name {
            let units: Vec<u16> = name.encode_utf16().collect();
            key = vec![0; 64];
            key.extend([u8::try_from(units.len()).unwrap(), namespace]);
            key.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        }
        let len = (16 + key.len()).next_multiple_of(8);
        let mut bytes = id.to_le_bytes().to_vec();
        for value in [len, key.len(), if name.is_none() { 2 } else { 0 }, 0] {
            bytes.extend(u16::try_from(value).unwrap().to_le_bytes());
        }
        bytes.extend(key);
        bytes.resize(len, 0);
        bytes
    }

    fn part(entries: &[Vec<u8>]) -> Vec<u8> {
        let entries = entries.concat();
        let mut bytes = vec![0; ROOT_HEADER];
        for value in [16, 16 + entries.len(), 16 + entries.len(), 0] {
            bytes.extend(u32::try_from(value).unwrap().to_le_bytes());
        }
        bytes.extend(entries);
        bytes
    }

    fn names(part: &[u8]) -> Option<Vec<(String, u64)>> {
        let (found, _) = entries(part, ROOT_HEADER).ok()?;
        let names = found
            .into_iter()
            .map(|one| (String::from_utf16(&one.name).unwrap(), one.id));
        Some(names.collect())
    }

    #[test]
    fn short_names_are_left_out_and_the_last_entry_ends_a_part() {
        let last = entry(0, None);
        let long = entry(7 << 48 | 30, Some(("a long name", 1)));
        let short = entry(7 << 48 | 30, Some(("ALONGN~1", DOS)));
        let both = entry(31, Some(("BOTH", 3)));
        let whole = part(&[
            long,
            short,
            both,
            last.clone(),
            entry(9, Some(("behind", 1))),
        ]);
        let expected = [
            ("a long name".to_owned(), 7 << 48 | 30),
            ("BOTH".to_owned(), 31),
        ];
        assert_eq!(names(&whole).unwrap(), expected);
        assert!(names(&part(&[last])).unwrap().is_empty());
    }

    #[test]
    fn a_truncated_part_or_one_without_a_last_entry_is_refused() {
        let one = entry(30, Some(("name", 1)));
        assert!(names(&part(std::slice::from_ref(&one))).is_none());
        let whole = part(&[one, entry(0, None)]);
        for len in 0..whole.len() {
            assert!(names(&whole[..len]).is_none(), "{len}");
        }
        // An entry of no length would be read for ever.
        let mut endless = whole;
        endless[ROOT_HEADER + 16 + 8] = 0;
        assert!(names(&endless).is_none());
    }
}
