//! State files that are ours: regular files of our own user that no other user can write, opened through no link.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use tracing::warn;

use super::{STATE_LIMIT, remove_if_there};
use crate::error::{Error, Kind, Result};

/// Opens a state file for reading, or for writing too, if it is ours: a regular file of our own user that no other user can
/// write, not a link. `None` where there is none, or, with a warning, where it is not ours.
///
/// # Errors
/// The system's error.
pub(crate) fn open_ours(path: &Path, write: bool) -> Result<Option<File>> {
    match open_own(path, write)? {
        OwnFile::Read(file) => Ok(Some(file)),
        OwnFile::Absent => Ok(None),
        OwnFile::Foreign(why) => {
            warn!("ignoring {}: {why}", path.display());
            Ok(None)
        }
    }
}

/// A state file: open, or its bytes.
#[derive(Debug)]
pub(crate) enum OwnFile<T> {
    /// It is ours.
    Read(T),
    /// There is none.
    Absent,
    /// It may be another user's, and is not read: why.
    Foreign(&'static str),
}

fn open_own(path: &Path, write: bool) -> Result<OwnFile<File>> {
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
            None => return Ok(OwnFile::Read(file)),
            Some(why) => why,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(OwnFile::Absent),
        // O_NOFOLLOW on a link; a FIFO or socket opened for writing.
        Err(error) if [Some(libc::ELOOP), Some(libc::ENXIO)].contains(&error.raw_os_error()) => {
            "it is a link, a FIFO or a socket"
        }
        Err(error) => return Err(Error::of_file(path, "cannot open", error)),
    };
    Ok(OwnFile::Foreign(why))
}

/// Makes a new state file of mode 0600 for reading and writing, in place of what is at its path: another user's file or a
/// link is removed, never written to.
///
/// # Errors
/// The system's error, also when the old file cannot be removed.
pub(crate) fn create_ours(path: &Path) -> Result<File> {
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

/// Opens a file to lock, made if it is absent.
///
/// # Errors
/// The system's error; `ELOOP` for a symbolic link, which another user may have put there.
pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // A FIFO that another user put there would hang.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

/// Reads a whole state file of ours; none where [`open_ours`] opens none.
///
/// # Errors
/// `Corrupt` beyond [`STATE_LIMIT`]; the system's error.
pub(crate) fn read_ours(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = open_ours(path, false)?;
    file.map(|file| read_whole(path, file)).transpose()
}

/// Reads a whole state file of ours; without a warning where it is not ours.
///
/// # Errors
/// As for [`read_ours`].
pub(crate) fn read_own(path: &Path) -> Result<OwnFile<Vec<u8>>> {
    Ok(match open_own(path, false)? {
        OwnFile::Read(file) => OwnFile::Read(read_whole(path, file)?),
        OwnFile::Absent => OwnFile::Absent,
        OwnFile::Foreign(why) => OwnFile::Foreign(why),
    })
}

fn read_whole(path: &Path, file: File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(STATE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::of_file(path, "cannot read", error))?;
    if bytes.len() as u64 > STATE_LIMIT {
        let what = format!(
            "cannot read {}: it is larger than {STATE_LIMIT} bytes",
            path.display()
        );
        return Err(Error::new(Kind::Corrupt, what));
    }
    Ok(bytes)
}
