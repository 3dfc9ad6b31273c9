//! [`Locks`]: at most one run for each target, from before the target is observed until its mark is recorded. A dry run takes none.
//! [`overlaps`]: whether source and target share bytes.
//!
//! A run locks a target twice: by name, with a lock file beside its state, and by object, with flock(2) on its inode or disk.
//! So two names of one object exclude each other. udev takes the same lock and leaves a locked disk alone.

use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use nix::sys::stat::{major, minor};
use parking_lot::Mutex;

use crate::error::{Error, Kind, Remedy, Result};
use crate::files::{folder_of, make_folder_of, open_lock};
use crate::sysfs::{BlockDevice, Sysfs};
use crate::target::{LockPath, Stop};

/// Deadline for a lock: udev holds one while it probes a disk.
const DEADLINE: Duration = Duration::from_secs(3);

/// Deadline for the lock of a disk while another run writes a sibling partition.
const SIBLING_DEADLINE: Duration = Duration::from_secs(60);

/// Pause between two attempts to take a lock.
const PAUSE: Duration = Duration::from_millis(100);

/// The reason when two targets of a run are one object.
const TWICE: &str = "two targets of this run are on it";

/// Attempts to open a lock file that an ending run removes at the same moment.
const NAME_ATTEMPTS: usize = 100;

/// Every lock that this process holds on an object: flock(2) would refuse itself.
static HELD: LazyLock<Mutex<HashMap<LockedObject, Weak<HeldLock>>>> = LazyLock::new(Mutex::default);

/// The locks of one target, held while this lives.
#[derive(Debug)]
pub(crate) struct Locks {
    _name: Option<NameLock>,
    _objects: Vec<Arc<HeldLock>>,
}

impl Locks {
    /// Creates and locks the file `name`, then takes the locks on `others`, in this order. It blocks its thread; the deadline
    /// of each lock depends on [`LockPath::waits`].
    ///
    /// # Errors
    /// `Busy` when another run has one of them; `Invalid` when another target of this run is the same object; `Stopped`; what
    /// the system says.
    pub(crate) fn take(name: &Path, others: &[LockPath], stop: &Stop) -> Result<Self> {
        Self::take_with(Some(NameLock::take(name)?), others, stop)
    }

    /// The same for a reader: where no lock file can be made, no run can write the target's state either, and the
    /// locks on `others` are enough.
    ///
    /// # Errors
    /// As for [`Locks::take`].
    pub(crate) fn take_to_read(name: &Path, others: &[LockPath], stop: &Stop) -> Result<Self> {
        let name = match make_folder_of(name).and_then(|()| NameLock::take(name)) {
            Ok(name) => Some(name),
            Err(error) if is_not_writable(&error) => None,
            Err(error) => return Err(error),
        };
        Self::take_with(name, others, stop)
    }

    fn take_with(name: Option<NameLock>, others: &[LockPath], stop: &Stop) -> Result<Self> {
        let deadline = |lock: &LockPath| match lock.waits {
            true => SIBLING_DEADLINE,
            false => DEADLINE,
        };
        let held = others.iter();
        let held: Result<Vec<_>> = held
            .map(|other| HeldLock::take(other, deadline(other), stop))
            .collect();
        Ok(Self {
            _name: name,
            _objects: held?,
        })
    }
}

/// A lock file, removed at the end.
#[derive(Debug)]
struct NameLock {
    path: PathBuf,
    _file: File,
}

impl NameLock {
    fn take(path: &Path) -> Result<Self> {
        let failed = |error| Error::of_file(path, "cannot lock", error);
        for _ in 0..NAME_ATTEMPTS {
            let file = open_lock(path).map_err(failed)?;
            if !try_lock(&file).map_err(failed)? {
                return Err(busy(path, &file));
            }
            // The run that had it before may have removed the file that was opened here.
            let (held, named) = (file.metadata().map_err(failed)?, path.symlink_metadata());
            if named.is_ok_and(|named| LockedObject::of(&named) == LockedObject::of(&held)) {
                return Ok(Self {
                    path: path.to_owned(),
                    _file: file,
                });
            }
        }
        let what = format!(
            "cannot lock {}: it is replaced again and again",
            path.display()
        );
        Err(Error::new(Kind::Busy, what).with_remedy(Remedy::TryLater))
    }
}

