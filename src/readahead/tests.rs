use super::*;

const READ: usize = 128 * 1024;
const BLOCK: u64 = BLOCK_SIZE as u64;

/// A reader and the clock it goes by.
struct Reader {
    readahead: Readahead,
    now: Instant,
    waits: bool,
}

impl Reader {
    fn new(blocks: u64, budget: u32) -> Self {
        Self::sharing(blocks, &Budget::new(budget))
    }

    fn sharing(blocks: u64, budget: &Arc<Budget>) -> Self {
        let geometry = Geometry::new(blocks * BLOCK).unwrap();
        Self {
            readahead: Readahead::new(geometry, Arc::clone(budget)),
            now: Instant::now(),
            waits: true,
        }
    }

    fn read(&mut self, offset: u64, len: usize) -> Vec<u32> {
        self.read_around(offset, len, |_| false)
    }

    fn read_around(
        &mut self,
        offset: u64,
        len: usize,
        is_hole: impl Fn(BlockIndex) -> bool,
    ) -> Vec<u32> {
        self.now += Duration::from_millis(1);
        let read = Read {
            offset,
            len,
            waits: self.waits,
            at: self.now,
        };
        let request = self.readahead.observe(read, is_hole);
        request.map_or(Vec::new(), |request| {
            request.blocks.iter().map(|block| block.0).collect()
        })
    }

    /// Reads blocks in sequence.
    fn scan(&mut self, blocks: impl IntoIterator<Item = u64>) -> Vec<u32> {
        let mut requested = Vec::new();
        for block in blocks {
            for part in 0..4 {
                requested.extend(self.read(block * BLOCK + part * READ as u64, READ));
            }
        }
        requested
    }
}

#[test]
fn one_read_of_a_mebibyte_wants_nothing_ahead() {
    let mut reader = Reader::new(1000, 64);
    // The kernel adds up to a block of its own.
    assert_eq!(reader.scan(0..3), [0u32; 0]);
}

#[test]
fn a_sequential_scan_wants_each_block_once_up_to_the_end() {
    let mut reader = Reader::new(1000, 64);
    let requested = reader.scan(0..1000);
    assert!(requested[0] <= 4, "starts at {}", requested[0]);
    let expected: Vec<_> = (requested[0]..1000).collect();
    assert_eq!(requested, expected);
}

#[test]
fn a_backward_scan_wants_each_block_once_down_to_the_first() {
    let mut reader = Reader::new(1000, 64);
    let mut requested = Vec::new();
    for part in (0..4000).rev() {
        requested.extend(reader.read(part * READ as u64, READ));
    }
    assert!(requested[0] >= 995, "starts at {}", requested[0]);
    let expected: Vec<_> = (0..=requested[0]).rev().collect();
    assert_eq!(requested, expected);
}

#[test]
fn equal_steps_are_a_stride_in_both_directions() {
    let half = READ as u64 / 2;
    for (record, step) in [
        (4096, 20 * BLOCK),
        (READ, 20 * BLOCK),
        (8 * READ, 7 * BLOCK),
        (4096, half),
    ] {
        for backward in [false, true] {
            let mut reader = Reader::new(10_000, 64);
            let count = if step < BLOCK { 1600 } else { 100 };
            let mut steps: Vec<u64> = (0..count).map(|n| n * step).collect();
            if backward {
                steps.reverse();
            }
            let mut requested = Vec::new();
            for offset in &steps {
                for part in (0..record).step_by(READ) {
                    requested.extend(reader.read(offset + part as u64, record.min(READ)));
                }
            }
            assert!(requested.len() > 80, "{} requested", requested.len());
            let first = requested[0];
            let on_the_way = |block: &u32| {
                u64::from(*block) % (step / BLOCK).max(1) == 0
                    && if backward {
                        *block <= first
                    } else {
                        *block >= first
                    }
            };
            assert!(
                requested.iter().all(on_the_way),
                "only what a stride touches"
            );
            let mut each = requested.clone();
            each.sort_unstable();
            each.dedup();
            assert_eq!(each.len(), requested.len(), "each once");
        }
    }
}

#[test]
fn random_reads_want_nothing() {
    for blocks in [2_000, 100_000] {
        let mut reader = Reader::new(blocks, 64);
        let mut at = 12_345u64;
        for _ in 0..20_000 {
            at = at
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let offset = (at >> 16) % (blocks * BLOCK) / 4096 * 4096;
            assert_eq!(reader.read(offset, 4096), [0u32; 0]);
        }
    }
}

#[test]
fn the_window_doubles_while_the_reader_waits_and_stays_when_it_does_not() {
    let mut reader = Reader::new(10_000, 128);
    reader.scan(0..8);
    let ahead = |reader: &Reader| reader.readahead.streams[0].ahead.requested.len();
    let first = ahead(&reader);
    assert!(first <= 2 * FIRST_WINDOW + 4, "{first}");
    reader.waits = false;
    reader.scan(8..100);
    assert_eq!(ahead(&reader), first, "fast enough");
    reader.waits = true;
    reader.scan(100..100 + 128);
    assert_eq!(ahead(&reader), 128, "up to the budget");
}

