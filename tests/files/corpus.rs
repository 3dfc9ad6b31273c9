//! The broken disks of tests/fixtures/broken, each with one fault, through the real processes: every run ends soon, in little
//! memory and with a documented exit code; the fault is named; and all that it does not damage is read byte for byte.

use std::time::Instant;

use super::*;

/// What a fault leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The line of the log that names what is lost, by `cp`, which fails. All but the victims is read.
    Victim(&'static str),
    /// The line of the log; nothing is lost.
    Warned(&'static str),
    /// The error of every command.
    Refused(&'static str),
    /// Everything is read, and there is nothing to say: the format allows it, or the damage is of an LVM volume that nothing reads.
    Harmless,
}

use Outcome::{Harmless, Refused, Victim, Warned};

const CORPUS: &[(&str, Outcome)] = &[
    (
        "ext2-blocks-in-themselves",
        Victim("the file has more bytes on the disk than its partition has"),
    ),
    (
        "ext4-attributes-without-signature",
        Victim("the extended attributes of inode"),
    ),
    ("ext4-extent-depth-65535", Victim("the extents of inode")),
    (
        "ext4-extent-outside",
        Victim("has blocks outside the partition"),
    ),
    ("ext4-extent-tree-in-itself", Victim("the extents of inode")),
    ("ext4-extents-overlap", Victim("the extents of inode")),
    (
        "ext4-folder-in-itself",
        Victim("the folder is in two places, or within itself"),
    ),
    (
        "ext4-folder-with-hole",
        Victim("names are missing: the folder of inode"),
    ),
    (
        "ext4-groups-of-no-inodes",
        Refused("its numbers are impossible"),
    ),
    (
        "ext4-inline-too-long",
        Victim("has more bytes than fit into it"),
    ),
    ("ext4-inode-outside", Victim("there is no inode 4294967295")),
    (
        "ext4-inode-table-outside",
        Victim("is outside the partition"),
    ),
    ("ext4-inode-without-type", Victim("has no known type")),
    (
        "ext4-journal-endless-revoke",
        Refused("its journal is damaged: a block of it revokes more than fits into it"),
    ),
    (
        "ext4-journal-in-itself",
        Refused("the extents of inode 8 are damaged"),
    ),
    (
        "ext4-journal-names-itself",
        Warned("its journal is damaged: 1 of its copies"),
    ),
    (
        "ext4-journal-outside",
        Warned("its journal is damaged: 1 of its copies"),
    ),
    (
        "ext4-journal-without-signature",
        Refused("its journal is damaged: run a filesystem check"),
    ),
    (
        "ext4-larger-than-disk",
        Warned("it is larger than its partition"),
    ),
    ("ext4-link-of-2-32", Victim("is too long")),
    ("ext4-link-with-nul", Victim("the link of inode")),
    (
        "ext4-name-of-no-length",
        Victim("names are missing: the folder of inode"),
    ),
    (
        "ext4-name-with-slash",
        Victim("its name is not allowed on Linux"),
    ),
    ("ext4-root-is-a-file", Refused("its root is no folder")),
    ("ext4-size-2-63", Victim("the size of inode")),
    (
        "ext4-value-in-itself",
        Victim("the extended attributes of inode"),
    ),
    (
        "ext4-value-outside",
        Victim("the extended attributes of inode"),
    ),
    (
        "fat-chain-in-circle",
        Victim("a chain of clusters is a circle"),
    ),
    ("fat-chain-in-circle-behind-end", Harmless),
    ("fat-chain-outside", Victim("a chain of clusters is broken")),
    (
        "fat-clusters-of-no-sectors",
        Refused("the boot sector is damaged"),
    ),
    (
        "fat-file-without-cluster",
        Victim("a file is longer than its chain of clusters"),
    ),
    (
        "fat-folder-in-circle",
        Victim("names are missing: a chain of clusters is a circle"),
    ),
    (
        "fat-folder-in-itself",
        Victim("the folder is in two places, or within itself"),
    ),
    (
        "fat-larger-than-disk",
        Warned("it is larger than its partition"),
    ),
    ("fat-long-name-without-end", Harmless),
    (
        "fat-without-reserved-sectors",
        Refused("the boot sector is damaged"),
    ),
    ("fat-without-root", Refused("the boot sector is damaged")),
    (
        "fat32-of-two-lengths",
        Refused("the boot sector is damaged"),
    ),
    (
        "fat32-root-outside",
        Refused("a folder begins at an impossible cluster"),
    ),
    (
        "gpt-beyond-disk",
        Warned("partition 2 is not within the disk"),
    ),
    (
        "gpt-first-sum-wrong",
        Warned("the primary GPT is damaged, its backup is good"),
    ),
    (
        "gpt-of-2-32-entries",
        Refused("both copies of the GPT are damaged"),
    ),
    ("gpt-overlapping", Warned("partitions 1 and 2 overlap")),
    (
        "gpt-two-wrong-sums",
        Refused("both copies of the GPT are damaged"),
    ),
    ("lvm-extents-of-2-63", Harmless),
    ("lvm-segment-outside", Harmless),
    ("lvm-segments-overlap", Harmless),
    (
        "lvm-text-without-end",
        Warned("an area of LVM metadata cannot be parsed"),
    ),
    ("lvm-volume-in-itself", Harmless),
    (
        "mbr-beyond-disk",
        Warned("partition 2 is not within the disk"),
    ),
    (
        "mbr-logical-in-circle",
        Warned("the chain of logical partitions does not end"),
    ),
    (
        "ntfs-attribute-cut",
        Victim("the record of a file is damaged"),
    ),
    (
        "ntfs-attribute-list-of-another-file",
        Victim("a record is a part of another file"),
    ),
    ("ntfs-attribute-list-of-no-length", Victim("AttributeList")),
    (
        "ntfs-attributes-without-end",
        Victim("the record of a file is damaged"),
    ),
    (
        "ntfs-compressed-garbage",
        Victim("a compressed file is damaged"),
    ),
    (
        "ntfs-compression-unit-2-200",
        Victim("the record of a file is damaged"),
    ),
    (
        "ntfs-folder-in-itself",
        Victim("the folder is in two places, or within itself"),
    ),
    ("ntfs-index-block-in-itself", Harmless),
    (
        "ntfs-index-block-outside",
        Victim("names are missing: the index of a folder is damaged"),
    ),
    (
        "ntfs-index-block-torn",
        Victim("names are missing: the index of a folder is damaged"),
    ),
    ("ntfs-junction-to-itself", Harmless),
    (
        "ntfs-larger-than-disk",
        Warned("it is larger than its partition"),
    ),
    ("ntfs-mft-outside", Refused("is outside the partition")),
    ("ntfs-mft-torn", Refused("the record of the MFT is damaged")),
    ("ntfs-mirror-contradicts", Harmless),
    (
        "ntfs-record-not-in-use",
        Victim("the record of a file is not in use"),
    ),
    ("ntfs-record-torn", Victim("Sector corruption")),
    ("ntfs-runs-negative", Victim("cannot be added to the LCN")),
    (
        "ntfs-runs-of-2-40",
        Victim("the data runs of a file are damaged"),
    ),
    (
        "ntfs-runs-outside",
        Victim("the data runs of a file are damaged"),
    ),
    (
        "ntfs-runs-too-short",
        Victim("a file is longer than its clusters"),
    ),
    (
        "ntfs-value-beyond-record",
        Victim("the record of a file is damaged"),
    ),
];

/// What partitions.json of a mount says of a table, by a part of its text.
const TABLES: &[(&str, &str)] = &[
    ("gpt-overlapping", "partitions 1 and 2 overlap"),
    ("gpt-of-2-32-entries", "both copies of the GPT are damaged"),
    ("gpt-two-wrong-sums", "both copies of the GPT are damaged"),
    (
        "gpt-first-sum-wrong",
        "the primary GPT is damaged, its backup is good",
    ),
    ("gpt-beyond-disk", "partition 2 is not within the disk"),
    (
        "mbr-logical-in-circle",
        "the chain of logical partitions does not end",
    ),
    ("mbr-beyond-disk", "partition 2 is not within the disk"),
    ("lvm-segment-outside", "its segments are damaged"),
    ("lvm-extents-of-2-63", ""),
    ("lvm-segments-overlap", "its segments are damaged"),
    (
        "lvm-text-without-end",
        "an area of LVM metadata cannot be parsed",
    ),
    (
        "lvm-volume-in-itself",
        "it is of the type mirror, which needs device-mapper",
    ),
];

/// Runs commands, four at a time, since each waits as much as it works: no test of Rust learns the memory of a process that has
/// ended.
const RUNNER: &str = r#"
import concurrent.futures, json, os, resource, subprocess, sys, threading, time

resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 20, 16 << 20))
os.chdir(sys.argv[1])

