//! Which blocks a reader will want next: a pure function with state, no I/O and no clock.
//!
//! # Recognised
//! - A **stream**: reads that continue where others ended, forward or backward, in any order within [`SLACK`]. After
//!   [`STREAM_BYTES`] in one direction it is sequential. A reader that skips holes stays in its stream.
//! - A **stride**: reads whose starts are equally far apart, [`EQUAL_STEPS`] times in a row.
//!
//! Anything else is random: nothing is prefetched.
//!
//! # How far ahead
//! A window of held blocks (holes are skipped without counting) that starts at [`FIRST_WINDOW`]. A reader that has to wait
//! for a block makes it grow by what it used since it last grew, so it doubles as long as the reader is faster than the
//! link and stays the same once the reader never waits. A block that the reader waits for long after its prefetch was evicted
//! unread: the window is halved. All streams of all images share one [`Budget`] in equal parts.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::block::{BLOCK_SIZE, BlockIndex, Geometry};

/// Streams remembered for one image.
const STREAMS: usize = 8;
/// Bytes read in sequence beyond which blocks are read ahead: three blocks. A single read of 1 MiB arrives as several
/// READs, and the kernel's own readahead adds up to a block to it; neither may start a window.
const STREAM_BYTES: u64 = 3 * BLOCK_SIZE as u64;
/// How far from the expected place a read still belongs to the stream, at most: the kernel sends up to 1 MiB of READs at
/// once, and two threads take them in any order.
const SLACK: u64 = 1 << 20;
/// How far from the expected place, in reads of the same length.
const SLACK_READS: u64 = 8;
/// Equal distances between starts that make a stride.
const EQUAL_STEPS: u32 = 4;
/// The first window, in blocks.
const FIRST_WINDOW: usize = 4;
/// A stream that was not fed for this long has no part in the budget.
const ACTIVE: Duration = Duration::from_secs(1);
/// A stream that was not fed for this long is given up for another.
const IDLE: Duration = Duration::from_secs(10);
/// A block that is still missing after this time was evicted: the cache keeps unread blocks at least this long.
const EVICTED: Duration = Duration::from_secs(10);
/// Holes looked at for one read: 2 GiB of them.
const HOLES: usize = 4096;
/// Steps of a stride looked at for one read.
const MOST_STEPS: usize = 2 * HOLES;

/// Blocks that all sequential readers together may have ahead.
#[derive(Debug)]
pub struct Budget {
    blocks: u32,
    inner: Mutex<Active>,
}

#[derive(Debug, Default)]
struct Active {
    next: u64,
    fed: HashMap<u64, Instant>,
}

impl Budget {
    /// A budget of this many blocks.
    pub fn new(blocks: u32) -> Arc<Self> {
        Arc::new(Self {
            blocks,
            inner: Mutex::default(),
        })
    }

    fn number(&self) -> u64 {
        let mut inner = self.inner.lock();
        inner.next += 1;
        inner.next
    }

    /// The share of one stream, which was read now: an equal part, at least one block.
    fn share(&self, stream: u64, now: Instant) -> usize {
        let mut inner = self.inner.lock();
        inner.fed.insert(stream, now);
        if inner.fed.len() > 1 {
            inner
                .fed
                .retain(|_, fed| now.saturating_duration_since(*fed) < ACTIVE);
        }
        (self.blocks as usize / inner.fed.len().max(1)).max(1)
    }
}

/// One read of an image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    /// Its first byte.
    pub(crate) offset: u64,
    /// Its bytes.
    pub(crate) len: usize,
    /// Whether it has to wait for one of its blocks.
    pub(crate) waits: bool,
    /// When it arrived.
    pub(crate) at: Instant,
}

/// Blocks to fetch ahead of a reader, the nearest first.
#[derive(Debug)]
pub(crate) struct PrefetchRequest {
    /// The blocks; never empty.
    pub(crate) blocks: Vec<BlockIndex>,
    stream: Option<usize>,
}

