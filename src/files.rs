//! Files of this program: written whole or not at all, private, and read only where they are ours.
//!
//! Another user may write into a folder that we write into (`/tmp`, a shared `/srv`). So a temporary name is random and made
//! with `O_EXCL`, nothing is opened through a link, and a state file is read only if it is a regular file of our own user that
//! no other user can write.

mod machine;
mod own;
mod sparse;
mod temporary;

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Deserialize, Serialize};

pub(crate) use machine::{host_name, machine_id, user_name};
pub(crate) use own::{OwnFile, create_ours, open_lock, open_ours, read_ours, read_own};
pub(crate) use sparse::{copy_data, data_after, punch, read_padded};
pub(crate) use temporary::{safe_parent, temporary_folder};

use crate::error::{Error, Kind, Result};

/// The largest state file that is read whole: a checkpoint of 64 TiB is three bitmaps of 16 MiB.
pub(crate) const STATE_LIMIT: u64 = 128 << 20;

/// A file that appears under its name whole or not at all. If it is dropped before [`AtomicFile::commit`], it is removed.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    path: PathBuf,
    temporary: PathBuf,
    out: BufWriter<File>,
    is_committed: bool,
}

impl AtomicFile {
    /// Begins a file of mode 0600 beside `path`. What is at `path` may be nothing or a regular file, not a link: a device, a
    /// FIFO or a link is never replaced.
    ///
    /// # Errors
    /// `Invalid` when something else than a regular file is at `path`; the system's error.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        refuse_special(path)?;
        let temporary = with_ending(path, &format!(".{:016x}.tmp", fastrand::u64(..)));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&temporary)
            .map_err(|error| match error.kind() {
                // The error is about the folder: the file itself is not missing.
                io::ErrorKind::NotFound => {
                    let what = format!("cannot write {}", path.display());
                    Error::with_source(Kind::Io, what, error)
                }
                _ => Error::of_file(path, "cannot write", error),
            })?;
        Ok(Self {
            path: path.to_owned(),
            temporary,
            out: BufWriter::new(file),
            is_committed: false,
        })
    }

    /// The same file for all users to read.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn readable_by_all(self) -> Result<Self> {
        let mode = Permissions::from_mode(0o644);
        let set = self.out.get_ref().set_permissions(mode);
        set.map_err(|error| Error::of_file(&self.path, "cannot write", error))?;
        Ok(self)
    }

    /// The same file for its owner to read, and for no user to write.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn read_only(self) -> Result<Self> {
        let mode = Permissions::from_mode(0o400);
        let set = self.out.get_ref().set_permissions(mode);
        set.map_err(|error| Error::of_file(&self.path, "cannot write", error))?;
        Ok(self)
    }

    /// Flushes the bytes, renames the file and flushes the folder: bytes and name survive a crash when this returns.
    ///
    /// # Errors
    /// The system's error: then the old file remains.
    pub(crate) fn commit(mut self) -> Result<()> {
        let failed = |error| Error::of_file(&self.path, "cannot write", error);
        self.out.flush().map_err(failed)?;
        self.out.get_ref().sync_all().map_err(failed)?;
        refuse_special(&self.path)?;
        std::fs::rename(&self.temporary, &self.path).map_err(failed)?;
        self.is_committed = true;
        sync_folder(&self.path).map_err(failed)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.is_committed {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Refuses a path where a rename would replace a device node, a FIFO or a link.
///
/// # Errors
/// `Invalid` when something else than a regular file is at `path`.
pub(crate) fn refuse_special(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => {
            let what = format!(
                "cannot write {}: it is not a regular file, and is not replaced",
                path.display()
            );
            Err(Error::new(Kind::Invalid, what))
        }
        _ => Ok(()),
    }
}

/// What a person named for output: a regular file that appears whole or not at all, or something else that is written into and
/// never replaced, such as `/dev/stdout`, `/dev/null` or a FIFO.
#[derive(Debug)]
pub(crate) enum OutputFile {
    /// A regular file, or none yet; a link is followed.
    Atomic(AtomicFile),
    /// A FIFO or a character device.
    Special(PathBuf, File),
}

impl OutputFile {
    /// Begins the output. A FIFO that nothing reads is an error: it would hold up the program.
    ///
    /// # Errors
    /// `Invalid` for a block device, a folder, a socket or a link that leads nowhere; the system's error.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let refused = |what: &str| {
            let what = format!("cannot write {}: {what}", path.display());
            Err(Error::new(Kind::Invalid, what))
        };
        let kind = match std::fs::metadata(path) {
            Ok(found) => found.file_type(),
            Err(_) if path.is_symlink() => return refused("it is a link that leads nowhere"),
            Err(_) => return AtomicFile::create(path).map(Self::Atomic),
        };
        if kind.is_file() {
            let path = path
                .canonicalize()
                .map_err(|error| Error::of_file(path, "cannot find", error))?;
            return AtomicFile::create(&path).map(Self::Atomic);
        }
        if !kind.is_fifo() && !kind.is_char_device() {
            return refused("it is neither a file nor a FIFO nor a character device");
        }
        let failed = |error| Error::of_file(path, "cannot write", error);
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(failed)?;
        // Opened without waiting for a reader; written with waiting.
        let flags = OFlag::from_bits_truncate(
            fcntl(&file, FcntlArg::F_GETFL).map_err(|errno| failed(errno.into()))?,
        );
        fcntl(
            &file,
            FcntlArg::F_SETFL(flags.difference(OFlag::O_NONBLOCK)),
        )
        .map_err(|errno| failed(errno.into()))?;
        Ok(Self::Special(path.to_owned(), file))
    }

    /// Ends the output: a regular file gets its name.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn commit(self) -> Result<()> {
        match self {
            Self::Atomic(file) => file.commit(),
            Self::Special(path, mut file) => file
                .flush()
                .map_err(|error| Error::of_file(&path, "cannot write", error)),
        }
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Atomic(file) => file.write(bytes),
            Self::Special(_, file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Atomic(file) => file.flush(),
            Self::Special(_, file) => file.flush(),
        }
    }
}

