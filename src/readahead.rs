//! Which blocks a reader will want next: a pure function with state, no I/O.
//!
//! An image has a few streams, each a place where the next read is expected. A read that continues a stream feeds it;
//! any other read starts a new one in place of the one idle longest. A stream that went on for [`STREAM_BYTES`] is
//! sequential and gets a window of blocks ahead, which doubles as it is used up.

use crate::block::{BLOCK_SIZE, BlockIndex, Extent, Geometry};

/// Streams remembered for one image.
const STREAMS: usize = 8;

/// Bytes read in sequence beyond which blocks are read ahead: three blocks. A single read of 1 MiB arrives as several
/// READs, and the kernel's own readahead adds up to a block to it; neither may start a window.
const STREAM_BYTES: u64 = 3 * BLOCK_SIZE as u64;

/// How far from the expected place a read still belongs to the stream: the kernel sends up to 1 MiB of READs at once,
/// and two threads take them in any order.
const SLACK: u64 = 1 << 20;

/// The first window, in blocks.
const FIRST_WINDOW: u32 = 4;

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The byte where the next read is expected.
    next: u64,
    /// Bytes read so far.
    read: u64,
    /// The block after the last one wished for.
    ahead: u32,
    /// Blocks to keep ahead of the reader.
    window: u32,
    /// When it was last fed, in reads of the image.
    fed: u64,
}

/// The streams of one image.
#[derive(Debug)]
pub struct Readahead {
    geometry: Geometry,
    max_window: u32,
    streams: Vec<Stream>,
    reads: u64,
}

impl Readahead {
    /// No streams yet; together they never want more than `max_window` blocks ahead.
    pub fn new(geometry: Geometry, max_window: u32) -> Self {
        Self {
            geometry,
            max_window,
            streams: Vec::with_capacity(STREAMS),
            reads: 0,
        }
    }

    /// Takes note of a read and says which blocks to fetch ahead of it, if any.
    pub fn observe(&mut self, offset: u64, len: usize) -> Option<Extent> {
        self.reads += 1;
        let reads = self.reads;
        let end = offset.saturating_add(len as u64);
        let Some(at) = self.streams.iter().position(|stream| {
            offset <= stream.next.saturating_add(SLACK) && end.saturating_add(SLACK) >= stream.next
        }) else {
            self.start(end, len as u64);
            return None;
        };
        let stream = self.streams.get_mut(at)?;
        // A read that lies wholly behind the stream's front is late, or a second reader of cached blocks.
        stream.read += end.saturating_sub(stream.next);
        stream.next = stream.next.max(end);
        stream.fed = reads;
        if stream.read <= STREAM_BYTES {
            return None;
        }
        let share = self.share();
        let stream = self.streams.get_mut(at)?;
        let window = stream.window.min(share);
        let front = self.geometry.block_at(stream.next)?.0;
        if stream.ahead > front + window / 2 {
            return None;
        }
        let start = stream.ahead.max(front);
        let stop = front
            .saturating_add(window)
            .min(self.geometry.block_count());
        let wish = Extent::new(BlockIndex(start), BlockIndex(stop))?;
        stream.ahead = stop;
        stream.window = (window * 2).min(share);
        Some(wish)
    }

    /// What each of the sequential streams that are still in use may have ahead: an equal part of all, at least a block.
    fn share(&self) -> u32 {
        let sequential = self.streams.iter().filter(|stream| {
            stream.read > STREAM_BYTES && self.reads - stream.fed < 64 * STREAMS as u64
        });
        let sequential = u32::try_from(sequential.count().max(1)).unwrap_or(1);
        (self.max_window / sequential).max(1)
    }

    /// Takes note that of a wish only the blocks before `taken` will come: the rest is wished for again.
    pub fn was_taken(&mut self, wish: Extent, taken: BlockIndex) {
        let wished = |stream: &&mut Stream| stream.ahead == wish.end().0;
        if let Some(stream) = self.streams.iter_mut().find(wished) {
            stream.ahead = taken.0;
        }
    }

