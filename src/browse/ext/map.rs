//! Where the blocks of a file are: the extent tree of ext4, the block numbers of ext2 and ext3.

use std::collections::BTreeMap;

use super::super::reader::{FsFailure, FsPage, FsResult, SPAN_PAGE, le16, le32};
use super::super::{FsSpan, SpanPlace};
use super::ExtReader;
use super::inode::ExtInode;

/// Levels of an extent tree, at most.
const MOST_LEVELS: u16 = 5;
/// Nodes of a tree that one answer reads, at most: each has a block, and 340 entries in 4 KiB.
const MOST_NODES: usize = 4096;
/// Blocks of a file, at most: their numbers have 32 bits.
pub(super) const MOST_BLOCKS: u64 = 1 << 32;
/// Block numbers that one answer looks at, at most: 64 MiB of a file in blocks of 1 KiB.
const MOST_STEPS: usize = 1 << 16;

/// A run of blocks of a file that follow each other on the disk too. What lies between runs is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockRun {
    pub(super) logical: u64,
    pub(super) len: u64,
    pub(super) physical: u64,
}

impl BlockRun {
    /// Where a block of the file is, if it is in the run.
    pub(super) fn physical_at(&self, logical: u64) -> Option<u64> {
        let within = logical.checked_sub(self.logical)?;
        (within < self.len).then(|| self.physical.saturating_add(within))
    }
}

/// Runs of a file, and the block of the file where the next ones begin; none at the end of the file.
type FoundRuns = (Vec<BlockRun>, Option<u64>);

/// A visit to the nodes of an extent tree.
struct TreeVisit {
    from: u64,
    most: usize,
    nodes: usize,
    runs: Vec<BlockRun>,
}

impl ExtReader {
    /// The first runs that end behind the block `from`, at most `most` of them.
    pub(super) fn runs(&self, inode: &ExtInode, from: u64, most: usize) -> FsResult<FoundRuns> {
        if !inode.has_extents() {
            return self.mapped_runs(inode, from, most);
        }
        let mut visit = TreeVisit {
            from,
            most,
            nodes: 0,
            runs: Vec::new(),
        };
        self.visit(inode, &inode.area, None, &mut visit)?;
        let next = match visit.runs.len() >= most {
            true => visit.runs.last().map(|last| last.logical + last.len),
            false => None,
        };
        Ok((visit.runs, next))
    }

    /// Visits a node and those below it, at most [`MOST_LEVELS`] deep.
    fn visit(
        &self,
        inode: &ExtInode,
        node: &[u8],
        level: Option<u16>,
        visit: &mut TreeVisit,
    ) -> FsResult<()> {
        let wrong =
            || FsFailure::damaged(format!("the extents of inode {} are damaged", inode.number));
        visit.nodes += 1;
        let (magic, count, depth) = (le16(node, 0), le16(node, 2), le16(node, 6));
        let is_expected = level.is_none_or(|level| level == depth) && depth <= MOST_LEVELS;
        let room = (node.len() / 12).saturating_sub(1);
        let has_room = usize::from(count) <= room && visit.nodes <= MOST_NODES;
        if magic != 0xf30a || !is_expected || !has_room {
            return Err(wrong());
        }
        let entries = node.chunks_exact(12).skip(1).take(count.into());
        let mut starts = entries
            .clone()
            .skip(1)
            .map(|entry| u64::from(le32(entry, 0)));
        for entry in entries {
            if visit.runs.len() >= visit.most {
                return Ok(());
            }
            let next = starts.next();
            let logical = u64::from(le32(entry, 0));
            if depth > 0 {
                // One whose last block is before `from` is left out: the next one begins at or before it.
                if next.is_some_and(|next| next <= visit.from) {
                    continue;
                }
                let block = u64::from(le16(entry, 8)) << 32 | u64::from(le32(entry, 4));
                let below = self.block(block)?;
                self.visit(inode, &below, Some(depth - 1), visit)?;
                continue;
            }
            let raw_len = u64::from(le16(entry, 4));
            // A length above 2^15 marks blocks that are allocated and were never written: they read as zeroes.
            let (len, is_written) = match raw_len > 0x8000 {
                true => (raw_len - 0x8000, false),
                false => (raw_len, true),
            };
            let is_behind = visit
                .runs
                .last()
                .is_none_or(|last| last.logical + last.len <= logical);
            if len == 0 || !is_behind {
                return Err(wrong());
            }
            if is_written && logical + len > visit.from {
                visit.runs.push(BlockRun {
                    logical,
                    len,
                    physical: u64::from(le16(entry, 6)) << 32 | u64::from(le32(entry, 8)),
                });
            }
        }
        Ok(())
    }

    /// By block numbers: 12 direct ones, then blocks of numbers in one, two and three levels.
    fn mapped_runs(&self, inode: &ExtInode, from: u64, most: usize) -> FsResult<FoundRuns> {
        let per_block = self.layout.block_size / 4;
        let end = inode.size.div_ceil(self.layout.block_size).min(MOST_BLOCKS);
        let mut runs: Vec<BlockRun> = Vec::new();
        let mut kept = BTreeMap::new();
        let mut at = from;
        for _ in 0..MOST_STEPS {
            if at >= end {
                return Ok((runs, None));
            }
            let (physical, skip) = self.mapped(inode, at, per_block, &mut kept)?;
            if physical == 0 {
                at += skip;
                continue;
            }
            let follows = |last: &&mut BlockRun| {
                last.logical + last.len == at && last.physical + last.len == physical
            };
            if let Some(last) = runs.last_mut().filter(follows) {
                last.len += 1;
            } else if runs.len() >= most {
                break;
            } else {
                runs.push(BlockRun {
                    logical: at,
                    len: 1,
                    physical,
                });
            }
            at += 1;
        }
        Ok((runs, Some(at).filter(|at| *at < end)))
    }

