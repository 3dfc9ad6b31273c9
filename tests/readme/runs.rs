//! The commands of every page: all ```sh blocks of a page run in one shell, in order.
//!
//! [`pages!`] is the table: pages, what is there before, what must come out. A page with commands is in that table or in
//! [`ELSEWHERE`].

mod checks;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{LATER, SNAPSHOT, all_pages, blocks, commands, page};
use crate::support::*;

/// Pages whose commands the tests of another file run.
const ELSEWHERE: &[(&str, &str)] = &[
    ("docs/demo.md", "tests/first_run.rs"),
    ("docs/doctor.md", "tests/doctor.rs"),
    ("docs/drill.md", "tests/drill.rs"),
    ("docs/filesystems.md", "tests/filesystems.rs"),
    ("docs/inventory.md", "tests/inventory.rs"),
    ("docs/restore.md", "tests/restore.rs"),
];

/// What a fence of a page may hold. Only `sh` is run.
const FENCES: &[&str] = &[
    // Run by scripts/networks.
    "bash",
    "console",
    "dockerfile",
    "ini",
    "json",
    "sh",
    "text",
    "toml",
    "yaml",
];

/// What the commands of a page have printed and left.
struct PageRun {
    text: String,
    folder: TempDir,
    said: String,
    errors: String,
}

impl PageRun {
    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn assert_says(&self, words: &[&str]) {
        for words in words {
            assert!(
                self.said.contains(words),
                "{words}: {}\n{}",
                self.said,
                self.errors
            );
        }
    }
}

/// Runs the commands of pages one after another, each page in a folder of its own, over the same snapshots.
fn run_pages(
    pages: &[&str],
    prepare: fn(&Emulator) -> [String; 2],
    check: fn(&Emulator, &[PageRun]),
) {
    let emulator = Emulator::start();
    let [snapshot, later] = prepare(&emulator);
    let run_page = |name: &&str| {
        let text = page(name);
        assert!(!blocks(&text).is_empty(), "{name} has no commands");
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("replicas")).unwrap();
        let output = commands(&emulator, &text, [&snapshot, &later], folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            for mounted in ["files", "ebs"] {
                let _ = Command::new("umount")
                    .args(["--quiet", "--lazy"])
                    .arg(folder.path().join(mounted))
                    .status();
            }
            panic!("{name}: {}\n{said}\n{errors}", output.status);
        }
        PageRun {
            text,
            folder,
            said,
            errors,
        }
    };
    let runs: Vec<PageRun> = pages.iter().map(run_page).collect();
    check(&emulator, &runs);
}

/// A test for each row, and the list of the pages of all rows.
macro_rules! pages {
    ($($name:ident: [$($page:literal),*], $prepare:path, $check:path;)*) => {
        /// The pages that the tests of this file run.
        const PAGES: &[&str] = &[$($($page),*),*];
        $(#[test] fn $name() { run_pages(&[$($page),*], $prepare, $check); })*
    };
}

pages! {
    pages_of_a_disk_with_filesystems_work:
        ["README.md", "docs/mount.md", "docs/changes.md", "docs/forensics.md"], two_of_a_disk, checks::of_a_disk;
    the_files_page_works: ["docs/files.md"], two_of_a_disk, checks::files;
    the_sync_page_works: ["docs/sync.md"], two_of_a_volume, checks::sync;
    the_convert_page_works: ["docs/convert.md"], two_of_a_volume, checks::convert;
    the_repository_page_works: ["docs/repository.md"], two_of_a_volume, checks::repository;
    the_retention_page_works: ["docs/retention.md"], two_of_a_volume, checks::retention;
    the_emulator_page_works: ["docs/emulator.md"], none, checks::emulator;
    the_permissions_page_works: ["docs/permissions.md"], none, checks::permissions;
    the_snapshot_page_works: ["docs/snapshot.md"], three_volumes, checks::snapshot;
    the_replicate_page_works: ["docs/replicate.md"], two_volumes, checks::replicate;
    the_status_page_works: ["docs/status.md"], one_volume, checks::status;
    the_gateway_page_works: ["docs/gateway.md"], one_volume, checks::gateway;
}

/// Four partitions, each with a file that says hello, each about as small as its filesystem allows.
fn make_disk(path: &str) {
    sh(&format!(
        "truncate -s 1G {path}
         printf 'label: gpt\\nsize=100M\\nsize=320M\\nsize=160M\\nsize=60M\\n' | sfdisk --quiet {path}
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

/// Two snapshots of a disk with filesystems; the second one has other bytes behind them.
fn two_of_a_disk(emulator: &Emulator) -> [String; 2] {
    let volume = emulator.volume("vol-0a");
    make_disk(volume.to_str().unwrap());
    two_of(emulator, &volume, 2040..2043)
}

/// Two snapshots of a GiB with a few blocks.
fn two_of_a_volume(emulator: &Emulator) -> [String; 2] {
    let volume = emulator.make_volume("vol-0a", 2048, [0, 3, 4, 2047]);
    two_of(emulator, &volume, 3..6)
}

fn two_of(emulator: &Emulator, volume: &Path, changed: std::ops::Range<u64>) -> [String; 2] {
    let snapshot = emulator.snapshot("vol-0a");
    let disk = writable(volume);
    for index in changed {
        disk.write_all_at(&content("later", index), index * BLOCK)
            .unwrap();
    }
    [snapshot, emulator.snapshot("vol-0a")]
}

/// No snapshot that a page could use.
fn none(_: &Emulator) -> [String; 2] {
    [SNAPSHOT.to_owned(), LATER.to_owned()]
}

fn one_volume(emulator: &Emulator) -> [String; 2] {
    emulator.make_volume("vol-0a", 2048, 0..3);
    none(emulator)
}

fn two_volumes(emulator: &Emulator) -> [String; 2] {
    emulator.make_volume("vol-0b", 2048, 0..3);
    one_volume(emulator)
}

fn three_volumes(emulator: &Emulator) -> [String; 2] {
    for id in ["vol-0a", "vol-0b", "vol-0c"] {
        emulator.make_volume(id, 8, 0..3);
    }
    emulator.post("volumes/vol-0b?tag=Backup%3Dyes");
    none(emulator)
}

#[test]
fn the_commands_of_every_page_are_run() {
    for name in all_pages() {
        let text = page(&name);
        let elsewhere = ELSEWHERE.iter().find(|(page, _)| *page == name);
        if let Some((_, test)) = elsewhere {
            assert!(page(test).contains(&format!("page(\"{name}\")")), "{name}");
        }
        let is_run = elsewhere.is_some() || PAGES.contains(&name.as_str());
        let runs = blocks(&text).len();
        assert_eq!(runs > 0, is_run, "{name} has {runs} blocks of commands");
        let mut is_open = false;
        for fence in text.lines().filter_map(|line| line.strip_prefix("```")) {
            if fence.starts_with('`') {
                continue;
            }
            assert!(
                is_open || FENCES.contains(&fence),
                "{name}: a block is `{fence}`, not one of {FENCES:?}"
            );
            is_open = !is_open;
        }
        assert!(!is_open, "{name}: a block does not end");
    }
}
