//! [`mount_view`]: the files of a [`FileView`] as a read-only mount. The kernel's requests are read here, the foreign filesystem is parsed
//! elsewhere: neither side sees the other's bytes unchecked.
//!
//! A view answers one request at a time. So one task owns it, and requests wait for their turn. Its parser is started again when a
//! request has ended it: the numbers of files are the filesystem's own, so nothing that the kernel knows changes.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::sync::watch;

use super::session::serve;
use super::{Access, STATFS_UNIT, errno, reply_xattr};
use crate::browse::{FileView, FsNode, FsTime, NodeKind, RestartLimit};
use crate::error::{Error, Kind, Result};
use crate::fs::log::FailureLog;
use crate::fs::mounted::Mounted;
use crate::fs::server::PID_ATTRIBUTE;

/// A snapshot never changes.
const LIFE: Duration = Duration::from_secs(3600);
/// Bytes of a name: what Linux allows.
const NAME_MAX: u32 = 255;
/// Names of a folder that one listing has, at most.
const MOST_NAMES: usize = 1 << 22;
/// Inodes that the kernel may know at once; it forgets some when there are more.
const MOST_NODES: usize = 1 << 22;

/// Each file that ended the parser is refused from then on. Ten of them in a minute are an attack or a fault of the parser.
const RESTARTS: RestartLimit = RestartLimit {
    count: 10,
    within: Duration::from_secs(60),
};

type Job = Box<dyn for<'a> FnOnce(&'a mut FileView) -> BoxFuture<'a, ()> + Send>;

/// Nodes that the kernel knows, by the inode number that it was given.
#[derive(Default)]
struct KnownNodes {
    by_ino: HashMap<u64, KnownNode>,
    by_id: HashMap<u64, u64>,
    last: u64,
}

struct KnownNode {
    node: FsNode,
    lookups: u64,
}

impl KnownNodes {
    fn new(root: FsNode) -> Self {
        let mut known = Self {
            last: INodeNo::ROOT.0,
            ..Self::default()
        };
        known.by_id.insert(root.id, INodeNo::ROOT.0);
        let root = KnownNode {
            node: root,
            lookups: 1,
        };
        known.by_ino.insert(INodeNo::ROOT.0, root);
        known
    }

    fn get(&self, ino: INodeNo) -> Option<FsNode> {
        self.by_ino.get(&ino.0).map(|known| known.node.clone())
    }

    /// The number of a node, which the kernel knows once more; none when it knows too many.
    fn know(&mut self, node: FsNode) -> Option<u64> {
        if let Some(ino) = self.by_id.get(&node.id)
            && let Some(known) = self.by_ino.get_mut(ino)
        {
            known.lookups += 1;
            return Some(*ino);
        }
        if self.by_ino.len() >= MOST_NODES {
            return None;
        }
        self.last += 1;
        self.by_id.insert(node.id, self.last);
        self.by_ino
            .insert(self.last, KnownNode { node, lookups: 1 });
        Some(self.last)
    }

    fn forget(&mut self, ino: u64, lookups: u64) {
        if ino == INodeNo::ROOT.0 {
            return;
        }
        if let Some(known) = self.by_ino.get_mut(&ino) {
            known.lookups = known.lookups.saturating_sub(lookups);
            if known.lookups == 0 {
                let id = known.node.id;
                self.by_ino.remove(&ino);
                self.by_id.remove(&id);
            }
        }
    }
}

/// A name in a listing.
struct ListedName {
    name: Vec<u8>,
    kind: NodeKind,
}

struct BrowsedFs {
    jobs: mpsc::UnboundedSender<Job>,
    known: Arc<Mutex<KnownNodes>>,
    folders: Arc<Mutex<HashMap<u64, Arc<[ListedName]>>>>,
    next_handle: std::sync::atomic::AtomicU64,
    log: Arc<FailureLog>,
    /// Whose files all are, for a user other than root: the kernel would refuse others.
    owner: Option<(u32, u32)>,
    bytes: u64,
}

