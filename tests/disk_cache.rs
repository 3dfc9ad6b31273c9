//! A mount with a block cache on disk: runs one after another, killed runs, failing disks.
//!
//! `EBSFS_KILLS` (3) is the number of runs to kill; `EBSFS_KILL_SEED` repeats the moments of the kills.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::*;

const HELD: u64 = 200;

/// An emulator with one snapshot of 1 GiB.
fn one_snapshot() -> (Emulator, PathBuf, String) {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, 0..HELD);
    let snapshot = emulator.snapshot("vol-0a");
    (emulator, volume, snapshot)
}

/// A mount of a snapshot with its cache in `folder`.
fn mount(emulator: &Emulator, snapshot: &str, folder: &Path) -> Mount {
    emulator.mount(&args(snapshot, folder))
}

fn args<'a>(snapshot: &'a str, folder: &'a Path) -> Vec<&'a str> {
    let mut args = vec![snapshot, "--cache-dir", folder.to_str().unwrap()];
    if !cfg!(feature = "ec2") {
        // Without EC2 it is unknown whether the snapshot is encrypted.
        args.push("--cache-encrypted");
    }
    args
}

/// Unmounts and waits for the end.
fn end(mut mount: Mount) {
    mount.signal("TERM");
    assert_eq!(mount.wait(Duration::from_secs(10)), Some(0));
}

/// Reads what the snapshot holds and compares it.
fn read_held(volume: &Path, disk: &Path) {
    let (volume, disk) = (open(volume), open(disk));
    let (mut expected, mut got) = (vec![0; BLOCK as usize], vec![0; BLOCK as usize]);
    for index in 0..HELD {
        volume.read_exact_at(&mut expected, index * BLOCK).unwrap();
        disk.read_exact_at(&mut got, index * BLOCK).unwrap();
        assert!(got == expected, "block {index}");
    }
}

/// The number of blocks that have a digest in a folder.
fn cached(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let files = entries.map(|entry| entry.unwrap().path());
    let digests = files.filter(|path| path.extension().is_some_and(|ending| ending == "digests"));
    let count = |path: PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        bytes
            .chunks(32)
            .filter(|digest| digest.iter().any(|byte| *byte != 0))
            .count() as u64
    };
    digests.map(count).sum()
}

/// Waits until the writer has nothing more to write.
fn settled(folder: &Path) -> u64 {
    let mut before = 0;
    wait_for("the writer", || {
        std::thread::sleep(Duration::from_millis(300));
        let now = cached(folder);
        std::mem::replace(&mut before, now) == now && now > 0
    });
    before
}

#[test]
fn the_mount_after_a_restart_fetches_one_block_of_those_read_before() {
    let (emulator, volume, snapshot) = one_snapshot();
    let folder = tempfile::tempdir().unwrap();
    let first = mount(&emulator, &snapshot, folder.path());
    read_held(&volume, &first.disk(&snapshot));
    // What the queue could not hold is not kept.
    let kept = settled(folder.path());
    assert!(kept > 0, "{kept}");
    end(first);
    emulator.reset();
    let second = mount(&emulator, &snapshot, folder.path());
    read_held(&volume, &second.disk(&snapshot));
    let gets = emulator.gets();
    // One shows the permission; if it is a prefetch that is given up, another one does.
    println!("{kept} of {HELD} blocks kept, then {gets} gets");
    assert!(
        gets >= 1 && gets <= 2 + HELD - kept,
        "{gets} gets, {kept} kept"
    );
    end(second);
}

#[test]
fn a_reader_whose_credentials_are_denied_after_a_restart_gets_eacces() {
    let (emulator, volume, snapshot) = one_snapshot();
    let folder = tempfile::tempdir().unwrap();
    let first = mount(&emulator, &snapshot, folder.path());
    read_held(&volume, &first.disk(&snapshot));
    let kept = settled(folder.path());
    end(first);
    let second = mount(&emulator, &snapshot, folder.path());
    emulator.set("deny=ebs:GetSnapshotBlock");
    let disk = open(&second.disk(&snapshot));
    for index in 0..20 {
        let read = disk.read_at(&mut [0; 512], index * BLOCK);
        let errno = read.unwrap_err().raw_os_error();
        assert_eq!(errno, Some(libc::EACCES), "block {index}, {kept} kept");
    }
    emulator.set("deny=");
    // The failures of blocks are remembered for a second or more.
    wait_for("the first block", || disk.read_at(&mut [0; 512], 0).is_ok());
    drop(disk);
    end(second);
}