impl Drop for NameLock {
    fn drop(&mut self) {
        // Removed while still locked: a run that has opened it sees that the name is no longer this file's.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether a file cannot be made because its folder is another user's or on a read-only filesystem.
fn is_not_writable(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    let is_read_only =
        source.is_some_and(|e: &std::io::Error| e.kind() == std::io::ErrorKind::ReadOnlyFilesystem);
    is_read_only || error.kind() == Kind::Denied
}

/// What a lock is on, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum LockedObject {
    /// A file: its filesystem and its inode.
    File(u64, u64),
    /// A block device, which several nodes may name.
    Device(u64),
}

impl LockedObject {
    fn of(metadata: &Metadata) -> Self {
        if metadata.file_type().is_block_device() {
            return Self::Device(metadata.rdev());
        }
        Self::File(metadata.dev(), metadata.ino())
    }
}

/// A lock on an object, which sibling partitions share.
#[derive(Debug)]
struct HeldLock {
    path: PathBuf,
    /// Whether other targets of this process may have it too.
    is_shared: bool,
    _file: File,
}

impl HeldLock {
    fn take(lock: &LockPath, deadline: Duration, stop: &Stop) -> Result<Arc<Self>> {
        let failed = |error| Error::of_file(&lock.path, "cannot lock", error);
        let began = Instant::now();
        loop {
            let file = open(&lock.path, false).map_err(failed)?;
            if let Some(held) = Self::try_take(lock, file).map_err(failed)? {
                return held;
            }
            if began.elapsed() >= deadline {
                return Err(busy(&lock.path, &open(&lock.path, false).map_err(failed)?));
            }
            stop.check()?;
            std::thread::sleep(PAUSE);
        }
    }

    /// One attempt; none when another process has it.
    fn try_take(lock: &LockPath, file: File) -> std::io::Result<Option<Result<Arc<Self>>>> {
        let object = LockedObject::of(&file.metadata()?);
        let mut table = HELD.lock();
        table.retain(|_, held| held.strong_count() > 0);
        if let Some(held) = table.get(&object).and_then(Weak::upgrade) {
            if held.is_shared && lock.waits {
                return Ok(Some(Ok(held)));
            }
            let (one, two) = (lock.path.display(), held.path.display());
            let what = match one.to_string() == two.to_string() {
                true => format!("cannot lock {one}: {TWICE}"),
                false => format!("cannot lock {one}: it and {two} are one target"),
            };
            return Ok(Some(Err(Error::new(Kind::Invalid, what))));
        }
        let file = match try_lock(&file) {
            Ok(true) => file,
            Ok(false) => return Ok(None),
            // NFS takes an exclusive lock only of a file that is open for writing (flock(2)).
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
                let file = open(&lock.path, true)?;
                if !try_lock(&file)? {
                    return Ok(None);
                }
                file
            }
            Err(error) => return Err(error),
        };
        // The path was renamed over meanwhile: the next attempt locks the new object.
        let is_it = |found: Metadata| LockedObject::of(&found) == object;
        if !is_it(file.metadata()?) || !is_it(std::fs::metadata(&lock.path)?) {
            return Ok(None);
        }
        let held = Arc::new(Self {
            path: lock.path.clone(),
            is_shared: lock.waits,
            _file: file,
        });
        table.insert(object, Arc::downgrade(&held));
        Ok(Some(Ok(held)))
    }
}

fn open(path: &Path, write: bool) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

fn try_lock(file: &File) -> std::io::Result<bool> {
    loop {
        return match file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Interrupted => {
                continue;
            }
            Err(TryLockError::Error(error)) => Err(error),
        };
    }
}

/// The error of a lock that another process, or another target of this run, holds.
fn busy(path: &Path, file: &File) -> Error {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let metadata = file.metadata().ok();
    let pid = metadata.and_then(|found| locked_by(&locks, found.dev(), found.ino()));
    let by = match pid {
        Some(pid) if pid == std::process::id() => {
            let what = format!("cannot lock {}: {TWICE}", path.display());
            return Error::new(Kind::Invalid, what);
        }
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    };
    let what = format!("cannot lock {}: {by} has it locked", path.display());
    Error::new(Kind::Busy, what).with_remedy(Remedy::TryLater)
}

