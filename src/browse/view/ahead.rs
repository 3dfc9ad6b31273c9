//! What is read ahead: of files that are read in order, and of files that a copy comes to next. Only blocks that hold their bytes are
//! requested.

use std::collections::VecDeque;

use bytes::Bytes;

use super::super::{FsData, FsSpan, SpanPlace};
use super::{FileView, PIECE};
use crate::block::{BlockIndex, Geometry};
use crate::error::Result;

/// Bytes of a file that are requested at once: the piece that is wanted, and two more on their way while it is used.
const AHEAD: u64 = 3 * PIECE;
/// Spans that are looked at for that: each piece looks at them.
const SPANS_AHEAD: usize = 1024;
/// Sequences of reads that are remembered.
const SEQUENCES: usize = 8;
/// How far from the end of the last read the next one of a sequence begins, at most: the kernel has a few requests on their way.
const SLACK: u64 = 1 << 20;

/// Where the bytes of a file are, or a part of them, and where the next part begins.
pub(crate) type SpanPage = (Vec<FsSpan>, Option<u64>);

/// Blocks that are requested and not read yet. One that several files in a row have counts once, for the first of them.
#[derive(Debug, Default)]
pub(crate) struct BlocksAhead {
    count: usize,
    last: Option<BlockIndex>,
}

impl BlocksAhead {
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Counts blocks. Returns how many of them the file before did not have.
    fn add(&mut self, blocks: &[BlockIndex]) -> usize {
        let new = blocks
            .iter()
            .filter(|block| self.last.replace(**block) != Some(**block))
            .count();
        self.count += new;
        new
    }

    /// These are read.
    pub(crate) fn remove(&mut self, blocks: usize) {
        self.count -= blocks;
    }
}

/// A file that is read from its beginning to its end.
pub(crate) struct FileReading {
    data: FsData,
    spans: VecDeque<FsSpan>,
    next: Option<u64>,
}

/// A hole of any length, or at most [`PIECE`] bytes of a file.
pub(crate) struct FilePiece {
    /// Where it is in the file.
    pub(crate) offset: u64,
    /// Its bytes.
    pub(crate) len: u64,
    /// None: all of them are zero and not on the disk.
    pub(crate) bytes: Option<Bytes>,
}

impl FileReading {
    /// A file from its first byte on.
    pub(crate) fn new(data: FsData) -> Self {
        Self {
            data,
            spans: VecDeque::new(),
            next: Some(0),
        }
    }

    /// A file whose first spans are known.
    pub(crate) fn with_page(data: FsData, (spans, next): SpanPage) -> Self {
        Self {
            data,
            spans: spans.into(),
            next,
        }
    }

    /// The next piece, while those after it are on their way; none at the end.
    ///
    /// # Errors
    /// As for [`FileView::spans`] and [`FileView::bytes`].
    pub(crate) async fn next(&mut self, view: &mut FileView) -> Result<Option<FilePiece>> {
        loop {
            let Some(span) = self.spans.pop_front() else {
                let Some(offset) = self.next.take() else {
                    return Ok(None);
                };
                let (spans, next) = view.spans(&self.data, offset).await?;
                (self.spans, self.next) = (spans.into(), next);
                continue;
            };
            let bytes = match span.place {
                SpanPlace::Hole => None,
                _ => {
                    let behind = self.spans.iter().take(SPANS_AHEAD);
                    view.prefetch(std::iter::once(&span).chain(behind), AHEAD);
                    Some(view.bytes(&self.data, &span).await?)
                }
            };
            let len = bytes.as_ref().map_or(span.len, |bytes| bytes.len() as u64);
            let rest = span.behind(len);
            if rest.len > 0 {
                self.spans.push_front(rest);
            }
            return Ok(Some(FilePiece {
                offset: span.offset,
                len,
                bytes,
            }));
        }
    }
}

/// Reads of a file that follow each other.
#[derive(Debug)]
struct ReadSequence {
    data: FsData,
    /// Where they ended.
    next: u64,
    /// Bytes that were read in order.
    run: u64,
}

/// The sequences that a mount gets at the same time, the latest last.
#[derive(Debug, Default)]
pub(super) struct ReadSequences(VecDeque<ReadSequence>);

impl ReadSequences {
    /// Records a read. Returns how many bytes behind its end are worth reading ahead: as many as were read in order before it.
    pub(super) fn observe(&mut self, data: &FsData, offset: u64, len: u64) -> u64 {
        let end = offset.saturating_add(len);
        let found = self
            .0
            .iter()
            .position(|one| one.data == *data && one.next.abs_diff(offset) <= SLACK);
        let mut one = found
            .and_then(|at| self.0.remove(at))
            .unwrap_or_else(|| ReadSequence {
                data: data.clone(),
                next: end,
                run: 0,
            });
        let ahead = one.run.min(AHEAD);
        one.run = one.run.saturating_add(len);
        one.next = one.next.max(end);
        if self.0.len() == SEQUENCES {
            self.0.pop_front();
        }
        self.0.push_back(one);
        ahead
    }
}