fn file_type(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::Regular => FileType::RegularFile,
        NodeKind::Folder => FileType::Directory,
        NodeKind::Link => FileType::Symlink,
        NodeKind::CharDevice => FileType::CharDevice,
        NodeKind::BlockDevice => FileType::BlockDevice,
        NodeKind::Fifo => FileType::NamedPipe,
        NodeKind::Socket => FileType::Socket,
    }
}

fn system_time(time: Option<FsTime>) -> SystemTime {
    let Some(time) = time else {
        return UNIX_EPOCH;
    };
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let base = match time.seconds < 0 {
        true => UNIX_EPOCH.checked_sub(seconds),
        false => UNIX_EPOCH.checked_add(seconds),
    };
    let found =
        base.and_then(|base| base.checked_add(Duration::from_nanos(time.nanoseconds.into())));
    found.unwrap_or(UNIX_EPOCH)
}

fn attr_of(ino: u64, node: &FsNode, owner: Option<(u32, u32)>) -> FileAttr {
    let (uid, gid) = owner.unwrap_or((node.uid, node.gid));
    // The one who mounts it may read all: it is his disk.
    let added = match (owner, node.kind) {
        (None, _) => 0,
        (Some(_), NodeKind::Folder) => 0o500,
        (Some(_), _) => 0o400,
    };
    let times = &node.times;
    // The number of a device as the kernel encodes it for FUSE.
    let (major, minor) = node.device;
    let rdev = (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12;
    FileAttr {
        ino: INodeNo(ino),
        size: node.size,
        blocks: node.size.div_ceil(512),
        atime: system_time(times.accessed.or(times.modified)),
        mtime: system_time(times.modified),
        ctime: system_time(times.changed.or(times.modified)),
        crtime: system_time(times.created),
        kind: file_type(node.kind),
        perm: u16::try_from(node.mode & 0o7777 | added).unwrap_or(0),
        nlink: node.links,
        uid,
        gid,
        rdev,
        blksize: STATFS_UNIT,
        flags: 0,
    }
}

impl BrowsedFs {
    /// Gives the view something to do in its turn. A job that is dropped answers EIO.
    fn run(
        &self,
        job: impl for<'a> FnOnce(&'a mut FileView) -> BoxFuture<'a, ()> + Send + 'static,
    ) {
        let _ = self.jobs.send(Box::new(job));
    }

    /// What turns an error into an errno, and logs it.
    fn refuse(&self) -> impl Fn(&Error) -> Errno + Send + Sync + use<> {
        let log = Arc::clone(&self.log);
        move |error| {
            if error.kind() != Kind::NotFound {
                log.write(error);
            }
            match error.kind() {
                Kind::Corrupt => Errno::EIO,
                // A feature that is not known: it is no wrong argument of the reader.
                Kind::Invalid => Errno::EOPNOTSUPP,
                kind => errno(kind),
            }
        }
    }

    fn node(&self, ino: INodeNo) -> Option<FsNode> {
        self.known.lock().get(ino)
    }
}

/// All names of a folder.
async fn names_of(view: &mut FileView, folder: u64) -> Result<Arc<[ListedName]>> {
    let dot = |name: &[u8]| ListedName {
        name: name.to_vec(),
        kind: NodeKind::Folder,
    };
    let mut names = vec![dot(b"."), dot(b"..")];
    let mut cursor = Some(0);
    while let Some(at) = cursor {
        let (entries, next) = view.list(folder, at).await?;
        // What is damaged is listed too: a look at it then fails.
        names.extend(entries.into_iter().map(|entry| ListedName {
            name: entry.name,
            kind: entry.node.map_or(NodeKind::Regular, |node| node.kind),
        }));
        if names.len() > MOST_NAMES {
            return Err(Error::new(Kind::Corrupt, "a folder has too many names"));
        }
        cursor = next;
    }
    Ok(names.into())
}

