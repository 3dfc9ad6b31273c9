//! Runs killed at any moment. EBSFS_KILLS=100 makes each test go on until it has killed so often.

use super::*;

/// Kills runs of a copy, each repeated until it ended; copies start from the beginning until there were enough kills.
struct Kills {
    kills: u64,
    copies: u64,
}

impl Kills {
    /// `begin` is called before each copy; runs are killed after up to `most_ms`, and looked at then.
    fn of(
        most_ms: u64,
        mut begin: impl FnMut(),
        command: impl Fn() -> Command,
        mut look: impl FnMut(),
    ) -> Self {
        let enough = std::env::var("EBSFS_KILLS").map_or(1, |kills| kills.parse().unwrap());
        let mut so_far = Self {
            kills: 0,
            copies: 0,
        };
        while so_far.kills < enough {
            begin();
            so_far.kills += kill_until_done(&command, most_ms, &mut look);
            so_far.copies += 1;
        }
        println!("{} kills, {} copies", so_far.kills, so_far.copies);
        so_far
    }
}

/// Kills a command again and again until it ends by itself, which must succeed; how often.
pub fn kill_until_done(command: impl Fn() -> Command, most_ms: u64, look: impl FnMut()) -> u64 {
    let (kills, code, said) = kill_until_ended(command, most_ms, look);
    assert_eq!(code, Some(0), "{said}");
    kills
}

/// Kills a command again and again until it ends by itself: how often, its exit code and what it printed. The time that it has
/// grows by a tenth with each kill.
pub fn kill_until_ended(
    command: impl Fn() -> Command,
    most_ms: u64,
    look: impl FnMut(),
) -> (u64, Option<i32>, String) {
    kill_some(u64::MAX, Duration::ZERO, command, most_ms, look)
}

/// As `kill_until_ended`, at most so often. After that it has `patience`; one that takes longer is killed, and has no exit code.
pub fn kill_some(
    most_kills: u64,
    patience: Duration,
    command: impl Fn() -> Command,
    most_ms: u64,
    mut look: impl FnMut(),
) -> (u64, Option<i32>, String) {
    let mut kills = 0;
    loop {
        let mut said = tempfile::tempfile().unwrap();
        let mut child = command()
            .stdout(Stdio::null())
            .stderr(said.try_clone().unwrap())
            .spawn()
            .unwrap();
        let time = match kills < most_kills {
            true => Duration::from_millis(fastrand::u64(1..most_ms + most_ms * kills / 10)),
            false => patience,
        };
        let end = std::time::Instant::now() + time;
        while std::time::Instant::now() < end {
            if let Some(status) = child.try_wait().unwrap() {
                let mut text = String::new();
                std::io::Seek::rewind(&mut said).unwrap();
                std::io::Read::read_to_string(&mut said, &mut text).unwrap();
                return (kills, status.code(), text);
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        assert!(kills < 1000, "it comes nowhere");
        look();
        if kills > most_kills {
            return (kills, None, String::new());
        }
    }
}

/// What a run may fetch a second time: what was not kept when it was killed, at most [`INTERVAL`] blocks.
const INTERVAL: u64 = 1024;

#[test]
fn a_killed_sync_leaves_no_image_or_a_whole_one_and_refetches_little() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let (mount, disk) = mounted(&emulator, "snap-0a");
    let (held, whole) = (held(&disk), sha256(&disk));
    drop(mount);
    emulator.set("latency_ms=20");
    emulator.reset();
    let kills = Kills::of(
        1500,
        || {
            let _ = fs::remove_file(&image);
            let _ = fs::remove_file(folder.path().join("image.raw.ebsfs.json"));
        },
        || {
            sync(
                &emulator,
                &["snap-0a", text(&image), "--max-in-flight", "16"],
            )
        },
        || {
            // Killed between the rename and the record: it must be whole then.
            if image.exists() {
                assert_eq!(sha256(&image), whole);
            }
        },
    );
    let most = kills.copies * held + kills.kills * INTERVAL.min(held);
    assert!(
        emulator.gets() <= most,
        "{} Gets, not {most}",
        emulator.gets()
    );
    assert_eq!(sha256(&image), whole);
    assert_eq!(left_beside(&image), KEPT);
}

#[test]
fn an_image_and_its_changes_killed_at_any_moment_are_the_one_or_the_other() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let (mount, disk) = mounted(&emulator, "snap-0a");
    let old = sha256(&disk);
    drop(mount);
    let (mount, disk) = mounted(&emulator, "snap-0b");
    let new = sha256(&disk);
    drop(mount);
    assert_ne!(old, new);
    Kills::of(
        2000,
        || {
            emulator.set("latency_ms=0");
            run(&mut sync(&emulator, &["snap-0a", text(&image)]));
            emulator.set("latency_ms=20");
        },
        || {
            sync(
                &emulator,
                &[
                    "snap-0b",
                    text(&image),
                    "--base",
                    "auto",
                    "--max-in-flight",
                    "16",
                ],
            )
        },
        || {
            let now = sha256(&image);
            assert!(now == old || now == new, "neither the one nor the other");
        },
    );
    assert_eq!(sha256(&image), new);
    assert_eq!(left_beside(&image), KEPT);
}