/// The blocks that hold the first `most` bytes of some spans, each once where they follow each other.
fn blocks_of<'s>(
    geometry: Geometry,
    spans: impl IntoIterator<Item = &'s FsSpan>,
    most: u64,
) -> Vec<BlockIndex> {
    let mut blocks: Vec<BlockIndex> = Vec::new();
    let mut left = most;
    for span in spans {
        if left == 0 {
            break;
        }
        let len = span.len.min(left);
        left -= len;
        if let SpanPlace::Image(at) = span.place {
            let parts = geometry.split(at, usize::try_from(len).unwrap_or(usize::MAX));
            for part in parts {
                if blocks.last() != Some(&part.index) {
                    blocks.push(part.index);
                }
            }
        }
    }
    blocks
}

impl FileView {
    /// Requests the blocks of the first `most` bytes of these spans, without waiting for them, as far as the cache has room.
    /// Returns all these blocks.
    pub(super) fn prefetch<'s>(
        &self,
        spans: impl IntoIterator<Item = &'s FsSpan>,
        most: u64,
    ) -> Vec<BlockIndex> {
        let source = &self.image.blocks;
        let blocks = blocks_of(source.geometry(), spans, most);
        source.prefetch(&blocks);
        blocks
    }

    /// Requests the first `most` bytes of a file. Returns where they are, and how many blocks it adds to those in `ahead`.
    pub(crate) async fn request(
        &mut self,
        data: &FsData,
        most: u64,
        ahead: &mut BlocksAhead,
    ) -> (Result<SpanPage>, usize) {
        let page = self.spans(data, 0).await;
        let blocks = match &page {
            Ok((spans, _)) => ahead.add(&self.prefetch(spans, most)),
            Err(_) => 0,
        };
        (page, blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 512 << 10;

    fn data(file: u64) -> FsData {
        FsData {
            file,
            stream: Vec::new(),
            size: 1 << 40,
        }
    }

    #[test]
    fn reads_in_order_are_read_ahead_as_far_as_they_went_and_others_are_not() {
        let mut sequences = ReadSequences::default();
        for (file, offset, len, ahead) in [
            (1, 0, 4096, 0),
            (1, 4096, 100_000, 4096),
            // Overtaken by the one behind it.
            (1, 304_096, 100_000, 104_096),
            (1, 104_096, 200_000, 204_096),
            (1, 404_096, 100, 404_096),
            // A jump, and on from there.
            (1, 50 << 20, 8192, 0),
            (1, (50 << 20) + 8192, 40 << 20, 8192),
            (1, (90 << 20) + 8192, 1, AHEAD),
            // Two files in turn, and a second reader of the first one.
            (2, (90 << 20) + 8193, 1, 0),
            (1, (90 << 20) + 8193, 1, AHEAD),
            (2, (90 << 20) + 8194, 1, 1),
            (1, 200 << 20, 5, 0),
            (1, (200 << 20) + 5, 5, 5),
            (1, (90 << 20) + 8194, 1, AHEAD),
            // The end of what a number holds.
            (2, u64::MAX - 5, 9, 0),
            (2, u64::MAX, 9, 9),
        ] {
            let found = sequences.observe(&data(file), offset, len);
            assert_eq!(found, ahead, "{file} {offset} {len}");
        }
    }

    #[test]
    fn blocks_are_those_that_hold_the_bytes_up_to_a_limit() {
        use SpanPlace::{Hole, Image, Parser};
        let geometry = Geometry::new(100 * BLOCK).unwrap();
        let span = |len, place| FsSpan {
            offset: 0,
            len,
            place,
        };
        for (spans, most, expected) in [
            (vec![], AHEAD, vec![]),
            (
                vec![span(10, Image(0)), span(10, Image(50))],
                AHEAD,
                vec![0],
            ),
            (vec![span(BLOCK, Image(BLOCK - 1))], AHEAD, vec![0, 1]),
            (
                vec![span(9, Hole), span(9, Parser), span(9, Image(7 * BLOCK))],
                AHEAD,
                vec![7],
            ),
            // The limit counts what lies between, too.
            (vec![span(BLOCK, Hole), span(9, Image(0))], BLOCK, vec![]),
            (
                vec![span(10 * BLOCK, Image(0))],
                2 * BLOCK + 1,
                vec![0, 1, 2],
            ),
            (
                vec![span(1, Image(0)), span(1, Image(BLOCK)), span(1, Image(1))],
                AHEAD,
                vec![0, 1, 0],
            ),
        ] {
            let found = blocks_of(geometry, &spans, most);
            let found: Vec<u32> = found.into_iter().map(|block| block.0).collect();
            assert_eq!(found, expected, "{spans:?}");
        }
    }
}