#[test]
fn the_window_is_halved_when_blocks_were_evicted_unread() {
    let mut reader = Reader::new(10_000, 128);
    reader.scan(0..300);
    let window = |reader: &Reader| reader.readahead.streams[0].ahead.window;
    assert_eq!(window(&reader), 128);
    reader.now += EVICTED;
    reader.waits = false;
    reader.scan(300..301);
    assert_eq!(window(&reader), 128, "a pause is no eviction");
    reader.waits = true;
    let requested = reader.scan(301..302);
    assert_eq!(window(&reader), 64);
    assert_eq!(requested[..2], [302, 303], "they are requested again");
}

#[test]
fn holes_are_skipped_without_counting() {
    let mut reader = Reader::new(100_000, 64);
    let is_hole = |block: BlockIndex| block.0 >= 16 && !block.0.is_multiple_of(50);
    let mut requested = Vec::new();
    for part in 0..64 {
        requested.extend(reader.read_around(part * READ as u64, READ, is_hole));
    }
    let held: Vec<_> = (0..100_000).filter(|n| !is_hole(BlockIndex(*n))).collect();
    let start = held
        .iter()
        .position(|block| *block == requested[0])
        .unwrap();
    assert_eq!(requested, held[start..start + requested.len()]);
    assert!(requested.len() > 20, "{} requested", requested.len());
    // A reader that skips the holes stays in its stream.
    let next = u64::from(*held.iter().find(|block| **block >= 16).unwrap());
    assert!(!reader.read_around(next * BLOCK, READ, is_hole).is_empty());
}

#[test]
fn a_long_hole_is_looked_at_once() {
    let mut reader = Reader::new(1_000_000, 64);
    let looked = std::cell::Cell::new(0);
    for part in 0..4000 {
        reader.read_around(part * READ as u64, READ, |block| {
            looked.set(looked.get() + 1);
            block.0 >= 4
        });
    }
    assert!(looked.get() <= 1_000_000, "{}", looked.get());
}

#[test]
fn blocks_not_taken_are_requested_again() {
    let mut reader = Reader::new(1000, 64);
    let mut taken = Vec::new();
    for part in 0..4000 {
        reader.now += Duration::from_millis(1);
        let read = Read {
            offset: part * READ as u64,
            len: READ,
            waits: true,
            at: reader.now,
        };
        if let Some(request) = reader.readahead.observe(read, |_| false) {
            taken.push(request.blocks[0].0);
            reader.readahead.was_taken(&request, 1);
        }
    }
    let expected: Vec<_> = (taken[0]..1000).collect();
    assert_eq!(taken, expected);
}

#[test]
fn reads_out_of_order_within_a_mebibyte_are_one_stream() {
    let mut reader = Reader::new(1000, 64);
    let mut requested = 0;
    for eight in 0..40u64 {
        for part in [3, 0, 7, 1, 6, 5, 2, 4] {
            requested += reader.read((eight * 8 + part) * READ as u64, READ).len();
        }
    }
    assert!(requested > 64, "{requested}");
    assert_eq!(reader.readahead.streams.len(), 1);
}

#[test]
fn streams_of_one_image_and_of_several_share_the_budget() {
    let budget = Budget::new(60);
    let mut one = Reader::sharing(100_000, &budget);
    let mut two = Reader::sharing(100_000, &budget);
    for block in 0..400 {
        one.scan([block, 50_000 + block]);
        two.now = one.now;
        two.scan([block]);
    }
    for ahead in [
        &one.readahead.streams[0],
        &one.readahead.streams[1],
        &two.readahead.streams[0],
    ] {
        assert_eq!(ahead.ahead.requested.len(), 20);
    }
    // Those that ended leave their part.
    two.now += 2 * ACTIVE;
    two.scan(400..600);
    assert_eq!(two.readahead.streams[0].ahead.requested.len(), 60);
}

#[test]
fn random_reads_do_not_end_a_stream() {
    let mut reader = Reader::new(100_000, 64);
    let mut at = 12_345u64;
    let mut requested = reader.scan(0..5).len();
    for block in 5..200 {
        requested += reader.scan([block]).len();
        for _ in 0..20 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let random = 1000 + (at >> 16) % 99_000;
            assert_eq!(reader.read(random * BLOCK, 4096), [0u32; 0]);
        }
    }
    assert!(requested > 190, "{requested}");
}

#[test]
fn reading_the_same_again_and_again_is_no_stride() {
    for start in [0, 2] {
        let mut reader = Reader::new(1000, 64);
        for _ in 0..10 {
            reader.scan(start..start + 16);
        }
    }
}

#[test]
fn a_stride_over_a_long_hole_is_looked_at_once() {
    let mut reader = Reader::new(1 << 21, 64);
    let looked = std::cell::Cell::new(0u64);
    for n in 0..4000 {
        reader.read_around(n * READ as u64 / 2, 4096, |_| {
            looked.set(looked.get() + 1);
            true
        });
    }
    assert!(looked.get() <= 1 << 21, "{}", looked.get());
}
