//! The journal of ext3 and ext4, replayed in memory: which block of the journal holds the newest copy of a block.
//!
//! Nothing is written. As in the kernel, a transaction counts when its commit block is there; a revoked block is not taken from
//! transactions up to the one that revoked it; replay ends at the first block that does not belong to the next transaction.
//!
//! <https://docs.kernel.org/filesystems/ext4/journal.html>

use std::collections::{BTreeMap, HashMap};
use std::io;

use super::super::FsRemarks;
use super::super::reader::{FsFailure, FsResult, be32};
use super::ExtReader;
use super::crc::crc32c;
use super::inode::ExtInode;

const MAGIC: u32 = 0xc03b_3998;
/// Blocks of a journal, at most: mke2fs makes none larger than 10,240,000 blocks; 2^18 blocks of 4 KiB are its default maximum.
const MOST_BLOCKS: u64 = 1 << 24;
/// Runs of its blocks that are looked up at once.
const MOST_RUNS: usize = 1024;
/// Copies that are remembered, at most: 64 bytes each.
const MOST_COPIES: usize = 1 << 21;

const REVOKES: u32 = 0x1;
const BITS_64: u32 = 0x2;
const ASYNC_COMMIT: u32 = 0x4;
const SUMS_2: u32 = 0x8;
const SUMS_3: u32 = 0x10;
const FAST_COMMITS: u32 = 0x20;

/// A copy of a block in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JournalCopy {
    /// The block where it is.
    pub(super) block: u64,
    /// Its first four bytes were the signature of the journal, and were taken out.
    is_escaped: bool,
    /// What its checksum must be: the bits, and the sum so far.
    sum: Option<(u32, u32, u32)>,
}

impl JournalCopy {
    /// Checks the bytes of the copy, and makes them those of the block.
    ///
    /// # Errors
    /// `InvalidInput` when they are damaged.
    pub(super) fn finish(&self, bytes: &mut [u8]) -> io::Result<()> {
        if let Some((mask, seed, expected)) = self.sum
            && crc32c(seed, bytes) & mask != expected
        {
            let what = "a block in the journal is damaged";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        if self.is_escaped
            && let Some(head) = bytes.first_chunk_mut::<4>()
        {
            *head = MAGIC.to_be_bytes();
        }
        Ok(())
    }
}

/// The newest copies in the journal.
#[derive(Debug, Default)]
pub(super) struct Replayed(BTreeMap<u64, JournalCopy>);

impl Replayed {
    pub(super) fn find(&self, block: u64) -> Option<JournalCopy> {
        self.0.get(&block).copied()
    }

    /// Blocks of a range that the journal holds, ascending.
    pub(super) fn within(&self, start: u64, end: u64) -> impl Iterator<Item = u64> {
        self.0.range(start..end.max(start)).map(|(block, _)| *block)
    }
}

/// What the journal's superblock says.
#[derive(Clone, Copy, Debug)]
struct JournalLayout {
    /// The first block of the log, and the one behind its last.
    first: u64,
    end: u64,
    sequence: u32,
    start: u64,
    features: u32,
    seed: u32,
}

impl JournalLayout {
    fn of(block: &[u8], block_size: u64, blocks: u64) -> Option<Self> {
        let kind = be32(block, 4);
        if be32(block, 0) != MAGIC
            || !matches!(kind, 3 | 4)
            || u64::from(be32(block, 0xc)) != block_size
        {
            return None;
        }
        let features = if kind == 4 { be32(block, 0x28) } else { 0 };
        let mut end = u64::from(be32(block, 0x10));
        if features & FAST_COMMITS != 0 {
            let fast = match be32(block, 0x54) {
                0 => 256,
                fast => fast,
            };
            end = end.checked_sub(fast.into())?;
        }
        let first = u64::from(be32(block, 0x14));
        let start = u64::from(be32(block, 0x1c));
        let is_possible = first > 0 && first < end && end <= blocks && start < end;
        let uuid = block.get(0x30..0x40)?;
        is_possible.then(|| Self {
            first,
            end,
            sequence: be32(block, 0x18),
            start,
            features,
            seed: crc32c(!0, uuid),
        })
    }

