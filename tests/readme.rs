//! The README's commands, run as they stand there: all ```sh blocks in one shell, in order.

use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::support::*;

/// What the README's examples are called here: a demo snapshot and folders of this test.
const SNAPSHOT: &str = "snap-0123456789abcdef0";
const LATER: &str = "snap-0fedcba9876543210";
const VOLUME: &str = "vol-0123456789abcdef0";

fn blocks(readme: &str) -> Vec<&str> {
    readme
        .split("\n```sh\n")
        .skip(1)
        .map(|rest| rest.split("\n```").next().unwrap())
        .collect()
}

/// Four partitions, each with a file that says hello.
fn make_disk(path: &str) {
    sh(&format!(
        "truncate -s 2G {path}
         printf 'label: gpt\\nsize=400M\\nsize=400M\\nsize=400M\\nsize=100M\\n' | sfdisk --quiet {path}
         scratch=$(mktemp -d)
         number=0
         for make in 'mkfs.ext4 -q' 'mkfs.xfs -q' 'mkfs.btrfs -q' 'mkntfs -q -Q -F'; do
             number=$((number + 1))
             read -r start size < <(partx -rgbo START,SIZE --nr $number {path})
             device=$(losetup --find --show --offset $((start * 512)) --sizelimit $size {path})
             $make $device > /dev/null
             if [ $number = 4 ]; then ntfs-3g $device $scratch; else mount $device $scratch; fi
             echo \"hello from partition $number\" > $scratch/hello.txt
             umount $scratch
             sync
             losetup --detach $device
         done
         rmdir $scratch"
    ));
}

#[test]
fn every_command_of_the_readme_works_as_it_stands_there() {
    let emulator = Emulator::start();
    make_disk(emulator.volume("vol-0a").to_str().unwrap());
    let snapshot = emulator.snapshot("vol-0a");
    let disk = writable(&emulator.volume("vol-0a"));
    for index in 4090..4093 {
        disk.write_all_at(&content("vol-0a", index), index * BLOCK)
            .unwrap();
    }
    let later = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let blocks = blocks(&readme);
    assert!(blocks.len() >= 8, "{}", blocks.len());
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let script = blocks
        .join("\n")
        .replace(SNAPSHOT, &snapshot)
        .replace(LATER, &later)
        .replace(VOLUME, "vol-0a")
        .replace("/mnt/ebs", &at("ebs"))
        .replace("/mnt/files", &at("files"))
        .replace("/srv/replicas", &at("replicas"));
    let path = format!(
        "{}:{}:/usr/sbin:/sbin",
        std::path::Path::new(EBSFS).parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let output = emulator
        .command("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .env("PATH", path)
        .env("EBSFS_STATE_DIR", at("state"))
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let _ = Command::new("fusermount3")
            .args(["-uzq", &at("ebs")])
            .status();
        panic!("{said}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    for number in 1..=4 {
        assert!(
            said.contains(&format!("hello from partition {number}")),
            "{said}"
        );
    }
    let sums: Vec<&str> = said
        .lines()
        .filter(|line| line.ends_with(".raw") && line.len() > 66)
        .filter(|line| !line.contains("volumes") && !line.contains("replica"))
        .filter_map(|line| line.split("  ").next())
        .filter(|sum| sum.len() == 64)
        .collect();
    assert_eq!(sums.len(), 3, "{said}");
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{said}");
    assert!(said.contains("Images are identical."), "{said}");
    assert!(said.contains(&format!("holds {later}\n")), "{said}");
    assert!(said.contains("2 snapshots, 2 segments"), "{said}");
}

#[test]
fn the_readme_and_the_help_tell_the_same_exit_codes() {
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let help = run(Command::new(EBSFS).arg("--help"));
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for (code, words) in [
        (1, "this machine"),
        (2, "wrong arguments"),
        (3, "not found"),
        (4, "not allowed"),
        (5, "not ready yet"),
        (6, "throttled"),
        (7, "no answer from the service"),
        (8, "corrupt"),
        (9, "no room on the target"),
        (130, "stopped"),
    ] {
        assert!(
            readme.contains(&format!("| {code} | {words}")),
            "README: {code} {words}"
        );
        assert!(
            help.contains(&format!("{code} {words}")),
            "help: {code} {words}: {help}"
        );
    }
}
