//! What every system call answers on a mount, in the manner of pjdfstest: names and modes of a filesystem that is read only.

mod calls;

use std::fs::{self, File};
use std::os::unix::fs::{DirEntryExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use calls::*;

use crate::support::*;

/// A mount of two snapshots of one volume.
struct Shown {
    mount: Mount,
    first: String,
    second: String,
    _emulator: Emulator,
}

impl Shown {
    fn new(args: &[&str]) -> Self {
        let emulator = Emulator::start();
        emulator.make_volume("vol-0a", 2048, [0, 3]);
        let (first, second) = (emulator.snapshot("vol-0a"), emulator.snapshot("vol-0a"));
        let mount = emulator.mount(&[args, &["vol-0a"]].concat());
        Self {
            mount,
            first,
            second,
            _emulator: emulator,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        // `join` of nothing adds a slash.
        if name.is_empty() {
            return self.mount.point.path().to_owned();
        }
        self.mount.point.path().join(name)
    }

    fn disk(&self) -> PathBuf {
        self.mount.disk(&self.first)
    }

    /// One of the volume's links, by the time of its snapshot.
    fn link(&self) -> PathBuf {
        let mut names = fs::read_dir(self.at("volumes/vol-0a")).unwrap();
        names.next().unwrap().unwrap().path()
    }

    /// Each kind of folder that a mount has.
    fn folders(&self) -> Vec<PathBuf> {
        let pair = format!("changes/{}..{}", self.first, self.second);
        let snapshot = format!("snapshots/{}", self.first);
        let names = ["", "snapshots", "changes", "volumes", "volumes/vol-0a"];
        let names = names.into_iter().chain([&*snapshot, &pair]);
        names.map(|name| self.at(name)).collect()
    }
}

/// What differs from the table, a line each.
fn wrong_answers(names: &[(&str, usize, PathBuf)], shown: &Shown) -> Vec<String> {
    let (disk, free) = (shown.disk(), shown.disk().with_file_name("free"));
    let root = shown.mount.point.path();
    // The kernel keeps mountpoints from these before it asks the filesystem.
    let moves = ["rename it", "rename onto it", "exchange", "unlink", "rmdir"];
    let number = |answer: Answer| answer.err().map(Errno::raw_os_error);
    let mut wrong = Vec::new();
    for (call, run, answers) in CALLS {
        for (kind, column, path) in names {
            if path == root && moves.contains(call) {
                continue;
            }
            let (answer, expected) = (run(path, &disk, &free), answers[*column]);
            if answer != expected {
                let shown: String = path.to_string_lossy().chars().take(80).collect();
                let (answer, expected) = (number(answer), number(expected));
                wrong.push(format!(
                    "{call} of {kind}: errno {answer:?}, not {expected:?}: {shown}"
                ));
            }
        }
    }
    wrong
}

#[test]
fn every_call_on_a_name_that_exists_answers_as_a_read_only_filesystem_does() {
    let shown = Shown::new(&[]);
    let mut names = vec![
        ("a file", 0, shown.disk()),
        ("a file", 0, shown.disk().with_file_name("snapshot.json")),
        ("a link", 2, shown.link()),
        ("a name below a file", 4, shown.disk().join("y")),
    ];
    names.extend(
        shown
            .folders()
            .into_iter()
            .map(|path| ("a folder", 1, path)),
    );
    let wrong = wrong_answers(&names, &shown);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_call_on_a_missing_name_answers_as_a_read_only_filesystem_does() {
    let shown = Shown::new(&[]);
    let mut names = Vec::new();
    for folder in shown.folders() {
        for name in [
            "new",
            "snap-0123456789abcdef0",
            "disk.raw ",
            "DISK.RAW",
            "\u{fc}",
        ] {
            names.push(("a missing name", 3, folder.join(name)));
        }
    }
    for name in [
        "snap-0..snap-1",
        "..snap-0a",
        "snap-0a..",
        "snap-0a..snap-0b..snap-0c",
    ] {
        names.push(("a missing pair", 3, shown.at("changes").join(name)));
    }
    let wrong = wrong_answers(&names, &shown);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_name_longer_than_255_bytes_is_too_long_in_every_folder() {
    let shown = Shown::new(&[]);
    let longest = rustix::fs::statvfs(shown.mount.point.path())
        .unwrap()
        .f_namemax;
    assert_eq!(longest, 255);
    let long = "x".repeat(256);
    let names = shown.folders().into_iter();
    let names: Vec<_> = names.map(|path| ("a long", 5, path.join(&long))).collect();
    let wrong = wrong_answers(&names, &shown);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for folder in shown.folders() {
        let missing = open_as(&folder.join("x".repeat(255)), OFlags::RDONLY);
        assert_eq!(missing, ENOENT, "{}", folder.display());
    }
}

#[test]
fn calls_on_an_open_file_answer_as_those_of_a_read_only_filesystem() {
    let shown = Shown::new(&[]);
    let disk = open(&shown.disk());
    let size = disk.metadata().unwrap().len();
    let mut little = [0u8; 3];
    for (call, answer, expected) in [
        (
            "fallocate",
            rustix::fs::fallocate(&disk, FallocateFlags::empty(), 0, 512),
            EBADF,
        ),
        (
            "punch hole",
            rustix::fs::fallocate(
                &disk,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                0,
                512,
            ),
            EBADF,
        ),
        ("ftruncate", rustix::fs::ftruncate(&disk, 0), EINVAL),
        ("write", rustix::io::write(&disk, b"x").map(drop), EBADF),
        ("fchmod", rustix::fs::fchmod(&disk, Mode::RWXU), EROFS),
        ("fsync", rustix::fs::fsync(&disk), OK),
        ("fdatasync", rustix::fs::fdatasync(&disk), OK),
        (
            "flock",
            rustix::fs::flock(&disk, FlockOperation::NonBlockingLockExclusive),
            OK,
        ),
        (
            "seek to data past the end",
            rustix::fs::seek(&disk, SeekFrom::Data(size)).map(drop),
            ENXIO,
        ),
        (
            "seek to a hole past the end",
            rustix::fs::seek(&disk, SeekFrom::Hole(size)).map(drop),
            ENXIO,
        ),
        (
            "seek past the end",
            rustix::fs::seek(&disk, SeekFrom::Start(size + 1)).map(drop),
            OK,
        ),
        (
            "seek before the beginning",
            rustix::fs::seek(&disk, SeekFrom::Current(-2 - size as i64)).map(drop),
            EINVAL,
        ),
        (
            "getxattr into too little",
            rustix::fs::fgetxattr(&disk, "user.ebs.volume_id", &mut little).map(drop),
            ERANGE,
        ),
        (
            "listxattr into too little",
            rustix::fs::flistxattr(&disk, &mut little).map(drop),
            ERANGE,
        ),
    ] {
        assert_eq!(answer, expected, "{call}");
    }
    assert_eq!(
        rustix::io::pread(&disk, &mut little, size).unwrap(),
        0,
        "read at the end"
    );
    assert_eq!(
        rustix::io::pread(&disk, &mut little, size - 1).unwrap(),
        1,
        "read across the end"
    );
    let program = Command::new(shown.disk()).status().unwrap_err();
    assert_eq!(program.raw_os_error(), Some(libc::EACCES));
}

#[test]
fn stat_shows_modes_links_and_sizes_that_fit_together() {
    let shown = Shown::new(&[]);
    for folder in shown.folders() {
        let at = folder.display();
        let stat = fs::metadata(&folder).unwrap();
        assert_eq!(stat.mode(), libc::S_IFDIR | 0o500, "{at}");
        let below = fs::read_dir(&folder).unwrap().map(Result::unwrap);
        let below: Vec<_> = below.collect();
        for line in below {
            let (path, kind) = (line.path(), line.file_type().unwrap());
            let stat = fs::symlink_metadata(&path).unwrap();
            assert_eq!(stat.file_type(), kind, "{path:?}");
            assert_eq!(line.ino(), stat.ino(), "{path:?}");
            assert_eq!((stat.uid(), stat.gid(), stat.rdev()), (0, 0, 0), "{path:?}");
            assert!(stat.blksize() == BLOCK, "{path:?}: {}", stat.blksize());
            assert!(stat.blocks() * 512 <= stat.len().next_multiple_of(BLOCK));
            if kind.is_file() {
                assert_eq!(stat.mode(), libc::S_IFREG | 0o400, "{path:?}");
                assert_eq!(stat.nlink(), 1, "{path:?}");
                let kept = open(&path).metadata().unwrap();
                assert_eq!((kept.ino(), kept.len()), (stat.ino(), stat.len()));
            } else if kind.is_symlink() {
                assert_eq!(stat.mode(), libc::S_IFLNK | 0o777, "{path:?}");
                let target = fs::read_link(&path).unwrap();
                assert_eq!(stat.len(), target.as_os_str().len() as u64, "{path:?}");
            } else {
                assert!(kind.is_dir(), "{path:?}");
            }
        }
    }
    let flags = rustix::fs::statvfs(shown.mount.point.path())
        .unwrap()
        .f_flag;
    assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY));
}

#[test]
fn folders_count_their_links_or_say_that_they_do_not() {
    let shown = Shown::new(&[]);
    for folder in shown.folders() {
        let below = fs::read_dir(&folder).unwrap().map(Result::unwrap);
        let folders = below.filter(|line| line.file_type().unwrap().is_dir());
        let (folders, links) = (
            folders.count() as u64,
            fs::metadata(&folder).unwrap().nlink(),
        );
        // 1 means that subfolders are not counted. From any other number programs subtract 2 to get the number of subfolders.
        assert!(
            [1, 2 + folders].contains(&links),
            "{}: {links} links, {folders} folders",
            folder.display()
        );
    }
}

/// An entry of a folder: name, inode, and the place that seekdir takes to go on behind it.
type DirEntry = (String, u64, u64);

/// Reads a folder from a place to its end, little by little.
fn entries(folder: &File, from: u64) -> Vec<DirEntry> {
    rustix::fs::seek(folder, SeekFrom::Start(from)).unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 128];
    let mut lines = RawDir::new(folder, &mut buffer);
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        let line = line.unwrap();
        let name = line.file_name().to_str().unwrap().to_owned();
        found.push((name, line.ino(), line.next_entry_cookie()));
    }
    found
}

