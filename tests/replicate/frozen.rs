//! What a snapshot of the emulator holds, read from the emulator's folder: no program that is tested is between.

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::BLOCKS;
use crate::support::{BLOCK, Emulator, open, read_at, run};

/// Bytes of an entry of a map: index, number of the snapshot that wrote the block, SHA-256.
const ENTRY: usize = 40;

/// A snapshot of a volume.
pub struct Frozen {
    /// The blocks that it holds, and the file that has each.
    blocks: BTreeMap<u64, PathBuf>,
    /// How many of them were written since the snapshot before.
    pub changed: u64,
}

impl Frozen {
    pub fn read(emulator: &Emulator, id: &str) -> Self {
        let folder = emulator.folder.path().join("snapshots");
        let records = std::fs::read_dir(&folder).unwrap();
        let records = records.map(|entry| entry.unwrap().path());
        let mut numbers = BTreeMap::new();
        for path in records.filter(|path| path.extension().is_some_and(|end| end == "json")) {
            // The emulator may be writing the record of a snapshot that has only now been made.
            let record: Value =
                serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap_or_default();
            if let Some(number) = record["number"].as_u64() {
                numbers.insert(number, path.with_extension("raw"));
            }
        }
        let own = folder.join(format!("{id}.raw"));
        let map = std::fs::read(folder.join(format!("{id}.map"))).unwrap();
        let number = |bytes: &[u8]| u64::from(u32::from_le_bytes(bytes.try_into().unwrap()));
        let blocks: BTreeMap<u64, PathBuf> = map
            .chunks_exact(ENTRY)
            .map(|entry| (number(&entry[..4]), numbers[&number(&entry[4..8])].clone()))
            .collect();
        let changed = blocks.values().filter(|path| **path == own).count() as u64;
        Self { blocks, changed }
    }

    /// The newest snapshot of a volume: its id, and what it holds.
    pub fn newest(emulator: &Emulator, volume: &str) -> (String, Self) {
        let folder = emulator.folder.path().join("snapshots");
        let records = std::fs::read_dir(&folder).unwrap();
        let records = records.map(|entry| entry.unwrap().path());
        let records = records.filter(|path| path.extension().is_some_and(|end| end == "json"));
        let records = records.map(|path| -> Value {
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap_or_default()
        });
        let its = records.filter(|record| record["volume_id"] == volume);
        let newest = its.max_by_key(|record| record["number"].as_u64());
        let id = newest.unwrap()["id"].as_str().unwrap().to_owned();
        let frozen = Self::read(emulator, &id);
        (id, frozen)
    }

    /// Asserts that an image has exactly these bytes.
    pub fn assert_same(&self, image: &Path) {
        let differs = self.differing(image, image);
        assert!(
            differs.is_none(),
            "{} of {}",
            differs.unwrap(),
            image.display()
        );
    }

    /// Where an image differs, if it does.
    pub fn difference(&self, image: &Path) -> Option<String> {
        self.differing(image, image)
    }

    /// Where a device over a file differs, if it does. The file tells the holes; every other byte is read from the device.
    pub fn difference_of_device(&self, device: &str, file: &Path) -> Option<String> {
        // What is written and not flushed is no hole of the file after this.
        run(Command::new("blockdev").args(["--flushbufs", device]));
        self.differing(Path::new(device), file)
    }

    fn differing(&self, image: &Path, holes: &Path) -> Option<String> {
        let (mut file, holes) = (open(image), open(holes));
        let length = file.seek(SeekFrom::End(0)).unwrap();
        if length != BLOCKS * BLOCK {
            return Some(format!("the length {length}"));
        }
        let mut bytes = vec![0; BLOCK as usize];
        let zeroes = vec![0; BLOCK as usize];
        for index in 0..BLOCKS {
            let expected = self.blocks.get(&index);
            // What is a hole in both is not read.
            if expected.is_none() && is_hole(&holes, index) {
                continue;
            }
            file.read_exact_at(&mut bytes, index * BLOCK).unwrap();
            let is_same = match expected {
                Some(path) => bytes == read_at(path, index * BLOCK, BLOCK as usize),
                None => bytes == zeroes,
            };
            if !is_same {
                return Some(format!("block {index}"));
            }
        }
        None
    }
}

fn is_hole(file: &std::fs::File, index: u64) -> bool {
    let at = (index * BLOCK).cast_signed();
    let data = nix::unistd::lseek(file, at, nix::unistd::Whence::SeekData);
    data.map_or(true, |data| data.cast_unsigned() >= (index + 1) * BLOCK)
}
