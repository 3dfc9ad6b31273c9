//! `ebsfs evidence`: the digests are those of other programs, each change is found and named, and what was interrupted is no evidence.

mod changed;
mod custody;
mod damaged;
mod interrupted;
mod signed;

use std::collections::BTreeSet;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::*;

/// Blocks that the source of a test holds.
const HELD: [u64; 5] = [0, 3, 4, 17, 39];
/// Its blocks, of an image. EBS has whole GiB.
const BLOCKS: u64 = 40;

/// A source, and a folder for what is made of it.
struct Case {
    scratch: TempDir,
    source: String,
    emulator: Option<Emulator>,
}

impl Case {
    /// An image of 20 MiB.
    fn of_image() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let image = scratch.path().join("image.raw");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(BLOCKS * BLOCK).unwrap();
        for index in HELD {
            let bytes = content("image", index);
            file.write_all_at(&bytes, index * BLOCK).unwrap();
        }
        Self {
            source: text(&image).to_owned(),
            scratch,
            emulator: None,
        }
    }

    /// A snapshot of 1 GiB.
    fn of_snapshot() -> Self {
        let emulator = Emulator::start();
        emulator.make_volume("vol-0a", 2048, HELD);
        Self {
            source: emulator.snapshot("vol-0a"),
            scratch: tempfile::tempdir().unwrap(),
            emulator: Some(emulator),
        }
    }

    fn emulator(&self) -> &Emulator {
        self.emulator.as_ref().unwrap()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// `ebsfs evidence SOURCE -o FOLDER ARGS`.
    fn command(&self, folder: &Path, args: &[&str]) -> Command {
        let words = ["evidence", &self.source, "-o", text(folder)];
        let mut command = match &self.emulator {
            Some(emulator) => emulator.ebsfs(&words),
            None => {
                let mut command = Command::new(EBSFS);
                command.args(words);
                command
            }
        };
        command.args(args);
        command
    }

    /// Evidence in a new folder.
    fn collect(&self, name: &str, args: &[&str]) -> PathBuf {
        let folder = self.at(name);
        run(&mut self.command(&folder, args));
        folder
    }

    /// A copy of a folder, whose files can be changed.
    fn copy(&self, folder: &Path, name: &str) -> PathBuf {
        let copy = self.at(name);
        sh(&format!(
            "rm -rf {0}; cp -r {1} {0}; chmod -R u+w {0}",
            copy.display(),
            folder.display()
        ));
        copy
    }
}

/// Exit code, stdout and stderr of `ebsfs evidence verify ARGS`, which asks nothing of AWS.
fn verify(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(EBSFS);
    let output = command.args(["evidence", "verify"]).args(args).output();
    let output = output.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().unwrap_or(-1);
    (code, text(&output.stdout), text(&output.stderr))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The first word of what a program prints of a file.
fn sum(program: &str, file: &Path) -> String {
    let said = run(Command::new(program).arg(file));
    said.split_whitespace().next().unwrap().to_owned()
}

fn statement(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("evidence.json")).unwrap()).unwrap()
}

