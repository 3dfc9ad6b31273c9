//! Blocks that a copy has left zero because its source was damaged: a copy of that copy never takes them for zeroes.

use std::os::unix::fs::FileExt;

use super::*;

/// The block that the emulator stores wrong.
const BAD: u64 = 6;
const MARK: [&str; 2] = ["--on-damage", "mark"];

/// A chain whose block cannot be read until it is repaired.
fn rotten() -> Chain {
    let chain = Chain::new();
    chain.emulator.set("rotten_block=6");
    chain
}

fn repair(chain: &Chain) {
    chain.emulator.set("rotten_block=");
}

fn damaged(emulator: &Emulator, target: &str) -> Value {
    let said = run(&mut sync(emulator, &["--status", target, "--json"]));
    let known: Value = serde_json::from_str(&said).unwrap();
    known["status"]["damaged"].clone()
}

fn code(emulator: &Emulator, args: &[&str], wanted: i32) -> String {
    let (code, said) = ends(&mut sync(emulator, args));
    assert_eq!(code, wanted, "{args:?}: {said}");
    said
}

/// Copies from a source that holds the first snapshot but for the block: it fails, or the block is marked again.
fn assert_source_is_damaged(chain: &Chain, source: &str, options: &[&str]) {
    let emulator = &chain.emulator;
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("copy.raw");
    let args = [&[source, text(&image)], options].concat();
    let said = code(emulator, &args, 8);
    assert!(
        said.contains("block 6") && said.contains("was damaged when it was copied"),
        "{said}"
    );
    assert!(!image.exists());
    code(emulator, &[&args[..], &MARK].concat(), 12);
    assert_eq!(damaged(emulator, text(&image)), serde_json::json!([[6, 7]]));
    let wanted = folder.path().join("wanted.raw");
    run(Command::new("cp")
        .arg("--sparse=always")
        .arg(chain.image(0))
        .arg(&wanted));
    let zeroes = vec![0; BLOCK as usize];
    writable(&wanted)
        .write_all_at(&zeroes, BAD * BLOCK)
        .unwrap();
    assert_same(&image, &wanted);
}

#[test]
fn a_damaged_block_stays_marked_when_an_image_or_a_device_is_copied_on() {
    let chain = rotten();
    let (emulator, id) = (&chain.emulator, chain.snapshots[0].as_str());
    let folder = tempfile::tempdir().unwrap();
    let (image, file) = (folder.path().join("a.raw"), folder.path().join("disk"));
    fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
    let device = Loop::over(&file);
    let to = [id, text(&image), &device.0, "--overwrite", &device.0];
    code(emulator, &[&to[..], &MARK].concat(), 12);
    repair(&chain);
    assert_source_is_damaged(&chain, text(&image), &[]);
    assert_source_is_damaged(&chain, &device.0, &[]);
    // What something else has written there since is what the image holds.
    let bytes = content("else", BAD);
    writable(&image).write_all_at(&bytes, BAD * BLOCK).unwrap();
    let copy = folder.path().join("b.raw");
    code(emulator, &[text(&image), text(&copy)], 0);
    assert_same(&image, &copy);
    assert_eq!(damaged(emulator, text(&copy)), serde_json::json!([]));
}

