//! How a mount ends: signals, unmounting, silence, death.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::*;

fn mounted(point: &std::path::Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.contains(point.to_str().unwrap())
}

#[test]
fn sigint_sigterm_and_fusermount_unmount_and_exit_0() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0]);
    let snapshot = emulator.snapshot("vol-0a");
    for end in ["INT", "TERM", "fusermount3"] {
        let mut mount = emulator.mount(&[&snapshot]);
        assert_eq!(
            read_at(&mount.disk(&snapshot), 0, 8),
            content("vol-0a", 0)[..8]
        );
        if end == "fusermount3" {
            run(Command::new("fusermount3")
                .arg("-u")
                .arg(mount.point.path()));
        } else {
            mount.signal(end);
        }
        assert_eq!(
            mount.wait(Duration::from_secs(5)),
            Some(0),
            "{end}: {}",
            mount.log()
        );
        assert!(!mounted(mount.point.path()), "{end}");
    }
}

#[test]
fn sigterm_while_the_server_is_silent_answers_readers_with_eio_and_ends_within_5_seconds() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..64);
    let snapshot = emulator.snapshot("vol-0a");
    let mut mount = emulator.mount(&[&snapshot]);
    emulator.set("silent=1");
    let readers: Vec<_> = (0..4)
        .map(|n| {
            Command::new("dd")
                .arg(format!("if={}", mount.disk(&snapshot).display()))
                .args(["of=/dev/null", "bs=1M", &format!("skip={}", n * 4)])
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    mount.signal("TERM");
    assert_eq!(
        mount.wait(Duration::from_secs(5)),
        Some(0),
        "{}",
        mount.log()
    );
    for mut reader in readers {
        let mut said = String::new();
        reader
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert!(!reader.wait().unwrap().success());
        assert!(said.contains("Input/output error"), "{said}");
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(!mounted(mount.point.path()));
}

#[test]
fn a_busy_mount_says_so_lives_on_and_is_detached_by_the_second_signal() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..2);
    let snapshot = emulator.snapshot("vol-0a");
    let mut mount = emulator.mount(&[&snapshot]);
    let held = open(&mount.disk(&snapshot));
    mount.signal("INT");
    wait_for("the line", || {
        mount.log().contains("is busy and stays mounted")
    });
    let mut bytes = vec![0; 512];
    held.read_exact_at(&mut bytes, BLOCK).unwrap();
    assert_eq!(bytes, content("vol-0a", 1)[..512], "it serves on");
    mount.signal("INT");
    assert_eq!(
        mount.wait(Duration::from_secs(5)),
        Some(0),
        "{}",
        mount.log()
    );
    assert!(!mounted(mount.point.path()));
}

#[test]
fn a_read_that_cannot_succeed_ends_at_its_deadline_and_the_next_one_works_again() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..8);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&["--timeout", "2s", &snapshot]);
    emulator.set("error_5xx=1");
    let start = Instant::now();
    let mut bytes = [0; 16];
    let file = open(&mount.disk(&snapshot));
    let error = file.read_exact_at(&mut bytes, 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    // The kernel asks a failed page once more by itself.
    assert!(
        start.elapsed() < Duration::from_secs(6),
        "{:?}",
        start.elapsed()
    );
    let log = mount.log();
    assert!(
        log.contains("waiting since") && log.contains("gave up on http://"),
        "{log}"
    );
    assert!(
        log.contains("HTTP 500"),
        "it says what it waited for: {log}"
    );
    emulator.set("error_5xx=0");
    // The failure is answered again for a second.
    std::thread::sleep(Duration::from_secs(1));
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, content("vol-0a", 0)[..16]);
}

#[test]
fn more_readers_than_blocks_in_flight_all_end_at_the_deadline_when_the_server_is_silent() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..64);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&["--memory", "8MiB", "--timeout", "2s", &snapshot]);
    emulator.set("silent=1");
    let start = Instant::now();
    std::thread::scope(|scope| {
        for reader in 0..16 {
            let disk = mount.disk(&snapshot);
            scope.spawn(move || {
                let error = open(&disk)
                    .read_exact_at(&mut [0; 16], reader * 4 * BLOCK)
                    .unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EIO));
            });
        }
    });
    // Four at a time would take 8 seconds, and the kernel asks each failed page once more by itself.
    assert!(
        start.elapsed() < Duration::from_secs(12),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn readers_killed_in_mid_flight_leave_nothing_wrong_behind() {
    let emulator = Emulator::with(&["--set", "latency_ms=30"]);
    let volume = emulator.make_volume("vol-0a", 2048, 0..250);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&snapshot]);
    for round in 0..10u64 {
        let mut reader = Command::new("dd")
            .arg(format!("if={}", mount.disk(&snapshot).display()))
            .args([
                "of=/dev/null",
                "bs=1M",
                "status=none",
                &format!("skip={}", round * 14),
            ])
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(20 + round * 9));
        reader.kill().unwrap();
        reader.wait().unwrap();
    }
    assert_same(&volume, &mount.disk(&snapshot));
    assert_eq!(
        emulator.gets(),
        250,
        "what the killed readers asked for was kept"
    );
}

#[test]
fn a_background_mount_ends_when_its_caller_has_ended() {
    let emulator = Emulator::with(&["--set", "latency_ms=1000"]);
    emulator.make_volume("vol-0a", 2048, [0]);
    let snapshot = emulator.snapshot("vol-0a");
    let point = tempfile::tempdir().unwrap();
    let mut parent = emulator
        .ebsfs(&[
            "mount",
            "--background",
            point.path().to_str().unwrap(),
            &snapshot,
        ])
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_for("the listing", || emulator.lists() > 0);
    std::thread::sleep(Duration::from_millis(2500));
    assert!(!mounted(point.path()));
    assert!(std::fs::read_dir(point.path()).unwrap().next().is_none());
}

#[test]
fn background_reports_the_error_and_its_exit_code() {
    let emulator = Emulator::start();
    let point = tempfile::tempdir().unwrap();
    let at = point.path().to_str().unwrap();
    let (code, said) = ends(&mut emulator.ebsfs(&["mount", "--background", at, "snap-0123"]));
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("SNAPSHOT_NOT_FOUND"), "{said}");
    assert!(!mounted(point.path()));
}