/// The streams of one image.
#[derive(Debug)]
pub(crate) struct Readahead {
    geometry: Geometry,
    budget: Arc<Budget>,
    streams: Vec<Stream>,
    stride: Stride,
}

impl Readahead {
    /// No streams yet.
    pub(crate) fn new(geometry: Geometry, budget: Arc<Budget>) -> Self {
        let stride = Stride::new(budget.number());
        Self {
            geometry,
            budget,
            streams: Vec::with_capacity(STREAMS),
            stride,
        }
    }

    /// Records a read and returns the blocks to prefetch for it, if any. Known holes are left out.
    pub(crate) fn observe(
        &mut self,
        read: Read,
        is_hole: impl Fn(BlockIndex) -> bool,
    ) -> Option<PrefetchRequest> {
        let end = read.offset.saturating_add(read.len as u64);
        let start = self.geometry.block_at(read.offset)?;
        let found = self
            .streams
            .iter()
            .position(|stream| stream.is_fed_by(read.offset, end, start));
        if let Some(at) = found {
            let stream = self.streams.get_mut(at)?;
            stream.feed(read, end, self.geometry);
            if stream.direction == StreamDirection::Unknown {
                return None;
            }
            let share = self.budget.share(stream.number, read.at);
            let blocks = stream.next_blocks(read, share, self.geometry, is_hole);
            return request(blocks, Some(at));
        }
        self.start(read, end);
        self.stride.step(read.offset);
        if self.stride.steps < EQUAL_STEPS {
            return None;
        }
        let share = self.budget.share(self.stride.number, read.at);
        let blocks = self.stride.next_blocks(read, share, self.geometry, is_hole);
        request(blocks, None)
    }

    /// Records that only the first `taken` blocks of a request are fetched: the others are requested again.
    pub(crate) fn was_taken(&mut self, request: &PrefetchRequest, taken: usize) {
        let not_taken = request.blocks.len().saturating_sub(taken);
        match request.stream {
            Some(at) => {
                if let Some(stream) = self.streams.get_mut(at) {
                    stream.ahead.drop_last(not_taken);
                }
            }
            None => self.stride.ahead.drop_last(not_taken),
        }
    }

    /// Starts a stream in a free place, or in that of a stream that never became sequential or has ended.
    fn start(&mut self, read: Read, end: u64) {
        let stream = Stream::new(self.budget.number(), read, end);
        if self.streams.len() < STREAMS {
            self.streams.push(stream);
            return;
        }
        let in_use = |stream: &Stream| {
            stream.direction != StreamDirection::Unknown
                && read.at.saturating_duration_since(stream.fed) < IDLE
        };
        let oldest = self
            .streams
            .iter_mut()
            .min_by_key(|stream| (in_use(stream), stream.fed));
        if let Some(oldest) = oldest {
            *oldest = stream;
        }
    }
}

