//! [`copy_out`]: files of a view onto this machine, with what the user may keep of their metadata.
//!
//! Each step is below a folder that is open: a name is one component, links are never followed, nothing is opened that the copy did
//! not make or that is no folder. So neither a hostile filesystem nor another user of this machine can lead it elsewhere.
//!
//! [`contents`]: the bytes; [`streams`]: the named streams of NTFS.

mod contents;
mod made;
mod report;
mod streams;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dev, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags, fchmod,
    fchown, fremovexattr, fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, openat,
    symlinkat,
};
use rustix::process::{Gid, Uid, geteuid};

use super::view::{FileView, SpanPage};
use super::walk::{TreeWalk, WalkItem};
use super::{FsNode, FsTime, NodeKind};
use crate::error::{Error, Kind, Remedy, Result};
use crate::target::Stop;
use contents::WalkAhead;
use made::{MadeFile, MadeNode, NewName, is_lacking, mode_result};
pub(crate) use report::CopyReport;

/// Files with several names that are remembered, at most.
const MOST_LINKED: usize = 1 << 20;
/// Bytes of their paths, at most.
const MOST_LINKED_BYTES: usize = 256 << 20;

/// How files are copied.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CopyOptions {
    /// Replace files that are there; folders are always merged into.
    pub(crate) overwrite: bool,
    /// Write named streams as files, and not as attributes.
    pub(crate) streams: bool,
}

/// A folder of the copy that is still filled.
struct OpenCopy {
    depth: usize,
    folder: OwnedFd,
    path: Vec<u8>,
    /// Its metadata, set when it is full: a read-only folder could not be filled. None: it was there before.
    node: Option<FsNode>,
}

struct TreeCopy<'a> {
    view: &'a mut FileView,
    options: CopyOptions,
    is_root: bool,
    report: CopyReport,
    open: Vec<OpenCopy>,
    /// The folder that all is below.
    base: OwnedFd,
    /// The first copy of each file with several names, by its id.
    linked: HashMap<u64, LinkedCopy>,
    linked_bytes: usize,
}

/// A copy of a file with several names: its path from the base, and what shows that it is still there.
struct LinkedCopy {
    path: Vec<Vec<u8>>,
    identity: (u64, u64),
}

/// Copies a file, or a folder with all that is in it, to `destination`: into it under the same name where it is a folder, else as it.
///
/// # Errors
/// `Stopped`; what ends the view. What was copied until then is in the report, and what failed for one file alone.
pub(crate) async fn copy_out(
    view: &mut FileView,
    path: &[u8],
    node: FsNode,
    destination: &Path,
    options: CopyOptions,
    stop: &Stop,
) -> (CopyReport, Result<()>) {
    let (base, name) = match place(path, node.kind, destination) {
        Ok(found) => found,
        Err(error) => return (CopyReport::default(), Err(error)),
    };
    let mut copying = TreeCopy {
        view,
        options,
        is_root: geteuid().is_root(),
        report: CopyReport::default(),
        open: Vec::new(),
        base,
        linked: HashMap::new(),
        linked_bytes: 0,
    };
    let done = copying.all(path, node, &name, destination, stop).await;
    (copying.report, done)
}

/// The folder that the copy is made in, and its name there.
fn place(path: &[u8], kind: NodeKind, destination: &Path) -> Result<(OwnedFd, Vec<u8>)> {
    let cannot =
        |error: rustix::io::Errno| Error::of_file(destination, "cannot copy to", error.into());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    match rustix::fs::open(destination, flags, Mode::empty()) {
        // The root has no name: what is in it goes into the folder.
        Ok(folder) if own.is_empty() => return Ok((folder, b".".to_vec())),
        Ok(folder) => return Ok((folder, own.to_vec())),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
        Err(error) => return Err(cannot(error)),
    }
    let name = destination
        .file_name()
        .ok_or_else(|| cannot(rustix::io::Errno::INVAL))?;
    if kind == NodeKind::Folder && destination.as_os_str().is_empty() {
        return Err(cannot(rustix::io::Errno::INVAL));
    }
    let parent = crate::files::folder_of(destination);
    let folder = rustix::fs::open(parent, flags, Mode::empty()).map_err(cannot)?;
    Ok((folder, name.as_bytes().to_vec()))
}

fn failed(what: &str, error: impl Into<io::Error>) -> Error {
    Error::with_source(Kind::Io, what.to_owned(), error.into())
}