/// The process that has an inode locked with flock(2), by `/proc/locks` (proc_locks(5)); none where that does not tell.
fn locked_by(locks: &str, dev: u64, inode: u64) -> Option<u32> {
    let wanted = format!("{:02x}:{:02x}:{inode}", major(dev), minor(dev));
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        // A waiting process has an arrow in front: it holds no lock.
        let is_flock = fields.next() == Some("FLOCK");
        let pid = fields.nth(2)?.parse().ok()?;
        (is_flock && fields.next() == Some(&wanted) && pid > 0).then_some(pid)
    })
}

/// Whether two paths share bytes: one file or device, a disk and its partition, a loop device or a device-mapper volume and
/// what it is made of, a file and the device that its filesystem is on. `a` or `b` may be a file that is not there yet.
///
/// # Errors
/// The system's error.
pub(crate) fn overlaps(a: &Path, b: &Path) -> Result<bool> {
    let sysfs = Sysfs::system();
    let (a, b) = (Layers::of(&sysfs, a)?, Layers::of(&sysfs, b)?);
    // Two loop devices over one file, whatever part of it they show.
    let are_twins = a.backing.is_some() && a.backing == b.backing && a.disk != b.disk;
    Ok(are_twins || a.is_within(&b) || b.is_within(&a))
}

/// A file or device, and what it lies on.
#[derive(Debug, Default)]
struct Layers {
    itself: Option<Layer>,
    below: Vec<Layer>,
    /// Of a loop device and its partitions: the disk, and its backing file.
    disk: Option<BlockDevice>,
    backing: Option<Layer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Layer {
    File(u64, u64),
    Device(BlockDevice),
}

impl Layers {
    fn of(sysfs: &Sysfs, path: &Path) -> Result<Self> {
        let failed = |error| Error::of_file(path, "cannot look at", error);
        let mut layers = Self::default();
        match std::fs::metadata(path) {
            Ok(found) => {
                layers.itself = Layer::of(sysfs, &found);
                if let Some(Layer::Device(node)) = &layers.itself {
                    let backing = node
                        .backing_file()
                        .and_then(|file| std::fs::metadata(file).ok());
                    layers.backing = backing.and_then(|found| Layer::of(sysfs, &found));
                    layers.disk = Some(node.disk());
                }
                layers.add_below(sysfs, &found);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let folder = std::fs::metadata(folder_of(path)).map_err(failed)?;
                layers.add_below(sysfs, &folder);
            }
            Err(error) => return Err(failed(error)),
        }
        Ok(layers)
    }

    /// What a file or device lies on, down to the disks.
    fn add_below(&mut self, sysfs: &Sysfs, found: &Metadata) {
        let node = match found.file_type().is_block_device() {
            true => sysfs.node(found.rdev()),
            // The device of the filesystem that it is on; none for btrfs and others, which have a number of their own.
            false => sysfs.node(found.dev()),
        };
        let Some(node) = node else {
            return;
        };
        for part in node.parts().into_iter().chain(node.disk().parts()) {
            self.add_node(sysfs, part);
        }
        self.add_node(sysfs, node);
    }

    fn add_node(&mut self, sysfs: &Sysfs, node: BlockDevice) {
        let (parts, backing) = (node.parts(), node.backing_file());
        let layer = Layer::Device(node);
        if self.below.contains(&layer) {
            return;
        }
        self.below.push(layer);
        for part in parts {
            self.add_node(sysfs, part);
        }
        if let Some(backing) = backing
            && let Ok(found) = std::fs::metadata(backing)
        {
            self.below.extend(Layer::of(sysfs, &found));
            self.add_below(sysfs, &found);
        }
    }

    /// Whether it lies on the other one.
    fn is_within(&self, other: &Self) -> bool {
        let Some(other) = &other.itself else {
            return false;
        };
        let all = self.itself.iter().chain(&self.below);
        all.into_iter().any(|layer| layer.shares(other))
    }
}

impl Layer {
    fn of(sysfs: &Sysfs, found: &Metadata) -> Option<Self> {
        match LockedObject::of(found) {
            LockedObject::File(dev, inode) => Some(Self::File(dev, inode)),
            LockedObject::Device(rdev) => sysfs.node(rdev).map(Self::Device),
        }
    }

    fn shares(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Device(a), Self::Device(b)) => a.overlaps(b),
            (a, b) => a == b,
        }
    }
}

#[cfg(test)]
mod tests;
