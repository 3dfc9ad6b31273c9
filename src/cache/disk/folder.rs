//! [`CacheFolder`]: the folder of a disk cache, locked for this process, and its files by number.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::slots::SlotFiles;
use crate::block::{Geometry, hexadecimal};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::{create_ours, open_lock, open_ours, punch, remove_if_there};
use crate::snapshot::SnapshotId;

/// Most snapshots whose files stay open.
pub(super) const MOST_OPEN: usize = 32;
const MOST_OPEN_FILES: NonZeroUsize = NonZeroUsize::new(MOST_OPEN).unwrap();

const BLOCKS: &str = "blocks";
const DIGESTS: &str = "digests";

/// The folder and its files.
#[derive(Debug)]
pub(super) struct CacheFolder {
    path: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
    known: Mutex<KnownFiles>,
    open: Mutex<LruCache<u32, Arc<SlotFiles>>>,
}

/// The files by number: those found at the start, the oldest first, then new ones.
#[derive(Debug, Default)]
struct KnownFiles {
    files: Vec<KnownFile>,
    numbers: HashMap<Arc<str>, u32>,
}

#[derive(Debug)]
struct KnownFile {
    name: Arc<str>,
    is_there: bool,
}

impl KnownFiles {
    fn number(&mut self, name: &str, is_there: bool) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        let name: Arc<str> = name.into();
        self.files.push(KnownFile {
            name: Arc::clone(&name),
            is_there,
        });
        self.numbers.insert(name, number);
        number
    }

    fn get(&self, number: u32) -> Option<&KnownFile> {
        self.files.get(usize::try_from(number).ok()?)
    }
}

impl CacheFolder {
    /// Makes the folder if it is absent, checks its owner and mode, and locks it.
    ///
    /// # Errors
    /// See [`super::DiskCache::open`].
    pub(super) fn open(path: &Path) -> Result<Self> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| Error::of_file(path, "cannot make", error))?;
        // The process may change its directory later.
        let path = path
            .canonicalize()
            .map_err(|error| Error::of_file(path, "cannot find", error))?;
        refuse_foreign(&path)?;
        let lock = lock(&path)?;
        let folder = Self {
            known: Mutex::new(scan(&path)?),
            path,
            _lock: lock,
            open: Mutex::new(LruCache::new(MOST_OPEN_FILES)),
        };
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The number of a snapshot's files, which may not exist yet.
    pub(super) fn number(&self, id: &SnapshotId, origin: &str) -> u32 {
        let origin = hexadecimal(&Sha256::digest(origin));
        let origin = origin.get(..16).unwrap_or_default();
        self.known.lock().number(&format!("{id}-{origin}"), false)
    }

    /// How many numbers are in use: all are below this.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.known.lock().files.len()).unwrap_or(u32::MAX)
    }

    /// Whether the files exist, without access to the disk.
    pub(super) fn has(&self, number: u32) -> bool {
        let known = self.known.lock();
        known.get(number).is_some_and(|file| file.is_there)
    }

    /// The files, if they exist.
    pub(super) fn existing(&self, number: u32) -> io::Result<Option<Arc<SlotFiles>>> {
        let name = match self.known.lock().get(number) {
            Some(file) if file.is_there => Arc::clone(&file.name),
            _ => return Ok(None),
        };
        if let Some(files) = self.open.lock().get(&number) {
            return Ok(Some(Arc::clone(files)));
        }
        let open = |ending| open_ours(&file_of(&self.path, &name, ending), true).map_err(cause);
        let (Some(blocks), Some(digests)) = (open(BLOCKS)?, open(DIGESTS)?) else {
            self.set_there(number, false);
            return Ok(None);
        };
        let files = Arc::new(SlotFiles::new(&name, blocks, digests));
        self.open.lock().put(number, Arc::clone(&files));
        Ok(Some(files))
    }

    /// The files, made if they do not exist.
    pub(super) fn make(&self, number: u32, geometry: Geometry) -> io::Result<Arc<SlotFiles>> {
        if let Some(files) = self.existing(number)? {
            return Ok(files);
        }
        let name = match self.known.lock().get(number) {
            Some(file) => Arc::clone(&file.name),
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        let create = |ending| create_ours(&file_of(&self.path, &name, ending)).map_err(cause);
        // The digests first: old digests must never meet new blocks.
        let digests = create(DIGESTS)?;
        let blocks = create(BLOCKS)?;
        // XFS allocates ahead of a file that grows. Some filesystems have no file of this size: then it grows.
        let _ = blocks.set_len(geometry.size());
        let files = Arc::new(SlotFiles::new(&name, blocks, digests));
        self.open.lock().put(number, Arc::clone(&files));
        self.set_there(number, true);
        Ok(files)
    }

    fn set_there(&self, number: u32, is_there: bool) {
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        if let Some(file) = self.known.lock().files.get_mut(at) {
            file.is_there = is_there;
        }
    }
}