impl TreeCopy<'_> {
    /// Copies all files of a walk.
    async fn all(
        &mut self,
        path: &[u8],
        node: FsNode,
        name: &[u8],
        destination: &Path,
        stop: &Stop,
    ) -> Result<()> {
        let mut walk = WalkAhead::new(TreeWalk::new(path, node).reading_ahead());
        loop {
            let Some(found) = stop.unless(walk.next(self.view)).await? else {
                break;
            };
            let (item, page) = (found.item, found.page);
            self.close_above(item.depth).await?;
            let parent = match self.open.last() {
                Some(open) => open.folder.try_clone(),
                None => self.base.try_clone(),
            };
            let parent =
                parent.map_err(|error| Error::of_file(destination, "cannot copy to", error))?;
            let own = match item.depth {
                0 => name.to_vec(),
                _ => item
                    .path
                    .rsplit(|byte| *byte == b'/')
                    .next()
                    .unwrap_or_default()
                    .to_vec(),
            };
            let below = item
                .path
                .get(path.len()..)
                .unwrap_or_default()
                .split(|byte| *byte == b'/');
            let below = below.filter(|part| !part.is_empty()).map(<[u8]>::to_vec);
            let full: Vec<Vec<u8>> = std::iter::once(name.to_vec()).chain(below).collect();
            let done = stop
                .unless(self.item(&item, page, &parent, &own, full))
                .await;
            match done {
                Ok(()) => {}
                Err(error) if error.kind() == Kind::Stopped => return Err(error),
                Err(error) => {
                    walk.skip(&item);
                    self.report.fail(&item.path, &error);
                    self.check_view()?;
                }
            }
        }
        self.close_above(0).await
    }

    /// What ends the whole copy.
    fn check_view(&self) -> Result<()> {
        self.view.failure().map_or(Ok(()), Err)
    }

    /// Sets the metadata of folders that are full.
    async fn close_above(&mut self, depth: usize) -> Result<()> {
        while self.open.last().is_some_and(|open| open.depth >= depth) {
            let Some(open) = self.open.pop() else {
                break;
            };
            if let Some(node) = open.node
                && let Err(error) = self.keep(open.folder.as_fd(), &open.path, &node).await
            {
                self.report.fail(&open.path, &error);
                self.check_view()?;
            }
        }
        Ok(())
    }

    async fn item(
        &mut self,
        item: &WalkItem,
        page: Option<Result<SpanPage>>,
        parent: &OwnedFd,
        name: &[u8],
        path: Vec<Vec<u8>>,
    ) -> Result<()> {
        let node = match &item.node {
            Ok(node) => node.clone(),
            Err(problem) => return Err(Error::new(Kind::Corrupt, problem.clone())),
        };
        let name = OsStr::from_bytes(name);
        match node.kind {
            NodeKind::Folder => self.folder(item, parent, name, &node)?,
            NodeKind::Regular => self.regular(item, page, parent, name, &node, path).await?,
            NodeKind::Link => self.link(parent, name, &node)?,
            _ => self.special(parent, name, &node)?,
        }
        self.streams_beside(item, parent, name, &node).await
    }

    fn folder(
        &mut self,
        item: &WalkItem,
        parent: &OwnedFd,
        name: &OsStr,
        node: &FsNode,
    ) -> Result<()> {
        let made = match name.as_bytes() {
            b"." => Ok(false),
            _ => match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
                Ok(()) => Ok(true),
                Err(rustix::io::Errno::EXIST) => Ok(false),
                Err(error) => Err(failed("cannot make the folder", error)),
            },
        };
        let made = made?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = openat(parent, name, flags, Mode::empty())
            .map_err(|error| failed("cannot open the folder: something else is there", error))?;
        self.report.folders += u64::from(made);
        let own = MadeNode {
            kind: FileType::Directory,
            mode: 0o700,
            device: 0,
        };
        // A folder that another user has put there stays as it is.
        let is_ours = made && own.is_folder(&folder);
        self.report.owners_lost += u64::from(made && !is_ours);
        if !is_ours && !self.options.streams {
            let why = "the folder existed before the copy, and keeps its attributes";
            self.report.lose_streams(&item.path, node.streams, why);
        }
        self.open.push(OpenCopy {
            depth: item.depth,
            folder,
            path: item.path.clone(),
            node: is_ours.then(|| node.clone()),
        });
        Ok(())
    }

    async fn regular(
        &mut self,
        item: &WalkItem,
        page: Option<Result<SpanPage>>,
        parent: &OwnedFd,
        name: &OsStr,
        node: &FsNode,
        path: Vec<Vec<u8>>,
    ) -> Result<()> {
        let new = NewName::new(parent, name, self.options.overwrite)?;
        if let Some(first) = self.linked.get(&node.id) {
            let first = self.reopen(first)?;
            let path = format!("/proc/self/fd/{}", first.as_raw_fd());
            let flags = AtFlags::SYMLINK_FOLLOW;
            match linkat(rustix::fs::CWD, path.as_str(), parent, new.random(), flags) {
                Ok(()) => {
                    new.commit()?;
                    self.report.others += 1;
                    return Ok(());
                }
                // The file is copied again, for this name and for each further one.
                Err(error) if is_lacking(error) || error == rustix::io::Errno::MLINK => {
                    self.report.links_lost += 1;
                }
                Err(error) => return Err(failed("cannot link it to its first copy", error)),
            }
        }
        let page = page.transpose()?;
        let file = new.file()?;
        self.fill(&file, &node.data(), page).await?;
        self.keep(file.as_fd(), &item.path, node).await?;
        new.commit()?;
        self.report.files += 1;
        if node.links > 1 && !self.linked.contains_key(&node.id) {
            let parts = path.iter().map(|part| part.len() + size_of::<Vec<u8>>());
            let bytes = parts.sum::<usize>() + self.linked_bytes;
            match rustix::fs::fstat(&file) {
                Ok(made) if self.linked.len() < MOST_LINKED && bytes <= MOST_LINKED_BYTES => {
                    let identity = (made.st_dev, made.st_ino);
                    self.linked.insert(node.id, LinkedCopy { path, identity });
                    self.linked_bytes = bytes;
                }
                _ => self.report.links_lost += 1,
            }
        }
        Ok(())
    }

    /// Opens the first copy of a file again, step by step.
    fn reopen(&self, first: &LinkedCopy) -> Result<OwnedFd> {
        let lost = |error| failed("cannot find the first copy of it", error);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at = self
            .base
            .try_clone()
            .map_err(|error| failed("cannot copy", error))?;
        for part in &first.path {
            at = openat(&at, OsStr::from_bytes(part), flags, Mode::empty()).map_err(lost)?;
        }
        let found = rustix::fs::fstat(&at).map_err(lost)?;
        match (found.st_dev, found.st_ino) == first.identity {
            true => Ok(at),
            false => Err(Error::new(Kind::Io, "the first copy of it was replaced")),
        }
    }

    fn link(&mut self, parent: &OwnedFd, name: &OsStr, node: &FsNode) -> Result<()> {
        let new = NewName::new(parent, name, self.options.overwrite)?;
        symlinkat(OsStr::from_bytes(&node.target), parent, new.random()).map_err(new_file)?;
        let made = MadeNode {
            kind: FileType::Symlink,
            mode: 0o777,
            device: 0,
        };
        if let Some(made) = self.keep_owner(made, &new, node) {
            made.set_times(&times(node))?;
        }
        new.commit()?;
        self.report.others += 1;
        Ok(())
    }

    fn special(&mut self, parent: &OwnedFd, name: &OsStr, node: &FsNode) -> Result<()> {
        let (kind, device): (FileType, Dev) = match node.kind {
            NodeKind::CharDevice => (
                FileType::CharacterDevice,
                makedev(node.device.0, node.device.1),
            ),
            NodeKind::BlockDevice => (FileType::BlockDevice, makedev(node.device.0, node.device.1)),
            NodeKind::Socket => (FileType::Socket, 0),
            _ => (FileType::Fifo, 0),
        };
        let new = NewName::new(parent, name, self.options.overwrite)?;
        let mode = Mode::from_raw_mode(0o600);
        match mknodat(parent, new.random(), kind, mode, device) {
            Ok(()) => {}
            Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) if device != 0 => {
                self.report.devices_lost += 1;
                return Ok(());
            }
            Err(error) => return Err(new_file(error)),
        }
        let made = MadeNode {
            kind,
            mode: 0o600,
            device,
        };
        if let Some(made) = self.keep_owner(made, &new, node) {
            self.report.permissions_lost += u64::from(!made.set_mode(node.mode)?);
            made.set_times(&times(node))?;
        }
        new.commit()?;
        self.report.others += 1;
        Ok(())
    }

    /// Sets the owner of a link or a special file. None: what has its name may be another user's, and must stay as it is.
    fn keep_owner(&mut self, made: MadeNode, new: &NewName<'_>, node: &FsNode) -> Option<MadeFile> {
        let found = made.open(new);
        let is_kept = match (&found, self.is_root) {
            (None, _) => false,
            (Some(found), true) => {
                let (user, group) = owner(node);
                found.set_owner(user, group)
            }
            (Some(_), false) => node.uid == geteuid().as_raw(),
        };
        self.report.owners_lost += u64::from(!is_kept);
        found
    }

    /// Sets extended attributes, as far as this user and this filesystem allow.
    async fn keep_xattrs(
        &mut self,
        file: BorrowedFd<'_>,
        path: &[u8],
        node: &FsNode,
    ) -> Result<()> {
        let (found, dropped) = match node.streams {
            0 => self.view.xattrs(node.id).await?,
            // Its streams are all the attributes that it has.
            _ => (Vec::new(), 0),
        };
        self.report.xattrs_lost += dropped;
        // A list that the destination gives to new files is none of the file's.
        for inherited in ["system.posix_acl_access", "system.posix_acl_default"] {
            if !found.iter().any(|(name, _)| name == inherited.as_bytes()) {
                let _ = fremovexattr(file, inherited);
            }
        }
        for (name, value) in found {
            let set = fsetxattr(file, OsStr::from_bytes(&name), &value, XattrFlags::empty());
            self.report.xattrs_lost += u64::from(set.is_err());
        }
        match self.options.streams {
            true => Ok(()),
            false => self.streams_as_attributes(file, path, node).await,
        }
    }

    /// Sets the owner, the extended attributes, the mode and the times, in this order: a change of the owner takes bits of the mode
    /// and the capabilities of a program, which are an attribute.
    async fn keep(&mut self, file: BorrowedFd<'_>, path: &[u8], node: &FsNode) -> Result<()> {
        let mode = self.keep_file_owner(file, node);
        self.keep_xattrs(file, path, node).await?;
        self.keep_mode_and_times(file, node, mode)
    }

    fn keep_mode_and_times(
        &mut self,
        file: BorrowedFd<'_>,
        node: &FsNode,
        mode: u32,
    ) -> Result<()> {
        let set = fchmod(file, Mode::from_raw_mode(mode));
        let is_kept = mode_result(set, rustix::fs::fstat(file), mode)?;
        self.report.permissions_lost += u64::from(!is_kept);
        futimens(file, &times(node)).map_err(|error| failed("cannot set its times", error))
    }

    /// Sets the owner of a file. Returns the mode that it may have then.
    fn keep_file_owner(&mut self, file: BorrowedFd<'_>, node: &FsNode) -> u32 {
        let mut mode = node.mode;
        let is_owner_kept = match self.is_root {
            true => {
                let (user, group) = owner(node);
                fchown(file, user, group).is_ok()
            }
            false => {
                node.uid == geteuid().as_raw() && {
                    let (_, group) = owner(node);
                    fchown(file, None, group).is_ok()
                }
            }
        };
        if !is_owner_kept {
            self.report.owners_lost += 1;
            // Such a bit would give the rights of another user than the file had.
            if mode & 0o6000 != 0 {
                self.report.modes_lost += 1;
                mode &= !0o6000;
            }
        }
        mode
    }
}

/// The error of a file that cannot be made.
fn new_file(error: rustix::io::Errno) -> Error {
    match error {
        rustix::io::Errno::EXIST => Error::new(Kind::Invalid, "something is there already")
            .with_remedy(Remedy::ReplaceFiles),
        rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT => {
            Error::with_source(Kind::NoSpace, "cannot make it", io::Error::from(error))
        }
        error => failed("cannot make it", error),
    }
}

fn owner(node: &FsNode) -> (Option<Uid>, Option<Gid>) {
    // The largest number means "unchanged" to the system.
    let user = (node.uid != u32::MAX).then(|| Uid::from_raw(node.uid));
    let group = (node.gid != u32::MAX).then(|| Gid::from_raw(node.gid));
    (user, group)
}

fn times(node: &FsNode) -> Timestamps {
    let spec = |time: Option<FsTime>| match time {
        Some(time) => Timespec {
            tv_sec: time.seconds,
            tv_nsec: time.nanoseconds.into(),
        },
        None => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
    };
    Timestamps {
        last_access: spec(node.times.accessed),
        last_modification: spec(node.times.modified),
    }
}