#[test]
fn one_pass_gives_the_digests_of_other_programs_and_a_line_for_each_block_and_request() {
    let case = Case::of_snapshot();
    case.emulator().post("clock?ahead_s=60");
    case.emulator().reset();
    let folder = case.at("case");
    let printed = run(&mut case.command(&folder, &["--image", "--json"]));
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(case.emulator().gets(), HELD.len() as u64, "one Get a block");
    let stated = statement(&folder);
    assert_eq!(printed["statement"], stated);
    assert_eq!(
        printed["statement_sha256"],
        sum("sha256sum", &folder.join("evidence.json"))
    );

    let mount = case.emulator().mount(&[&case.source]);
    let disk = mount.disk(&case.source);
    // One read of the mount for three programs.
    let [md5, sha1] = ["md5", "sha1"].map(|name| case.at(name));
    let sha256 = sh(&format!(
        "cat {} | tee >(md5sum > {}) >(sha1sum > {}) | sha256sum",
        disk.display(),
        md5.display(),
        sha1.display()
    ));
    assert!(sha256.starts_with(stated["image"]["sha256"].as_str().unwrap()));
    for (file, name) in [(md5, "md5"), (sha1, "sha1")] {
        // The shell does not wait for these two.
        let printed = || std::fs::read_to_string(&file).unwrap_or_default();
        wait_for(name, || printed().ends_with('\n'));
        assert!(printed().starts_with(stated["image"][name].as_str().unwrap()));
    }
    assert_same(&folder.join("disk.raw"), &case.emulator().volume("vol-0a"));
    let used = std::os::unix::fs::MetadataExt::blocks(&folder.join("disk.raw").metadata().unwrap());
    assert!(
        used * 512 <= (HELD.len() as u64 + 1) * BLOCK,
        "its holes are holes"
    );

    // Each block by itself, and holes between.
    let list = std::fs::read_to_string(folder.join("blocks.csv")).unwrap();
    let mut at = 0;
    for line in list.lines().skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        let (first, count): (u64, u64) = (cells[0].parse().unwrap(), cells[1].parse().unwrap());
        assert_eq!(first, at, "{line}");
        at += count;
        if HELD.contains(&first) {
            let hex = sh(&format!(
                "dd if={} bs=512K skip={first} count=1 status=none | sha256sum",
                disk.display()
            ));
            assert_eq!(
                (cells[2], cells[3]),
                ("data", hex.split(' ').next().unwrap())
            );
            let same = sh(&format!("echo {} | base64 -d | xxd -p -c 32", cells[4]));
            assert_eq!(cells[3], same.trim(), "EBS's checksum is the same SHA-256");
        } else {
            assert_eq!(&cells[2..], ["hole", "", ""], "{line}");
        }
    }
    assert_eq!(at, 2048);

    // The requests: all of them, each with an id of its own, and no secret.
    let requests = std::fs::read_to_string(folder.join("requests.jsonl")).unwrap();
    assert!(!requests.contains("Token"), "{requests}");
    let lines: Vec<Value> = requests
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let ids: BTreeSet<&str> = lines
        .iter()
        .map(|line| line["request_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), lines.len());
    for index in HELD {
        let path = format!("/snapshots/{}/blocks/{index}", case.source);
        let of_block = lines.iter().filter(|line| line["path"] == path.as_str());
        assert_eq!(of_block.count(), 1, "block {index}");
    }
    assert!(
        lines
            .iter()
            .any(|line| line["action"] == "GetCallerIdentity")
    );
    assert_eq!(stated["requests_listed"], lines.len() as u64);
    assert_eq!(stated["requests"]["ebs:GetSnapshotBlock"]["sent"], 5);

    // Who, where, when.
    assert_eq!(stated["source"]["snapshot"]["volume_id"], "vol-0a");
    assert_eq!(stated["source"]["region"], "us-east-1");
    assert_eq!(
        stated["caller"]["arn"],
        "arn:aws:iam::111122223333:user/emulator"
    );
    assert_eq!(
        stated["program"]["sha256"],
        sum("sha256sum", Path::new(EBSFS))
    );
    let clock = &stated["clocks"][0];
    let bound = |name: &str| clock[name].as_i64().unwrap();
    let bounds = bound("ahead_ms_least")..=bound("ahead_ms_most");
    assert!(bounds.contains(&60_000), "{clock}");
    assert!(*bounds.end() - *bounds.start() < 5000, "{clock}");

    // For its owner alone.
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&folder), 0o700);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(mode(&entry.path()), 0o400, "{entry:?}");
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(
        names,
        ["blocks.csv", "disk.raw", "evidence.json", "requests.jsonl"]
    );

    // The mount is what the evidence says.
    let (code, said, errors) = verify(&[text(&folder), text(&disk)]);
    assert_eq!(code, 0, "{said}{errors}");
    assert!(
        said.contains("signature  none") && said.contains("result     equal"),
        "{said}"
    );
    let changed = case.copy(&folder, "changed");
    let mut requests = requests.into_bytes();
    requests[10] ^= 1;
    std::fs::write(changed.join("requests.jsonl"), requests).unwrap();
    let (code, _, errors) = verify(&[text(&changed)]);
    assert_eq!(code, 8, "{errors}");
    assert!(errors.contains("requests.jsonl: its SHA-256"), "{errors}");
}

#[test]
fn a_flipped_bit_a_lost_end_and_a_longer_copy_are_found_and_named() {
    let case = Case::of_image();
    let folder = case.collect("case", &[]);
    let copy = case.at("copy.raw");
    let fresh = || {
        sh(&format!(
            "cp --sparse=always {} {}",
            case.source,
            copy.display()
        ))
    };
    fresh();
    let (code, said, _) = verify(&[text(&folder), text(&copy)]);
    assert_eq!(code, 0, "{said}");
    // In data, in a hole, in the last byte.
    for at in [17 * BLOCK + 12_345, 20 * BLOCK, BLOCKS * BLOCK - 1] {
        let mut byte = read_at(&copy, at, 1);
        byte[0] ^= 0x10;
        writable(&copy).write_all_at(&byte, at).unwrap();
        let (code, said, errors) = verify(&[text(&folder), text(&copy)]);
        let block = at / BLOCK;
        assert_eq!(code, 8, "{said}");
        let range = format!("differs    offset {}, {BLOCK} bytes\n", block * BLOCK);
        assert!(said.contains(&range), "{at}: {said}");
        assert_eq!(said.matches("differs").count(), 1, "{said}");
        let words = format!("block {block} (512.0 KiB) differ");
        assert!(errors.contains(&words), "{errors}");
        byte[0] ^= 0x10;
        writable(&copy).write_all_at(&byte, at).unwrap();
    }
    // Zeroes that are written are zeroes.
    let zeroes = vec![0; 3 << 20];
    writable(&copy).write_all_at(&zeroes, 21 * BLOCK).unwrap();
    assert_eq!(verify(&[text(&folder), text(&copy)]).0, 0);
    writable(&copy).set_len(BLOCKS * BLOCK - 10).unwrap();
    let (code, said, _) = verify(&[text(&folder), text(&copy), "--json"]);
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &report["missing_bytes"]), (8, &10.into()), "{said}");
    assert_eq!(report["differing"][0]["offset"], 39 * BLOCK);
    fresh();
    writable(&copy).set_len(BLOCKS * BLOCK + 10).unwrap();
    let (code, said, _) = verify(&[text(&folder), text(&copy)]);
    assert_eq!(code, 8, "{said}");
    let behind = format!("offset {}, 10 bytes", BLOCKS * BLOCK);
    assert!(said.contains(&behind), "{said}");
    // The bytes of a file of another format are not those of the disk.
    for (name, format) in [("d.qcow2", "qcow2"), ("d.vhd", "vpc"), ("d.vmdk", "vmdk")] {
        let other = case.at(name);
        run(Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", format, &case.source])
            .arg(&other));
        let (code, said, errors) = verify(&[text(&folder), text(&other)]);
        assert_eq!(code, 2, "{said}{errors}");
        assert!(errors.contains("compared with a raw image"), "{errors}");
    }
}