impl Filesystem for BrowsedFs {
    fn init(&mut self, _request: &Request, _config: &mut KernelConfig) -> std::io::Result<()> {
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(folder) = self
            .node(parent)
            .filter(|node| node.kind == NodeKind::Folder)
        else {
            return reply.error(Errno::ENOTDIR);
        };
        let name = name.as_bytes().to_vec();
        let (known, owner, refuse) = (Arc::clone(&self.known), self.owner, self.refuse());
        self.run(move |view| {
            async move {
                match view.find(folder.id, &name).await {
                    Ok(Some(node)) => match known.lock().know(node.clone()) {
                        Some(ino) => reply.entry(&LIFE, &attr_of(ino, &node, owner), Generation(0)),
                        None => reply.error(Errno::ENFILE),
                    },
                    Ok(None) => reply.error(Errno::ENOENT),
                    Err(error) => reply.error(refuse(&error)),
                }
            }
            .boxed()
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        self.known.lock().forget(ino.0, lookups);
    }

    fn getattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        match self.node(ino) {
            Some(node) => reply.attr(&LIFE, &attr_of(ino.0, &node, self.owner)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.node(ino).filter(|node| node.kind == NodeKind::Link) {
            Some(node) => reply.data(&node.target),
            None => reply.error(Errno::EINVAL),
        }
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let blocks = self.bytes / u64::from(STATFS_UNIT);
        reply.statfs(blocks, 0, 0, 0, 0, STATFS_UNIT, NAME_MAX, STATFS_UNIT);
    }

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.node(ino) {
            _ if flags.acc_mode() != OpenAccMode::O_RDONLY => reply.error(Errno::EROFS),
            Some(node) if node.kind == NodeKind::Regular => {
                reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(node) = self.node(ino) else {
            return reply.error(Errno::ENOENT);
        };
        let refuse = self.refuse();
        self.run(move |view| {
            async move {
                match view.read(&node.data(), offset, size as usize).await {
                    Ok(bytes) => reply.data(&bytes),
                    Err(error) => reply.error(refuse(&error)),
                }
            }
            .boxed()
        });
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let Some(folder) = self.node(ino).filter(|node| node.kind == NodeKind::Folder) else {
            return reply.error(Errno::ENOTDIR);
        };
        let handle = self
            .next_handle
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (folders, refuse) = (Arc::clone(&self.folders), self.refuse());
        self.run(move |view| {
            async move {
                match names_of(view, folder.id).await {
                    Ok(names) => {
                        folders.lock().insert(handle, names);
                        reply.opened(FileHandle(handle), FopenFlags::empty());
                    }
                    Err(error) => reply.error(refuse(&error)),
                }
            }
            .boxed()
        });
    }

    fn readdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(names) = self.folders.lock().get(&handle.0).cloned() else {
            return reply.error(Errno::EBADF);
        };
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (listed, next) in names.iter().zip(1_u64..).skip(skip) {
            // A lookup gives the number that stat shows.
            let unknown = INodeNo(u64::from(u32::MAX));
            if reply.add(
                unknown,
                next,
                file_type(listed.kind),
                OsStr::from_bytes(&listed.name),
            ) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.folders.lock().remove(&handle.0);
        reply.ok();
    }

    fn getxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        if ino == INodeNo::ROOT && name == OsStr::new(PID_ATTRIBUTE) {
            return reply_xattr(reply, size, std::process::id().to_string().as_bytes());
        }
        let Some(node) = self.node(ino) else {
            return reply.error(Errno::ENOENT);
        };
        let (name, refuse) = (name.as_bytes().to_vec(), self.refuse());
        self.run(move |view| {
            async move {
                match view.xattrs(node.id).await {
                    Ok((found, _)) => match found.iter().find(|(known, _)| *known == name) {
                        Some((_, value)) => reply_xattr(reply, size, value),
                        None => reply.error(Errno::NO_XATTR),
                    },
                    Err(error) => reply.error(refuse(&error)),
                }
            }
            .boxed()
        });
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let Some(node) = self.node(ino) else {
            return reply.error(Errno::ENOENT);
        };
        let refuse = self.refuse();
        self.run(move |view| {
            async move {
                match view.xattrs(node.id).await {
                    Ok((found, _)) => {
                        let names = found
                            .into_iter()
                            .flat_map(|(name, _)| [name, vec![0]].concat());
                        reply_xattr(reply, size, &names.collect::<Vec<u8>>());
                    }
                    Err(error) => reply.error(refuse(&error)),
                }
            }
            .boxed()
        });
    }
}

/// Mounts the files of a view: read only, without devices, set-user-id bits and programs. `source` is in the mount table.
///
/// # Errors
/// `Io` when `mountpoint` is not an empty folder, or the system refuses the mount or a thread.
pub(crate) fn mount_view(
    mut view: FileView,
    mountpoint: &Path,
    source: &str,
    access: Access,
) -> Result<Mounted> {
    let root = view.root()?;
    view.restart_within(RESTARTS);
    let bytes = view.partition().map_or(0, |partition| partition.size);
    let (jobs, mut waiting) = mpsc::unbounded_channel::<Job>();
    let (draining, drain) = watch::channel(false);
    tokio::spawn(async move {
        while let Some(job) = waiting.recv().await {
            // While draining, a request that waits gets EIO: its reply is dropped. One that runs ends: dropped, it would end the view.
            if !*drain.borrow() {
                job(&mut view).await;
            }
        }
    });
    let user = (!nix::unistd::geteuid().is_root()).then(|| {
        (
            nix::unistd::geteuid().as_raw(),
            nix::unistd::getegid().as_raw(),
        )
    });
    let filesystem = BrowsedFs {
        jobs,
        known: Arc::new(Mutex::new(KnownNodes::new(root))),
        folders: Arc::default(),
        next_handle: std::sync::atomic::AtomicU64::new(1),
        log: Arc::default(),
        owner: user,
        bytes,
    };
    serve(
        filesystem,
        mountpoint,
        source,
        access,
        draining,
        Arc::default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::browse::NodeTimes;

    fn node(id: u64) -> FsNode {
        FsNode {
            id,
            kind: NodeKind::BlockDevice,
            mode: 0o4600,
            uid: 5,
            gid: 6,
            links: 1,
            streams: 0,
            size: 0,
            device: (8, 300),
            times: NodeTimes {
                modified: Some(FsTime {
                    seconds: -1,
                    nanoseconds: 500_000_000,
                }),
                ..NodeTimes::default()
            },
            target: Vec::new(),
        }
    }

    #[test]
    fn a_node_has_one_number_until_the_kernel_forgets_it() {
        let mut known = KnownNodes::new(node(2));
        let first = known.know(node(1)).unwrap();
        assert_ne!(first, INodeNo::ROOT.0);
        assert_eq!(known.know(node(1)), Some(first));
        assert_eq!(known.know(node(2)), Some(INodeNo::ROOT.0));
        known.forget(first, 1);
        assert!(known.get(INodeNo(first)).is_some());
        known.forget(first, 1);
        assert!(known.get(INodeNo(first)).is_none());
        assert_ne!(known.know(node(1)), Some(first));
        known.forget(INodeNo::ROOT.0, 10);
        assert!(known.get(INodeNo::ROOT).is_some());
    }

    #[test]
    fn attributes_are_those_of_the_node_and_for_a_user_his_own() {
        let attr = attr_of(9, &node(1), None);
        assert_eq!((attr.uid, attr.gid, attr.perm), (5, 6, 0o4600));
        assert_eq!(attr.rdev, 0x2c | 8 << 8 | 0x100 << 12);
        assert_eq!(attr.mtime, UNIX_EPOCH - Duration::from_millis(500));
        let mut hidden = node(1);
        hidden.mode = 0;
        let attr = attr_of(9, &hidden, Some((1000, 100)));
        assert_eq!((attr.uid, attr.gid, attr.perm), (1000, 100, 0o400));
    }
}
