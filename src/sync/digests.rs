//! The SHA-256 of every block that a run fetched, in a file beside its checkpoint: 32 bytes a block at 32 times its index. In
//! memory they would be 4 GiB at 64 TiB.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::block::{BlockIndex, Change, Delta, Digest, Extent};
use crate::disk::{remove_if_there, with_ending};
use crate::error::{Error, Kind, Result};

/// Digests read at once: 32 KiB.
const AT_ONCE: u32 = 1024;
/// In place of a digest: the block was fetched and is all zeroes. No SHA-256 that anybody has found.
const ZEROES: Digest = [0xff; 32];
/// What was never written.
const ABSENT: Digest = [0; 32];

/// The digests of blocks, by their index.
#[derive(Clone, Debug)]
pub struct Digests {
    file: Arc<File>,
    path: Arc<Path>,
}

impl Digests {
    /// Those that go with a checkpoint, made if there are none.
    pub(super) fn create(checkpoint: &Path) -> Result<Self> {
        Self::open_with(checkpoint, OpenOptions::new().create(true))
    }

    /// Those that go with a checkpoint.
    pub(super) fn open(checkpoint: &Path) -> Result<Self> {
        Self::open_with(checkpoint, &mut OpenOptions::new())
    }

    pub(super) fn remove(checkpoint: &Path) -> Result<()> {
        remove_if_there(&path_of(checkpoint))
    }

    fn open_with(checkpoint: &Path, options: &mut OpenOptions) -> Result<Self> {
        let path = path_of(checkpoint);
        let options = options.read(true).write(true).mode(0o600);
        let file = options.custom_flags(libc::O_NOFOLLOW).open(&path);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let what = format!(
                    "{} is missing: --restart syncs from the start",
                    path.display()
                );
                Error::new(Kind::Corrupt, what)
            }
            _ => Error::of_file(&path, "cannot open", error),
        })?;
        Ok(Self {
            file: Arc::new(file),
            path: path.into(),
        })
    }

    /// Writes digests, none for zeroes, and waits until they survive a crash.
    ///
    /// # Errors
    /// `Io` or `NoSpace`.
    pub fn write(&self, digests: &[(BlockIndex, Option<Digest>)]) -> Result<()> {
        let write = || {
            for (index, digest) in digests {
                let digest = digest.as_ref().unwrap_or(&ZEROES);
                self.file.write_all_at(digest, offset(*index))?;
            }
            self.file.sync_data()
        };
        write().map_err(|error| Error::of_file(&self.path, "cannot write", error))
    }

    /// The digest of one block that is done; none for zeroes.
    pub(super) fn read_one(&self, index: BlockIndex) -> Result<Option<Digest>> {
        let digest = read(&self.file, Extent::of(index)).pop();
        known(index, digest)
    }

    /// Every block of a plan, by index, with its digest; none for zeroes. `Corrupt` for one that has none: then nobody
    /// knows what was written.
    pub(super) fn of(
        &self,
        plan: Arc<Delta>,
    ) -> impl Iterator<Item = Result<(BlockIndex, Option<Digest>)>> + Send + use<> {
        let file = Arc::clone(&self.file);
        let mut at = Some(BlockIndex(0));
        let pieces = std::iter::from_fn(move || {
            let (run, change) = plan.next_run(at?)?;
            let most = BlockIndex(run.start().0.saturating_add(AT_ONCE));
            let end = run.end().min(most);
            at = Some(end);
            Some((Extent::new(run.start(), end)?, change))
        });
        pieces.flat_map(move |(extent, change)| {
            let digests = match change {
                Change::Zero => Vec::new(),
                Change::Write => read(&file, extent),
            };
            let mut digests = digests.into_iter();
            extent.blocks().map(move |index| match change {
                Change::Zero => Ok((index, None)),
                Change::Write => known(index, digests.next()).map(|digest| (index, digest)),
            })
        })
    }
}

/// The digests of a run, as far as there are any.
fn read(file: &File, extent: Extent) -> Vec<Digest> {
    let mut bytes = vec![0; extent.count() as usize * size_of::<Digest>()];
    let mut read = 0;
    while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset(extent.start()) + read as u64) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
            Ok(more) => read += more,
        }
    }
    bytes.truncate(read);
    bytes.as_chunks().0.to_vec()
}

/// What the file says of a block that is done.
fn known(index: BlockIndex, digest: Option<Digest>) -> Result<Option<Digest>> {
    match digest {
        None | Some(ABSENT) => Err(missing(index)),
        Some(ZEROES) => Ok(None),
        digest => Ok(digest),
    }
}

fn missing(index: BlockIndex) -> Error {
    let what =
        format!("the digest of block {index} is missing: sync it from the start (--restart)");
    Error::new(Kind::Corrupt, what)
}

fn offset(index: BlockIndex) -> u64 {
    u64::from(index.0) * size_of::<Digest>() as u64
}

fn path_of(checkpoint: &Path) -> PathBuf {
    with_ending(checkpoint, "-digests")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Geometry;

    #[test]
    fn digests_come_back_by_index_and_a_missing_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint");
        assert_eq!(Digests::open(&path).unwrap_err().kind(), Kind::Corrupt);
        let digests = Digests::create(&path).unwrap();
        let mut plan = Delta::new(None, Geometry::new(2 << 30).unwrap());
        let mut written = Vec::new();
        for index in (0..3000).map(BlockIndex) {
            plan.insert(index, Change::Write);
            let mut digest = [1; 32];
            digest[..4].copy_from_slice(&index.0.to_le_bytes());
            written.push((index, (index.0 % 7 != 0).then_some(digest)));
        }
        plan.insert(BlockIndex(3500), Change::Zero);
        digests.write(&written).unwrap();
        written.push((BlockIndex(3500), None));
        let read: Result<Vec<_>> = digests.of(Arc::new(plan.clone())).collect();
        assert!(read.unwrap() == written);
        for absent in [3001, 3600] {
            let mut plan = plan.clone();
            plan.insert(BlockIndex(absent), Change::Write);
            let read: Result<Vec<_>> = Digests::open(&path).unwrap().of(Arc::new(plan)).collect();
            assert_eq!(read.unwrap_err().kind(), Kind::Corrupt);
        }
    }
}
