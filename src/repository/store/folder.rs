//! [`FolderBackend`]: objects as files of a folder of this machine. An object is written beside its name, flushed and renamed, so
//! that it is there whole or not at all. Hard links are not needed: exFAT and SMB have none.

use std::fs::{DirBuilder, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::backend::{
    Backend, FaultAction, ListCursor, ListedKey, MOST_BYTES, ObjectHead, StoreAnswer, StoreFault,
    StorePage, Upload,
};
use super::bandwidth::Direction;
use super::transfer::Transfer;
use crate::error::{Error, Kind, Result};
use crate::files::{self, blocking, folder_of};

/// Keys of a page.
const PAGE: usize = 1000;
/// Folders within folders that are listed; a repository has two, and links can make circles.
const DEPTH: usize = 8;
/// The folders that objects are in.
const FOLDERS: [&str; 11] = [
    "packs",
    "segments",
    "snapshots",
    "removed",
    "runs",
    "latest",
    "garbage",
    "pins",
    "checks",
    "prune",
    "swept",
];

/// One folder.
pub(super) struct FolderBackend {
    root: PathBuf,
}

impl FolderBackend {
    pub(super) fn new(root: &Path) -> Self {
        let root = root.to_owned();
        Self { root }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// Does work on the file of a key, on a thread for blocking work.
    async fn on<T: Send + 'static>(
        &self,
        verb: &str,
        key: &str,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> StoreAnswer<T> {
        let (path, what) = (self.path(key), format!("cannot {verb}"));
        let done =
            blocking(move || work(&path).map_err(|error| Error::of_file(&path, &what, error)));
        done.await.map_err(|error| {
            let next = match error.kind() {
                Kind::NotFound => FaultAction::Absent,
                _ => FaultAction::Final,
            };
            StoreFault::new(next, error)
        })
    }
}

#[async_trait::async_trait]
impl Backend for FolderBackend {
    async fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<Bytes> {
        let got = self.on("get", key, move |path| {
            let mut file = OpenOptions::new()
                .read(true)
                // A FIFO would hang.
                .custom_flags(libc::O_NONBLOCK)
                .open(path)?;
            let metadata = file.metadata()?;
            if !metadata.is_file() {
                return Err(io::Error::other("it is not a file"));
            }
            let range = range.unwrap_or(0..metadata.len());
            if range.end.saturating_sub(range.start) > MOST_BYTES {
                let what = format!(
                    "it has {} bytes, more than any object of a repository",
                    metadata.len()
                );
                return Err(io::Error::other(what));
            }
            file.seek(SeekFrom::Start(range.start))?;
            let mut bytes = Vec::new();
            file.take(range.end.saturating_sub(range.start))
                .read_to_end(&mut bytes)?;
            Ok(Bytes::from(bytes))
        });
        let bytes = got.await?;
        transfer.pay(Direction::Down, bytes.len() as u64).await;
        Ok(bytes)
    }

    async fn put(
        &self,
        key: &str,
        upload: &Upload,
        create: bool,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<()> {
        transfer.pay(Direction::Up, upload.len).await;
        transfer.opaque(upload.len);
        let (root, upload) = (self.root.clone(), upload.clone());
        let put = self.on("put", key, move |path| {
            put_file(&root, path, &upload.pieces, create)
        });
        let put = put.await;
        transfer.answered(put.is_ok());
        match put? {
            true => Ok(()),
            false => {
                let error = self.error(Kind::Io, "put", key, "an object of this name exists");
                Err(StoreFault::new(FaultAction::Exists, error))
            }
        }
    }

    async fn head(&self, key: &str, _: bool, _: &Arc<Transfer>) -> StoreAnswer<ObjectHead> {
        let metadata = self
            .on("look at", key, |path| std::fs::metadata(path))
            .await?;
        Ok(ObjectHead {
            size: Some(metadata.len()),
            modified: metadata.modified().ok(),
            etag: None,
            checksums: Vec::new(),
        })
    }

    async fn page(
        &self,
        prefix: &str,
        from: &ListCursor,
        _: &Arc<Transfer>,
    ) -> StoreAnswer<StorePage> {
        let after = match from {
            ListCursor::After(key) | ListCursor::Token(key) => key.clone(),
            ListCursor::Start => String::new(),
        };
        let prefix_owned = prefix.to_owned();
        let keys = self.on("list", prefix, move |folder| {
            let mut keys = Vec::new();
            list_files(folder, &prefix_owned, &after, DEPTH, &mut keys)?;
            Ok(keys)
        });
        let keys = keys.await?;
        let next = keys
            .get(PAGE - 1)
            .map(|last: &ListedKey| ListCursor::After(last.key.clone()));
        Ok(StorePage { keys, next })
    }

    async fn delete(&self, key: &str, _: &Arc<Transfer>) -> StoreAnswer<()> {
        let deleted = self
            .on("delete", key, |path| std::fs::remove_file(path))
            .await;
        match deleted {
            Err(fault) if fault.is_absent() => Ok(()),
            done => done,
        }
    }

    fn error(&self, kind: Kind, verb: &str, key: &str, what: &str) -> Error {
        Error::new(
            kind,
            format!("cannot {verb} {}: {what}", self.path(key).display()),
        )
    }

    fn is_remote(&self) -> bool {
        false
    }

    /// Progress within a file is not visible: a slow disk gets the whole time limit.
    fn silence(&self, timeout: Duration) -> Duration {
        timeout
    }
}

/// Writes a file; false when `create` is set and there is one.
fn put_file(root: &Path, path: &Path, pieces: &[Bytes], create: bool) -> io::Result<bool> {
    if !root.is_dir() {
        let what = format!("{} is not a folder", root.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, what));
    }
    let folder = folder_of(path);
    if !folder.is_dir() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        flush_folder_of(folder)?;
    }
    let beside = files::with_ending(path, &format!("#{}", fastrand::u64(..)));
    let written = write_file(&beside, pieces).and_then(|()| match create {
        true => rename_new(&beside, path),
        false => std::fs::rename(&beside, path).map(|()| true),
    });
    if !matches!(written, Ok(true)) {
        let _ = std::fs::remove_file(&beside);
    }
    if written? {
        flush_folder_of(path)?;
        return Ok(true);
    }
    Ok(false)
}

fn write_file(path: &Path, pieces: &[Bytes]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    for piece in pieces {
        file.write_all(piece)?;
    }
    file.sync_all()
}

/// Renames a file to a name that is free; false when it is taken.
fn rename_new(from: &Path, to: &Path) -> io::Result<bool> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).map_err(io::Error::from) {
        Ok(()) => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        // exFAT, FUSE, SMB and NFS do not know the flag.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP)
            ) => {}
        Err(error) => return Err(error),
    }
    let claim = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to);
    match claim {
        Ok(_) => std::fs::rename(from, to).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Flushes the folder that holds a path, where its filesystem can.
fn flush_folder_of(path: &Path) -> io::Result<()> {
    match files::sync_folder(path) {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP)
            ) =>
        {
            Ok(())
        }
        done => done,
    }
}