fn file_of(folder: &Path, name: &str, ending: &str) -> PathBuf {
    folder.join(format!("{name}.{ending}"))
}

/// The system's error that a crate error holds.
fn cause(error: Error) -> io::Error {
    let source = std::error::Error::source(&error);
    let system = source.and_then(|source| source.downcast_ref::<io::Error>());
    match system.and_then(io::Error::raw_os_error) {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(error),
    }
}

/// Refuses a folder where another user could put or replace files.
fn refuse_foreign(path: &Path) -> Result<()> {
    let found = path
        .metadata()
        .map_err(|error| Error::of_file(path, "cannot look at", error))?;
    let why = if !found.is_dir() {
        "it is not a folder"
    } else if found.uid() != nix::unistd::geteuid().as_raw() {
        "it belongs to another user"
    } else if found.mode() & 0o022 != 0 {
        "other users can write it"
    } else {
        return Ok(());
    };
    let what = format!("cannot keep blocks in {}: {why}", path.display());
    Err(Error::new(Kind::Invalid, what))
}

/// Locks the folder for this process, and checks that its filesystem can free a part of a file.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let failed = |error| Error::of_file(&path, "cannot lock", error);
    let file = open_lock(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let what = format!(
                "cannot use the block cache in {}: another process uses it",
                folder.display()
            );
            let remedy = Remedy::Do("End that process or name another folder.".into());
            return Err(Error::new(Kind::Busy, what).with_remedy(remedy));
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    if !punch(&file, 0, 4096).map_err(failed)? {
        let what = format!(
            "cannot keep blocks in {}: its filesystem cannot free a part of a file (FALLOC_FL_PUNCH_HOLE)",
            folder.display()
        );
        return Err(Error::new(Kind::Invalid, what));
    }
    Ok(file)
}

/// The files of earlier runs, those written last at the end. Files without blocks, and one without the other, are removed.
fn scan(folder: &Path) -> Result<KnownFiles> {
    let failed = |error| Error::of_file(folder, "cannot list", error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(name) = entry.file_name().to_str().and_then(stem).map(str::to_owned) else {
            continue;
        };
        let of = |ending| file_of(folder, &name, ending).symlink_metadata().ok();
        match (of(BLOCKS), of(DIGESTS)) {
            (Some(blocks), Some(digests)) if blocks.blocks() > 0 => {
                found.push((digests.modified().ok(), name));
            }
            _ => {
                for ending in [DIGESTS, BLOCKS] {
                    remove_if_there(&file_of(folder, &name, ending))?;
                }
            }
        }
    }
    found.sort();
    found.dedup();
    let mut known = KnownFiles::default();
    for (_, name) in found {
        known.number(&name, true);
    }
    Ok(known)
}

/// `ID-ORIGIN`, the common part of the names of a snapshot's files; `None` for any other file.
fn stem(name: &str) -> Option<&str> {
    let stem = name
        .strip_suffix(".blocks")
        .or_else(|| name.strip_suffix(".digests"))?;
    let (id, origin) = stem.rsplit_once('-')?;
    let is_ours = origin.len() == 16
        && origin.bytes().all(|b| b.is_ascii_hexdigit())
        && id.parse::<SnapshotId>().is_ok();
    is_ours.then_some(stem)
}
