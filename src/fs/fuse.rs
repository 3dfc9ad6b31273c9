//! The kernel's side: requests to the [`Tree`] and back, [`Kind`] to errno. Only this file and [`session`] name fuser.
//!
//! A request that can be answered at once is answered on the thread that took it; any other becomes a task, so that a
//! few threads (each holds a 16 MiB buffer) serve any number of waiting readers. A reply that is dropped answers EIO.

mod browsed;
mod session;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::activity::Activity;
use super::log::FailureLog;
use super::opened::{ImageReader, OpenFile};
use super::server::PID_ATTRIBUTE;
use super::tree::{Attributes, FileKind, FolderEntry, NAME_MAX, Tree};
use crate::block::BLOCK_SIZE;
use crate::error::{Error, Kind, Result};

pub(crate) use browsed::mount_view;
pub(crate) use session::{Access, mount};

/// How long the kernel may keep names and attributes. Snapshots never change; what is listed and described does.
const FOREVER: Duration = Duration::from_secs(3600);
const BRIEFLY: Duration = Duration::from_secs(1);
/// Unit of what `df` counts: the usual block of a filesystem.
const STATFS_UNIT: u32 = 4096;
/// Kinds to errnos: the one table of this border.
fn errno(kind: Kind) -> Errno {
    match kind {
        Kind::NotFound => Errno::ENOENT,
        Kind::Denied => Errno::EACCES,
        Kind::Pending => Errno::EAGAIN,
        Kind::Invalid | Kind::Unrelated => Errno::EINVAL,
        Kind::Throttled
        | Kind::Unavailable
        | Kind::Corrupt
        | Kind::Io
        | Kind::NoSpace
        | Kind::Stopped
        | Kind::Busy
        | Kind::Undecided
        | Kind::Marked
        | Kind::Late => Errno::EIO,
    }
}

struct Ebsfs {
    tree: Arc<Tree>,
    runtime: Handle,
    draining: watch::Receiver<bool>,
    /// How long a request may wait, whatever it waits for.
    request_timeout: Duration,
    folders: Arc<Mutex<HashMap<u64, Arc<[FolderEntry]>>>>,
    files: Arc<Mutex<HashMap<u64, Arc<OpenFile>>>>,
    next_handle: AtomicU64,
    log: Arc<FailureLog>,
    activity: Arc<Activity>,
}

impl Ebsfs {
    /// Answers by `reply`: now, if the work needs no waiting, else from a task; EIO while the mount is draining.
    fn answer<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
        reply: impl FnOnce(std::result::Result<T, Errno>) + Send + 'static,
    ) {
        let _context = self.runtime.enter();
        let mut work = Box::pin(work);
        let log = Arc::clone(&self.log);
        let activity = Arc::clone(&self.activity);
        let log_and_map = move |error: Error| {
            log.write(&error);
            activity.failed(error.kind());
            errno(error.kind())
        };
        match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => reply(done.map_err(log_and_map)),
            Poll::Pending => {
                let mut draining = self.draining.clone();
                let request_timeout = self.request_timeout;
                self.runtime.spawn(async move {
                    let done = tokio::select! {
                        biased;
                        done = work => done.map_err(log_and_map),
                        _ = draining.wait_for(|draining| *draining) => Err(Errno::EIO),
                        () = tokio::time::sleep(request_timeout) => Err(log_and_map(Error::new(
                            Kind::Unavailable,
                            format!("cannot answer a request: no result within {request_timeout:?}"),
                        ))),
                    };
                    reply(done);
                });
            }
        }
    }
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Folder => FileType::Directory,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Link => FileType::Symlink,
    }
}

/// What the kernel may know of a file, and for how long.
fn file_attr(tree: &Tree, attributes: &Attributes) -> (Duration, FileAttr) {
    let owner = tree.ownership();
    let life = if attributes.fixed { FOREVER } else { BRIEFLY };
    let attr = FileAttr {
        ino: INodeNo(attributes.ino),
        size: attributes.size,
        blocks: attributes.blocks,
        atime: attributes.time,
        mtime: attributes.time,
        ctime: attributes.time,
        crtime: UNIX_EPOCH,
        kind: file_type(attributes.kind),
        perm: attributes.mode,
        // 1 means that subfolders are not counted: find then looks into each entry.
        nlink: 1,
        uid: owner.uid,
        gid: owner.gid,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    };
    (life, attr)
}