    fn start(&mut self, next: u64, read: u64) {
        let stream = Stream {
            next,
            read,
            ahead: 0,
            window: FIRST_WINDOW,
            fed: self.reads,
        };
        if self.streams.len() < STREAMS {
            self.streams.push(stream);
        } else if let Some(idle) = self.streams.iter_mut().min_by_key(|stream| stream.fed) {
            *idle = stream;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: usize = 128 * 1024;

    fn readahead(blocks: u64, max_window: u32) -> Readahead {
        Readahead::new(
            Geometry::new(blocks * u64::from(BLOCK_SIZE)).unwrap(),
            max_window,
        )
    }

    fn scan(readahead: &mut Readahead, from: u64, reads: u64) -> Vec<Extent> {
        (0..reads)
            .filter_map(|n| readahead.observe(from + n * READ as u64, READ))
            .collect()
    }

    #[test]
    fn one_read_of_a_mebibyte_wants_nothing_ahead() {
        let mut readahead = readahead(1000, 64);
        assert_eq!(scan(&mut readahead, 0, 8 + 4), []);
    }

    #[test]
    fn a_sequential_scan_wants_each_block_once_up_to_the_end() {
        let blocks = 1000;
        let mut readahead = readahead(blocks, 64);
        let wishes = scan(&mut readahead, 0, blocks * 4);
        let mut next = wishes[0].start().0;
        assert!(next <= 4, "starts at {next}");
        for wish in &wishes {
            assert_eq!(wish.start().0, next);
            next = wish.end().0;
        }
        assert_eq!(u64::from(next), blocks);
        assert!(wishes.iter().any(|wish| wish.count() >= 32));
        assert!(wishes.iter().all(|wish| wish.count() <= 64));
    }

    #[test]
    fn what_was_not_taken_of_a_wish_is_wished_for_again() {
        let mut readahead = readahead(1000, 64);
        let mut wanted = Vec::new();
        for n in 0..4000 {
            if let Some(wish) = readahead.observe(n * READ as u64, READ) {
                let taken = BlockIndex(wish.start().0 + 1);
                wanted.push(wish.start().0);
                readahead.was_taken(wish, taken);
            }
        }
        let first = wanted[0];
        assert!(
            wanted
                .windows(2)
                .all(|pair| pair[1] >= pair[0] && pair[1] <= pair[0] + 1)
        );
        assert!(
            wanted.last().is_some_and(|last| *last >= 990),
            "from {first}"
        );
    }

    #[test]
    fn reads_out_of_order_within_a_mebibyte_are_one_stream() {
        let mut readahead = readahead(1000, 64);
        let mut wanted = 0;
        for pair in 0..40u64 {
            for n in [pair * 2 + 1, pair * 2] {
                wanted += readahead
                    .observe(n * READ as u64, READ)
                    .map_or(0, Extent::count);
            }
        }
        assert!(wanted > 32, "{wanted}");
    }

    #[test]
    fn random_reads_want_nothing() {
        let mut readahead = readahead(100_000, 64);
        let mut at = 12_345u64;
        for _ in 0..10_000 {
            at = at
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let offset = at % (100_000 * u64::from(BLOCK_SIZE)) / 4096 * 4096;
            assert_eq!(readahead.observe(offset, 4096), None);
        }
    }

    #[test]
    fn two_streams_share_the_window() {
        let mut readahead = readahead(100_000, 64);
        let far = 50_000 * u64::from(BLOCK_SIZE);
        let mut largest = 0;
        for n in 0..4000u64 {
            let a = readahead.observe(n * READ as u64, READ);
            let b = readahead.observe(far + n * READ as u64, READ);
            if n > 400 {
                largest = largest
                    .max(a.map_or(0, Extent::count))
                    .max(b.map_or(0, Extent::count));
            }
        }
        assert!(
            (8..=32).contains(&largest),
            "each gets at most half: {largest}"
        );
    }
}