/// Whether a file is one that [`put_file`] has not finished.
fn is_unfinished(name: &str) -> bool {
    let ending = name.rsplit_once('#').map(|(_, ending)| ending);
    ending.is_some_and(|ending| {
        !ending.is_empty() && ending.bytes().all(|digit| digit.is_ascii_digit())
    })
}

/// The keys behind `after` in the order of their bytes, until a page is full. A dangling link is listed: the object that it
/// points to must not count as absent.
fn list_files(
    folder: &Path,
    prefix: &str,
    after: &str,
    depth: usize,
    keys: &mut Vec<ListedKey>,
) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut found: Vec<(String, PathBuf, Metadata)> = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let metadata = match std::fs::metadata(&path).or_else(|_| std::fs::symlink_metadata(&path))
        {
            // Files come and go while others write.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let slash = if metadata.is_dir() { "/" } else { "" };
        let key = format!("{prefix}{name}{slash}");
        if !is_unfinished(&name) {
            found.push((key, path, metadata));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    for (key, path, metadata) in found {
        if keys.len() >= PAGE {
            return Ok(());
        }
        let is_before = key.as_str() <= after;
        if metadata.is_dir() {
            if depth > 0 && (!is_before || after.starts_with(&key)) {
                list_files(&path, &key, after, depth - 1, keys)?;
            }
        } else if !is_before {
            keys.push(ListedKey {
                key,
                size: metadata.len(),
                modified: metadata.modified()?,
            });
        }
    }
    Ok(())
}

/// Removes files that killed writers have left and that are older than `until`.
pub(super) fn sweep_unfinished(root: &Path, until: SystemTime) -> Result<()> {
    let failed = |path: &Path, error| Error::of_file(path, "cannot sweep", error);
    let mut folders: Vec<_> = FOLDERS.iter().map(|folder| root.join(folder)).collect();
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(|error| failed(&folder, error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| failed(&folder, error))?;
            let (path, name) = (entry.path(), entry.file_name());
            // Files come and go while others write.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let is_old = metadata.modified().is_ok_and(|modified| modified < until);
            if metadata.is_dir() {
                folders.push(path);
            } else if is_old && name.to_str().is_some_and(is_unfinished) {
                let _ = std::fs::remove_file(&path);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::store::bandwidth::Bandwidth;

    #[test]
    fn a_new_name_is_taken_once_and_files_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("snapshots/a");
        let put =
            |text: &'static str, create| put_file(root.path(), &path, &[Bytes::from(text)], create);
        assert!(put("first", true).unwrap());
        assert!(!put("second", true).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert!(put("third", false).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"third");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(folder_of(&path))), (0o600, 0o700));
        assert_eq!(std::fs::read_dir(folder_of(&path)).unwrap().count(), 1);
    }

    #[test]
    fn nothing_is_written_where_the_folder_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let missing = root.path().join("unmounted");
        let put = put_file(&missing, &missing.join("snapshots/a"), &[], false);
        assert_eq!(put.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!missing.exists());
    }

    #[test]
    fn pages_are_sorted_and_hide_nothing_but_unfinished_files() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("packs");
        for name in ["b", "a/2", "a/1", "a-", "a0", "c#77", "d#x"] {
            files::make_folder_of(&folder.join(name)).unwrap();
            std::fs::write(folder.join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("/nowhere", folder.join("link")).unwrap();
        let page = |after: &str| {
            let mut keys = Vec::new();
            list_files(&folder, "packs/", after, DEPTH, &mut keys).unwrap();
            keys.into_iter().map(|key| key.key).collect::<Vec<_>>()
        };
        let all = page("");
        let expected = ["a-", "a/1", "a/2", "a0", "b", "d#x", "link"];
        assert_eq!(all, expected.map(|name| format!("packs/{name}")));
        for (at, after) in all.iter().enumerate() {
            assert_eq!(page(after), all[at + 1..], "{after}");
        }
    }

    #[tokio::test]
    async fn a_large_folder_has_several_pages() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("runs")).unwrap();
        for number in 0..PAGE + 5 {
            std::fs::File::create(root.path().join(format!("runs/{number:05}"))).unwrap();
        }
        let backend = FolderBackend::new(root.path());
        let transfer = Transfer::new(&Arc::default(), &Bandwidth::default());
        let first = backend
            .page("runs/", &ListCursor::Start, &transfer)
            .await
            .unwrap();
        let second = backend
            .page("runs/", &first.next.unwrap(), &transfer)
            .await
            .unwrap();
        assert_eq!((first.keys.len(), second.keys.len()), (PAGE, 5));
        assert!(second.next.is_none());
    }
}
