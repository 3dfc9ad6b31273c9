//! The log of a program whose stderr is not drained, is full, or is closed.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{BLOCK, EBSFS, Emulator, ends, run, wait_for};

/// Waits for a program to end.
fn end_of(process: &mut Child, limit: Duration) -> Option<i32> {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if let Some(status) = process.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = process.kill();
    panic!("still running after {limit:?}");
}

fn is_mounted(point: &std::path::Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    mounts.contains(point.to_str().unwrap())
}

#[test]
fn a_mount_whose_stderr_is_not_drained_serves_reads_and_ends_by_sigterm() {
    let emulator = Emulator::with(&["--synthetic", "snap-0aaa:1:1000000"]);
    let point = tempfile::tempdir().unwrap();
    let mut mount = emulator
        .ebsfs(&["-vv", "mount"])
        .arg(point.path())
        .arg("snap-0aaa")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the mount", || is_mounted(point.path()));
    let disk = point.path().join("snapshots/snap-0aaa/disk.raw");
    let mut reader = Command::new("dd")
        .arg(format!("if={}", disk.display()))
        .args(["of=/dev/null", "bs=1M", "count=512", "status=none"])
        .spawn()
        .unwrap();
    let read = end_of(&mut reader, Duration::from_secs(30));
    assert!(emulator.gets() >= 1024, "a log of more than a pipe holds");
    run(Command::new("kill").arg(mount.id().to_string()));
    let ended = end_of(&mut mount, Duration::from_secs(8));
    assert_eq!((read, ended), (Some(0), Some(0)));
    assert!(!is_mounted(point.path()));
}

#[test]
fn the_last_error_follows_the_log_and_never_blocks_the_exit() {
    let emulator = Emulator::start();
    let point = tempfile::tempdir().unwrap();
    let at = point.path().to_str().unwrap();
    let failing = ["-vv", "mount", at, "snap-0123456789abcdef0"];
    let (code, said) = ends(&mut emulator.ebsfs(&failing));
    assert_eq!(code, 3, "{said}");
    assert!(
        said.lines().last().unwrap().starts_with("ebsfs: "),
        "{said}"
    );
    assert!(said.lines().count() > 1, "log lines before it: {said}");

    // A pipe that is full before the program starts.
    let mut shell = Command::new("bash");
    shell.args([
        "-c",
        r#"exec 3<> <(:); dd if=/dev/zero bs=4k count=100 oflag=nonblock status=none >&3 2>/dev/null; exec "$@" 2>&3"#,
        "-",
        EBSFS,
    ]);
    shell.args(["verify", "/nonexistent", "snap-0123456789abcdef0"]);
    let start = Instant::now();
    let mut program = shell.stdout(Stdio::null()).spawn().unwrap();
    assert_eq!(end_of(&mut program, Duration::from_secs(10)), Some(3));
    let took = start.elapsed();
    // The pipe was full: the end waited for it, and not for long.
    assert!(
        took > Duration::from_millis(500) && took < Duration::from_secs(5),
        "{took:?}"
    );
}

#[test]
fn a_copy_whose_stderr_is_not_drained_ends() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-1", 600, 0..600);
    let snapshot = emulator.snapshot("vol-1");
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("copy.raw");
    let mut copy = emulator
        .ebsfs(&["-vv", "sync", &snapshot])
        .arg(&target)
        .args(["--progress", "json"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(end_of(&mut copy, Duration::from_secs(60)), Some(0));
    assert!(std::fs::metadata(&target).unwrap().len() >= 600 * BLOCK);
}
