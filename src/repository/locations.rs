//! [`Locations`]: where a run has put its blocks so far, on disk: 12 bytes a block at 12 times its index, and the names of
//! its packs beside it, 32 bytes each. In memory they would be 1.6 GiB at 64 TiB.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::pack::{Name, Spot};
use crate::block::BlockIndex;
use crate::disk::{remove_if_there, with_ending};
use crate::error::{Error, Kind, Result};

const ENTRY: usize = 12;
/// In place of a pack: the block is where the parent has it.
const AS_PARENT: u32 = u32::MAX;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Location {
    /// In the pack of this number, counted from 1.
    Pack(u32, Spot),
    /// Where the parent has it.
    AsParent,
}

/// The locations of one run.
#[derive(Debug)]
pub(super) struct Locations {
    spots: (PathBuf, File),
    packs: (PathBuf, File),
}

fn paths(path: &Path) -> [PathBuf; 2] {
    ["-locations", "-packs"].map(|ending| with_ending(path, ending))
}

impl Locations {
    /// Those of a run whose other files begin with `path`; `anew` when it has begun nothing yet.
    pub(super) fn open(path: &Path, anew: bool) -> Result<Self> {
        let open = |path: PathBuf| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(anew).truncate(anew);
            let file = options
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path);
            match file {
                Ok(file) => Ok((path, file)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let what = format!(
                        "{} is missing: --restart syncs from the start",
                        path.display()
                    );
                    Err(Error::new(Kind::Corrupt, what))
                }
                Err(error) => Err(Error::of_file(&path, "cannot open", error)),
            }
        };
        let [spots, packs] = paths(path);
        Ok(Self {
            spots: open(spots)?,
            packs: open(packs)?,
        })
    }

    /// Removes them, if there are any.
    pub(super) fn remove(path: &Path) -> Result<()> {
        paths(path)
            .iter()
            .try_for_each(|path| remove_if_there(path))
    }

    /// Notes where a block is.
    pub(super) fn note(&self, index: BlockIndex, location: Location) -> Result<()> {
        let (pack, spot) = match location {
            Location::Pack(pack, spot) => (pack, spot),
            Location::AsParent => (
                AS_PARENT,
                Spot {
                    offset: 0,
                    length: 0,
                },
            ),
        };
        let mut entry = [0; ENTRY];
        let numbers = [pack, spot.offset, spot.length];
        for (bytes, number) in entry.chunks_exact_mut(4).zip(numbers) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        let (path, file) = &self.spots;
        file.write_all_at(&entry, u64::from(index.0) * ENTRY as u64)
            .map_err(|error| Error::of_file(path, "cannot write", error))
    }

    /// Notes the name of a pack.
    pub(super) fn name(&self, pack: u32, name: &Name) -> Result<()> {
        let (path, file) = &self.packs;
        file.write_all_at(name, u64::from(pack) * 32)
            .map_err(|error| Error::of_file(path, "cannot write", error))
    }

    /// What was noted survives a crash.
    pub(super) fn flush(&self) -> Result<()> {
        for (path, file) in [&self.spots, &self.packs] {
            file.sync_data()
                .map_err(|error| Error::of_file(path, "cannot flush", error))?;
        }
        Ok(())
    }

    /// Where a block is; one that is done has its place.
    pub(super) fn of(&self, index: BlockIndex) -> Result<Location> {
        let mut entry = [0; ENTRY];
        let (path, file) = &self.spots;
        let lost = |error| Error::of_file(path, "cannot read", error);
        file.read_exact_at(&mut entry, u64::from(index.0) * ENTRY as u64)
            .map_err(lost)?;
        let mut numbers = entry
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| u32::from_le_bytes(*bytes));
        let mut next = || numbers.next().unwrap_or(0);
        match (next(), next(), next()) {
            (0, ..) => {
                let what = format!(
                    "the place of block {index} is missing: sync it from the start (--restart)"
                );
                Err(Error::new(Kind::Corrupt, what))
            }
            (AS_PARENT, ..) => Ok(Location::AsParent),
            (pack, offset, length) => Ok(Location::Pack(pack, Spot { offset, length })),
        }
    }

    /// The name of a pack.
    pub(super) fn pack(&self, pack: u32) -> Result<Name> {
        let mut name = [0; 32];
        let (path, file) = &self.packs;
        file.read_exact_at(&mut name, u64::from(pack) * 32)
            .map_err(|error| Error::of_file(path, "cannot read", error))?;
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_read_and_what_was_not_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        assert_eq!(
            Locations::open(&path, false).unwrap_err().kind(),
            Kind::Corrupt
        );
        let locations = Locations::open(&path, true).unwrap();
        let spot = Spot {
            offset: 8,
            length: 1 << 31 | 77,
        };
        locations
            .note(BlockIndex(5), Location::Pack(1, spot))
            .unwrap();
        locations.note(BlockIndex(7), Location::AsParent).unwrap();
        locations.name(1, &[9; 32]).unwrap();
        locations.flush().unwrap();
        let again = Locations::open(&path, false).unwrap();
        assert_eq!(again.of(BlockIndex(5)).unwrap(), Location::Pack(1, spot));
        assert_eq!(again.of(BlockIndex(7)).unwrap(), Location::AsParent);
        assert_eq!(again.pack(1).unwrap(), [9; 32]);
        assert_eq!(again.of(BlockIndex(6)).unwrap_err().kind(), Kind::Corrupt);
        assert!(again.of(BlockIndex(8)).is_err());
        Locations::remove(&path).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