def run(job):
    since = time.monotonic()
    with open(job["name"] + ".out", "wb") as out, open(job["name"] + ".err", "wb") as err:
        child = subprocess.Popen(job["words"], stdin=subprocess.DEVNULL, stdout=out, stderr=err)
    timer = threading.Timer(30, child.kill)
    timer.start()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = 0
    timer.cancel()
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "seconds": time.monotonic() - since, "memory": usage.ru_maxrss << 10}

with open("jobs") as file:
    jobs = json.load(file)
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    json.dump(list(pool.map(run, jobs)), sys.stdout)
"#;

/// Seconds of a command: each of them works for less than one, and an answer that costs the parser 5 s would end it.
const LONGEST: f64 = 10.0;
/// Of each of the two processes; a program of 40 MiB, and no image has a file of more than 48,000 bytes.
const MOST_MEMORY: u64 = 160 << 20;
/// The exit codes that a damaged disk can have, of docs/troubleshooting.md.
const CODES: [i64; 5] = [0, 1, 2, 3, 8];

/// The bytes of each larger file, as tests/fixtures/broken/make.py has them.
fn pattern(count: u32) -> Vec<u8> {
    let bytes = (0..count).map(|at| u8::try_from((at * 7 + at / 251) % 251).unwrap());
    bytes.collect()
}

