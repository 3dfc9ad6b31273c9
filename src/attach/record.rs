//! [`AttachRecord`]: what an attachment has made, in `/run/ebsfs`, so that another process can find it and undo it. The process that
//! owns the attachment holds a lock on the record; a record without its lock is that of a process that was killed.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::loops::free_left;
use crate::drill::Scratch;
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::open_lock;
use crate::fs::{MountIdentity, MountLocation, MountTable, Unmounted};

/// Where records are: it ends with the machine's run, as mounts do.
const FOLDER: &str = "/run/ebsfs";
/// Held while records are made, removed or looked through.
const LOCK: &str = "lock";
/// How records begin; 16 hexadecimal digits and the ending follow.
const PREFIX: &str = "attach-";
const ENDING: &str = ".json";
/// How long another process may hold the lock: it unmounts what is dead.
const OTHERS: Duration = Duration::from_secs(30);
/// Bytes of a record, at most.
const LARGEST: u64 = 64 << 10;
const RECORD_VERSION: u32 = 1;

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AttachText {
    version: u32,
    /// The folder.
    pub(super) dir: PathBuf,
    /// Identifies the attachment among those of one folder.
    pub(super) started: u64,
    /// The mount at the folder before.
    below: Option<u64>,
    /// The folder in which the private folders of attachments are.
    scratch: PathBuf,
    /// The private folder.
    pub(super) private: Option<PathBuf>,
    /// Its loop device.
    pub(super) device: Option<PathBuf>,
    /// The id and the device of its mount.
    mount: Option<(u64, String)>,
}

impl AttachText {
    pub(super) fn set_mount(&mut self, identity: &MountIdentity) {
        self.mount = Some((identity.id, identity.device.clone()));
    }

    /// Whether it is mounted at its folder, or is being mounted there. One that another mount namespace holds may be neither.
    fn is_there(&self, table: &MountTable) -> bool {
        match self.mounted() {
            Some(identity) => table.place(&identity) != MountLocation::Absent,
            None => true,
        }
    }

    /// The mount, if it was made.
    pub(super) fn mounted(&self) -> Option<MountIdentity> {
        let (id, device) = self.mount.clone()?;
        Some(MountIdentity { id, device })
    }
}

/// A record of this process.
#[derive(Debug)]
pub(super) struct AttachRecord {
    path: PathBuf,
    file: File,
    text: AttachText,
}

impl AttachRecord {
    /// Removes what killed processes have left, and puts an attachment at a folder on record.
    ///
    /// # Errors
    /// `Busy` when there is one already; `Io` without `/run`.
    pub(super) fn begin(dir: &Path, scratch: &Path) -> Result<Self> {
        let folder = folder()?;
        let _alone = lock(&folder)?;
        remove_dead_in(&folder)?;
        let table = MountTable::read()?;
        if find(&folder, dir)?.iter().any(|text| text.is_there(&table)) {
            let what = format!(
                "cannot attach at {}: ebsfs attach has mounted there already",
                dir.display()
            );
            let remedy = Remedy::Do("ebsfs detach unmounts it".into());
            return Err(Error::new(Kind::Busy, what).with_remedy(remedy));
        }
        let name = format!("{PREFIX}{:016x}{ENDING}", fastrand::u64(..));
        let path = folder.join(name);
        let failed = |error| Error::of_file(&path, "cannot write", error);
        let file = open_lock(&path).map_err(failed)?;
        file.try_lock().map_err(|error| failed(error.into()))?;
        let mut record = Self {
            text: AttachText {
                version: RECORD_VERSION,
                dir: dir.to_owned(),
                started: fastrand::u64(..),
                below: top_of(dir)?,
                scratch: scratch.to_owned(),
                private: None,
                device: None,
                mount: None,
            },
            path,
            file,
        };
        record.save(|_| {})?;
        Ok(record)
    }

