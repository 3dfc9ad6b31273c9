//! `ebsfs verify`, `ebsfs digest` and `ebsfs record`: what proves a copy, and what survives the loss of its state.

use std::os::unix::fs::FileExt;
use std::process::Child;
use std::time::Instant;

use super::*;

/// A verb that keeps its state in the test's own folder.
fn verb(emulator: &Emulator, verb: &[&str], args: &[&str]) -> Command {
    let mut command = emulator.ebsfs(verb);
    command
        .arg("--state-dir")
        .arg(emulator.folder.path().join("state"))
        .args(args);
    command
}

fn verify(emulator: &Emulator, args: &[&str]) -> Command {
    verb(emulator, &["verify", "--progress", "none"], args)
}

fn record(emulator: &Emulator, what: &str, args: &[&str]) -> Command {
    verb(emulator, &["record", what], args)
}

/// Exit code, stdout and stderr.
fn outcome(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[track_caller]
fn ends_with(command: &mut Command, code: i32, words: &str) {
    let (found, out, said) = outcome(command);
    assert_eq!(found, code, "{command:?}: {out}{said}");
    assert!(said.contains(words), "{command:?}: {said}");
}

/// The ranges that a check found, in blocks.
#[track_caller]
fn differing(command: &mut Command) -> Vec<(u64, u64)> {
    let (code, out, said) = outcome(command.arg("--json"));
    let found: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{said}"));
    assert_eq!(found["version"], 1);
    let ranges = found["differing"].as_array().unwrap().iter();
    let ranges: Vec<_> = ranges
        .map(|range| {
            let number = |name: &str| range[name].as_u64().unwrap();
            (number("offset"), number("length"))
        })
        .collect();
    assert_eq!(found["equal"], ranges.is_empty());
    assert_eq!(code, if ranges.is_empty() { 0 } else { 8 }, "{said}");
    ranges
}

/// Changes one byte.
fn flip(path: &Path, at: u64) {
    let byte = read_at(path, at, 1)[0];
    let file = writable(path);
    file.write_all_at(&[byte ^ 1], at).unwrap();
    file.sync_all().unwrap();
}

/// A snapshot of 2,048 blocks, with a block of zeroes that is held, and an image of it.
fn copied() -> (Emulator, String, tempfile::TempDir, PathBuf) {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, [0, 1, 2, 3, 700, 2047]);
    writable(&volume)
        .write_all_at(&vec![0; BLOCK as usize], 40 * BLOCK)
        .unwrap();
    let id = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    run(&mut sync(&emulator, &[&id, text(&image)]));
    (emulator, id, folder, image)
}

