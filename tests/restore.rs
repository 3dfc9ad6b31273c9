//! `ebsfs restore`: all disks of an instance at one instant come back, byte for byte, and nothing else is touched.

mod devices;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::readme::{blocks, commands, page};
use crate::support::*;

const INSTANCE: &str = "i-0123456789abcdef0";
/// Blocks of a volume's file. EBS volumes are whole GiB: the rest reads as zeroes.
const BLOCKS: u64 = 16;

/// An instance of two volumes, and a repository in a folder.
struct Account {
    emulator: Emulator,
    folder: TempDir,
}

impl Account {
    fn new() -> Self {
        let emulator = Emulator::start();
        emulator.make_volume("vol-0a", BLOCKS, [0, 7, 15]);
        emulator.make_volume("vol-0b", BLOCKS, [1, 9]);
        let account = Self {
            emulator,
            folder: tempfile::tempdir().unwrap(),
        };
        init_repository(&account.repository());
        account
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn repository(&self) -> String {
        format!("file://{}", self.at("repository").display())
    }

    fn ebsfs(&self, args: &[&str]) -> Command {
        let mut command = self.emulator.ebsfs(args);
        command.env("EBSFS_STATE_DIR", self.at("state"));
        command
    }

    /// Writes a block of a volume.
    fn write(&self, volume: &str, index: u64, seed: &str) {
        let disk = writable(&self.emulator.volume(volume));
        disk.write_all_at(&content(seed, index), index * BLOCK)
            .unwrap();
    }

    /// Makes a set of snapshots, and keeps copies of the volumes as they are; the snapshots of both and their time.
    fn capture(&self, copies: &str) -> ([String; 2], String) {
        std::fs::create_dir(self.at(copies)).unwrap();
        for volume in ["vol-0a", "vol-0b"] {
            let to = self.at(copies).join(volume);
            std::fs::copy(self.emulator.volume(volume), to).unwrap();
        }
        let said = run(&mut self.ebsfs(&["snapshot", "--instance", INSTANCE]));
        let of = |volume: &str| -> (String, String) {
            let line = said.lines().find(|line| line.contains(volume)).unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            (words[0].to_owned(), words[2].to_owned())
        };
        let ((a, time), (b, other)) = (of("vol-0a"), of("vol-0b"));
        assert_eq!(time, other, "one instant");
        ([a, b], time)
    }

    fn bring(&self, snapshots: &[String]) {
        for snapshot in snapshots {
            run(&mut self.ebsfs(&["sync", snapshot, &self.repository()]));
        }
    }

    /// Adds the inventory as it is now.
    fn add(&self, more: &[&str]) -> Command {
        let file = self.at("inventory.json");
        let text = run(&mut self.ebsfs(&["inventory", INSTANCE]));
        std::fs::write(&file, text).unwrap();
        let file = file.to_str().unwrap();
        let mut command = self.ebsfs(&["repository", "instances", &self.repository()]);
        command.args(["--add", file]).args(more);
        command
    }

    fn restore(&self, select: &str, to: &str, more: &[&str]) -> Command {
        let set = format!("{}#{select}", self.repository());
        let mut command = self.ebsfs(&["restore", &set, "--to"]);
        command.arg(self.at(to)).args(more);
        command
    }

    fn assert_restored(&self, to: &str, copies: &str) {
        for (image, volume) in [("0-xvda.raw", "vol-0a"), ("1-xvdb.raw", "vol-0b")] {
            assert_image(&self.at(to).join(image), &self.at(copies).join(volume));
        }
    }

    /// The object of the only set.
    fn object(&self) -> PathBuf {
        let folder = std::fs::read_dir(self.at("repository/instances")).unwrap();
        let mut files: Vec<PathBuf> = folder.map(|file| file.unwrap().path()).collect();
        assert_eq!(files.len(), 1);
        files.pop().unwrap()
    }
}

/// Asserts that an image of 1 GiB begins with the bytes of a volume's file, and holds nothing else.
fn assert_image(image: &Path, copy: &Path) {
    let bytes = std::fs::read(copy).unwrap();
    let blocks = bytes.chunks(BLOCK as usize);
    let held = blocks.filter(|block| block.iter().any(|byte| *byte != 0));
    let found = std::fs::metadata(image).unwrap();
    assert_eq!((found.len(), bytes.len() as u64), (1 << 30, BLOCKS * BLOCK));
    // The filesystem counts what it keeps of the file itself, less than a block.
    assert!(found.blocks() * 512 < (held.count() as u64 + 1) * BLOCK);
    assert!(
        read_at(image, 0, bytes.len()) == bytes,
        "{}",
        image.display()
    );
}

/// Whether a time with milliseconds is of this second.
fn is_within(time: &str, second: &str) -> bool {
    time.starts_with(second.trim_end_matches('Z'))
}

/// The names in a folder, without the records of images.
fn names(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.contains(".ebsfs"))
        .collect();
    names.sort();
    names
}

