//! Files of this program: written whole or not at all, private, and believed only where they are ours.
//!
//! Another user may write into a folder that we write into (`/tmp`, a shared `/srv`). So a temporary name is random and made
//! with `O_EXCL`, nothing is opened through a link, and a state file is read only if it is a regular file of our own user that
//! no other user can write.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::error::{Error, Kind, Result};

/// The largest state file that is read whole: a checkpoint of 64 TiB is three bitmaps of 16 MiB.
pub const STATE_LIMIT: u64 = 128 << 20;

/// A file that appears under its name whole or not at all. Dropped before [`AtomicFile::commit`], nothing of it is left.
#[derive(Debug)]
pub struct AtomicFile {
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
    /// `Invalid` when something else than a regular file is at `path`; what the system says.
    pub fn create(path: &Path) -> Result<Self> {
        refuse_special(path)?;
        let temporary = with_ending(path, &format!(".{:016x}.tmp", fastrand::u64(..)));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&temporary)
            .map_err(|error| match error.kind() {
                // Its folder: nothing that was asked for is missing.
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

    /// Gives the file its name, once its bytes are on disk; so is the name when this returns.
    ///
    /// # Errors
    /// What the system says: then the old file stands.
    pub fn commit(mut self) -> Result<()> {
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

/// A rename would replace a device node, a FIFO or a link by a regular file.
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

/// Replaces a file whole or not at all, and for good.
///
/// # Errors
/// As for [`AtomicFile`].
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)
        .map_err(|error| Error::of_file(path, "cannot write", error))?;
    file.commit()
}

/// Opens a state file for reading, or for writing too, if it is ours: a regular file of our own user that no other user can
/// write, not a link. `None` where there is none, or, with a warning, where it is not ours.
///
/// # Errors
/// What the system says.
pub fn open_ours(path: &Path, write: bool) -> Result<Option<File>> {
    // O_NONBLOCK: a FIFO without a writer would hang here.
    let opened = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let why = match opened {
        Ok(file) => match not_ours(
            &file
                .metadata()
                .map_err(|error| Error::of_file(path, "cannot look at", error))?,
        ) {
            None => return Ok(Some(file)),
            Some(why) => why,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // O_NOFOLLOW on a link; a FIFO or socket opened for writing.
        Err(error) if [Some(libc::ELOOP), Some(libc::ENXIO)].contains(&error.raw_os_error()) => {
            "it is a link, a FIFO or a socket"
        }
        Err(error) => return Err(Error::of_file(path, "cannot open", error)),
    };
    warn!("{} is not believed: {why}", path.display());
    Ok(None)
}

/// Makes a new state file of mode 0600 for reading and writing, in place of what is at its path: another user's file or a
/// link is removed, never written to.
///
/// # Errors
/// What the system says; of a file that cannot be removed, too.
pub fn create_ours(path: &Path) -> Result<File> {
    remove_if_there(path)?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(|error| Error::of_file(path, "cannot make", error))
}

/// Why a file's contents may be those of another user; none where they are ours alone.
fn not_ours(metadata: &Metadata) -> Option<&'static str> {
    if !metadata.is_file() {
        return Some("it is not a regular file");
    }
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        return Some("it belongs to another user");
    }
    (metadata.mode() & 0o022 != 0).then_some("other users can write it")
}

/// Reads a whole state file of ours; none where [`open_ours`] opens none.
///
/// # Errors
/// `Corrupt` beyond [`STATE_LIMIT`]; what the system says.
pub fn read_ours(path: &Path) -> Result<Option<Vec<u8>>> {
    let Some(file) = open_ours(path, false)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(STATE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::of_file(path, "cannot read", error))?;
    if bytes.len() as u64 > STATE_LIMIT {
        let what = format!("{} is larger than a state file can be", path.display());
        return Err(Error::new(Kind::Corrupt, what));
    }
    Ok(Some(bytes))
}

/// The directory for state files: `/var/lib/ebsfs` for root, else `ebsfs` in the user's XDG state directory.
pub fn default_state_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/var/lib/ebsfs".into();
    }
    let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    // A relative path is to be ignored (XDG base directory specification).
    let state = of("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.filter(|path| path.is_absolute());
    let home = || PathBuf::from(of("HOME").unwrap_or_else(|| "/tmp".into())).join(".local/state");
    state.unwrap_or_else(home).join("ebsfs")
}

/// What the filesystem tells of a file's last change. Its filesystem's device number is not part of it: that is another one
/// after each mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMark {
    /// Number of the inode.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Last write, nanoseconds since 1970; anybody who may write the file can set it back.
    pub modified_ns: i64,
    /// Last change of data or metadata, nanoseconds since 1970; nothing but the kernel's clock sets it.
    pub changed_ns: i64,
    /// Birth, nanoseconds since 1970; none where the filesystem does not keep it.
    pub born_ns: Option<i64>,
}

impl FileMark {
    /// The mark of an open file.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(file: &File) -> io::Result<Self> {
        Ok(Self::from(&file.metadata()?))
    }

    /// The mark of a file once what is in the page cache is on disk: a write through a memory map shows no earlier.
    ///
    /// # Errors
    /// What the system says.
    pub fn flushed(path: &Path) -> io::Result<Self> {
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
pub fn folder_of(path: &Path) -> &Path {
    let folder = path.parent();
    let named = folder.filter(|folder| !folder.as_os_str().is_empty());
    named.unwrap_or(Path::new("."))
}

/// A file's path with `ending` behind its name: what belongs to the file and lies beside it.
pub fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Makes the folder that a file is in, for its owner alone, and those that it is in itself; those that are there stay as
/// they are.
///
/// # Errors
/// What the system says.
pub fn make_folder_of(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| Error::of_file(folder, "cannot make", error))
}

/// Makes what happened to names in a file's folder survive a crash.
///
/// # Errors
/// What the system says.
pub fn sync_folder(path: &Path) -> std::io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// Removes a file, if it is there.
///
/// # Errors
/// What the system says.
pub fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::of_file(path, "cannot remove", error))
        }
        _ => Ok(()),
    }
}

/// Runs what would hold up a thread on one that is for that.
///
/// # Errors
/// What `work` says; `Io` when the program is stopping.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::with_source(Kind::Io, "stopped", error))?
}

#[cfg(test)]
mod tests;