#[test]
fn a_flipped_byte_anywhere_in_an_image_is_found_and_equal_asks_nothing_of_aws() {
    let (emulator, id, folder, image) = copied();
    let recorded = fs::read(folder.path().join("image.raw.ebsfs.json")).unwrap();
    emulator.reset();
    for more in [&[][..], &[id.as_str()]] {
        let args = [&[text(&image)], more].concat();
        // Where nothing could answer.
        let mut command = verify(&emulator, &args);
        command.env("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
        assert_eq!(differing(&mut command), []);
    }
    let calls = [
        "GetSnapshotBlock",
        "ListSnapshotBlocks",
        "DescribeSnapshots",
    ];
    assert_eq!(calls.map(|call| emulator.count(call)), [0; 3]);
    let fetched = || differing(&mut verify(&emulator, &[text(&image), "--fetch"]));
    assert_eq!(fetched(), []);
    assert!(emulator.gets() >= 6);

    // Data, its last byte, a zeroed block, a hole, the last byte of all.
    for at in [
        0,
        3 * BLOCK + 77,
        4 * BLOCK - 1,
        40 * BLOCK + 5,
        1000 * BLOCK,
        2048 * BLOCK - 1,
    ] {
        flip(&image, at);
        let wanted = [(at / BLOCK * BLOCK, BLOCK)];
        assert_eq!(differing(&mut verify(&emulator, &[text(&image)])), wanted);
        assert_eq!(fetched(), wanted);
        flip(&image, at);
    }
    // Neighbours are one range, in words too.
    for at in [1, 2] {
        flip(&image, at * BLOCK);
    }
    let (code, out, said) = outcome(&mut verify(&emulator, &[text(&image)]));
    assert_eq!(code, 8);
    assert!(
        out.contains("differs    offset 524288, 1048576 bytes"),
        "{out}"
    );
    assert!(said.contains("blocks 1-2 (1.0 MiB) differ"), "{said}");
    for at in [1, 2] {
        flip(&image, at * BLOCK);
    }
    // Longer and shorter.
    let file = writable(&image);
    file.set_len(2048 * BLOCK + 512).unwrap();
    assert_eq!(
        differing(&mut verify(&emulator, &[text(&image)])),
        [(2048 * BLOCK, 512)]
    );
    file.set_len(2047 * BLOCK).unwrap();
    ends_with(&mut verify(&emulator, &[text(&image)]), 8, "the volume");
    file.set_len(2048 * BLOCK).unwrap();
    file.write_all_at(&content("vol-0a", 2047), 2047 * BLOCK)
        .unwrap();
    assert_eq!(differing(&mut verify(&emulator, &[text(&image)])), []);
    let now = fs::read(folder.path().join("image.raw.ebsfs.json")).unwrap();
    assert!(recorded == now, "the record was changed");
    assert_eq!(left_beside(&image), [".ebsfs-digests", ".ebsfs.json"]);
}

#[test]
fn a_target_is_verified_only_against_the_recorded_or_the_named_snapshot() {
    let (emulator, id, folder, image) = copied();
    let verify = |args: &[&str]| verify(&emulator, args);
    let image_name = text(&image);
    ends_with(&mut verify(&[image_name, "snap-0bad"]), 11, "not snap-0bad");
    ends_with(
        &mut verify(&[image_name, "snap-0bad", "--fetch"]),
        3,
        "snap-0bad",
    );
    ends_with(&mut verify(&["/nonexistent/image"]), 3, "cannot find");
    ends_with(
        &mut verify(&["ebs:us-east-1"]),
        2,
        "neither an image nor a device",
    );
    ends_with(&mut verify(&[text(folder.path())]), 2, "is a folder");

    let repository = format!("file://{}/repository", folder.path().display());
    init_repository(&repository);
    run(&mut sync(&emulator, &[&id, &repository]));
    let in_repository = format!("{repository}#{id}");
    emulator.reset();
    let against = |more: &[&str]| {
        let args = [&[image_name, in_repository.as_str()], more].concat();
        differing(&mut verify(&args))
    };
    assert_eq!(against(&[]), []);
    assert_eq!(against(&["--fetch"]), []);
    flip(&image, 5);
    assert_eq!(against(&["--fetch"]), [(0, BLOCK)]);
    flip(&image, 5);
    assert_eq!(emulator.gets(), 0);

    // No digests, then no record.
    let beside = |ending: &str| folder.path().join(format!("image.raw{ending}"));
    let digests = fs::read(beside(".ebsfs-digests")).unwrap();
    fs::remove_file(beside(".ebsfs-digests")).unwrap();
    ends_with(&mut verify(&[image_name]), 11, "no digests");
    ends_with(&mut verify(&[image_name]), 11, "--fetch");
    assert_eq!(differing(&mut verify(&[image_name, "--fetch"])), []);
    fs::write(beside(".ebsfs-digests"), digests).unwrap();
    let held = fs::read(beside(".ebsfs.json")).unwrap();
    fs::remove_file(beside(".ebsfs.json")).unwrap();
    for more in [&[][..], &["--fetch"], &[&id]] {
        let args = [&[image_name], more].concat();
        ends_with(&mut verify(&args), 11, "no record");
        ends_with(&mut verify(&args), 11, "--fetch");
    }
    assert_eq!(differing(&mut verify(&[image_name, &id, "--fetch"])), []);

    // Damage that is marked is said; between two snapshots nothing is compared.
    let mut value: Value = serde_json::from_slice(&held).unwrap();
    value["damaged"] = serde_json::json!([[3, 5]]);
    fs::write(beside(".ebsfs.json"), value.to_string()).unwrap();
    let (code, out, said) = outcome(&mut verify(&[image_name]));
    assert_eq!(code, 0, "{said}");
    assert!(out.contains("damaged    2 blocks"), "{out}");
    value["content"] = serde_json::json!({"between": {"base": "snap-0a", "head": "snap-0b"}});
    fs::write(beside(".ebsfs.json"), value.to_string()).unwrap();
    for more in [&[][..], &[&id, "--fetch"]] {
        let args = [&[image_name], more].concat();
        ends_with(&mut verify(&args), 11, "between snap-0a and snap-0b");
    }
}

#[test]
fn verify_finds_a_flipped_byte_and_ignores_bytes_behind_the_volume() {
    let emulator = Emulator::start();
    let folder = tempfile::tempdir().unwrap();
    let source = emulator.make_volume("vol-0a", 20, [0, 3, 19]);
    writable(&source).set_len(20 * BLOCK + 1234 * 512).unwrap();
    let disk = folder.path().join("disk");
    sh(&format!("head -c 20M /dev/urandom > {}", disk.display()));
    let device = Loop::over(&disk);
    let name = device.0.as_str();
    run(&mut sync(
        &emulator,
        &[text(&source), name, "--overwrite", name],
    ));
    let found = |more: &[&str]| {
        let args = [&[name], more].concat();
        differing(&mut verify(&emulator, &args))
    };
    assert_eq!(found(&[]), []);
    assert_eq!(found(&["--fetch"]), []);
    assert_eq!(found(&[text(&source)]), []);
    let last = 20 * BLOCK + 1234 * 512;
    for (at, wanted) in [
        (7 * BLOCK + 9, vec![(7 * BLOCK, BLOCK)]),
        (last - 1, vec![(21 * BLOCK, last - 21 * BLOCK)]),
        (last, vec![]),
    ] {
        flip(Path::new(name), at);
        assert_eq!(found(&[]), wanted);
        assert_eq!(found(&["--fetch"]), wanted);
        flip(Path::new(name), at);
    }
    // Without its state.
    fs::remove_dir_all(emulator.folder.path().join("state")).unwrap();
    ends_with(&mut verify(&emulator, &[name]), 11, "no record");
    assert_eq!(found(&[text(&source), "--fetch"]), []);
}

#[test]
fn a_target_on_a_read_only_filesystem_is_verified() {
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(&self.0).status();
        }
    }
    let emulator = Emulator::start();
    let source = emulator.make_volume("vol-0a", 20, [0, 3, 19]);
    let folder = tempfile::tempdir().unwrap();
    sh(&format!("mount -t tmpfs none {}", folder.path().display()));
    let mounted = Mounted(folder.path().to_owned());
    let image = folder.path().join("image.raw");
    run(&mut sync(&emulator, &[text(&source), text(&image)]));
    sh(&format!("mount -o remount,ro {}", mounted.0.display()));
    for more in [&[][..], &["--fetch"]] {
        let args = [&[text(&image)], more].concat();
        assert_eq!(differing(&mut verify(&emulator, &args)), []);
    }
}

