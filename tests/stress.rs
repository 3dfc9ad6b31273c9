//! Many threads, random places, little memory: equal to the raw file, every time.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::thread;

use nix::unistd::{Whence, lseek};

use crate::support::*;

/// The blocks of the volume, some held, some not, in runs of many lengths.
fn is_held(block: u64) -> bool {
    block < 40 || (block / 7) % 3 == 1 || block.is_multiple_of(97)
}

#[test]
fn one_hundred_thousand_random_reads_and_seeks_by_16_threads_equal_the_raw_file() {
    const BLOCKS: u64 = 2048;
    let emulator = Emulator::start();
    let volume = emulator.make_volume(
        "vol-0a",
        BLOCKS,
        (0..BLOCKS - 9).filter(|block| is_held(*block)),
    );
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&["--memory", "16MiB", &snapshot]);
    let disk = mount.disk(&snapshot);
    let size = BLOCKS * BLOCK;
    thread::scope(|scope| {
        for thread in 0..16u64 {
            let (volume, disk) = (&volume, &disk);
            scope.spawn(move || {
                let (raw, image) = (open(volume), open(disk));
                let mut random = Random(thread + 1);
                let mut expected = vec![0; 300_000];
                let mut got = vec![0; 300_000];
                for step in 0..6250 {
                    let at = random.below(size);
                    // Mostly near each other, so that the time goes into the cache and not into fetching.
                    let at = if step % 8 == 0 { at } else { at % (24 << 20) };
                    match random.below(4) {
                        0 => same_seek(&raw, &image, at, Whence::SeekData),
                        1 => same_seek(&raw, &image, at, Whence::SeekHole),
                        _ => {
                            let len = match random.below(8) {
                                0 => 1 + random.below(300_000) as usize,
                                _ => 1 + random.below(5000) as usize,
                            };
                            let read = image.read_at(&mut got[..len], at).unwrap();
                            assert_eq!(raw.read_at(&mut expected[..len], at).unwrap(), read);
                            assert!(got[..read] == expected[..read], "{len} bytes at {at}");
                        }
                    }
                }
            });
        }
    });
    println!("{} gets", emulator.gets());
}

/// The raw file is allocated by whole blocks, so both tell the same.
fn same_seek(raw: impl AsFd, image: impl AsFd, at: u64, whence: Whence) {
    let at = i64::try_from(at).unwrap();
    assert_eq!(
        lseek(image, at, whence),
        lseek(raw, at, whence),
        "{whence:?} from {at}"
    );
}

/// Numbers that a seed repeats.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 24) % limit
    }
}