#[test]
fn a_folder_is_read_twice_and_from_every_place_with_the_same_names() {
    let shown = Shown::new(&[]);
    for path in shown.folders() {
        let folder = open(&path);
        let all = entries(&folder, 0);
        assert!(all.len() > 2, "{path:?}: {all:?}");
        assert_eq!(entries(&folder, 0), all, "{path:?}, again");
        for (number, (_, _, place)) in all.iter().enumerate() {
            assert_eq!(entries(&folder, *place), all[number + 1..], "{path:?}");
        }
        let another = open(&path);
        assert_eq!(entries(&another, 0), all, "{path:?}, opened again");
    }
}

#[test]
fn dot_and_dot_dot_have_the_inodes_of_the_folder_and_its_parent() {
    let shown = Shown::new(&[]);
    for path in shown.folders() {
        let all = entries(&open(&path), 0);
        let ino = |name: &str| all.iter().find(|line| line.0 == name).map(|line| line.1);
        let of = |path: &Path| Some(fs::metadata(path).unwrap().ino());
        assert_eq!(ino("."), of(&path), "{path:?}");
        // Above its root another filesystem begins.
        if path != shown.at("") {
            assert_eq!(ino(".."), of(path.parent().unwrap()), "{path:?}");
        }
    }
}

#[test]
fn a_folder_that_is_open_keeps_its_names_while_snapshots_are_made() {
    let shown = Shown::new(&[]);
    let folder = open(&shown.at("snapshots"));
    let all = entries(&folder, 0);
    let half = all[all.len() / 2].2;
    shown._emulator.snapshot("vol-0a");
    assert_eq!(entries(&folder, half), all[all.len() / 2 + 1..]);
}