/// Sends SIGINT and waits for exit code 130.
fn interrupt(mut child: Child) {
    run(Command::new("kill").args(["-INT", &child.id().to_string()]));
    let start = Instant::now();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_signal_ends_a_check_within_a_second_and_a_run_makes_it_busy() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    run(&mut sync(&emulator, &["snap-0a", text(&image)]));
    let lock = folder.path().join("image.raw.ebsfs-lock");
    let start = |mut command: Command| command.stderr(Stdio::null()).stdout(Stdio::null()).spawn();

    let check = start(verify(&emulator, &[text(&image)])).unwrap();
    wait_for("its lock", || lock.exists());
    interrupt(check);
    assert_eq!(left_beside(&image), [".ebsfs-digests", ".ebsfs.json"]);

    emulator.set("latency_ms=30000");
    emulator.reset();
    let check = start(verify(&emulator, &[text(&image), "--fetch"])).unwrap();
    wait_for("a request", || emulator.lists() > 0);
    interrupt(check);
    emulator.reset();
    let digest = start(verb(&emulator, &["digest"], &["snap-0a"])).unwrap();
    wait_for("a request", || emulator.lists() > 0);
    interrupt(digest);

    emulator.set("latency_ms=3000");
    emulator.reset();
    let args = ["snap-0b", text(&image), "--base", "auto"];
    let mut copy = start(sync(&emulator, &args)).unwrap();
    wait_for("blocks", || emulator.gets() > 0);
    ends_with(&mut verify(&emulator, &[text(&image)]), 10, "has it locked");
    ends_with(
        &mut record(&emulator, "export", &[text(&image)]),
        10,
        "has it locked",
    );
    emulator.set("latency_ms=0");
    assert!(copy.wait().unwrap().success());
    assert_eq!(
        differing(&mut verify(&emulator, &[text(&image), "snap-0b"])),
        []
    );
}

fn sum(program: &str, path: &Path) -> String {
    let said = run(Command::new(program).arg(path));
    said.split(' ').next().unwrap().to_owned()
}

