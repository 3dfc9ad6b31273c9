//! [`NewName`]: a file of the copy under a random name until it is whole; [`MadeNode`]: what shows that a descriptor is what was made.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dev, Dir, FileType, Mode, OFlags, RenameFlags, Stat, Timestamps, chownat, fstat,
    linkat, openat, renameat, renameat_with, statat, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, geteuid};

use super::{failed, new_file};
use crate::error::Result;

/// A name that a new file gets when it is whole. Until then it has a random one, and what was there before is still there. If it is
/// dropped before that, the file is removed: half a file is no copy.
pub(super) struct NewName<'a> {
    parent: BorrowedFd<'a>,
    random: OsString,
    name: &'a OsStr,
    may_replace: bool,
}

impl<'a> NewName<'a> {
    /// # Errors
    /// When something is there that must not be replaced, or cannot be.
    pub(super) fn new(parent: &'a OwnedFd, name: &'a OsStr, may_replace: bool) -> Result<Self> {
        match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(error) => return Err(new_file(error)),
            Ok(_) if !may_replace => return Err(new_file(Errno::EXIST)),
            Ok(found) if kind_of(&found) == FileType::Directory => {
                return Err(failed("cannot replace it", Errno::ISDIR));
            }
            Ok(_) => {}
        }
        Ok(Self {
            parent: parent.as_fd(),
            random: format!(".ebsfs-{:016x}", fastrand::u64(..)).into(),
            name,
            may_replace,
        })
    }

    pub(super) fn random(&self) -> &OsStr {
        &self.random
    }

    /// Makes a regular file, which nothing else has opened.
    pub(super) fn file(&self) -> Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let file = openat(self.parent, &self.random, flags, mode).map_err(new_file)?;
        Ok(File::from(file))
    }

    /// Gives the file its name; the random one is removed with the value.
    pub(super) fn commit(self) -> Result<()> {
        let (parent, random, name) = (self.parent, &self.random, self.name);
        if self.may_replace {
            return renameat(parent, random, parent, name)
                .map_err(|error| failed("cannot replace it", error));
        }
        match renameat_with(parent, random, parent, name, RenameFlags::NOREPLACE) {
            // NFS and others: another name, which replaces nothing either.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            done => return done.map_err(new_file),
        }
        match linkat(parent, random, parent, name, AtFlags::empty()) {
            // Filesystems such as exFAT by FUSE have no second names.
            Err(error) if is_lacking(error) => self.rename_over_own(),
            done => done.map_err(new_file),
        }
    }
}

impl NewName<'_> {
    /// Renames over an empty file that only this call can have made.
    fn rename_over_own(&self) -> Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let (parent, random, name) = (self.parent, &self.random, self.name);
        drop(openat(parent, name, flags, mode).map_err(new_file)?);
        renameat(parent, random, parent, name).map_err(|error| {
            let _ = unlinkat(parent, name, AtFlags::empty());
            new_file(error)
        })
    }
}

/// Whether a filesystem refuses a call because it lacks what is asked for: second names, modes.
pub(super) fn is_lacking(error: Errno) -> bool {
    [Errno::PERM, Errno::NOSYS, Errno::NOTSUP, Errno::INVAL].contains(&error)
}

impl Drop for NewName<'_> {
    fn drop(&mut self) {
        let _ = unlinkat(self.parent, &self.random, AtFlags::empty());
    }
}

fn kind_of(found: &Stat) -> FileType {
    FileType::from_raw_mode(found.st_mode)
}

/// What was made: its type, the permissions that it was made with, and the number of a device.
#[derive(Clone, Copy)]
pub(super) struct MadeNode {
    pub(super) kind: FileType,
    pub(super) mode: u32,
    pub(super) device: Dev,
}

impl MadeNode {
    /// Whether this can only be what was made: something else that another user has put there has his owner, or another name.
    fn is(self, found: &Stat) -> bool {
        let is_kind = kind_of(found) == self.kind;
        let is_one = self.kind == FileType::Directory || found.st_nlink == 1;
        // A folder can inherit a set-group-id bit.
        let has_mode = found.st_mode & 0o5777 & !self.mode == 0;
        let is_device = self.device == 0 || found.st_rdev == self.device;
        is_kind && is_one && has_mode && is_device && found.st_uid == geteuid().as_raw()
    }

    /// Whether the open folder is the one that was made, and still empty.
    pub(super) fn is_folder(self, folder: &OwnedFd) -> bool {
        let Ok(entries) = Dir::read_from(folder) else {
            return false;
        };
        let mut names = entries.map(|entry| entry.map(|entry| entry.file_name().to_owned()));
        let is_empty = names
            .all(|name| name.is_ok_and(|name| name.as_bytes() == b"." || name.as_bytes() == b".."));
        is_empty && fstat(folder).is_ok_and(|found| self.is(&found))
    }

    /// Opens what is behind a name, if it is what was made.
    pub(super) fn open(self, new: &NewName<'_>) -> Option<MadeFile> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(new.parent, &new.random, flags, Mode::empty()).ok()?;
        let found = fstat(&made).ok()?;
        self.is(&found).then_some(MadeFile(made))
    }
}

/// Whether a file has the mode that was set: some filesystems refuse the call, others report success and keep their own mode.
///
/// # Errors
/// Any other failure.
pub(super) fn mode_result(
    set: rustix::io::Result<()>,
    found: rustix::io::Result<Stat>,
    mode: u32,
) -> Result<bool> {
    match set {
        Err(error) if is_lacking(error) => return Ok(false),
        set => set.map_err(|error| failed("cannot set its mode", error))?,
    }
    Ok(found.is_ok_and(|found| found.st_mode & 0o7777 == mode & 0o7777))
}

/// A link or a special file that the copy has made, by a descriptor of its path.
pub(super) struct MadeFile(OwnedFd);

impl MadeFile {
    pub(super) fn set_owner(&self, user: Option<Uid>, group: Option<Gid>) -> bool {
        chownat(&self.0, "", user, group, AtFlags::EMPTY_PATH).is_ok()
    }

    /// A descriptor of a path has no modes and times itself; the name that /proc gives it leads nowhere else.
    fn name(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    /// Sets the mode. Returns whether the filesystem has kept it.
    pub(super) fn set_mode(&self, mode: u32) -> Result<bool> {
        let set = rustix::fs::chmod(self.name(), Mode::from_raw_mode(mode));
        mode_result(set, fstat(&self.0), mode)
    }

    pub(super) fn set_times(&self, times: &Timestamps) -> Result<()> {
        let flags = AtFlags::empty();
        utimensat(rustix::fs::CWD, self.name(), times, flags)
            .map_err(|error| failed("cannot set its times", error))
    }
}