impl Filesystem for Ebsfs {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each where the kernel has it. ASYNC_DIO: direct reads of io_uring, libaio and loop devices are all in flight at once;
        // without it the kernel waits for each. PARALLEL_DIROPS: a lookup that waits does not block others in its folder.
        // EXPORT_SUPPORT: the kernel looks up an NFS handle again after it dropped the inode. DIRECT_IO_ALLOW_MMAP:
        // `snapshot.json`, which is not cached, can be mapped.
        let wanted = InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_EXPORT_SUPPORT
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        let _ = config.add_capabilities(wanted & config.capabilities());
        // Background requests are readahead and asynchronous direct reads: enough for many readers at once.
        let _ = config.set_max_background(128);
        let _ = config.set_congestion_threshold(96);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name.len() > NAME_MAX as usize {
            return reply.error(Errno::ENAMETOOLONG);
        }
        let Some(name) = name.to_str().map(str::to_owned) else {
            return reply.error(Errno::ENOENT);
        };
        let tree = Arc::clone(&self.tree);
        let work = async move {
            let found = tree.lookup(parent.0, &name).await?;
            Ok(found.map(|attributes| file_attr(&tree, &attributes)))
        };
        self.answer(work, |found| match found {
            Ok(Some((life, attr))) => reply.entry(&life, &attr, Generation(0)),
            Ok(None) => reply.error(Errno::ENOENT),
            Err(errno) => reply.error(errno),
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        self.tree.forget(ino.0, lookups);
    }

    fn getattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        let tree = Arc::clone(&self.tree);
        let work = async move {
            let attributes = tree.attributes(ino.0).await?;
            Ok(file_attr(&tree, &attributes))
        };
        self.answer(work, |found| match found {
            Ok((life, attr)) => reply.attr(&life, &attr),
            Err(errno) => reply.error(errno),
        });
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.tree.link(ino.0) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(errno(error.kind())),
        }
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let tree = Arc::clone(&self.tree);
        let work = async move { Ok(tree.totals().await) };
        self.answer(work, |totals| match totals {
            Ok(totals) => {
                let blocks = totals.bytes / u64::from(STATFS_UNIT);
                let files = totals.snapshots;
                reply.statfs(blocks, 0, 0, files, 0, BLOCK_SIZE, NAME_MAX, STATFS_UNIT);
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let tree = Arc::clone(&self.tree);
        let (files, activity) = (Arc::clone(&self.files), Arc::clone(&self.activity));
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let reader = ImageReader {
            uid: request.uid(),
            pid: request.pid(),
        };
        let work = async move {
            let contents = tree.contents(ino.0).await?;
            OpenFile::new(contents, reader, tree.custodian(), || {
                tree.provenance(ino.0)
            })
        };
        self.answer(work, move |opened| match opened {
            Ok(file) => {
                let flags = if file.contents.is_fixed() && file.is_recorded() {
                    // What this opening reads is to reach us: the kernel drops the pages that it has.
                    FopenFlags::empty()
                } else if file.contents.is_fixed() {
                    // The pages that the kernel has are good for every later open.
                    FopenFlags::FOPEN_KEEP_CACHE
                } else {
                    // It can grow while its old size is still believed: read it as it is.
                    FopenFlags::FOPEN_DIRECT_IO
                };
                files.lock().insert(handle, Arc::new(file));
                activity.opened();
                reply.opened(FileHandle(handle), flags);
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if self.files.lock().remove(&handle.0).is_some() {
            self.activity.closed();
        }
        reply.ok();
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let file = self.open_file(handle);
        let work = async move { file?.read_at(offset, size as usize).await };
        let (since, activity) = (Instant::now(), Arc::clone(&self.activity));
        self.answer(work, move |read| match read {
            Ok(bytes) => {
                // Before the reader learns of it: then the counts have every read that has an answer.
                activity.read(bytes.len(), since.elapsed());
                reply.data(&bytes);
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let file = self.open_file(handle);
        let to_data = whence == libc::SEEK_DATA;
        let work = async move { file?.contents.seek(offset, to_data).await };
        if whence != libc::SEEK_DATA && whence != libc::SEEK_HOLE {
            return reply.error(Errno::EINVAL);
        }
        self.answer(work, |found| match found.map(|at| at.map(i64::try_from)) {
            Ok(Some(Ok(at))) => reply.offset(at),
            Ok(Some(Err(_))) => reply.error(Errno::EOVERFLOW),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(errno) => reply.error(errno),
        });
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // readdir takes the listing at offset 0 and keeps it for this handle, however slowly the folder is read.
        let tree = Arc::clone(&self.tree);
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let work = async move {
            // Opening does not list: readdir returns the error of a listing that fails.
            let attributes = tree.attributes(ino.0).await?;
            Ok(attributes.kind)
        };
        let folders = Arc::clone(&self.folders);
        self.answer(work, move |opened| match opened {
            Ok(FileKind::Folder) => {
                folders.lock().insert(handle, Arc::new([]));
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Ok(_) => reply.error(Errno::ENOTDIR),
            Err(errno) => reply.error(errno),
        });
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let tree = Arc::clone(&self.tree);
        let kept = self.folders.lock().get(&handle.0).cloned();
        let kept = kept.filter(|lines| offset > 0 && !lines.is_empty());
        let folder = self.folder(handle.0);
        let work = async move {
            if let Some(lines) = kept {
                return Ok(lines);
            }
            let mut lines = tree.lines(ino.0).await?;
            let parent = tree.parent(ino.0).await?;
            let dot = |ino, name| FolderEntry::new(ino, FileKind::Folder, name);
            lines.splice(0..0, [dot(ino.0, "."), dot(parent, "..")]);
            Ok(folder(lines.into()))
        };
        self.answer(work, move |lines| match lines {
            Ok(lines) => {
                let skip = usize::try_from(offset).unwrap_or(usize::MAX);
                for (line, next) in lines.iter().zip(1u64..).skip(skip) {
                    if reply.add(INodeNo(line.ino), next, file_type(line.kind), &line.name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
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
        let found = self.xattrs(ino).into_iter();
        let mut named = found.filter(|(known, _)| name == OsStr::new(known));
        match named.next() {
            Some((_, value)) => reply_xattr(reply, size, value.as_bytes()),
            None => reply.error(Errno::NO_XATTR),
        }
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let all = self.xattrs(ino);
        let names: String = all.iter().map(|(name, _)| format!("{name}\0")).collect();
        reply_xattr(reply, size, names.as_bytes());
    }

    fn destroy(&mut self) {
        self.files.lock().clear();
    }
}

impl Ebsfs {
    fn open_file(&self, handle: FileHandle) -> Result<Arc<OpenFile>> {
        let file = self.files.lock().get(&handle.0).cloned();
        file.ok_or_else(|| Error::new(Kind::Invalid, "not an open file"))
    }

    /// Extended attributes: those of a snapshot, and at the mountpoint the id of the process that serves it.
    fn xattrs(&self, ino: INodeNo) -> Vec<(&'static str, String)> {
        let _context = self.runtime.enter();
        if ino == INodeNo::ROOT {
            return vec![(PID_ATTRIBUTE, std::process::id().to_string())];
        }
        self.tree.xattrs(ino.0)
    }

    /// Keeps the lines of an open folder and gives them back.
    fn folder(
        &self,
        handle: u64,
    ) -> impl FnOnce(Arc<[FolderEntry]>) -> Arc<[FolderEntry]> + Send + use<> {
        let slot = Arc::clone(&self.folders);
        move |lines| {
            if let Some(kept) = slot.lock().get_mut(&handle) {
                *kept = Arc::clone(&lines);
            }
            lines
        }
    }
}

fn reply_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    if size == 0 {
        reply.size(len);
    } else if len <= size {
        reply.data(value);
    } else {
        reply.error(Errno::ERANGE);
    }
}