#[test]
fn a_digest_is_that_of_the_image_and_fetches_each_block_once() {
    let (emulator, id, folder, image) = copied();
    let digest = |args: &[&str]| verb(&emulator, &["digest", "--progress", "none"], args);
    let lines = folder.path().join("blocks.csv");
    emulator.reset();
    let args = [&id, "--md5", "--blocks", text(&lines)];
    let said = run(&mut digest(&args));
    let sums = ["sha256sum", "md5sum"].map(|program| sum(program, &emulator.volume("vol-0a")));
    assert_eq!(said, format!("{}  {id}\n{}  {id}\n", sums[0], sums[1]));
    assert_eq!(emulator.gets(), 7, "each block that is held");

    let scratch = folder.path().join("block");
    let mut wanted = "index,state,sha256\n".to_owned();
    for index in [0, 1, 2, 3, 40, 700, 2047] {
        fs::write(&scratch, read_at(&image, index * BLOCK, BLOCK as usize)).unwrap();
        let state = if index == 40 { "zero" } else { "data" };
        wanted.push_str(&format!("{index},{state},{}\n", sha256(&scratch)));
    }
    assert_eq!(fs::read_to_string(&lines).unwrap(), wanted);

    // An image, a device, a repository; as sha256sum checks it, and as JSON.
    let small = emulator.make_volume("vol-0b", 40, [0, 7, 39]);
    writable(&small).set_len(40 * BLOCK + 3 * 512).unwrap();
    let device = Loop::over(&small);
    for name in [text(&small), &device.0] {
        let said = run(&mut digest(&[name]));
        assert_eq!(said, format!("{}  {name}\n", sha256(&small)));
    }
    drop(device);
    let repository = format!("file://{}/repository", folder.path().display());
    init_repository(&repository);
    run(&mut sync(&emulator, &[&id, &repository]));
    let list = folder.path().join("sums");
    fs::write(&list, run(&mut digest(&[text(&small)]))).unwrap();
    run(Command::new("sha256sum").arg("-c").arg(&list));
    let latest = run(&mut digest(&[&format!("{repository}#latest"), "--json"]));
    let value: Value = serde_json::from_str(&latest).unwrap();
    assert_eq!(value["source"], format!("{repository}#{id}"));
    assert_eq!(value["sha256"], sums[0]);
    assert_eq!(value["bytes"], 2048 * BLOCK);
    assert_eq!(value["version"], 1);

    // A link to a file stays one.
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&lines, &link).unwrap();
    let kept = fs::read(&lines).unwrap();
    fs::write(&lines, "").unwrap();
    run(&mut digest(&[&id, "--blocks", text(&link)]));
    assert_eq!(fs::read(&lines).unwrap(), kept);
    assert!(link.is_symlink());
    // A damaged source leaves no file.
    let none = folder.path().join("none.csv");
    ends_with(
        &mut digest(&["snap-0bad", "--blocks", text(&none)]),
        3,
        "snap-0bad",
    );
    assert!(!none.exists());
    ends_with(&mut digest(&["/nonexistent"]), 3, "/nonexistent");
}

/// Wipes what is beside an image, or the state directory.
fn wipe(emulator: &Emulator, image: &Path) {
    for ending in left_beside(image) {
        fs::remove_file(format!("{}{ending}", image.display())).unwrap();
    }
    let _ = fs::remove_dir_all(emulator.folder.path().join("state"));
}