#[test]
fn all_disks_come_back_as_they_were_at_one_instant() {
    let account = Account::new();
    let (first, first_second) = account.capture("first");
    account.bring(&first);
    let said = run(&mut account.add(&[]));
    let (first_time, instance) = said.trim_end().split_once(' ').unwrap();
    assert!(is_within(first_time, &first_second) && instance == INSTANCE);
    // Instants are distinguished by the millisecond.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    account.write("vol-0a", 7, "later");
    account.write("vol-0b", 3, "later");
    let (second, second_second) = account.capture("second");
    let second_start = second_second.trim_end_matches('Z');
    account.bring(&second[..1]);
    // One disk of the second instant is not there: the set is still the first one.
    assert_eq!(run(&mut account.add(&[])), said);
    account.bring(&second[1..]);
    let mut early = account.restore(INSTANCE, "early", &[]);
    let output = early.output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        log.contains("is not the newest") && log.contains(second_start),
        "{log}"
    );
    account.assert_restored("early", "first");
    assert!(run(&mut account.add(&[])).starts_with(second_start));
    let listed = run(&mut account.ebsfs(&["repository", "instances", &account.repository()]));
    assert_eq!(listed.lines().count(), 2);

    let said = run(&mut account.restore(INSTANCE, "newest", &["--verify"]));
    account.assert_restored("newest", "second");
    let lines: Vec<&str> = said.lines().collect();
    let image = account.at("newest").join("0-xvda.raw");
    let line = format!("/dev/xvda vol-0a {} {}", second[0], image.display());
    assert_eq!((lines[0], lines.len()), (&*line, 2));
    let inventory = std::fs::read(account.at("newest").join("instance.json")).unwrap();
    let inventory: Value = serde_json::from_slice(&inventory).unwrap();
    assert_eq!(inventory["instance"]["id"], INSTANCE);
    let expected = ["0-xvda.raw", "1-xvdb.raw", "instance.json"];
    assert_eq!(names(&account.at("newest")), expected);
    // AWS is not asked.
    account.emulator.reset();
    let at = format!("{INSTANCE}@{first_time}");
    let mut again = account.restore(&at, "older", &["--json"]);
    let report: Value = serde_json::from_str(&run(&mut again)).unwrap();
    account.assert_restored("older", "first");
    assert_eq!(report["time"], first_time);
    assert_eq!(report["disks"][0]["snapshot"], first[0]);
    assert_eq!(report["disks"][1]["result"]["status"], "done");
    assert_eq!(account.emulator.gets(), 0);
    // The same command again finds all of it there.
    let report: Value = serde_json::from_str(&run(&mut again)).unwrap();
    assert_eq!(report["disks"][1]["result"]["status"], "already");
    // Another set is not mixed with this one.
    let (code, said) = ends(&mut account.restore(INSTANCE, "older", &[]));
    assert_eq!(code, 11, "{said}");
    account.assert_restored("older", "first");
}

#[test]
fn existing_files_are_not_overwritten_and_the_other_disks_are_restored() {
    let account = Account::new();
    let (snapshots, _) = account.capture("copies");
    account.bring(&snapshots);
    run(&mut account.add(&[]));
    std::fs::create_dir(account.at("to")).unwrap();
    let foreign = account.at("to").join("0-xvda.raw");
    std::fs::write(&foreign, "something else").unwrap();
    let (code, said) = ends(&mut account.restore(INSTANCE, "to", &[]));
    assert_eq!(code, 11, "{said}");
    assert!(said.contains("restore to another folder"), "{said}");
    assert!(!said.contains("--overwrite"), "{said}");
    assert_eq!(std::fs::read_to_string(&foreign).unwrap(), "something else");
    let (image, copy) = ("to/1-xvdb.raw", "copies/vol-0b");
    assert_image(&account.at(image), &account.at(copy));
    std::fs::remove_file(&foreign).unwrap();
    run(&mut account.restore(INSTANCE, "to", &[]));
    account.assert_restored("to", "copies");
}

#[test]
fn two_sets_of_one_inventory_are_not_mixed_in_a_folder() {
    let account = Account::new();
    let (first, _) = account.capture("first");
    account.bring(&first);
    run(&mut account.add(&[]));
    run(&mut account.restore(INSTANCE, "to", &[]));
    account.write("vol-0a", 7, "later");
    let (second, _) = account.capture("second");
    account.bring(&second);
    // The same file again.
    let (repository, file) = (account.repository(), account.at("inventory.json"));
    let add = [
        "repository",
        "instances",
        &repository,
        "--add",
        file.to_str().unwrap(),
    ];
    run(&mut account.ebsfs(&add));
    let (code, said) = ends(&mut account.restore(INSTANCE, "to", &[]));
    assert_eq!(code, 11, "{said}");
    account.assert_restored("to", "first");
}