/// Replaces a file whole or not at all; the new one survives a crash when this returns.
///
/// # Errors
/// As for [`AtomicFile`].
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)
        .map_err(|error| Error::of_file(path, "cannot write", error))?;
    file.commit()
}

/// The directory for state files: that of EBSFS_STATE_DIR, else `/var/lib/ebsfs` for root, else `ebsfs` in the user's XDG
/// state directory.
pub(crate) fn default_state_dir() -> PathBuf {
    let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(named) = of("EBSFS_STATE_DIR") {
        return named.into();
    }
    if nix::unistd::geteuid().is_root() {
        return "/var/lib/ebsfs".into();
    }
    // A relative path is to be ignored (XDG base directory specification).
    let state = of("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.filter(|path| path.is_absolute());
    let home = || PathBuf::from(of("HOME").unwrap_or_else(|| "/tmp".into())).join(".local/state");
    state.unwrap_or_else(home).join("ebsfs")
}

/// Filesystems whose change time nothing but their own clock sets, in parts of a second: ext2/3/4, XFS, btrfs, tmpfs, F2FS, bcachefs,
/// ZFS, overlayfs, NFS (linux/magic.h, statfs(2)). FAT, exFAT and FUSE have a coarse one, or one that touch(1) sets back.
const FINE_TIMES: [i64; 9] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0x0102_1994,
    0xf2f5_2010,
    0xca45_1a4e,
    0x2fc1_2fc1,
    0x794c_7630,
    0x6969,
];

/// What the filesystem reports about a file's last change. The device number is not part of it: it changes with each mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMark {
    /// Number of the inode.
    pub(crate) inode: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// Last write, nanoseconds since 1970. A user who may write the file can set it back.
    pub(crate) modified_ns: i64,
    /// Last change of data or metadata, nanoseconds since 1970; nothing but the kernel's clock sets it.
    pub(crate) changed_ns: i64,
    /// Birth, nanoseconds since 1970; none where the filesystem does not keep it.
    pub(crate) born_ns: Option<i64>,
}

impl FileMark {
    /// The mark of an open file.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        Ok(Self::from(&file.metadata()?))
    }

    /// Whether an equal mark later proves that nothing wrote the file in between. Not where its change time is a whole second: ext4
    /// with inodes of 128 bytes keeps no more, and a second is long.
    pub(crate) fn proves_at(&self, path: &Path) -> bool {
        let kind = nix::sys::statfs::statfs(path).map(|found| found.filesystem_type().0);
        self.changed_ns % 1_000_000_000 != 0 && kind.is_ok_and(|kind| FINE_TIMES.contains(&kind))
    }

    /// The mark of a file once what is in the page cache is on disk: a write through a memory map shows no earlier.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn flushed(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        file.sync_all()?;
        Self::of(&file)
    }
}

impl From<&Metadata> for FileMark {
    fn from(metadata: &Metadata) -> Self {
        let ns =
            |seconds: i64, part: i64| seconds.saturating_mul(1_000_000_000).saturating_add(part);
        let born = metadata.created().ok();
        let since = born.and_then(|born: SystemTime| born.duration_since(UNIX_EPOCH).ok());
        Self {
            inode: metadata.ino(),
            size: metadata.len(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
            born_ns: since.and_then(|since| i64::try_from(since.as_nanos()).ok()),
        }
    }
}

/// The folder that a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    let folder = path.parent();
    let named = folder.filter(|folder| !folder.as_os_str().is_empty());
    named.unwrap_or(Path::new("."))
}

/// A file's path with `ending` behind its name: what belongs to the file and lies beside it.
pub(crate) fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Makes the folder of a file and its missing parents, for their owner alone. Existing folders stay unchanged.
///
/// # Errors
/// The system's error.
pub(crate) fn make_folder_of(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| Error::of_file(folder, "cannot make", error))
}

/// Flushes the folder of a file: files that were made, renamed or removed there stay so after a crash.
///
/// # Errors
/// The system's error.
pub(crate) fn sync_folder(path: &Path) -> std::io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// Removes a file, if it is there.
///
/// # Errors
/// The system's error.
pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::of_file(path, "cannot remove", error))
        }
        _ => Ok(()),
    }
}

/// Runs blocking work on a thread for blocking work.
///
/// # Errors
/// The error of `work`; `Io` when the work panicked or the runtime shuts down.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::with_source(Kind::Io, "cannot finish a task", error))?
}

#[cfg(test)]
mod tests;