/// The files of every image that no fault damages.
fn unharmed() -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::from([
        ("hello.txt".to_owned(), b"hello\n".to_vec()),
        ("folder/data.bin".to_owned(), pattern(5000)),
        ("folder/inner/deep.txt".to_owned(), b"deep\n".to_vec()),
    ]);
    for number in 0..40 {
        let bytes = format!("{number:02}\n").into_bytes();
        files.insert(format!("many/file-{number:02}"), bytes);
    }
    files
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/broken")
}

/// The images, by name.
fn corpus() -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder()).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let images = paths.filter_map(|path| {
        let name = path.file_name()?.to_str()?.strip_suffix(".img.zst")?;
        let bytes = zstd::decode_all(&*fs::read(&path).unwrap()).unwrap();
        Some((name.to_owned(), bytes))
    });
    images.collect()
}

/// How a command ended.
struct Ended {
    code: i64,
    errors: String,
    out: Vec<u8>,
}

/// Runs commands over each image: `cp` and another one, or with `EBSFS_CORPUS` all of them.
fn run_all(images: &Images, names: &[&str]) -> BTreeMap<(String, &'static str), Ended> {
    let all = std::env::var_os("EBSFS_CORPUS").is_some();
    let mut jobs = Vec::new();
    for (place, name) in names.iter().enumerate() {
        let (image, copy) = (format!("{name}.img"), format!("{name}.copy"));
        let find = vec![&*image];
        for (turn, verb, words) in [
            (None, "cp", vec![&*image, "/", &*copy]),
            (Some(0), "cat", vec![&*image, "/victim.bin"]),
            (Some(1), "timeline", find.clone()),
            (Some(2), "ls", vec![&*image, "/victim-folder", "--long"]),
            (Some(3), "tree", find.clone()),
            (Some(4), "find", find),
        ] {
            if all || turn.is_none_or(|turn| place % 5 == turn) {
                let mut command = vec![EBSFS, "files", verb];
                command.extend(words);
                jobs.push((name.to_string(), verb, command.join("\n")));
            }
        }
    }
    let described: Vec<Value> = jobs
        .iter()
        .map(|(name, verb, words)| {
            let words: Vec<&str> = words.split('\n').collect();
            serde_json::json!({ "name": format!("{name}.{verb}"), "words": words })
        })
        .collect();
    let text = serde_json::to_vec(&described).unwrap();
    fs::write(images.at("jobs"), text).unwrap();
    let output = Command::new("python3")
        .args(["-c", RUNNER])
        .arg(images.folder.path())
        .env("EBSFS_STATE_DIR", images.at("state"))
        .env("AWS_SECRET_ACCESS_KEY", "must-not-be-seen")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let ended = serde_json::from_slice(&output.stdout);
    let ended: Vec<Value> = ended.unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(ended.len(), jobs.len());
    let results = jobs.into_iter().zip(ended).map(|((name, verb, _), ended)| {
        let read = |kind: &str| fs::read(images.at(&format!("{name}.{verb}.{kind}"))).unwrap();
        let (out, errors) = (read("out"), String::from_utf8(read("err")).unwrap());
        let code = ended["code"].as_i64().unwrap();
        let what = format!("{name}: {verb}: {ended}: {errors}");
        assert!(CODES.contains(&code), "{what}");
        assert!(ended["seconds"].as_f64().unwrap() < LONGEST, "{what}");
        assert!(ended["memory"].as_u64().unwrap() < MOST_MEMORY, "{what}");
        for word in ["panic", "its parser", "RUST_BACKTRACE", "must-not-be-seen"] {
            assert!(!errors.contains(word), "{what}");
        }
        ((name, verb), Ended { code, errors, out })
    });
    results.collect()
}