#[test]
fn a_device_of_a_killed_sync_is_never_reported_whole_before_it_is() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
    let device = Loop::over(&file);
    killed_in_place(&emulator, &device.0, &[]);
}

#[test]
fn an_image_of_a_killed_sync_in_place_is_never_reported_whole_before_it_is() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    killed_in_place(&emulator, text(&image), &["--in-place"]);
}

fn killed_in_place(emulator: &Emulator, target: &str, in_place: &[&str]) {
    let (mount, disk) = mounted(emulator, "snap-0b");
    let new = sha256(&disk);
    drop(mount);
    let mut seen = std::collections::BTreeSet::new();
    Kills::of(
        3000,
        || {
            emulator.set("latency_ms=0");
            run(&mut sync(
                emulator,
                &["snap-0a", target, "--overwrite", target],
            ));
            emulator.set("latency_ms=20");
        },
        || {
            let base = ["snap-0b", target, "--base", "auto"];
            let slowly = ["--max-in-flight", "16"];
            sync(emulator, &[&base[..], &slowly, in_place].concat())
        },
        || {
            let said = status(emulator, target);
            let first = said.lines().next().unwrap().split(';').next().unwrap();
            if first == "holds snap-0b" {
                assert_eq!(sha256(Path::new(target)), new);
            } else {
                seen.insert(first.to_owned());
            }
        },
    );
    // Before the first write it still is what it was. From then on the digests prove what it is between.
    let may_be = ["holds snap-0a", "between snap-0a and snap-0b: not usable"];
    for status in &seen {
        assert!(may_be.contains(&&**status), "{seen:?}");
    }
    assert_eq!(status(emulator, target), "holds snap-0b\n");
    assert_eq!(sha256(Path::new(target)), new);
}

#[test]
fn a_new_snapshot_that_is_killed_at_any_moment_is_one_snapshot_and_whole() {
    let emulator = large_pair();
    let other = Emulator::beside(&emulator);
    let (mount, disk) = mounted(&emulator, "snap-0a");
    let (blocks, whole) = (held(&disk), sha256(&disk));
    drop(mount);
    emulator.set("latency_ms=20");
    emulator.reset();
    let url = other.url();
    // The same command would find the snapshot of the copy before.
    let copy = std::cell::Cell::new(0);
    let kills = Kills::of(
        1500,
        || copy.set(copy.get() + 1),
        || {
            let tag = format!("copy={}", copy.get());
            let to = [
                "snap-0a",
                "ebs:",
                "--to-endpoint-url",
                &url,
                "--max-in-flight",
                "16",
                "--tag",
                &tag,
            ];
            sync(&emulator, &to)
        },
        || {},
    );
    let most = kills.copies * blocks + kills.kills * INTERVAL.min(blocks);
    assert!(
        emulator.gets() <= most,
        "{} Gets, not {most}",
        emulator.gets()
    );
    let made = other.made();
    assert_eq!(made.len() as u64, kills.copies, "one a copy: {made:?}");
    for (id, state) in made {
        assert_eq!(state, "completed");
        let (_mount, disk) = mounted(&other, &id);
        assert_eq!(sha256(&disk), whole);
    }
    assert_eq!(
        status(&emulator, "ebs:"),
        "no unfinished run on this machine\n"
    );
}

#[test]
fn a_resumed_copy_of_a_sparse_snapshot_lists_hardly_more_than_a_new_one() {
    let emulator = Emulator::with(&["--synthetic", "snap-0a:256:6000"]);
    emulator.set("keep_puts=false&latency_ms=10");
    let mut first = sync(&emulator, &["snap-0a", "ebs:"]);
    let mut child = first.stderr(Stdio::null()).spawn().unwrap();
    // More than one interval, of some 3,100.
    while emulator.count("PutSnapshotBlock") < 1500 {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    emulator.reset();
    run(&mut sync(&emulator, &["snap-0a", "ebs:"]));
    assert!(emulator.gets() > 1000, "{}", emulator.gets());
    assert!(emulator.lists() <= 8, "{}", emulator.lists());
}