#[test]
fn another_user_is_answered_by_the_modes() {
    let answers = |shown: &Shown| -> Vec<String> {
        let point = shown.mount.point.path();
        sh(&format!("chmod 755 {}", point.parent().unwrap().display()));
        let asked = "import os, sys, errno\n\
             def name(call):\n\
             \x20   try: call(); return 'ok'\n\
             \x20   except OSError as error: return errno.errorcode[error.errno]\n\
             disk, folder = sys.argv[1:]\n\
             print(name(lambda: os.stat(disk)), name(lambda: os.open(disk, os.O_RDONLY)),\n\
             \x20     name(lambda: os.open(disk, os.O_WRONLY)), name(lambda: os.listdir(folder)),\n\
             \x20     name(lambda: os.mkdir(folder + '/new')), name(lambda: os.chmod(disk, 0o777)),\n\
             \x20     *(os.access(disk, mode) for mode in (os.R_OK, os.W_OK, os.X_OK)))";
        let said = run(Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(["/usr/bin/python3", "-c", asked])
            .arg(shown.disk())
            .arg(shown.disk().parent().unwrap()));
        said.split_whitespace().map(str::to_owned).collect()
    };
    let refused = "EACCES EACCES EACCES EACCES EACCES EACCES False False False";
    assert_eq!(answers(&Shown::new(&[])).join(" "), refused);
    assert_eq!(
        answers(&Shown::new(&["--allow-other"])).join(" "),
        refused,
        "--allow-other with files of mode 0400"
    );
    assert_eq!(
        answers(&Shown::new(&["--allow-other", "--mode", "0444"])).join(" "),
        "ok ok EROFS ok EROFS EROFS True False False"
    );
    assert_eq!(
        answers(&Shown::new(&["--allow-other", "--uid", "65534"])).join(" "),
        "ok ok EROFS ok EROFS EROFS True False False"
    );
}

#[test]
fn a_file_is_opened_with_every_flag_that_only_reads() {
    let shown = Shown::new(&[]);
    for flags in [
        libc::O_DIRECT,
        libc::O_SYNC,
        libc::O_APPEND,
        libc::O_NOATIME,
        libc::O_NONBLOCK,
        libc::O_PATH,
        libc::O_DIRECT | libc::O_SYNC | libc::O_NOFOLLOW,
    ] {
        let mut options = File::options();
        let opened = options.read(true).custom_flags(flags).open(shown.disk());
        assert!(opened.is_ok(), "{flags:o}: {opened:?}");
    }
}
