//! Damage heals: runs do not rely on it, check remembers it, --repair restores what is to be found.

mod paused;
mod sources;

use super::care::{damaged, manifest_at, three};
use super::*;
use nix::unistd::{Whence, lseek};

/// The largest pack of the first run: it holds the first blocks of the chain, which all of its snapshots share. How many packs a
/// run writes depends on its pace, so that another run can have a larger one.
pub(super) fn shared_pack(objects: &Objects) -> PathBuf {
    let modified = |path: &PathBuf| fs::metadata(path).unwrap().modified().unwrap();
    let first = objects.objects("snapshots").iter().map(modified).min();
    let mut packs = objects.objects("packs");
    packs.retain(|path| modified(path) <= first.unwrap());
    packs
        .into_iter()
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap()
}

pub(super) fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

pub(super) fn cut(path: &Path, len: u64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(len).unwrap();
}

/// The ways in which a pack can be lost; the first two show without reading it.
const WAYS: [&str; 3] = ["missing", "short", "flipped"];

pub(super) fn harm(way: &str, pack: &Path) {
    let len = fs::metadata(pack).unwrap().len();
    match way {
        "missing" => fs::remove_file(pack).unwrap(),
        "short" => cut(pack, len / 2),
        _ => flip(pack, usize::try_from(len / 2).unwrap()),
    }
}

/// Saves the files of a repository; the answer puts them back.
pub(super) fn keep(objects: &Objects) -> (TempDir, impl Fn() + use<>) {
    let folder = tempfile::tempdir().unwrap();
    let (files, kept) = (objects.files(), folder.path().join("kept"));
    sh(&format!("cp -a {} {}", files.display(), kept.display()));
    let restore = move || {
        let (files, kept) = (files.display(), kept.display());
        sh(&format!("rm -rf {files} && cp -a {kept} {files}"));
    };
    (folder, restore)
}

/// Every snapshot is restored as it was, every byte.
pub(super) fn assert_whole(objects: &Objects, chain: &Chain, numbers: std::ops::Range<usize>) {
    let out = tempfile::tempdir().unwrap();
    for number in numbers {
        let image = out.path().join(format!("{number}.raw"));
        let id = &chain.snapshots[number];
        run(&mut objects.take(&chain.emulator, id, &[text(&image)]));
        assert_same_sparse(&image, &chain.image(number));
    }
}

/// Every byte of two images is the same; holes, which are most of them, need not be read.
pub(super) fn assert_same_sparse(one: &Path, other: &Path) {
    use std::os::unix::fs::FileExt;
    let files = [one, other].map(open);
    let len = files[0].metadata().unwrap().len();
    assert_eq!(len, files[1].metadata().unwrap().len());
    for run in files.iter().flat_map(stored_runs) {
        for from in run.clone().step_by(BLOCK as usize) {
            let len = (run.end - from).min(BLOCK);
            let [mine, its] = [0, 1].map(|number: usize| {
                let mut bytes = vec![0; usize::try_from(len).unwrap()];
                files[number].read_exact_at(&mut bytes, from).unwrap();
                bytes
            });
            assert!(mine == its, "{} differs at {from}", one.display());
        }
    }
}

/// The parts of a file that are no holes.
pub(super) fn stored_runs(file: &fs::File) -> Vec<std::ops::Range<u64>> {
    let (mut runs, mut at) = (Vec::new(), 0);
    while let Ok(start) = lseek(file, at, Whence::SeekData) {
        at = lseek(file, start, Whence::SeekHole).unwrap();
        runs.push(u64::try_from(start).unwrap()..u64::try_from(at).unwrap());
    }
    runs
}

/// The exit code of a check, and all that it printed.
pub(super) fn check_exit(objects: &Objects, emulator: &Emulator, args: &[&str]) -> (i32, String) {
    let output = objects
        .look(emulator, &[&["check"], args].concat())
        .output();
    let output = output.unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    (output.status.code().unwrap(), said)
}

