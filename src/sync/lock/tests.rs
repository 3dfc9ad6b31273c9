use std::process::{Child, Command, Stdio};

use super::*;
use crate::sysfs::tests::LoopDevice;

fn lock(path: &Path, waits: bool) -> LockPath {
    LockPath {
        path: path.to_owned(),
        waits,
    }
}

fn kind<T: std::fmt::Debug>(taken: Result<T>) -> Kind {
    taken.unwrap_err().kind()
}

/// Another process that has a lock until it ends.
fn another(path: &Path, how: &str, seconds: &str) -> Child {
    let mut child = Command::new("flock")
        .args([how, "--no-fork"])
        .arg(path)
        .args(["sleep", seconds])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..500 {
        let file = open(path, false).unwrap();
        let found = file.metadata().unwrap();
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        if locked_by(&locks, found.dev(), found.ino()) == Some(child.id()) {
            return child;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
    panic!("{} is not locked", path.display());
}

#[test]
fn one_run_has_a_name_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lock");
    let never = Stop::never();
    let locks = Locks::take(&path, &[], &never).unwrap();
    assert_eq!(kind(Locks::take(&path, &[], &never)), Kind::Invalid);
    drop(locks);
    drop(Locks::take(&path, &[], &never).unwrap());
    assert!(!path.exists());
    std::fs::write(&path, "").unwrap();
    let mut child = another(&path, "--exclusive", "60");
    let error = Locks::take(&path, &[], &never).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert_eq!(error.remedy(), Some(&Remedy::TryLater));
    let by = format!("process {} has it locked", child.id());
    assert!(error.to_string().ends_with(&by), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    drop(Locks::take(&path, &[], &never).unwrap());
    std::os::unix::fs::symlink("elsewhere", &path).unwrap();
    assert!(Locks::take(&path, &[], &never).is_err());
    assert!(!folder.path().join("elsewhere").exists());
}

#[test]
fn the_holder_of_a_lock_is_read_from_proc_locks() {
    let locks = "1: FLOCK  ADVISORY  WRITE 812 08:10:77 0 EOF\n\
                 1: -> FLOCK  ADVISORY  WRITE 813 08:10:78 0 EOF\n\
                 2: POSIX  ADVISORY  WRITE 814 08:10:79 0 EOF\n\
                 3: OFDLCK ADVISORY  READ -1 08:10:80 0 EOF\nnonsense\n";
    let dev = nix::sys::stat::makedev(8, 16);
    let found = [77, 78, 79, 80, 7].map(|inode| locked_by(locks, dev, inode));
    assert_eq!(found, [Some(812), None, None, None, None]);
    assert_eq!(locked_by("", dev, 77), None);
}

#[test]
fn two_hard_links_are_one_target() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("a"), "x").unwrap();
    std::fs::hard_link(path("a"), path("b")).unwrap();
    std::os::unix::fs::symlink(path("a"), path("c")).unwrap();
    std::fs::write(path("d"), "x").unwrap();
    let never = Stop::never();
    let take =
        |name: &str, file: &str| Locks::take(&path(name), &[lock(&path(file), false)], &never);
    let first = take("1", "a").unwrap();
    for other in ["a", "b", "c"] {
        assert_eq!(kind(take("2", other)), Kind::Invalid);
        assert!(!path("2").exists());
    }
    let other = take("2", "d").unwrap();
    drop(first);
    drop(take("1", "b").unwrap());
    drop(other);
    let mut child = another(&path("b"), "--exclusive", "60");
    let wait = Duration::from_millis(250);
    let busy = HeldLock::take(&lock(&path("c"), false), wait, &never);
    assert_eq!(kind(busy), Kind::Busy);
    child.kill().unwrap();
    child.wait().unwrap();
    // udev's lock is short, and shared.
    let mut child = another(&path("a"), "--shared", "0.5");
    drop(take("3", "b").unwrap());
    child.wait().unwrap();
    assert_eq!(kind(take("3", "none")), Kind::NotFound);
}