    /// The number of a block; 0 and how many blocks the hole has at least.
    fn mapped(
        &self,
        inode: &ExtInode,
        at: u64,
        per_block: u64,
        kept: &mut BTreeMap<u64, Vec<u8>>,
    ) -> FsResult<(u64, u64)> {
        let number = |bytes: &[u8], index: u64| {
            let at = usize::try_from(index * 4).unwrap_or(usize::MAX);
            u64::from(le32(bytes, at))
        };
        if at < 12 {
            return Ok((number(&inode.area, at), 1));
        }
        let mut rest = at - 12;
        for levels in 1..=3_u32 {
            let covered = per_block.pow(levels);
            if rest >= covered {
                rest -= covered;
                continue;
            }
            let mut block = number(&inode.area, u64::from(11 + levels));
            let mut span = covered;
            for _ in 0..levels {
                if block == 0 {
                    return Ok((0, span - rest % span));
                }
                span /= per_block;
                if !kept.contains_key(&block) {
                    // One path of numbers at a time: a file is read in order.
                    if kept.len() > 8 {
                        kept.clear();
                    }
                    kept.insert(block, self.block(block)?);
                }
                let numbers = kept.get(&block).map(Vec::as_slice).unwrap_or_default();
                block = number(numbers, rest / span % per_block);
            }
            return Ok((block, 1));
        }
        Err(FsFailure::damaged(format!(
            "inode {} has more blocks than there can be",
            inode.number
        )))
    }

    /// A page of the spans of a file: its runs, and the holes between them.
    pub(super) fn span_page(&self, file: u64, offset: u64) -> FsResult<FsPage<FsSpan>> {
        let inode = self.inode(file)?;
        if offset >= inode.size {
            return Ok((Vec::new(), None));
        }
        if inode.is_inline() {
            self.check_inline(&inode)?;
        }
        if inode.is_inline() || inode.is_encrypted() {
            let span = FsSpan {
                offset,
                len: inode.size - offset,
                place: SpanPlace::Parser,
            };
            return Ok((vec![span], None));
        }
        let size = self.layout.block_size;
        let (runs, next) = self.runs(&inode, offset / size, SPAN_PAGE / 4)?;
        let mut page = SpanPageBuilder {
            at: offset,
            end: inode.size,
            found: Vec::new(),
        };
        for run in runs {
            let mut logical = run.logical;
            // A block that is in the journal splits the run.
            for split in self.split(run) {
                let (len, place) = match split {
                    MapPiece::Disk(physical, len) => {
                        let at = physical.checked_mul(size);
                        let bytes = len.saturating_mul(size);
                        let at = at.and_then(|at| self.window.in_image(at, bytes));
                        let at = at.ok_or_else(|| {
                            FsFailure::damaged(format!(
                                "inode {file} has blocks outside the partition"
                            ))
                        })?;
                        (len, SpanPlace::Image(at))
                    }
                    MapPiece::Journal => (1, SpanPlace::Parser),
                };
                page.put(
                    logical.saturating_mul(size),
                    len.saturating_mul(size),
                    place,
                );
                logical += len;
                if page.found.len() >= SPAN_PAGE {
                    return Ok(page.cut());
                }
            }
        }
        let Some(next) = next else {
            return Ok(page.into_end());
        };
        // The hole up to where the next runs are looked for.
        page.push(next.saturating_mul(size).min(page.end), SpanPlace::Hole);
        Ok(page.cut())
    }

    /// A run in pieces that are on the disk, and blocks that are in the journal.
    fn split(&self, run: BlockRun) -> Vec<MapPiece> {
        let mut pieces = Vec::new();
        let mut at = run.physical;
        let end = run.physical.saturating_add(run.len);
        for block in self.replayed.within(at, end) {
            if block > at {
                pieces.push(MapPiece::Disk(at, block - at));
            }
            pieces.push(MapPiece::Journal);
            at = block + 1;
        }
        if at < end {
            pieces.push(MapPiece::Disk(at, end - at));
        }
        pieces
    }
}

enum MapPiece {
    Disk(u64, u64),
    Journal,
}

/// Spans under construction, without gaps.
struct SpanPageBuilder {
    at: u64,
    end: u64,
    found: Vec<FsSpan>,
}

impl SpanPageBuilder {
    fn push(&mut self, until: u64, place: SpanPlace) {
        if until > self.at {
            self.found.push(FsSpan {
                offset: self.at,
                len: until - self.at,
                place,
            });
            self.at = until;
        }
    }

    /// Adds a run of bytes of the file, and the hole before it; what is before the page or behind the file is cut off.
    fn put(&mut self, start: u64, len: u64, place: SpanPlace) {
        self.push(start.min(self.end), SpanPlace::Hole);
        let until = start.saturating_add(len).min(self.end);
        let place = match place {
            SpanPlace::Image(at) => SpanPlace::Image(at + self.at.saturating_sub(start)),
            other => other,
        };
        self.push(until, place);
    }

    fn into_end(mut self) -> FsPage<FsSpan> {
        self.push(self.end, SpanPlace::Hole);
        (self.found, None)
    }

    fn cut(self) -> FsPage<FsSpan> {
        let next = (self.at < self.end).then_some(self.at);
        (self.found, next)
    }
}