    fn has_sums(&self) -> bool {
        self.features & (SUMS_2 | SUMS_3) != 0
    }

    /// The block behind one, around the end.
    fn after(&self, at: u64) -> u64 {
        match at + 1 >= self.end {
            true => self.first,
            false => at + 1,
        }
    }

    /// Whether the sum at the end of a block is right.
    fn has_good_tail(&self, block: &[u8]) -> bool {
        if !self.has_sums() {
            return true;
        }
        let Some((body, tail)) = block.split_last_chunk::<4>() else {
            return false;
        };
        crc32c(crc32c(self.seed, body), &[0; 4]) == u32::from_be_bytes(*tail)
    }

    /// Whether the sum within a commit block is right.
    fn has_good_commit(&self, block: &[u8]) -> bool {
        if !self.has_sums() {
            return true;
        }
        let mut body = block.to_vec();
        if let Some(sum) = body.get_mut(0x10..0x14) {
            sum.fill(0);
        }
        crc32c(self.seed, &body) == be32(block, 0x10)
    }

    /// The blocks that a descriptor names, with their flags and sums.
    fn tags(&self, block: &[u8]) -> Vec<(u64, u32, u32)> {
        let has_3 = self.features & SUMS_3 != 0;
        let width = match (
            has_3,
            self.features & SUMS_2 != 0,
            self.features & BITS_64 != 0,
        ) {
            (true, ..) => 16,
            (_, true, true) => 14,
            (_, true, false) => 10,
            (_, false, true) => 12,
            (_, false, false) => 8,
        };
        let tail = if self.has_sums() { 4 } else { 0 };
        let end = block.len().saturating_sub(tail);
        let mut at = 12;
        let mut tags = Vec::new();
        while at + width <= end {
            let low = u64::from(be32(block, at));
            let (flags, high, sum) = match has_3 {
                true => (
                    be32(block, at + 4),
                    be32(block, at + 8),
                    be32(block, at + 12),
                ),
                false => {
                    let both = be32(block, at + 4);
                    (both & 0xffff, be32(block, at + 8), both >> 16)
                }
            };
            let high = if self.features & BITS_64 != 0 {
                high
            } else {
                0
            };
            tags.push((u64::from(high) << 32 | low, flags, sum));
            at += width;
            if flags & 0x2 == 0 {
                at += 16;
            }
            if flags & 0x8 != 0 {
                break;
            }
        }
        tags
    }

    /// The blocks that a revocation names; none where it names more than fit into it.
    fn revoked(&self, block: &[u8]) -> Option<Vec<u64>> {
        let width = if self.features & BITS_64 != 0 { 8 } else { 4 };
        let used = be32(block, 12) as usize;
        let entries = block.get(16..used.max(16))?;
        let number = |entry: &[u8]| match width {
            8 => u64::from(be32(entry, 0)) << 32 | u64::from(be32(entry, 4)),
            _ => u64::from(be32(entry, 0)),
        };
        Some(entries.chunks_exact(width).map(number).collect())
    }