#[test]
fn a_run_that_waits_stops_at_the_first_signal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    std::fs::write(&path, "").unwrap();
    let mut child = another(&path, "--exclusive", "60");
    let (sender, receiver) = tokio::sync::watch::channel(false);
    let stopping = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        sender.send(true).unwrap();
        std::thread::sleep(Duration::from_secs(1));
    });
    let began = Instant::now();
    let name = folder.path().join("lock");
    let taken = Locks::take(&name, &[lock(&path, true)], &Stop::new(receiver));
    assert_eq!(kind(taken), Kind::Stopped);
    assert!(began.elapsed() < Duration::from_secs(2));
    assert!(!name.exists());
    stopping.join().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn partitions_share_the_lock_of_their_disk_and_the_disk_itself_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let Some(device) = LoopDevice::partitioned(&image) else {
        return;
    };
    let never = Stop::never();
    let disk = device.path();
    let take = |name: u32, others: &[LockPath]| {
        let name = folder.path().join(name.to_string());
        Locks::take(&name, others, &never)
    };
    let part = |number| [lock(disk, true), lock(&device.partition(number), false)];
    let one = take(1, &part(1)).unwrap();
    let two = take(2, &part(2)).unwrap();
    assert_eq!(kind(take(3, &part(2))), Kind::Invalid);
    assert_eq!(kind(take(3, &[lock(disk, false)])), Kind::Invalid);
    drop(one);
    // The disk is locked until its last partition is done, for other processes too.
    let by_another = |seconds: &str| {
        let mut flock = Command::new("flock");
        flock.args(["--timeout", seconds, "--shared"]);
        flock.arg(disk).arg("true").status().unwrap().success()
    };
    assert!(!by_another("0"));
    drop(two);
    assert!(by_another("3"));
    let whole = take(1, &[lock(disk, false), lock(&image, false)]).unwrap();
    assert_eq!(kind(take(2, &part(1))), Kind::Invalid);
    // Another loop device over the same file.
    let again = LoopDevice::new(&image, 0, &[]).unwrap();
    let twin = [lock(again.path(), false), lock(&image, false)];
    assert_eq!(kind(take(2, &twin)), Kind::Invalid);
    drop(whole);
    drop(take(2, &twin).unwrap());
}

#[test]
fn a_source_that_shares_bytes_with_the_target_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["image", "other"] {
        File::create(path(name)).unwrap().set_len(4 << 20).unwrap();
    }
    std::fs::hard_link(path("image"), path("link")).unwrap();
    std::os::unix::fs::symlink(path("image"), path("soft")).unwrap();
    let both = |a: &Path, b: &Path| {
        let (one, two) = (overlaps(a, b).unwrap(), overlaps(b, a).unwrap());
        assert_eq!(one, two);
        one
    };
    for name in ["image", "link", "soft"] {
        assert!(both(&path("image"), &path(name)), "{name}");
    }
    for name in ["other", "new"] {
        assert!(!both(&path("image"), &path(name)), "{name}");
    }
    assert!(overlaps(&path("image"), &path("none/new")).is_err());
    let Some(device) = LoopDevice::partitioned(&path("image")) else {
        return;
    };
    let (one, two) = (device.partition(1), device.partition(2));
    assert!(both(device.path(), &one));
    assert!(both(device.path(), &path("link")));
    assert!(both(&one, &path("image")));
    assert!(!both(&one, &two));
    assert!(!both(&one, &path("other")));
    let again = LoopDevice::new(&path("link"), 0, &["--read-only"]).unwrap();
    assert!(both(again.path(), &one));
    // Files on a filesystem, and the device that it is on.
    let point = path("point");
    std::fs::create_dir(&point).unwrap();
    let run = |program: &str, args: &[&Path]| {
        assert!(Command::new(program).args(args).status().unwrap().success());
    };
    run("mkfs.ext4", &[Path::new("-q"), &one]);
    run("mount", &[&one, &point]);
    std::fs::write(point.join("file"), "x").unwrap();
    let found = ["file", "new"].map(|name| {
        let file = point.join(name);
        [&one, &two, device.path(), &path("image")].map(|other| both(&file, other))
    });
    run("umount", &[&point]);
    assert_eq!(found, [[true, false, true, true]; 2]);
}