#[test]
fn each_fault_of_a_broken_disk_is_named_and_what_it_does_not_damage_is_read() {
    let since = Instant::now();
    let images = Images::new();
    let corpus = corpus();
    let known: Vec<_> = CORPUS.iter().map(|(name, _)| *name).collect();
    let mut sorted = known.clone();
    sorted.sort_unstable();
    assert_eq!(corpus.keys().collect::<Vec<_>>(), sorted);
    for (name, bytes) in &corpus {
        fs::write(images.at(&format!("{name}.img")), bytes).unwrap();
        fs::create_dir(images.at(&format!("{name}.copy"))).unwrap();
    }
    let results = run_all(&images, &known);
    let unharmed = unharmed();
    for (name, outcome) in CORPUS {
        let ended: Vec<_> = results
            .iter()
            .filter(|((image, _), _)| image == name)
            .collect();
        let errors: String = ended.iter().map(|(_, ended)| &*ended.errors).collect();
        let codes = ended.iter().map(|((_, verb), ended)| (*verb, ended.code));
        let codes: Vec<_> = codes.collect();
        let is_good = codes.iter().all(|(_, code)| *code == 0);
        let what = format!("{name}: {outcome:?}: {codes:?}: {errors}");
        match outcome {
            Victim(text) => {
                assert!(codes.contains(&("cp", 1)), "{what}");
                // A line of the log names the path, and the path is a victim's.
                let lines: Vec<_> = errors.lines().filter(|line| line.contains(text)).collect();
                assert!(lines.iter().any(|line| line.contains("/victim")), "{what}");
                let is_other = |line: &str| {
                    let path = line
                        .split_once("WARN /")
                        .or(line.split_once("not copied: /"));
                    path.is_some_and(|(_, path)| !path.starts_with("victim"))
                };
                assert!(!errors.lines().any(is_other), "{what}");
            }
            Warned(text) => assert!(is_good && errors.contains(text), "{what}"),
            Refused(text) => {
                for (_, ended) in ended {
                    assert!(ended.code > 0 && ended.errors.contains(text), "{what}");
                    assert!(
                        !ended.out.windows(5).any(|bytes| bytes == b"hello"),
                        "{what}"
                    );
                }
                continue;
            }
            // A system without landlock has a warning of its own.
            Harmless => assert!(
                is_good && !errors.contains(&format!("WARN {name}")),
                "{what}"
            ),
        }
        let copy = images.at(&format!("{name}.copy"));
        for (path, bytes) in &unharmed {
            let copied = fs::read(copy.join(path)).unwrap_or_default();
            assert!(&copied == bytes, "{path}: {what}");
        }
        if !matches!(outcome, Victim(_)) {
            assert_eq!(
                fs::read(copy.join("victim.bin")).unwrap(),
                pattern(9000),
                "{what}"
            );
        }
        // Nothing half is left, and no victim has bytes that are not its own.
        for (path, at) in tree(&copy) {
            assert!(!path.windows(7).any(|bytes| bytes == b".ebsfs-"), "{what}");
            if path == b"/victim.bin" {
                assert!(fs::read(at).unwrap() == pattern(9000), "{what}");
            }
        }
    }
    for (name, bytes) in &corpus {
        let after = fs::read(images.at(&format!("{name}.img"))).unwrap();
        assert!(&after == bytes, "{name} was written");
    }
    println!("{} runs in {:?}", results.len(), since.elapsed());
}

#[test]
fn each_broken_table_is_described_by_what_is_wrong_with_it() {
    let emulator = Emulator::start();
    let corpus = corpus();
    let tables: Vec<_> = TABLES.iter().map(|(name, _)| *name).collect();
    let is_table = |name: &&String| {
        ["gpt-", "mbr-", "lvm-"]
            .iter()
            .any(|kind| name.starts_with(kind))
    };
    let mut sorted = tables.clone();
    sorted.sort_unstable();
    assert_eq!(corpus.keys().filter(is_table).collect::<Vec<_>>(), sorted);
    let mut snapshots = Vec::new();
    for (place, name) in tables.iter().enumerate() {
        let volume = format!("vol-{place:04x}");
        fs::write(emulator.volume(&volume), &corpus[*name]).unwrap();
        snapshots.push(emulator.snapshot(&volume));
    }
    let mount = emulator.mount(&[]);
    for ((name, expected), snapshot) in TABLES.iter().zip(&snapshots) {
        let path = mount
            .disk(snapshot)
            .with_file_name("partitions/partitions.json");
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(expected), "{name}: {text}");
        let described: Value = serde_json::from_str(&text).unwrap();
        let has_fat = described["partitions"][0]["content"] == "vfat";
        assert_eq!(has_fat, !expected.contains("both copies"), "{name}: {text}");
    }
}

#[test]
fn the_readme_of_the_broken_disks_lists_each_of_them() {
    let text = fs::read_to_string(folder().join("README.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut listed: Vec<_> = rows.filter_map(|row| row.split('`').next()).collect();
    listed.sort_unstable();
    assert_eq!(listed, corpus().keys().collect::<Vec<_>>());
    let files = fs::read_dir(folder()).unwrap();
    let sizes = files.map(|entry| entry.unwrap().metadata().unwrap().len());
    assert!(sizes.sum::<u64>() < 300 << 10);
}