#[test]
fn a_base_with_a_lost_pack_is_passed_over_and_a_held_snapshot_with_one_is_copied_again() {
    let objects = Objects::folder();
    let chain = three(&objects);
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let (_folder, restore) = keep(&objects);
    for way in WAYS {
        restore();
        let pack = shared_pack(&objects);
        harm(way, &pack);
        if way == "flipped" {
            // A listing does not show it; the last check does.
            let (code, said) = check_exit(&objects, emulator, &["--read-data"]);
            assert_eq!(code, 8, "{said}");
        }
        let output = objects
            .bring(emulator, &[&ids[3], "--base", "auto"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{way}: {said}");
        assert!(said.contains("cannot use"), "{way}: {said}");
        assert_whole(&objects, &chain, 3..4);
        // One that is sound is held, and costs nothing.
        let gets = emulator.gets();
        run(&mut objects.bring(emulator, &[&ids[3]]));
        assert_eq!(emulator.gets(), gets, "{way}");
        // The others are copied again under their names, and their old manifests stay aside.
        let manifests = objects.objects("snapshots").len();
        for id in &ids[..3] {
            let output = objects.bring(emulator, &[id, "--base", "auto"]).output();
            let output = output.unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{way}: {said}");
            assert!(said.contains(&format!("copying {id} again")), "{said}");
        }
        assert_eq!(objects.objects("snapshots").len(), manifests);
        assert_eq!(objects.objects("removed").len(), 3);
        assert_whole(&objects, &chain, 0..4);
        let checked = objects.look_json(emulator, &["check", "--read-data"]);
        assert_eq!(checked["damages"], Value::Array(Vec::new()));
        assert_eq!(checked["snapshots"], 4);
    }
}

#[test]
fn dedup_sends_a_block_again_whose_pack_the_last_check_found_damaged() {
    let objects = Objects::folder();
    let chain = three(&objects);
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    harm("flipped", &shared_pack(&objects));
    assert_eq!(check_exit(&objects, emulator, &["--read-data"]).0, 8);
    run(&mut objects.bring(emulator, &[&ids[3], "--dedup"]));
    assert_whole(&objects, &chain, 3..4);
}

#[test]
fn check_remembers_damage_that_it_read_until_no_snapshot_needs_it() {
    let objects = Objects::folder();
    let chain = three(&objects);
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    assert_eq!(check_exit(&objects, emulator, &[]).0, 0);
    let last = objects.files().join("checks/last");
    let read = || -> Value { serde_json::from_slice(&fs::read(&last).unwrap()).unwrap() };
    assert_eq!(read()["damages"].as_array().unwrap().len(), 0);
    harm("flipped", &shared_pack(&objects));
    assert_eq!(check_exit(&objects, emulator, &["--read-data"]).0, 8);
    assert_eq!(read()["damages"].as_array().unwrap().len(), 1);
    // A check that does not read the pack knows of it all the same, and says who found it, once.
    for _ in 0..2 {
        let (code, said) = check_exit(&objects, emulator, &[]);
        assert_eq!(code, 8, "{said}");
        assert_eq!(said.matches("found by the check of").count(), 1, "{said}");
    }
    let listed = objects.look_json(emulator, &["ls"]);
    assert!(
        listed
            .as_array()
            .unwrap()
            .iter()
            .all(|one| one["is_damaged"] == true)
    );
    let output = objects.look(emulator, &["ls"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.matches("check --repair").count(), 3, "{said}");
    for id in &ids[..3] {
        objects.remove(emulator, id);
    }
    assert_eq!(check_exit(&objects, emulator, &[]).0, 0);
    assert_eq!(read()["damages"].as_array().unwrap().len(), 0);
}

#[test]
fn a_check_without_write_permission_warns_once_and_continues() {
    let mut objects = Objects::s3();
    let (emulator, id) = three_blocks();
    run(&mut objects.bring(&emulator, &[&id]));
    let address = objects.stop();
    objects.options = vec!["--read-only".into()];
    objects.serve(&address);
    let check = ["check", "--timeout", "1s"];
    let output = objects.look(&emulator, &check).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("cannot keep the result").count(), 1, "{said}");
    assert!(!objects.files().join("checks").exists());
}

#[test]
fn a_repair_finds_blocks_in_the_source_and_in_the_sound_part_of_their_pack() {
    let objects = Objects::folder();
    let chain = three(&objects);
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let (folder, restore) = keep(&objects);
    let image = folder.path().join("image.raw");
    run(&mut objects.take(emulator, &ids[0], &[text(&image)]));
    for way in WAYS {
        for from in [&*ids[0], text(&image)] {
            restore();
            let pack = shared_pack(&objects);
            harm(way, &pack);
            emulator.reset();
            let args = ["check", "--read-data", "--repair", "--from", from];
            let repaired = objects.look_json(emulator, &args);
            let repaired = &repaired["repaired"];
            assert_eq!(repaired["lost"], Value::Array(Vec::new()), "{way}");
            assert_eq!(repaired["replaced"].as_array().unwrap().len(), 3, "{way}");
            let gets = emulator.gets();
            assert_eq!(
                gets > 0,
                way != "flipped" && from == ids[0] || gets > 0,
                "{way}"
            );
            if way == "flipped" {
                assert!(gets <= 1, "all but one block are in the pack: {gets}");
            }
            // No snapshot needs the pack any more, whatever becomes of it.
            let _ = fs::remove_file(&pack);
            let checked = objects.look_json(emulator, &["check", "--read-data"]);
            assert_eq!(checked["damages"], Value::Array(Vec::new()), "{way}");
            assert_eq!(
                (&checked["runs"], &checked["snapshots"]),
                (&0.into(), &3.into())
            );
            assert_whole(&objects, &chain, if way == "short" { 0..3 } else { 1..2 });
            assert_eq!(objects.objects("removed").len(), 3);
        }
    }
    // A delta goes on from a repaired snapshot.
    run(&mut objects.bring(emulator, &[&ids[3], "--base", "auto"]));
    assert_eq!(*sent(&objects, emulator).last().unwrap(), 0);
    // Nothing is damaged: nothing is written.
    let before = objects.objects("packs").len();
    run(&mut objects.look(emulator, &["check", "--repair"]));
    assert_eq!(objects.objects("packs").len(), before);
    assert_eq!(objects.objects("removed").len(), 3);
    // What the old manifests alone needed goes, and nothing else.
    std::thread::sleep(std::time::Duration::from_millis(50));
    run(&mut objects.look(emulator, &["prune", "--grace", "0s"]));
    assert_whole(&objects, &chain, 0..4);
}

#[test]
fn a_repair_without_a_source_marks_lost_blocks_and_a_later_one_restores_them() {
    let objects = Objects::folder();
    let chain = three(&objects);
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let pack = shared_pack(&objects);
    harm("missing", &pack);
    let (code, said) = check_exit(&objects, emulator, &["--repair"]);
    assert_eq!(code, 12, "{said}");
    assert_eq!(said.matches("zero and marked").count(), 3, "{said}");
    assert_eq!(check_exit(&objects, emulator, &["--read-data"]).0, 0);
    for manifest in objects.objects("snapshots") {
        assert!(
            !manifest_at(&manifest)["damaged"]
                .as_array()
                .unwrap()
                .is_empty()
        );
    }
    // What is marked is not read as zeroes.
    let out = tempfile::tempdir().unwrap();
    let image = out.path().join("image.raw");
    assert_eq!(
        ends(&mut objects.take(emulator, &ids[0], &[text(&image)])).0,
        8
    );
    let (code, said) =
        ends(&mut objects.take(emulator, &ids[1], &[text(&image), "--on-damage", "mark"]));
    assert_eq!(code, 12, "{said}");
    // The next delta writes them.
    run(&mut objects.bring(emulator, &[&ids[3], "--base", "auto"]));
    assert_whole(&objects, &chain, 3..4);
    for id in &ids[..3] {
        let (code, said) = check_exit(&objects, emulator, &["--repair", "--from", id]);
        assert_eq!(code, 0, "{said}");
    }
    assert_whole(&objects, &chain, 0..4);
    for manifest in objects.objects("snapshots") {
        assert!(manifest_at(&manifest).get("damaged").is_none());
    }
}

#[test]
fn a_repair_finds_blocks_in_other_snapshots_without_any_source() {
    let objects = Objects::folder();
    let (emulator, id) = three_blocks();
    // The same blocks twice, in packs of two runs.
    let image = emulator.folder.path().join("source.raw");
    run(&mut objects.bring(&emulator, &[&id]));
    let first = objects.objects("packs");
    run(&mut objects.take(&emulator, &id, &[text(&image)]));
    run(&mut objects.bring(&emulator, &[text(&image)]));
    let all = objects.objects("packs").len();
    assert!(all > first.len());
    first.iter().for_each(|pack| fs::remove_file(pack).unwrap());
    let checked = objects.look_json(&emulator, &["check", "--repair"]);
    assert_eq!(checked["repaired"]["written_blocks"], 0, "{checked}");
    assert_eq!(objects.objects("packs").len(), all - first.len());
    let replica = objects.mount(&emulator);
    let (mount, disk) = crate::sync::mounted(&emulator, &id);
    assert_same(&replica.disk(&id), &disk);
    drop((mount, replica));
}

#[test]
fn a_lost_segment_or_manifest_is_restored_from_the_snapshot_itself() {
    let objects = Objects::folder();
    let chain = three(&objects);
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let (_folder, restore) = keep(&objects);
    for way in ["missing", "flipped"] {
        restore();
        let name = &manifest_at(&objects.objects("snapshots")[1])["segments"][0]["name"];
        let name = name.as_str().unwrap().to_owned();
        let segment = objects
            .files()
            .join("segments")
            .join(&name[..2])
            .join(&name);
        harm(way, &segment);
        let (code, said) = check_exit(&objects, emulator, &["--repair", "--from", &ids[1]]);
        assert_eq!(code, 0, "{said}");
        assert_eq!(check_exit(&objects, emulator, &["--read-data"]).0, 0);
        assert_whole(&objects, &chain, 0..3);
    }
    for (way, left) in [("missing", 11), ("flipped", 8)] {
        restore();
        harm(way, &objects.objects("snapshots")[1]);
        let (code, said) = check_exit(&objects, emulator, &["--repair", "--from", &ids[0]]);
        assert!(
            code == left && said.contains("left     snapshots/"),
            "{code} {said}"
        );
        let (code, said) = check_exit(&objects, emulator, &["--repair", "--from", &ids[1]]);
        assert_eq!(code, 0, "{said}");
        assert_whole(&objects, &chain, 0..3);
    }
}

#[test]
fn a_killed_repair_leaves_whole_snapshots_and_the_next_one_finishes() {
    let objects = Objects::folder();
    let chain = three(&objects);
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let (_folder, restore) = keep(&objects);
    for killed_after in 1..5 {
        restore();
        harm("short", &shared_pack(&objects));
        emulator.set("latency_ms=20");
        let args = ["check", "--repair", "--from", &*ids[0]];
        let mut child = objects
            .look(emulator, &args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Each time a later step has been seen: a record, a pack, a segment, a tombstone, and each manifest.
        let count = |folder: &str| objects.objects(folder).len();
        let before = [count("packs"), count("segments")];
        wait_for("a step of the repair", || {
            let ended = child.try_wait().unwrap().is_some();
            ended
                || match killed_after {
                    0 => count("runs") > 0,
                    1 => count("packs") > before[0],
                    2 => count("segments") > before[1],
                    number => count("removed") >= number - 2,
                }
        });
        let _ = child.kill();
        child.wait().unwrap();
        emulator.set("latency_ms=0");
        let (code, said) = check_exit(&objects, emulator, &["--repair", "--from", &ids[0]]);
        assert_eq!(code, 0, "{said}");
        assert_eq!(check_exit(&objects, emulator, &["--read-data"]).0, 0);
        assert_whole(&objects, &chain, 0..3);
    }
}

#[test]
fn a_manifest_that_says_a_wrong_count_is_found_and_replaced() {
    let objects = Objects::folder();
    let (emulator, id) = three_blocks();
    run(&mut objects.bring(&emulator, &[&id]));
    let path = &objects.objects("snapshots")[0];
    let bytes = fs::read(path).unwrap();
    let mut manifest = manifest_at(path);
    manifest["blocks"] = 2.into();
    let json = serde_json::to_vec(&manifest).unwrap();
    let proven = [&bytes[..32], &json].concat();
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(&proven);
    fs::write(path, [&proven[..], &digest].concat()).unwrap();
    let found = damaged(&objects, &emulator, &[]);
    let what = found[0]["what"].to_string();
    assert!(
        what.contains("holds 2 blocks, its segments hold 3"),
        "{what}"
    );
    assert_eq!(check_exit(&objects, &emulator, &["--repair"]).0, 0);
    assert_eq!(manifest_at(path)["blocks"], 3);
    assert_eq!(check_exit(&objects, &emulator, &[]).0, 0);
}

#[test]
fn parts_of_a_check_read_each_pack_once() {
    let objects = Objects::folder();
    let chain = Chain::new();
    let emulator = &chain.emulator;
    for id in &chain.snapshots[..2] {
        run(&mut objects.bring(emulator, &[id, "--base", "auto"]));
    }
    let all = objects.look_json(emulator, &["check", "--read-data"]);
    assert_eq!(
        (&all["read"], &all["read_packs"]),
        (&"all".into(), &all["packs"])
    );
    let mut packs = 0;
    let pack = shared_pack(&objects);
    harm("flipped", &pack);
    let mut codes = Vec::new();
    for part in 1..=3 {
        let part = format!("{part}/3");
        let args = ["check", "--read-data-subset", &part, "--json"];
        let output = objects.look(emulator, &args).output().unwrap();
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(shown["read"], *part);
        packs += shown["read_packs"].as_u64().unwrap();
        codes.push(output.status.code().unwrap());
    }
    assert_eq!(packs, all["packs"].as_u64().unwrap());
    // From the part on that reads it, the damage is known.
    assert!(codes.is_sorted() && codes[2] == 8, "{codes:?}");
    for wrong in ["0/3", "4/3", "1/0", "x", "1"] {
        let (code, said) = check_exit(&objects, emulator, &["--read-data-subset", wrong]);
        assert!(code == 2 && said.contains("N/M"), "{said}");
    }
}

/// The first blocks of an image: all but one of those that the chain's third snapshot holds.
fn beginning(image: &Path) -> Vec<u8> {
    read_at(image, 0, usize::try_from(256 * BLOCK).unwrap())
}

#[test]
fn all_that_can_be_read_of_a_damaged_snapshot_is_restored_and_the_rest_is_marked() {
    for objects in [Objects::folder(), Objects::s3()] {
        let chain = three(&objects);
        let (emulator, ids) = (&chain.emulator, &chain.snapshots);
        let (folder, restore) = keep(&objects);
        let image = folder.path().join("image.raw");
        let whole = chain.image(2);
        let wholes = beginning(&whole);
        let segment = || {
            let name = &manifest_at(&objects.objects("snapshots")[2])["segments"][0]["name"];
            let name = name.as_str().unwrap().to_owned();
            objects
                .files()
                .join("segments")
                .join(&name[..2])
                .join(&name)
        };
        for (way, what) in [
            ("missing", shared_pack(&objects)),
            ("short", shared_pack(&objects)),
            ("missing", segment()),
            ("flipped", segment()),
        ] {
            if objects.server.is_some() && way != "short" {
                continue;
            }
            restore();
            harm(way, &what);
            let _ = fs::remove_file(&image);
            let (code, said) = ends(&mut objects.take(emulator, &ids[2], &[text(&image)]));
            assert!(
                code == 8 && said.contains("--on-damage mark"),
                "{way}: {said}"
            );
            let mark = [text(&image), "--on-damage", "mark", "--restart"];
            let (code, said) = ends(&mut objects.take(emulator, &ids[2], &mark));
            assert_eq!(code, 12, "{way}: {said}");
            let restored = beginning(&image);
            assert_eq!(restored.len(), wholes.len());
            let blocks = restored
                .chunks(BLOCK as usize)
                .zip(wholes.chunks(BLOCK as usize));
            let (mut good, mut zero) = (0, 0);
            for (read, written) in blocks.filter(|(_, written)| written.iter().any(|b| *b > 0)) {
                match read == written {
                    true => good += 1,
                    false => {
                        assert!(read.iter().all(|byte| *byte == 0));
                        zero += 1;
                    }
                }
            }
            assert!(zero > 0, "{way}");
            match text(&what).contains("segments") {
                true => assert_eq!(good, 0),
                false => assert!(good > 0, "{way}"),
            }
            if way == "short" && good > 0 {
                assert!(good > 10 && zero > 10, "{good} {zero}");
            }
        }
    }
}