#[test]
fn mounts_killed_at_any_moment_leave_no_wrong_byte() {
    let kills = std::env::var("EBSFS_KILLS").map_or(3, |kills| kills.parse().unwrap());
    let seed = std::env::var("EBSFS_KILL_SEED");
    let seed = seed.map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("EBSFS_KILL_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (emulator, volume, first) = one_snapshot();
    // So that there is something to write in every run.
    let snapshots: Vec<String> = (0..kills / 2)
        .map(|_| emulator.snapshot("vol-0a"))
        .chain([first])
        .collect();
    let folder = tempfile::tempdir().unwrap();
    for run in 0..kills {
        let snapshot = &snapshots[random.usize(..snapshots.len())];
        let mut killed = mount(&emulator, snapshot, folder.path());
        let disk = killed.disk(snapshot);
        let mut order: Vec<u64> = (0..HELD).collect();
        random.shuffle(&mut order);
        let at = Duration::from_millis(random.u64(0..300));
        let before = cached(folder.path());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let Ok(disk) = std::fs::File::open(&disk) else {
                    // Killed before it answered.
                    return;
                };
                let mut got = vec![0; BLOCK as usize];
                for index in order {
                    match disk.read_exact_at(&mut got, index * BLOCK) {
                        Ok(()) => assert!(got == content("vol-0a", index), "block {index}"),
                        // Killed.
                        Err(_) => return,
                    }
                }
            });
            std::thread::sleep(at);
            killed.process.kill().unwrap();
            killed.process.wait().unwrap();
        });
        let point = killed.point.path();
        run_quietly(Command::new("fusermount3").arg("-uzq").arg(point));
        let kept = cached(folder.path());
        println!("run {run}: killed after {at:?}, {before} to {kept} kept");
    }
    let kept = cached(folder.path());
    emulator.reset();
    let mut args = args(&snapshots[0], folder.path());
    args.extend(snapshots.iter().skip(1).map(String::as_str));
    let last = emulator.mount(&args);
    for snapshot in &snapshots {
        read_held(&volume, &last.disk(snapshot));
    }
    let (gets, count) = (emulator.gets(), snapshots.len() as u64);
    // A block read ahead can be dropped from memory before it is read, where the machine is busy.
    const FETCHED_TWICE: u64 = 16;
    assert!(
        gets <= count + count * HELD - kept + FETCHED_TWICE,
        "{gets} gets, {kept} kept"
    );
    end(last);
}

fn run_quietly(command: &mut Command) {
    let _ = command.status();
}

#[test]
fn warmed_blocks_are_read_with_one_request_to_aws() {
    let (emulator, volume, snapshot) = one_snapshot();
    let folder = tempfile::tempdir().unwrap();
    let warm = || {
        run(emulator
            .ebsfs(&["warm"])
            .args(args(&snapshot, folder.path())))
    };
    let said = warm();
    assert!(
        said.contains(&format!("{HELD} blocks, 0 of them")),
        "{said}"
    );
    assert_eq!(cached(folder.path()), HELD);
    let said = warm();
    assert!(
        said.contains(&format!("{HELD} blocks, {} of them", HELD - 1)),
        "{said}"
    );
    emulator.reset();
    let mount = mount(&emulator, &snapshot, folder.path());
    read_held(&volume, &mount.disk(&snapshot));
    assert_eq!(emulator.gets(), 1);
    end(mount);
    // Without a folder, and with one that has no room.
    let (code, said) = ends(
        emulator
            .ebsfs(&["warm", &snapshot])
            .args(&args(&snapshot, folder.path())[3..]),
    );
    assert_eq!(code, 2, "{said}");
    sh(&format!(
        "mount -t tmpfs -o mode=700,size=20m none {}",
        folder.path().display()
    ));
    let _tmpfs = Tmpfs(folder.path());
    let (code, said) = ends(
        emulator
            .ebsfs(&["warm"])
            .args(args(&snapshot, folder.path())),
    );
    assert_eq!(code, 9, "{said}");
}

#[test]
fn a_second_process_is_refused_the_folder_as_busy() {
    let (emulator, _, snapshot) = one_snapshot();
    let folder = tempfile::tempdir().unwrap();
    let first = mount(&emulator, &snapshot, folder.path());
    let point = tempfile::tempdir().unwrap();
    let mut second = emulator.ebsfs(&["mount", point.path().to_str().unwrap()]);
    let (code, said) = ends(second.args(args(&snapshot, folder.path())));
    assert_eq!(code, 10, "{said}");
    assert!(said.contains("another process uses it"), "{said}");
    end(first);
    end(mount(&emulator, &snapshot, folder.path()));
}

#[test]
fn a_full_or_read_only_disk_turns_the_cache_off_with_one_warning_and_reads_go_on() {
    for fault in ["full", "read-only"] {
        let (emulator, volume, snapshot) = one_snapshot();
        let folder = tempfile::tempdir().unwrap();
        let tmpfs = folder.path();
        let path = tmpfs.display();
        let size = if fault == "full" { "20m" } else { "1g" };
        sh(&format!(
            "mount -t tmpfs -o mode=700,size={size} none {path}"
        ));
        let guard = Tmpfs(tmpfs);
        let served = mount(&emulator, &snapshot, tmpfs);
        if fault == "read-only" {
            // New files cannot be made; the lock is held by a file open for writing.
            sh(&format!(
                "mount -o remount,ro {path} 2> /dev/null || mount --bind -o ro {path} {path}"
            ));
        }
        read_held(&volume, &served.disk(&snapshot));
        wait_for("the warning", || served.log().contains("is off"));
        let log = served.log();
        assert_eq!(log.matches("is off until").count(), 1, "{fault}: {log}");
        assert_eq!(log.matches("WARN").count(), 1, "{fault}: {log}");
        end(served);
        drop(guard);
    }
}

struct Tmpfs<'a>(&'a Path);

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        // A bind mount may lie over it.
        for _ in 0..2 {
            run_quietly(Command::new("umount").args(["-lq"]).arg(self.0));
        }
    }
}
