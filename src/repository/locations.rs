//! [`Locations`]: where a run has put its blocks so far. One file has 16 bytes for each block at 16 times its index, another one
//! 36 bytes for each pack's name. In memory they would be 2 GiB at 64 TiB. Each entry has a checksum, since
//! the published segments are made from them.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::pack::{Name, Spot};
use crate::block::{BlockIndex, Digest};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::{create_ours, folder_of, open_ours, remove_if_there, with_ending};

/// Bytes of a block: pack, offset, length, and their checksum.
const ENTRY: usize = 12 + PROOF;
/// Bytes of a pack: its name and its checksum.
const PACK: usize = 32 + PROOF;
const PROOF: usize = 4;
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

const ENDINGS: [&str; 2] = ["-locations", "-packs"];

fn paths(path: &Path) -> [PathBuf; 2] {
    ENDINGS.map(|ending| with_ending(path, ending))
}

impl Locations {
    /// Those of a run whose files begin with `path`; empty ones where `is_new`.
    ///
    /// # Errors
    /// `Corrupt` when there should be some and there are none that are ours; the system's error.
    pub(super) fn open(path: &Path, is_new: bool) -> Result<Self> {
        let open = |path: PathBuf| -> Result<(PathBuf, File)> {
            let file = match is_new {
                true => create_ours(&path)?,
                false => open_ours(&path, true)?.ok_or_else(|| {
                    let what = format!("cannot resume the run: {} is missing", path.display());
                    Error::new(Kind::Corrupt, what).with_remedy(Remedy::Restart)
                })?,
            };
            Ok((path, file))
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

    /// Removes those of every run whose files begin with `stem`.
    pub(super) fn remove_all(stem: &Path) -> Result<()> {
        let folder = folder_of(stem);
        let entries = match std::fs::read_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|error| Error::of_file(folder, "cannot list", error))?,
        };
        let Some(first) = stem.file_name().map(OsStrExt::as_bytes) else {
            return Ok(());
        };
        for entry in entries {
            let entry = entry.map_err(|error| Error::of_file(folder, "cannot list", error))?;
            let name = entry.file_name();
            let mut endings = ENDINGS.iter();
            let is_its = endings.any(|ending| name.as_bytes().ends_with(ending.as_bytes()));
            if is_its && name.as_bytes().starts_with(first) {
                remove_if_there(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Notes where a block of this digest is.
    pub(super) fn note(
        &self,
        index: BlockIndex,
        digest: &Digest,
        location: Location,
    ) -> Result<()> {
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
        let numbers = [pack, spot.offset, spot.length].map(u32::to_le_bytes);
        let proof = proof(index.0, digest, numbers.as_flattened());
        let entry = [numbers.as_flattened(), &proof].concat();
        let (path, file) = &self.spots;
        file.write_all_at(&entry, u64::from(index.0) * ENTRY as u64)
            .map_err(|error| Error::of_file(path, "cannot write", error))
    }

    /// Notes the name of a pack.
    pub(super) fn name(&self, pack: u32, name: &Name) -> Result<()> {
        let (path, file) = &self.packs;
        let entry = [&name[..], &proof(pack, name, &[])].concat();
        file.write_all_at(&entry, u64::from(pack) * PACK as u64)
            .map_err(|error| Error::of_file(path, "cannot write", error))
    }

    /// Flushes: the locations noted so far survive a crash.
    pub(super) fn flush(&self) -> Result<()> {
        for (path, file) in [&self.spots, &self.packs] {
            file.sync_data()
                .map_err(|error| Error::of_file(path, "cannot flush", error))?;
        }
        Ok(())
    }

    /// Where a block of this digest is. Every block that is done has a location.
    ///
    /// # Errors
    /// `Corrupt` when it has none, or not this one.
    pub(super) fn of(&self, index: BlockIndex, digest: &Digest) -> Result<Location> {
        let mut entry = [0; ENTRY];
        let (path, file) = &self.spots;
        let lost = |error| Error::of_file(path, "cannot read", error);
        file.read_exact_at(&mut entry, u64::from(index.0) * ENTRY as u64)
            .map_err(lost)?;
        let (numbers, proven) = entry.split_at(ENTRY - PROOF);
        if proven != proof(index.0, digest, numbers) {
            return Err(damaged(path));
        }
        let numbers = numbers.as_chunks::<4>().0.iter();
        let mut numbers = numbers.map(|bytes| u32::from_le_bytes(*bytes));
        let mut next = || numbers.next().unwrap_or(0);
        Ok(match (next(), next(), next()) {
            (AS_PARENT, ..) => Location::AsParent,
            (pack, offset, length) => Location::Pack(pack, Spot { offset, length }),
        })
    }

    /// The name of a pack.
    pub(super) fn pack(&self, pack: u32) -> Result<Name> {
        let mut entry = [0; PACK];
        let (path, file) = &self.packs;
        file.read_exact_at(&mut entry, u64::from(pack) * PACK as u64)
            .map_err(|error| Error::of_file(path, "cannot read", error))?;
        let proven = entry.split_first_chunk::<32>();
        let name = proven.filter(|(name, proven)| **proven == proof(pack, name, &[]));
        name.map(|(name, _)| *name).ok_or_else(|| damaged(path))
    }
}

/// The checksum of an entry: part of the SHA-256 of its number, the digest that it is of, and its content.
fn proof(number: u32, digest: &Digest, content: &[u8]) -> [u8; PROOF] {
    let hasher = Sha256::new().chain_update(number.to_le_bytes());
    let proof = hasher.chain_update(digest).chain_update(content).finalize();
    proof.first_chunk().copied().unwrap_or_default()
}

fn damaged(path: &Path) -> Error {
    let what = format!("cannot resume the run: {} is damaged", path.display());
    Error::new(Kind::Corrupt, what).with_remedy(Remedy::Restart)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_back_and_missing_or_damaged_ones_are_errors() {
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
        let (five, seven) = ([5; 32], [7; 32]);
        let in_pack = Location::Pack(1, spot);
        locations.note(BlockIndex(5), &five, in_pack).unwrap();
        locations
            .note(BlockIndex(7), &seven, Location::AsParent)
            .unwrap();
        locations.name(1, &[9; 32]).unwrap();
        locations.flush().unwrap();
        let again = Locations::open(&path, false).unwrap();
        assert_eq!(again.of(BlockIndex(5), &five).unwrap(), in_pack);
        assert_eq!(again.of(BlockIndex(7), &seven).unwrap(), Location::AsParent);
        assert_eq!(again.pack(1).unwrap(), [9; 32]);
        for (index, digest) in [(5, seven), (6, [0; 32]), (8, five)] {
            assert!(again.of(BlockIndex(index), &digest).is_err());
        }
        for (file, at) in [
            (&again.spots.1, 5 * ENTRY..6 * ENTRY),
            (&again.packs.1, PACK..2 * PACK),
        ] {
            for at in at {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at as u64).unwrap();
                let flipped = [byte[0] ^ 1 << fastrand::u8(..8)];
                file.write_all_at(&flipped, at as u64).unwrap();
                let found = again.of(BlockIndex(5), &five).and_then(|_| again.pack(1));
                assert_eq!(found.unwrap_err().kind(), Kind::Corrupt);
                file.write_all_at(&byte, at as u64).unwrap();
            }
        }
        std::fs::write(folder.path().join("run-other"), "").unwrap();
        Locations::remove_all(&folder.path().join("ru")).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        drop(Locations::open(&path, true).unwrap());
        Locations::remove(&path).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_of_another_user_are_not_believed_and_links_are_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        drop(Locations::open(&path, true).unwrap());
        let [spots, packs] = paths(&path);
        std::os::unix::fs::chown(&packs, Some(12345), None).unwrap();
        let error = Locations::open(&path, false).unwrap_err();
        assert_eq!(error.remedy(), Some(&Remedy::Restart));
        let elsewhere = folder.path().join("elsewhere");
        std::fs::write(&elsewhere, "mine").unwrap();
        std::fs::remove_file(&spots).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &spots).unwrap();
        assert!(Locations::open(&path, false).is_err());
        drop(Locations::open(&path, true).unwrap());
        assert_eq!(std::fs::read(&elsewhere).unwrap(), b"mine");
        assert!(std::fs::symlink_metadata(&spots).unwrap().is_file());
    }
}