#[test]
fn an_imported_record_is_compared_and_then_only_changes_are_sent() {
    let chain = Chain::new();
    let emulator = &chain.emulator;
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let [kept, kept_digests] = ["kept.json", "kept-digests"].map(|name| folder.path().join(name));
    let record = |what: &str, args: &[&str]| record(emulator, what, args);
    let ids = &chain.snapshots;
    ends_with(&mut record("show", &[text(&image)]), 3, "there is none");
    run(&mut sync(emulator, &[&ids[0], text(&image)]));
    let shown = run(&mut record("show", &[text(&image)]));
    for words in [
        &format!("holds {}", ids[0]),
        "its mark matches",
        "of every block",
    ] {
        assert!(shown.contains(words), "{shown}");
    }
    let export = ["--output", text(&kept), "--digests", text(&kept_digests)];
    run(&mut record(
        "export",
        &[&[text(&image)], &export[..]].concat(),
    ));
    let printed = run(&mut record("export", &[text(&image)]));
    assert_eq!(printed, fs::read_to_string(&kept).unwrap());

    // Lost, moved, and taken over.
    wipe(emulator, &image);
    let moved = folder.path().join("moved.raw");
    fs::rename(&image, &moved).unwrap();
    let import = [text(&moved), text(&kept), "--digests", text(&kept_digests)];
    let said = run(&mut record("import", &import));
    assert!(said.contains(&format!("holds {}", ids[0])), "{said}");
    ends_with(&mut record("import", &import), 11, "--replace");
    run(&mut record(
        "import",
        &[&import[..], &["--replace"]].concat(),
    ));
    let shown = run(&mut record("show", &[text(&moved), "--json"]));
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["proven"], false);
    assert_eq!(shown["digests"], "whole");
    assert_eq!(
        shown["record"]["target"],
        format!("file:{}", moved.display())
    );
    assert_eq!(differing(&mut verify(emulator, &[text(&moved)])), []);
    emulator.reset();
    run(&mut sync(
        emulator,
        &[&ids[1], text(&moved), "--base", "auto"],
    ));
    assert_eq!(emulator.gets(), 24, "the changed blocks");
    assert_same(&moved, &chain.image(1));

    // One that was written since is found to be.
    wipe(emulator, &moved);
    run(Command::new("cp")
        .arg("--sparse=always")
        .args([&chain.image(0), &moved]));
    flip(&moved, 30 * BLOCK);
    run(&mut record("import", &import));
    let args = [&ids[1], text(&moved), "--base", "auto"];
    ends_with(&mut sync(emulator, &args), 11, "something else has written");

    // What does not fit is refused, and nothing is left of it.
    wipe(emulator, &moved);
    let other = folder.path().join("other.raw");
    fs::write(&other, [0; 4096]).unwrap();
    ends_with(
        &mut record("import", &[text(&other), text(&kept)]),
        2,
        "it has 4096 bytes",
    );
    let mut value: Value = serde_json::from_slice(&fs::read(&kept).unwrap()).unwrap();
    let changed = folder.path().join("changed.json");
    let mut refuses = |name: &str, to: Value, code: i32, words: &str| {
        let was = std::mem::replace(&mut value[name], to);
        fs::write(&changed, value.to_string()).unwrap();
        let args = [
            text(&moved),
            text(&changed),
            "--digests",
            text(&kept_digests),
        ];
        ends_with(&mut record("import", &args), code, words);
        value[name] = was;
    };
    refuses("run", "another".into(), 11, "of run another");
    refuses("version", 3.into(), 2, "version 3");
    refuses("volume_bytes", ((1u64 << 30) + 512).into(), 2, "it has");
    refuses(
        "target",
        "device:wwid=1:size=1".into(),
        11,
        "of device:wwid=1",
    );
    refuses("content", "unknown".into(), 2, "no record");
    assert_eq!(left_beside(&moved), Vec::<String>::new());
}

#[test]
fn the_record_of_a_device_is_taken_over_by_the_same_device_alone() {
    let emulator = Emulator::start();
    let folder = tempfile::tempdir().unwrap();
    let source = emulator.make_volume("vol-0a", 20, [0, 3, 19]);
    let disks = ["one", "two"].map(|name| folder.path().join(name));
    for disk in &disks {
        fs::File::create(disk).unwrap().set_len(20 * BLOCK).unwrap();
    }
    let devices = [Loop::over(&disks[0]), Loop::over(&disks[1])];
    let [one, two] = [devices[0].0.as_str(), devices[1].0.as_str()];
    run(&mut sync(
        &emulator,
        &[text(&source), one, "--overwrite", one],
    ));
    let [kept, digests] = ["kept.json", "digests"].map(|name| folder.path().join(name));
    let export = [one, "--output", text(&kept), "--digests", text(&digests)];
    run(&mut record(&emulator, "export", &export));
    fs::remove_dir_all(emulator.folder.path().join("state")).unwrap();
    let import = |device: &str| {
        let args = [device, text(&kept), "--digests", text(&digests)];
        record(&emulator, "import", &args)
    };
    ends_with(&mut import(two), 11, "the record is of device:");
    run(&mut import(one));
    let state = status(&emulator, one);
    assert!(state.contains("compares it with its digests"), "{state}");
    assert_eq!(differing(&mut verify(&emulator, &[one])), []);
    flip(Path::new(one), 9);
    assert_eq!(differing(&mut verify(&emulator, &[one])), [(0, BLOCK)]);
}