#[test]
fn an_image_and_a_snapshot_of_a_repository_are_sources_too() {
    let case = Case::of_image();
    let image = Path::new(&case.source);
    let folder = case.collect("of-image", &[]);
    let stated = statement(&folder);
    assert_eq!(stated["source"]["kind"], "disk");
    let called = (&stated["caller"], &stated["requests_listed"]);
    assert_eq!(called, (&Value::Null, &0.into()));
    assert_eq!(stated["image"]["sha256"], sum("sha256sum", image));
    let list = std::fs::read_to_string(folder.join("blocks.csv")).unwrap();
    let data = list.lines().filter(|line| line.contains(",data,"));
    assert!(data.clone().count() == HELD.len() && data.clone().all(|line| line.ends_with(',')));
    let repository = case.at("repository");
    std::fs::create_dir(&repository).unwrap();
    let url = format!("file://{}", repository.display());
    init_repository(&url);
    run(Command::new(EBSFS).args(["sync", &case.source, &url]));
    let stored = format!("{url}#latest");
    let (code, said, errors) = verify(&[text(&folder), &stored]);
    assert_eq!(code, 0, "{said}{errors}");
    let of_stored = case.at("of-stored");
    run(Command::new(EBSFS).args(["evidence", &stored, "-o", text(&of_stored)]));
    assert_eq!(statement(&of_stored)["source"]["kind"], "repository");
    assert_eq!(verify(&[text(&of_stored), &case.source]).0, 0);
    // A snapshot of EBS that is another one.
    let other = Case::of_snapshot();
    let words = ["evidence", "verify", text(&folder), &other.source];
    let (code, said) = ends(&mut other.emulator().ebsfs(&words));
    assert_eq!(code, 8, "{said}");
    assert!(
        said.contains("it has 1073741824 bytes, and the image of the evidence 20971520"),
        "{said}"
    );
    assert_eq!(other.emulator().gets(), 0);
}

#[test]
fn an_e01_by_the_commands_of_the_page_has_the_digests_of_the_evidence() {
    let case = Case::of_image();
    let stated = statement(&case.collect("case", &[]));
    let page = crate::readme::page("docs/forensics.md");
    let commands: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("ewf"))
        .collect();
    assert_eq!(commands.len(), 2);
    let disk = "/mnt/ebs/snapshots/snap-0123456789abcdef0/disk.raw";
    let commands = commands.join("\n").replace(disk, &case.source);
    let said = sh(&format!("cd {}\n{commands}", case.scratch.path().display()));
    assert!(case.at("case-7.E01").metadata().unwrap().len() < BLOCKS * BLOCK);
    for name in ["md5", "sha1"] {
        let digest = stated["image"][name].as_str().unwrap();
        assert!(said.matches(digest).count() >= 2, "{name}: {said}");
    }
}

/// `EBSFS_EVIDENCE_GIB=10 target/release/deps/main-... evidence_takes --nocapture`: seconds of evidence and of sha256sum of the mount,
/// over a volume that is mostly data.
#[test]
fn evidence_takes_little_longer_than_sha256sum_of_the_mount() {
    let Some(gib) = std::env::var("EBSFS_EVIDENCE_GIB").ok() else {
        return;
    };
    let gib: u64 = gib.parse().unwrap();
    let emulator = Emulator::start();
    let snapshot = "snap-0e";
    emulator.post(&format!(
        "synthetic?id={snapshot}&gib={gib}&density=940000&seed=1"
    ));
    let scratch = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let since = std::time::Instant::now();
        let mount = emulator.mount(&[snapshot]);
        sum("sha256sum", &mount.disk(snapshot));
        drop(mount);
        let of_mount = since.elapsed().as_secs_f64();
        let since = std::time::Instant::now();
        let folder = scratch.path().join(round.to_string());
        run(&mut emulator.ebsfs(&["evidence", snapshot, "-o", text(&folder)]));
        let of_evidence = since.elapsed().as_secs_f64();
        println!(
            "{gib} GiB: sha256sum of the mount {of_mount:.1} s, evidence {of_evidence:.1} s, {:.2} times",
            of_evidence / of_mount
        );
    }
}