    /// Changes the record, by one write: a process that is killed leaves the old text or the new one.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn save(&mut self, change: impl FnOnce(&mut AttachText)) -> Result<()> {
        change(&mut self.text);
        let failed = |error| Error::of_file(&self.path, "cannot write", error);
        let text = serde_json::to_vec(&self.text).map_err(|error| {
            let what = format!(
                "cannot attach at {}: its name is no UTF-8",
                self.text.dir.display()
            );
            Error::with_source(Kind::Invalid, what, error)
        })?;
        // Longer with each change: no byte of an old text stays behind it.
        self.file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(&text))
            .and_then(|()| self.file.set_len(text.len() as u64))
            .map_err(failed)
    }
}

impl Drop for AttachRecord {
    fn drop(&mut self) {
        // If that fails, its lock ends all the same: the next attach or detach removes it.
        if let Err(error) = crate::files::remove_if_there(&self.path) {
            debug!("{}", error.chain());
        }
    }
}

/// The id of the mount that is at a folder.
fn top_of(dir: &Path) -> Result<Option<u64>> {
    let table = MountTable::read()?;
    Ok(table.mounted_at(dir).map(|line| line.identity().id))
}

/// The attachment at a folder, of a process that lives or not; one that is mounted there before one that something else holds.
///
/// # Errors
/// What the system says.
pub(super) fn at(dir: &Path) -> Result<Option<AttachText>> {
    let folder = folder()?;
    let _alone = lock(&folder)?;
    let table = MountTable::read()?;
    let mut found = find(&folder, dir)?;
    found.sort_by_key(|text| !text.is_there(&table));
    Ok(found.into_iter().next())
}

/// Whether the process of an attachment has not removed it yet. A record without a process is removed now, with all that it names.
///
/// # Errors
/// What the system says.
pub(super) fn is_left(text: &AttachText) -> Result<bool> {
    let folder = folder()?;
    let _alone = lock(&folder)?;
    remove_dead_in(&folder)?;
    let found = find(&folder, &text.dir)?;
    Ok(found.iter().any(|left| left.started == text.started))
}

/// The folder of records, made if it is absent.
fn folder() -> Result<PathBuf> {
    let folder = PathBuf::from(FOLDER);
    let failed = |error| Error::of_file(Path::new(FOLDER), "cannot make", error);
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(failed(error));
        }
        _ => {}
    }
    let found = folder.symlink_metadata().map_err(failed)?;
    let is_ours = found.is_dir()
        && found.uid() == nix::unistd::geteuid().as_raw()
        && found.permissions().mode() & 0o022 == 0;
    if !is_ours {
        let what = format!("cannot use {FOLDER}: other users can write it");
        return Err(Error::new(Kind::Io, what));
    }
    Ok(folder)
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let failed = |error| Error::of_file(&path, "cannot lock", error);
    let file = open_lock(&path).map_err(failed)?;
    let until = Instant::now() + OTHERS;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// The paths of all records.
fn records(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::of_file(folder, "cannot list", error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(ENDING)) {
            found.push(path);
        }
    }
    Ok(found)
}

fn read(file: &mut File) -> Option<AttachText> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(LARGEST).read_to_end(&mut bytes).ok()?;
    let text: AttachText = serde_json::from_slice(&bytes).ok()?;
    (text.version == RECORD_VERSION).then_some(text)
}

/// The attachments at a folder.
fn find(folder: &Path, dir: &Path) -> Result<Vec<AttachText>> {
    let mut found = Vec::new();
    for path in records(folder)? {
        // It may end meanwhile.
        let Ok(mut file) = File::open(&path) else {
            continue;
        };
        found.extend(read(&mut file).filter(|text| text.dir == dir));
    }
    Ok(found)
}