    /// The sum that a copy must have.
    fn sum_of(&self, sequence: u32, sum: u32) -> Option<(u32, u32, u32)> {
        let seed = crc32c(self.seed, &sequence.to_be_bytes());
        match (self.features & SUMS_3 != 0, self.features & SUMS_2 != 0) {
            (true, _) => Some((u32::MAX, seed, sum)),
            (false, true) => Some((0xffff, seed, sum)),
            (false, false) => None,
        }
    }
}

/// A block of a transaction, and the copy of it.
type LoggedBlock = (u64, u32, JournalCopy);

/// The complete transactions of a log.
#[derive(Default)]
struct JournalScan {
    logged: Vec<LoggedBlock>,
    /// The last revocation of each block.
    revoked: HashMap<u64, u32>,
    transactions: u32,
    /// Copies of blocks that no transaction can write: blocks of the journal, and those behind the end of the partition.
    impossible: u64,
}

/// Finds the newest copies in the journal of a filesystem that was in use. Returns them, and what there is to say about it.
///
/// # Errors
/// When the journal is damaged in a way that leaves the filesystem unknown.
pub(super) fn replay(reader: &ExtReader) -> FsResult<(Replayed, FsRemarks)> {
    let inode = reader.inode(reader.layout.journal_inode)?;
    let blocks = (inode.size / reader.layout.block_size).min(MOST_BLOCKS);
    let wrong = || FsFailure::damaged("its journal is damaged: run a filesystem check on a copy");
    let head = journal_block(reader, &inode, 0)?;
    let head = reader.raw_block(head)?;
    let journal = JournalLayout::of(&head, reader.layout.block_size, blocks).ok_or_else(wrong)?;
    let known = REVOKES | BITS_64 | ASYNC_COMMIT | SUMS_2 | SUMS_3 | FAST_COMMITS;
    if journal.features & !known != 0 {
        return Err(FsFailure::unsupported("its journal has unknown features"));
    }
    if journal.start == 0 {
        let remarks = FsRemarks {
            notes: vec!["its journal is empty".to_owned()],
            damage: Vec::new(),
        };
        return Ok((Replayed::default(), remarks));
    }
    let scanned = scan(reader, &inode, &journal)?;
    let mut copies = BTreeMap::new();
    for (block, sequence, copy) in scanned.logged {
        let is_revoked = scanned
            .revoked
            .get(&block)
            // Sequence numbers wrap: the difference counts.
            .is_some_and(|last: &u32| sequence.wrapping_sub(*last).cast_signed() <= 0);
        if !is_revoked {
            copies.insert(block, copy);
        }
    }
    let mut note = format!(
        "its journal was replayed in memory: {} transactions, {} blocks",
        scanned.transactions,
        copies.len()
    );
    if journal.features & FAST_COMMITS != 0 {
        note.push_str("; fast commits behind them are not replayed");
    }
    let damage = match scanned.impossible {
        0 => Vec::new(),
        count => vec![format!(
            "its journal is damaged: {count} of its copies are of blocks of the journal or behind the partition, and were not used"
        )],
    };
    let notes = vec![note];
    Ok((Replayed(copies), FsRemarks { notes, damage }))
}

/// Reads the log up to its end.
fn scan(reader: &ExtReader, inode: &ExtInode, journal: &JournalLayout) -> FsResult<JournalScan> {
    let own = own_blocks(reader, inode)?;
    let end = reader.window.size() / reader.layout.block_size;
    let is_possible = |block: u64| {
        let behind = own.partition_point(|(start, _)| *start <= block);
        let before = behind.checked_sub(1).and_then(|at| own.get(at));
        block < end && before.is_none_or(|(start, len)| block - start >= *len)
    };
    let mut scanned = JournalScan::default();
    let (mut pending, mut pending_revokes) = (Vec::new(), Vec::new());
    let mut is_damaged = false;
    let (mut at, mut sequence) = (journal.start, journal.sequence);
    let mut left = journal.end;
    while left > 0 {
        left -= 1;
        let block = reader.raw_block(journal_block(reader, inode, at)?)?;
        at = journal.after(at);
        if be32(&block, 0) != MAGIC || be32(&block, 8) != sequence {
            break;
        }
        match be32(&block, 4) {
            1 if journal.has_good_tail(&block) => {
                for (target, flags, sum) in journal.tags(&block) {
                    if left == 0 || pending.len() + scanned.logged.len() >= MOST_COPIES {
                        return Err(FsFailure::damaged("its journal names too many blocks"));
                    }
                    left -= 1;
                    let copy = JournalCopy {
                        block: journal_block(reader, inode, at)?,
                        is_escaped: flags & 0x1 != 0,
                        sum: journal.sum_of(sequence, sum),
                    };
                    pending.push((target, sequence, copy));
                    at = journal.after(at);
                }
            }
            2 if journal.has_good_commit(&block) => {
                // Blocks behind the last commit are of no transaction.
                if is_damaged {
                    let what =
                        "its journal is damaged: a block of it revokes more than fits into it";
                    return Err(FsFailure::damaged(what));
                }
                for copy in std::mem::take(&mut pending) {
                    match is_possible(copy.0) {
                        true => scanned.logged.push(copy),
                        false => scanned.impossible += 1,
                    }
                }
                for block in std::mem::take(&mut pending_revokes) {
                    scanned.revoked.insert(block, sequence);
                }
                scanned.transactions += 1;
                sequence = sequence.wrapping_add(1);
            }
            5 if journal.has_good_tail(&block) => {
                match journal.revoked(&block) {
                    Some(revoked) => pending_revokes.extend(revoked),
                    None => is_damaged = true,
                }
                if pending_revokes.len() > MOST_COPIES {
                    return Err(FsFailure::damaged("its journal revokes too many blocks"));
                }
            }
            _ => break,
        }
    }
    Ok(scanned)
}

/// The blocks of the journal, ascending: the first one and the length of each run.
fn own_blocks(reader: &ExtReader, inode: &ExtInode) -> FsResult<Vec<(u64, u64)>> {
    let mut own = Vec::new();
    let mut from = Some(0);
    while let Some(at) = from {
        let (runs, next) = reader.runs(inode, at, MOST_RUNS)?;
        own.extend(runs.iter().map(|run| (run.physical, run.len)));
        from = next.filter(|next| *next > at && *next < MOST_BLOCKS);
    }
    own.sort_unstable();
    Ok(own)
}

/// Where a block of the journal is.
fn journal_block(reader: &ExtReader, inode: &ExtInode, logical: u64) -> FsResult<u64> {
    let (runs, _) = reader.runs(inode, logical, 1)?;
    let found = runs.first().and_then(|run| run.physical_at(logical));
    found.ok_or_else(|| FsFailure::damaged("its journal has holes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(features: u32) -> JournalLayout {
        JournalLayout {
            first: 1,
            end: 8,
            sequence: 1,
            start: 1,
            features,
            seed: 0,
        }
    }

    #[test]
    fn the_log_is_a_ring() {
        let journal = layout(0);
        assert_eq!(
            (journal.after(1), journal.after(6), journal.after(7)),
            (2, 7, 1)
        );
    }

    #[test]
    fn each_form_of_a_descriptor_is_read() {
        let word = |values: &[u32]| {
            values
                .iter()
                .flat_map(|v| v.to_be_bytes())
                .collect::<Vec<u8>>()
        };
        // Header, then a tag with a UUID behind it and the last one.
        let head = [MAGIC, 1, 1];
        let mut old = word(&head);
        old.extend(word(&[7, 0x1]));
        old.extend([9; 16]);
        old.extend(word(&[8, 0x2 | 0x8]));
        old.extend(word(&[1, 2]));
        assert_eq!(layout(0).tags(&old), [(7, 1, 0), (8, 0xa, 0)]);
        let mut newest = word(&head);
        newest.extend(word(&[7, 0x2, 1, 0x55]));
        newest.extend(word(&[8, 0xa, 0, 0x66]));
        newest.extend([0; 20]);
        let journal = layout(SUMS_3 | BITS_64);
        assert_eq!(
            journal.tags(&newest),
            [(1 << 32 | 7, 2, 0x55), (8, 0xa, 0x66)]
        );
        // The last tag may be missing: the block ends.
        assert!(journal.tags(&newest[..30]).len() <= 1);
    }

    #[test]
    fn a_damaged_or_escaped_copy_is_noticed() {
        let seed = 5;
        let bytes = [3; 16];
        let copy = |sum| JournalCopy {
            block: 1,
            is_escaped: true,
            sum: Some((u32::MAX, seed, sum)),
        };
        let mut good = bytes;
        copy(crc32c(seed, &bytes)).finish(&mut good).unwrap();
        assert_eq!(good[..4], MAGIC.to_be_bytes());
        assert!(copy(1).finish(&mut bytes.clone()).is_err());
    }

    #[test]
    fn any_superblock_of_a_journal_is_possible_or_refused() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..2_000 {
            let mut block = vec![0; 1024];
            block[..4].copy_from_slice(&MAGIC.to_be_bytes());
            block[7] = 4;
            block[0xc..0x10].copy_from_slice(&1024_u32.to_be_bytes());
            for _ in 0..random.usize(..12) {
                let at = random.usize(0x10..0x60);
                block[at] = random.u8(..);
            }
            if let Some(found) = JournalLayout::of(&block, 1024, 4096) {
                assert!(found.first < found.end && found.end <= 4096 && found.start < found.end);
                let _ = (found.tags(&block), found.revoked(&block));
            }
        }
    }
}