#[test]
fn a_damaged_repository_block_never_reads_as_zeroes_and_is_reported_until_copied_again() {
    let chain = rotten();
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("repository");
    fs::create_dir(&path).unwrap();
    let url = format!("file://{}", path.display());
    init_repository(&url);
    let named = format!("{url}#{}", ids[0]);
    code(emulator, &[&[&ids[0], &*url], &MARK[..]].concat(), 12);
    repair(&chain);
    assert_source_is_damaged(&chain, &named, &[]);

    let mount = Mount::start(emulator.ebsfs(&["mount", &url]), &[]);
    let disk = open(&mount.disk(&ids[0]));
    let mut bytes = vec![0; BLOCK as usize];
    let error = disk.read_exact_at(&mut bytes, BAD * BLOCK).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    disk.read_exact_at(&mut bytes, (BAD - 1) * BLOCK).unwrap();
    assert_eq!(bytes, content("vol-0a", BAD - 1));
    drop(disk);
    drop(mount);

    // It is held, and not whole.
    let said = code(emulator, &[&ids[0], &url], 12);
    assert!(
        said.contains("1 of its blocks") && said.contains("ebsfs repository rm"),
        "{said}"
    );
    let (exit, said) = {
        let output = sync(emulator, &[&ids[0], &url, "--json"]).output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let reported: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(exit, Some(12));
    assert_eq!(
        (&reported["status"], &reported["damaged_blocks"]),
        (&"already".into(), &1.into())
    );
    run(&mut emulator.ebsfs(&["repository", "rm", &named]));
    code(emulator, &[&ids[0], &url], 0);
    let image = folder.path().join("whole.raw");
    code(emulator, &[&named, text(&image)], 0);
    assert_same(&image, &chain.image(0));
}

#[test]
fn a_delta_of_a_repository_names_the_blocks_that_are_damaged_on_either_side() {
    let chain = rotten();
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("repository");
    fs::create_dir(&path).unwrap();
    let url = format!("file://{}", path.display());
    init_repository(&url);
    let image = folder.path().join("image.raw");
    // The third and the fourth differ elsewhere.
    code(emulator, &[&[&ids[2], &*url], &MARK[..]].concat(), 12);
    repair(&chain);
    code(emulator, &[&ids[3], &url], 0);
    let [third, fourth] = [&ids[2], &ids[3]].map(|id| format!("{url}#{id}"));
    code(emulator, &[&ids[3], text(&image)], 0);
    // Back to the one that lacks the block: nothing passes for it.
    let back = [&third, text(&image), "--base", &ids[3]];
    code(emulator, &back, 8);
    assert_same(&image, &chain.image(3));
    code(emulator, &[&back[..], &MARK].concat(), 12);
    assert_eq!(damaged(emulator, text(&image)), serde_json::json!([[6, 7]]));
    code(emulator, &[&fourth, text(&image), "--base", &ids[2]], 0);
    assert_same(&image, &chain.image(3));
}

#[test]
fn a_copy_of_an_ebs_snapshot_that_is_tagged_as_damaged_ends_as_marked() {
    let chain = rotten();
    let emulator = &chain.emulator;
    let folder = tempfile::tempdir().unwrap();
    let (image, report) = (
        folder.path().join("image.raw"),
        folder.path().join("report.json"),
    );
    let output = sync(
        emulator,
        &[&[&chain.snapshots[0], "ebs:"], &MARK[..]].concat(),
    )
    .output()
    .unwrap();
    assert_eq!(output.status.code(), Some(12), "{output:?}");
    repair(&chain);
    let made = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let args = [&*made, text(&image), "--report", text(&report)];
    let said = code(emulator, &args, 12);
    assert!(said.contains("1 of its blocks"), "{said}");
    let reported: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    let warning = reported["targets"][0]["warnings"][0].as_str().unwrap();
    assert!(warning.contains("ebsfs:damaged"), "{reported}");
    assert_eq!(reported["targets"][0]["damaged_in_source"], 1, "{reported}");

    // Which block it is only the record of the first run tells. How many there are every copy of a copy says.
    let in_source = |target: &str| {
        let said = run(&mut sync(emulator, &["--status", target, "--json"]));
        let known: Value = serde_json::from_str(&said).unwrap();
        known["status"]["damaged_in_source"].clone()
    };
    assert_eq!(in_source(text(&image)), 1);
    let shown = run(&mut emulator.ebsfs(&["record", "show", text(&image)]));
    assert!(shown.contains("1 blocks are zero in the source"), "{shown}");
    let copy = folder.path().join("copy.raw");
    let said = code(emulator, &[text(&image), text(&copy)], 12);
    assert!(said.contains("no list says which"), "{said}");
    assert_eq!(in_source(text(&copy)), 1);
    assert_same(&image, &copy);
    let output = sync(emulator, &[text(&copy), "ebs:"]).output().unwrap();
    assert_eq!(output.status.code(), Some(12), "{output:?}");
    let again = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let last = folder.path().join("last.raw");
    code(emulator, &[&again, text(&last)], 12);
    assert_eq!(in_source(text(&last)), 1);
    // Held already, where the tags cannot be read.
    emulator.set("deny=ec2:DescribeSnapshots");
    code(emulator, &[&again, text(&last)], 12);
}