fn remove_dead_in(folder: &Path) -> Result<()> {
    for path in records(folder)? {
        let Ok(mut file) = File::open(&path) else {
            continue;
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => continue,
        }
        // Only its own version can read a record of another version. An empty record names nothing.
        let is_empty = file.metadata().is_ok_and(|found| found.len() == 0);
        match read(&mut file) {
            Some(text) => {
                let dir = text.dir.display();
                info!("removing what a killed process has attached at {dir}");
                undo(&text);
            }
            None if is_empty => {}
            None => continue,
        }
        crate::files::remove_if_there(&path)?;
    }
    Ok(())
}

/// The mount of the record's loop device at its folder. A mount of anything else there is not ours.
fn unrecorded(text: &AttachText, table: &MountTable) -> Option<MountIdentity> {
    let top = table.mounted_at(&text.dir)?;
    let identity = top.identity();
    let is_its = top.is_of(text.device.as_ref()?) && Some(identity.id) != text.below;
    is_its.then_some(identity)
}

/// Unmounts, frees and removes what a record names. Reads of such a mount fail: nothing is lost when it is detached.
fn undo(text: &AttachText) {
    // Between the mount and its record the process could be killed too: by then it has a loop device.
    let of_device = || unrecorded(text, &MountTable::read().ok()?);
    if let Some(identity) = text.mounted().or_else(of_device) {
        match crate::fs::unmount(&identity, true) {
            Ok(Unmounted::Done | Unmounted::Absent) => {}
            left => warn!("cannot unmount {}: {left:?}", text.dir.display()),
        }
    }
    if let (Some(device), Some(private)) = (&text.device, &text.private) {
        free_left(device, private);
    }
    Scratch::remove_left(&text.scratch);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_records_of_this_version_whose_processes_have_ended_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let text = |version, dir: &str| AttachText {
            version,
            dir: dir.into(),
            started: 7,
            below: None,
            scratch: folder.path().to_owned(),
            private: None,
            device: None,
            // No mount has this id.
            mount: Some((u64::MAX, "0:0".to_owned())),
        };
        for (name, text) in [
            ("attach-dead.json", text(RECORD_VERSION, "/dead")),
            ("attach-live.json", text(RECORD_VERSION, "/live")),
            ("attach-next.json", text(RECORD_VERSION + 1, "/next")),
            ("other.json", text(RECORD_VERSION, "/other")),
        ] {
            std::fs::write(at(name), serde_json::to_vec(&text).unwrap()).unwrap();
        }
        std::fs::write(at("attach-empty.json"), "").unwrap();
        std::fs::write(at("attach-torn.json"), "{\"version\":1,").unwrap();
        let live = File::open(at("attach-live.json")).unwrap();
        live.try_lock().unwrap();
        let found = |dir: &str| find(folder.path(), Path::new(dir)).unwrap().len();
        assert_eq!(["/dead", "/live", "/next"].map(found), [1, 1, 0]);
        remove_dead_in(folder.path()).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let expected = [
            "attach-live.json",
            "attach-next.json",
            "attach-torn.json",
            "other.json",
        ];
        assert_eq!(left, expected);
        assert_eq!(["/dead", "/live"].map(found), [0, 1]);
        let mut made = text(RECORD_VERSION, "/mnt");
        for (mount, device, is_its) in [
            ("0:44 / /mnt rw - tmpfs tmpfs", "/dev/null", false),
            ("8:1 / /mnt rw - ext4 /dev/sda1", "/dev/null", false),
            ("1:3 / /mnt rw - ext4 /dev/root", "/dev/null", true),
            ("0:44 / /mnt ro - btrfs /dev/null", "/dev/null", true),
        ] {
            let table = format!("20 1 8:1 / / rw - ext4 /dev/sda1\n30 20 {mount} rw\n");
            made.device = Some(device.into());
            let found = unrecorded(&made, &MountTable::parse(table.as_bytes()));
            assert_eq!(found.is_some(), is_its, "{mount}");
        }
        // Its mount is in no table: another one may be made there.
        let table = MountTable::read().unwrap();
        let text = find(folder.path(), Path::new("/live")).unwrap().remove(0);
        assert!(!text.is_there(&table));
    }
}