fn request(blocks: Vec<BlockIndex>, stream: Option<usize>) -> Option<PrefetchRequest> {
    (!blocks.is_empty()).then_some(PrefetchRequest { blocks, stream })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamDirection {
    Unknown,
    Forward,
    Backward,
}

/// Reads that touch one another.
#[derive(Debug)]
struct Stream {
    number: u64,
    /// Where its first read began.
    origin: u64,
    /// The bytes from its lowest to its highest read.
    low: u64,
    high: u64,
    /// Bytes read.
    bytes: u64,
    direction: StreamDirection,
    fed: Instant,
    ahead: PrefetchWindow,
}

impl Stream {
    fn new(number: u64, read: Read, end: u64) -> Self {
        Self {
            number,
            origin: read.offset,
            low: read.offset,
            high: end,
            bytes: read.len as u64,
            direction: StreamDirection::Unknown,
            fed: read.at,
            ahead: PrefetchWindow::new(),
        }
    }

    fn is_fed_by(&self, offset: u64, end: u64, start: BlockIndex) -> bool {
        let slack = (end - offset).saturating_mul(SLACK_READS).min(SLACK);
        let (low, high) = match self.direction {
            StreamDirection::Unknown => (self.low, self.high),
            StreamDirection::Forward => (self.high, self.high),
            StreamDirection::Backward => (self.low, self.low),
        };
        let touches = offset <= high.saturating_add(slack) && end.saturating_add(slack) >= low;
        // A reader that skips holes continues at the next held block.
        touches || self.ahead.is_next(start)
    }

    fn feed(&mut self, read: Read, end: u64, geometry: Geometry) {
        self.high = self.high.max(end);
        self.low = self.low.min(read.offset);
        self.bytes = self.bytes.saturating_add(read.len as u64);
        self.fed = read.at;
        // At least half of the distance must have been read: scattered small reads are no stream.
        if self.direction == StreamDirection::Unknown && self.bytes >= (self.high - self.low) / 2 {
            if self.high - self.origin > STREAM_BYTES {
                self.direction = StreamDirection::Forward;
            } else if self.origin - self.low > STREAM_BYTES {
                self.direction = StreamDirection::Backward;
            }
        }
        let Some((lowest, highest)) = self.touched(geometry) else {
            return;
        };
        let direction = self.direction;
        self.ahead.pass(|block| match direction {
            StreamDirection::Backward => block >= lowest,
            _ => block <= highest,
        });
    }

    /// The blocks of its lowest and its highest byte.
    fn touched(&self, geometry: Geometry) -> Option<(BlockIndex, BlockIndex)> {
        let last = geometry.size().checked_sub(1)?;
        let highest = self.high.saturating_sub(1).min(last);
        Some((geometry.block_at(self.low)?, geometry.block_at(highest)?))
    }

    fn next_blocks(
        &mut self,
        read: Read,
        share: usize,
        geometry: Geometry,
        is_hole: impl Fn(BlockIndex) -> bool,
    ) -> Vec<BlockIndex> {
        let Some((lowest, highest)) = self.touched(geometry) else {
            return Vec::new();
        };
        self.ahead.adapt(read, share);
        let edge = self.ahead.edge;
        if self.direction == StreamDirection::Backward {
            let from = edge.map_or(lowest, |edge| edge.min(lowest));
            let blocks = (0..from.0).rev().map(BlockIndex);
            self.ahead.fill(blocks, read.at, is_hole)
        } else {
            let from = edge.map_or(highest, |edge| edge.max(highest));
            let blocks = (from.0 + 1..geometry.block_count()).map(BlockIndex);
            self.ahead.fill(blocks, read.at, is_hole)
        }
    }
}

/// Starts that are equally far apart.
#[derive(Debug)]
struct Stride {
    number: u64,
    /// The last start.
    at: Option<u64>,
    /// The distance to the one before, and how many such there were in a row.
    step: i128,
    steps: u32,
    ahead: PrefetchWindow,
}

impl Stride {
    fn new(number: u64) -> Self {
        Self {
            number,
            at: None,
            step: 0,
            steps: 0,
            ahead: PrefetchWindow::new(),
        }
    }

    fn step(&mut self, offset: u64) {
        let step = self.at.map_or(0, |at| i128::from(offset) - i128::from(at));
        self.at = Some(offset);
        if step == self.step && step != 0 {
            self.steps = self.steps.saturating_add(1);
        } else {
            self.step = step;
            self.steps = u32::from(step != 0);
            self.ahead = PrefetchWindow::new();
        }
    }

    fn next_blocks(
        &mut self,
        read: Read,
        share: usize,
        geometry: Geometry,
        is_hole: impl Fn(BlockIndex) -> bool,
    ) -> Vec<BlockIndex> {
        let (at, step) = (i128::from(read.offset), self.step);
        let block = |nth: i128| {
            let offset = u64::try_from(at.checked_add(step.checked_mul(nth)?)?).ok()?;
            geometry.block_at(offset)
        };
        let Some(here) = block(0).filter(|_| step != 0) else {
            return Vec::new();
        };
        // Whether the reader reaches a block before it has passed another.
        let is_up_to = |block: BlockIndex, other: BlockIndex| {
            if step > 0 {
                block <= other
            } else {
                block >= other
            }
        };
        self.ahead.pass(|block| is_up_to(block, here));
        self.ahead.adapt(read, share);
        // Each block is examined once.
        let edge = self.ahead.edge.filter(|edge| !is_up_to(*edge, here));
        let edge = edge.unwrap_or(here);
        let first = (i128::from(geometry.offset(edge)) - at) / step;
        let ahead = (first.max(1)..)
            .take(MOST_STEPS)
            .map_while(block)
            .skip_while(|block| is_up_to(*block, edge));
        self.ahead.fill(ahead, read.at, is_hole)
    }
}

/// The blocks prefetched for one reader.
#[derive(Debug)]
struct PrefetchWindow {
    /// Requested blocks that the reader has not reached, the nearest first, and when they were requested.
    requested: VecDeque<(BlockIndex, Instant)>,
    /// The farthest block examined, requested or a hole.
    edge: Option<BlockIndex>,
    window: usize,
    /// Blocks reached since the window last grew.
    used: usize,
}

impl PrefetchWindow {
    fn new() -> Self {
        Self {
            requested: VecDeque::new(),
            edge: None,
            window: FIRST_WINDOW,
            used: 0,
        }
    }

    /// Whether the reader that continues with this block has only skipped holes, or one block more.
    fn is_next(&self, block: BlockIndex) -> bool {
        self.requested
            .iter()
            .take(2)
            .any(|(next, _)| *next == block)
    }

    /// Takes off the blocks that the reader has reached.
    fn pass(&mut self, is_passed: impl Fn(BlockIndex) -> bool) {
        while self
            .requested
            .front()
            .is_some_and(|(block, _)| is_passed(*block))
        {
            self.requested.pop_front();
            self.used += 1;
        }
    }

    /// Grows or shrinks the window after a read.
    fn adapt(&mut self, read: Read, share: usize) {
        if read.waits {
            let since = |(_, requested): &(BlockIndex, Instant)| {
                read.at.saturating_duration_since(*requested)
            };
            if self
                .requested
                .front()
                .is_some_and(|first| since(first) >= EVICTED)
            {
                // It was evicted: a second request for blocks that are still cached fetches nothing.
                self.window = (self.window / 2).max(FIRST_WINDOW);
                self.requested.clear();
                self.edge = None;
            } else {
                self.window += self.used.min(self.window);
            }
            self.used = 0;
        }
        self.window = self.window.min(share);
    }

    /// Fills the window with those of `blocks` that are held.
    fn fill(
        &mut self,
        blocks: impl Iterator<Item = BlockIndex>,
        at: Instant,
        is_hole: impl Fn(BlockIndex) -> bool,
    ) -> Vec<BlockIndex> {
        let room = self.window.saturating_sub(self.requested.len());
        if room == 0 {
            return Vec::new();
        }
        let mut held = Vec::with_capacity(room);
        for block in blocks.take(HOLES + room) {
            // Steps shorter than a block reach it several times.
            if self.edge == Some(block) {
                continue;
            }
            self.edge = Some(block);
            if !is_hole(block) {
                self.requested.push_back((block, at));
                held.push(block);
                if held.len() == room {
                    break;
                }
            }
        }
        held
    }

    fn drop_last(&mut self, blocks: usize) {
        if blocks > 0 {
            let kept = self.requested.len().saturating_sub(blocks);
            self.requested.truncate(kept);
            self.edge = self.requested.back().map(|(block, _)| *block);
        }
    }
}

#[cfg(test)]
mod tests;
