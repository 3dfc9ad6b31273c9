//! Files of a directory of evidence: written for their owner alone, and read as files that anybody may have put there.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::block::hexadecimal;
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::{AtomicFile, folder_of, safe_parent, sync_folder, with_ending};

/// The statement.
pub(super) const STATEMENT: &str = "evidence.json";
/// Its signature.
pub(super) const SIGNATURE: &str = "evidence.json.sig";
/// The digests of the blocks.
pub(super) const BLOCKS: &str = "blocks.csv";
/// The requests to AWS.
pub(super) const REQUESTS: &str = "requests.jsonl";
/// The image.
pub(super) const IMAGE: &str = "disk.raw";

/// A file that a statement names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileFacts {
    /// Its name in the directory.
    pub(crate) name: String,
    /// Its bytes.
    pub(crate) bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub(crate) sha256: String,
}

/// A directory that is being filled. What was put there is removed again, unless it is finished.
#[derive(Debug)]
pub(crate) struct NewFolder {
    path: PathBuf,
    is_made: bool,
    is_finished: bool,
}

impl NewFolder {
    /// Makes a directory of mode 0700, or takes an empty one of our own.
    ///
    /// # Errors
    /// `Invalid` when it is not empty, is another user's, or another user could replace it; the system's error.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let refused = |why: &str, remedy: &str| {
            let what = format!("cannot write evidence to {}: {why}", path.display());
            Error::new(Kind::Invalid, what).with_remedy(Remedy::Do(remedy.to_owned()))
        };
        let failed = |error| Error::of_file(path, "cannot make", error);
        let Some(name) = path.file_name() else {
            return Err(refused(
                "its path has no name at the end",
                "name a new directory",
            ));
        };
        let path = safe_parent(folder_of(path))?.join(name);
        let is_made = match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed(error)),
        };
        let found = path.symlink_metadata().map_err(failed)?;
        if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() {
            let why = "it is no directory of this user";
            return Err(refused(why, "name a new directory"));
        }
        if !is_made {
            if std::fs::read_dir(&path).map_err(failed)?.next().is_some() {
                let remedy =
                    "name a new directory, or remove what an interrupted run has left there";
                return Err(refused("it is not empty", remedy));
            }
            let private = Permissions::from_mode(0o700);
            std::fs::set_permissions(&path, private).map_err(failed)?;
        }
        Ok(Self {
            path,
            is_made,
            is_finished: false,
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Begins a file. It gets its name when it is ended.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn file(&self, name: &'static str) -> Result<HashedFile> {
        let path = self.path.join(name);
        Ok(HashedFile {
            name,
            file: AtomicFile::create(&path)?.read_only()?,
            path,
            sha256: Sha256::new(),
            bytes: 0,
        })
    }

    /// Begins the file of the image.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn image(&self) -> Result<File> {
        let path = self.part();
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o400)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path);
        made.map_err(|error| Error::of_file(&path, "cannot make", error))
    }

    /// Gives the image its name. It is whole and on the disk.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn publish_image(&self) -> Result<()> {
        let path = self.path.join(IMAGE);
        let renamed = std::fs::rename(self.part(), &path).and_then(|()| sync_folder(&path));
        renamed.map_err(|error| Error::of_file(&path, "cannot write", error))
    }

    fn part(&self) -> PathBuf {
        with_ending(&self.path.join(IMAGE), ".part")
    }

    /// From now on it stays.
    pub(super) fn finish(&mut self) {
        self.is_finished = true;
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        // The statement first: what is left without it is no evidence. Then all that this run has put there, files that it still
        // writes too: the directory was empty.
        let _ = std::fs::remove_file(self.path.join(STATEMENT));
        for entry in std::fs::read_dir(&self.path).into_iter().flatten() {
            let _ = entry.map(|entry| std::fs::remove_file(entry.path()));
        }
        if self.is_made {
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

/// A file that is hashed as it is written, of mode 0400.
#[derive(Debug)]
pub(super) struct HashedFile {
    name: &'static str,
    path: PathBuf,
    file: AtomicFile,
    sha256: Sha256,
    bytes: u64,
}

impl HashedFile {
    /// Adds bytes.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes);
        written.map_err(|error| Error::of_file(&self.path, "cannot write", error))?;
        self.sha256.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Gives it its name; it is on the disk then.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn end(self) -> Result<FileFacts> {
        self.file.commit()?;
        Ok(FileFacts {
            name: self.name.to_owned(),
            bytes: self.bytes,
            sha256: hexadecimal(&self.sha256.finalize()),
        })
    }
}

/// A directory that is read. Each file is opened in it by its name, through no link.
#[derive(Debug)]
pub(super) struct ReadFolder {
    path: PathBuf,
    folder: File,
}

impl ReadFolder {
    /// Opens a directory.
    ///
    /// # Errors
    /// `NotFound` and `Denied` as the system says.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(path);
        Ok(Self {
            path: path.to_owned(),
            folder: opened.map_err(|error| Error::of_file(path, "cannot read", error))?,
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a regular file for reading; none where there is no file of this name.
    ///
    /// # Errors
    /// `Corrupt` for a link, a FIFO, a device or a directory; the system's error.
    pub(super) fn file(&self, name: &str) -> Result<Option<File>> {
        let path = self.path.join(name);
        // O_NONBLOCK: a FIFO without a writer would hang here.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let special = || {
            let what = format!("cannot read {}: it is no regular file", path.display());
            Error::new(Kind::Corrupt, what)
        };
        let file = match openat(&self.folder, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO) => return Err(special()),
            Err(error) => return Err(Error::of_file(&path, "cannot read", error.into())),
        };
        let found = file.metadata();
        let found = found.map_err(|error| Error::of_file(&path, "cannot read", error))?;
        match found.is_file() {
            true => Ok(Some(file)),
            false => Err(special()),
        }
    }

    /// A whole file of at most `limit` bytes; none where there is no file of this name.
    ///
    /// # Errors
    /// As for [`ReadFolder::file`]; `Corrupt` beyond the limit.
    pub(super) fn small(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.file(name)? else {
            return Ok(None);
        };
        let path = self.path.join(name);
        let mut bytes = Vec::new();
        let read = file.take(limit + 1).read_to_end(&mut bytes);
        read.map_err(|error| Error::of_file(&path, "cannot read", error))?;
        if bytes.len() as u64 > limit {
            let what = format!(
                "cannot read {}: it is larger than {limit} bytes",
                path.display()
            );
            return Err(Error::new(Kind::Corrupt, what));
        }
        Ok(Some(bytes))
    }

    /// The names of the files in it, at most `limit`, sorted.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn names(&self, limit: usize) -> Result<Vec<String>> {
        let failed = |error| Error::of_file(&self.path, "cannot read", error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(failed)?.take(limit) {
            let name = entry.map_err(failed)?.file_name();
            names.push(name.to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_folder_vanishes_and_a_finished_one_is_private() {
        let scratch = tempfile::tempdir().unwrap();
        let at = scratch.path().join("evidence");
        let fill = |folder: &NewFolder| {
            let mut file = folder.file(BLOCKS).unwrap();
            file.add(b"abc").unwrap();
            let facts = file.end().unwrap();
            assert_eq!((facts.bytes, facts.name.as_str()), (3, BLOCKS));
            assert_eq!(facts.sha256, hexadecimal(&Sha256::digest(b"abc")));
            folder.image().unwrap();
        };
        let folder = NewFolder::create(&at).unwrap();
        fill(&folder);
        drop(folder);
        assert!(!at.exists());
        // An empty one that was there before stays, empty.
        std::fs::create_dir(&at).unwrap();
        let folder = NewFolder::create(&at).unwrap();
        fill(&folder);
        drop(folder);
        assert_eq!(std::fs::read_dir(&at).unwrap().count(), 0);
        let mut folder = NewFolder::create(&at).unwrap();
        fill(&folder);
        folder.publish_image().unwrap();
        folder.finish();
        drop(folder);
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
        assert_eq!(mode(&at), 0o700);
        assert_eq!(mode(&at.join(BLOCKS)), 0o400);
        assert_eq!(mode(&at.join(IMAGE)), 0o400);
        let error = NewFolder::create(&at).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.chain().contains("not empty"), "{error:?}");
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(scratch.path().join("elsewhere"), &link).unwrap();
        assert!(NewFolder::create(&link).is_err());
    }

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        std::fs::write(at("file"), b"12345").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        let folder = ReadFolder::open(scratch.path()).unwrap();
        assert_eq!(folder.small("file", 5).unwrap().unwrap(), b"12345");
        assert!(folder.small("none", 5).unwrap().is_none());
        for name in ["link", "fifo", "folder"] {
            let error = folder.file(name).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{name}");
        }
        assert_eq!(folder.small("file", 4).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(folder.names(9).unwrap(), ["fifo", "file", "folder", "link"]);
    }
}
