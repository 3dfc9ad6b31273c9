//! Syncs, prunes, repairs and inits killed at any moment. `EBSFS_KILLS` says how often, where once is not enough.

mod init;
mod repair;

use std::time::{Duration, Instant};

use super::*;
use crate::sync::{kill_until_done, kill_until_ended, large_pair, mounted};

fn enough() -> u64 {
    std::env::var("EBSFS_KILLS").map_or(1, |kills| kills.parse().unwrap())
}

/// Waits for requests of a killed client that the server has whole.
fn settle() {
    std::thread::sleep(Duration::from_millis(30));
}

/// Exit code and stderr of a command, however long a busy machine takes.
fn finishes(command: &mut Command) -> (i32, String) {
    ends_within(Duration::from_mins(10), command)
}

/// A repository that holds nothing but these snapshots, every byte of them right, and no unfinished run.
fn is_whole(objects: &Objects, emulator: &Emulator, snapshots: u64) {
    let checked = objects.look_json(emulator, &["check", "--read-data"]);
    assert_eq!(checked["snapshots"], snapshots, "{checked}");
    assert_eq!(checked["runs"], 0, "{checked}");
}

fn a_sync_is_killed(objects: &Objects, most_ms: u64) {
    let emulator = large_pair();
    let (mount, disk) = mounted(&emulator, "snap-0b");
    let (mut kills, mut copies, mut most) = (0, 0, 0);
    while kills < enough() {
        emulator.set("latency_ms=0");
        run(&mut objects.bring(&emulator, &["snap-0a"]));
        emulator.set("latency_ms=20");
        kills += kill_until_done(
            || {
                let mut args = vec!["snap-0b", "--base", "auto", "--max-in-flight", "16"];
                args.extend(fastrand::bool().then_some("--dedup"));
                objects.bring(&emulator, &args)
            },
            most_ms,
            || {
                // Fails where anything is damaged.
                let checked = objects.look_json(&emulator, &["check", "--read-data"]);
                let snapshots = checked["snapshots"].as_u64().unwrap();
                assert!((1..=2).contains(&snapshots), "{checked}");
                most = most.max(checked["unused"].as_u64().unwrap());
            },
        );
        copies += 1;
        is_whole(objects, &emulator, 2);
        emulator.set("latency_ms=0");
        let replica = objects.mount(&emulator);
        assert_same(&replica.disk("snap-0b"), &disk);
        drop(replica);
        objects.empty(&emulator);
        println!(
            "{}: {kills} kills of sync, {copies} copies, {most} objects left over at most",
            objects.url()
        );
    }
    drop(mount);
}

fn a_prune_is_killed(mut objects: Objects) {
    let emulator = large_pair();
    let (mount, disk) = mounted(&emulator, "snap-0b");
    run(&mut objects.bring(&emulator, &["snap-0a"]));
    run(&mut objects.bring(&emulator, &["snap-0b", "--base", "snap-0a"]));
    let (files, kept) = (objects.files(), objects.folder.path().join("kept"));
    let copy = |from: &Path, to: &Path| {
        let _ = fs::remove_dir_all(to);
        sh(&format!("cp -a {} {}", text(from), text(to)));
    };
    copy(&files, &kept);
    let keep = ["prune", "--keep", "1", "--grace", "0s"];
    let start = Instant::now();
    run(&mut objects.look(&emulator, &keep));
    let whole = u64::try_from(start.elapsed().as_millis()).unwrap();
    let (mut kills, mut prunes) = (0, 0);
    while kills < enough() {
        // A server remembers what it has served.
        let address = objects.server.is_some().then(|| objects.stop());
        copy(&kept, &files);
        if let Some(address) = address {
            objects.serve(&address);
        }
        kills += kill_until_done(
            || objects.look(&emulator, &keep),
            whole * 2,
            || {
                let checked = objects.look_json(&emulator, &["check", "--read-data"]);
                let snapshots = checked["snapshots"].as_u64().unwrap();
                assert!((1..=2).contains(&snapshots), "{checked}");
            },
        );
        prunes += 1;
        is_whole(&objects, &emulator, 1);
        let replica = objects.mount(&emulator);
        assert_same(&replica.disk("snap-0b"), &disk);
        drop(replica);
        println!("{}: {kills} kills of {prunes} prunes", objects.url());
    }
    objects.empty(&emulator);
    drop(mount);
}

#[test]
fn a_killed_sync_into_a_folder_leaves_a_whole_snapshot_or_none() {
    a_sync_is_killed(&Objects::folder(), 1500);
}

#[test]
fn a_killed_sync_into_a_store_leaves_a_whole_snapshot_or_none() {
    a_sync_is_killed(&Objects::s3(), 2000);
}

#[test]
fn a_killed_prune_of_a_folder_removes_no_needed_object() {
    a_prune_is_killed(Objects::folder());
}

#[test]
fn a_killed_prune_of_a_store_removes_no_needed_object() {
    a_prune_is_killed(Objects::s3());
}