#[test]
fn a_set_needs_all_disks_but_those_that_a_person_leaves_out() {
    let account = Account::new();
    let (snapshots, time) = account.capture("copies");
    let fails = |more: &[&str], code: i32, words: &str| {
        let (ended, said) = ends(&mut account.add(more));
        assert!(ended == code && said.contains(words), "{ended}: {said}");
    };
    fails(&[], 3, "no snapshot of its disks");
    account.bring(&snapshots[..1]);
    fails(&[], 3, "it has none of vol-0b");
    fails(&["--without", "vol-0c"], 2, "vol-0c: it is no disk");
    let (code, said) = ends(&mut account.restore(INSTANCE, "to", &[]));
    assert!(code == 3 && said.contains("has no set of"), "{said}");
    assert!(!account.at("to").exists());
    let said = run(&mut account.add(&["--without", "vol-0b"]));
    assert!(is_within(&said, &time));
    let output = account.restore(INSTANCE, "to", &[]).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && log.contains("vol-0b was left out"),
        "{log}"
    );
    assert_eq!(names(&account.at("to")), ["0-xvda.raw", "instance.json"]);
}

#[test]
fn a_wrong_inventory_and_a_damaged_set_are_refused() {
    let account = Account::new();
    let (snapshots, _) = account.capture("copies");
    account.bring(&snapshots);
    run(&mut account.add(&[]));
    let file = account.at("inventory.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let later = text.replace("\"version\": 1", "\"version\": 2");
    let path = text.replace("\"volume\": \"vol-0a\"", "\"volume\": \"../vol-0a\"");
    assert!(later != text && path != text);
    for wrong in ["", "{}", "null", &text[..text.len() / 2], &*later, &*path] {
        std::fs::write(&file, wrong).unwrap();
        let repository = account.repository();
        let args = ["repository", "instances", &repository, "--add"];
        let (code, said) = ends(account.ebsfs(&args).arg(&file));
        assert_eq!(code, 2, "{wrong}: {said}");
    }
    let object = account.object();
    let bytes = std::fs::read(&object).unwrap();
    for damage in [&b""[..], &bytes[..bytes.len() / 2], b"{}\n"] {
        std::fs::write(&object, damage).unwrap();
        let (code, said) = ends(&mut account.restore(INSTANCE, "to", &[]));
        assert_eq!(code, 8, "{said}");
        assert!(!account.at("to").exists());
    }
    // Objects that are no sets are passed over.
    std::fs::write(&object, &bytes).unwrap();
    std::fs::write(object.with_file_name(".DS_Store"), "x").unwrap();
    run(&mut account.restore(INSTANCE, "to", &[]));
    account.assert_restored("to", "copies");
}

#[test]
fn a_prune_keeps_a_set_while_a_snapshot_of_it_can_come_back() {
    let account = Account::new();
    let repository = account.repository();
    let list = || run(&mut account.ebsfs(&["repository", "instances", &repository]));
    let prune = |more: &[&str]| {
        let mut command = account.ebsfs(&["repository", "prune", &repository]);
        run(command.args(more));
    };
    let (first, _) = account.capture("first");
    account.bring(&first);
    run(&mut account.add(&[]));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let (second, second_time) = account.capture("second");
    account.bring(&second);
    run(&mut account.add(&[]));
    prune(&["--keep-last", "1"]);
    assert_eq!(list().lines().count(), 2, "tombstones can bring it back");
    // The first prune deletes the tombstones, the next one what none is left of.
    prune(&["--grace", "0s"]);
    prune(&["--grace", "0s"]);
    let list = list();
    assert!(
        list.lines().count() == 1 && is_within(&list, &second_time),
        "{list}"
    );
    run(&mut account.restore(INSTANCE, "to", &[]));
    account.assert_restored("to", "second");
}

#[test]
fn every_command_of_the_restore_page_works_as_it_stands_there() {
    let account = Account::new();
    let text = page("docs/restore.md");
    assert_eq!(blocks(&text).len(), 1);
    let folder = tempfile::tempdir().unwrap();
    let mut command = commands(
        &account.emulator,
        &text,
        ["snap-0a", "snap-0b"],
        folder.path(),
    );
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let restored = folder.path().join("restored");
    assert_image(
        &restored.join("0-xvda.raw"),
        &account.emulator.volume("vol-0a"),
    );
    assert_image(
        &restored.join("1-xvdb.raw"),
        &account.emulator.volume("vol-0b"),
    );
}
