//! The calls on names, and what a read-only filesystem answers to each.

use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

/// What a call answers: nothing, or an error number.
pub type Answer = Result<(), Errno>;

pub const OK: Answer = Ok(());
pub const EACCES: Answer = Err(Errno::ACCESS);
pub const EBADF: Answer = Err(Errno::BADF);
pub const EEXIST: Answer = Err(Errno::EXIST);
pub const EINVAL: Answer = Err(Errno::INVAL);
pub const EISDIR: Answer = Err(Errno::ISDIR);
pub const ELOOP: Answer = Err(Errno::LOOP);
pub const ENAMETOOLONG: Answer = Err(Errno::NAMETOOLONG);
pub const ENODATA: Answer = Err(Errno::NODATA);
pub const ENOENT: Answer = Err(Errno::NOENT);
pub const ENOTDIR: Answer = Err(Errno::NOTDIR);
pub const ENXIO: Answer = Err(Errno::NXIO);
pub const ERANGE: Answer = Err(Errno::RANGE);
pub const EROFS: Answer = Err(Errno::ROFS);

/// Opens a file and closes it.
pub fn open_as(path: &Path, flags: OFlags) -> Answer {
    rustix::fs::open(path, flags, Mode::RUSR).map(drop)
}

fn now() -> Timestamps {
    let time = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// A call on a path, and beside it the disk of a snapshot and a free name.
pub type Call = fn(&Path, &Path, &Path) -> Answer;

/// Each call, and its answers for a file, a folder, a link to a folder, a name that is missing, a name below a file, and a
/// name of 256 bytes.
///
/// Calls that remove or rename do not look at the name: the kernel refuses them before.
pub const CALLS: &[(&str, Call, [Answer; 6])] = &[
    (
        "open for writing",
        |path, _, _| open_as(path, OFlags::WRONLY),
        [EROFS, EISDIR, EISDIR, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "open for reading and writing",
        |path, _, _| open_as(path, OFlags::RDWR),
        [EROFS, EISDIR, EISDIR, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "open O_TRUNC",
        |path, _, _| open_as(path, OFlags::TRUNC),
        [EROFS, EISDIR, EISDIR, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "open O_CREAT",
        |path, _, _| open_as(path, OFlags::CREATE),
        [OK, EISDIR, EISDIR, EROFS, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "open O_CREAT|O_EXCL",
        |path, _, _| open_as(path, OFlags::CREATE | OFlags::EXCL),
        [EEXIST, EEXIST, EEXIST, EROFS, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "open O_TMPFILE",
        |path, _, _| open_as(path, OFlags::TMPFILE | OFlags::RDWR),
        [ENOTDIR, EROFS, EROFS, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "open O_NOFOLLOW",
        |path, _, _| open_as(path, OFlags::NOFOLLOW),
        [OK, OK, ELOOP, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "open O_DIRECTORY",
        |path, _, _| open_as(path, OFlags::DIRECTORY),
        [ENOTDIR, OK, OK, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "open O_DIRECTORY|O_NOFOLLOW",
        |path, _, _| open_as(path, OFlags::DIRECTORY | OFlags::NOFOLLOW),
        [ENOTDIR, OK, ENOTDIR, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "stat",
        |path, _, _| rustix::fs::stat(path).map(drop),
        [OK, OK, OK, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "readlink",
        |path, _, _| rustix::fs::readlink(path, Vec::new()).map(drop),
        [EINVAL, EINVAL, OK, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "access R_OK",
        |path, _, _| rustix::fs::access(path, rustix::fs::Access::READ_OK),
        [OK, OK, OK, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "access W_OK",
        |path, _, _| rustix::fs::access(path, rustix::fs::Access::WRITE_OK),
        [EROFS, EROFS, EROFS, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "access X_OK",
        |path, _, _| rustix::fs::access(path, rustix::fs::Access::EXEC_OK),
        [EACCES, OK, OK, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "mkdir",
        |path, _, _| rustix::fs::mkdir(path, Mode::RWXU),
        [EEXIST, EEXIST, EEXIST, EROFS, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "mkfifo",
        |path, _, _| rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0),
        [EEXIST, EEXIST, EEXIST, EROFS, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "symlink",
        |path, _, _| rustix::fs::symlink("target", path),
        [EEXIST, EEXIST, EEXIST, EROFS, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "link to it",
        |path, disk, _| rustix::fs::link(disk, path),
        [EEXIST, EEXIST, EEXIST, EROFS, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "link of it",
        |path, _, free| rustix::fs::link(path, free),
        [EROFS, EROFS, EROFS, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "rename it",
        |path, _, free| rustix::fs::rename(path, free),
        [EROFS, EROFS, EROFS, EROFS, ENOTDIR, EROFS],
    ),
    (
        "rename onto it",
        |path, disk, _| rustix::fs::rename(disk, path),
        [EROFS, EROFS, EROFS, EROFS, ENOTDIR, EROFS],
    ),
    (
        "exchange",
        |path, disk, _| rustix::fs::renameat_with(CWD, disk, CWD, path, RenameFlags::EXCHANGE),
        [EROFS, EROFS, EROFS, EROFS, ENOTDIR, EROFS],
    ),
    (
        "unlink",
        |path, _, _| rustix::fs::unlink(path),
        [EROFS, EROFS, EROFS, EROFS, ENOTDIR, EROFS],
    ),
    (
        "rmdir",
        |path, _, _| rustix::fs::rmdir(path),
        [EROFS, EROFS, EROFS, EROFS, ENOTDIR, EROFS],
    ),
    (
        "chmod",
        |path, _, _| rustix::fs::chmod(path, Mode::RWXU),
        [EROFS, EROFS, EROFS, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "chown",
        |path, _, _| rustix::fs::chown(path, Some(Uid::ROOT), Some(Gid::ROOT)),
        [EROFS, EROFS, EROFS, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "lchown",
        |path, _, _| {
            let (uid, flags) = (Some(Uid::ROOT), AtFlags::SYMLINK_NOFOLLOW);
            rustix::fs::chownat(CWD, path, uid, None, flags)
        },
        [EROFS, EROFS, EROFS, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "utimens",
        |path, _, _| rustix::fs::utimensat(CWD, path, &now(), AtFlags::empty()),
        [EROFS, EROFS, EROFS, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "utimens of the link",
        |path, _, _| rustix::fs::utimensat(CWD, path, &now(), AtFlags::SYMLINK_NOFOLLOW),
        [EROFS, EROFS, EROFS, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "truncate",
        |path, _, _| {
            nix::unistd::truncate(path, 0).map_err(|errno| Errno::from_raw_os_error(errno as i32))
        },
        [EROFS, EISDIR, EISDIR, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "setxattr",
        |path, _, _| rustix::fs::setxattr(path, "user.x", b"1", XattrFlags::empty()),
        [EROFS, EROFS, EROFS, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "lsetxattr",
        |path, _, _| rustix::fs::lsetxattr(path, "trusted.x", b"1", XattrFlags::empty()),
        [EROFS, EROFS, EROFS, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "removexattr",
        |path, _, _| rustix::fs::removexattr(path, "user.ebs.volume_id"),
        [EROFS, EROFS, EROFS, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
    (
        "getxattr of no such attribute",
        |path, _, _| rustix::fs::getxattr(path, "user.none", &mut [0u8; 9][..]).map(drop),
        [ENODATA, ENODATA, ENODATA, ENOENT, ENOTDIR, ENAMETOOLONG],
    ),
];
