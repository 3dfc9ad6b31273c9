//! `ebsfs drill`: filesystems are checked and booted in overlays, the result is never better than what was checked, and the recovery
//! point stays as it is.

mod booted;
mod ended;

pub use booted::boot_sector;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::readme::{blocks, commands, members, page};
use crate::support::*;

/// The SHA-256 of each file below a folder, with its inode's times.
fn digests(folder: &Path) -> BTreeMap<PathBuf, (String, std::time::SystemTime)> {
    let listed = sh(&format!(
        "find {} -type f -print0 | xargs -0 sha256sum",
        folder.display()
    ));
    let lines = listed.lines().filter_map(|line| line.split_once("  "));
    lines
        .map(|(sum, path)| {
            let changed = fs::metadata(path).unwrap().modified().unwrap();
            (path.into(), (sum.to_owned(), changed))
        })
        .collect()
}

/// A folder for the images and repositories of a test, and one for overlays.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("scratch")).unwrap();
        // The user of the checkers goes through it.
        sh(&format!(
            "chmod 711 {0} {0}/scratch",
            folder.path().display()
        ));
        Self { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs lines of bash there.
    fn sh(&self, script: &str) -> String {
        sh(&format!("cd {}\n{script}", self.folder.path().display()))
    }

    fn drill(&self, source: &str, more: &[&str]) -> Command {
        let mut command = Command::new(EBSFS);
        command
            .args(["drill", source, "--scratch"])
            .arg(self.at("scratch"))
            .args(more)
            .env("EBSFS_STATE_DIR", self.at("state"))
            .env("AWS_SECRET_ACCESS_KEY", "must-not-be-seen");
        command
    }

    /// Nothing is left of a drill: no file, no mount, no process.
    fn assert_left_nothing(&self) {
        let left: Vec<_> = fs::read_dir(self.at("scratch")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        let held = Holders(self.at("scratch"));
        assert_eq!(held.mounts(), [""; 0]);
        assert_eq!(self.processes(), [0; 0]);
    }

    /// Processes of programs that name the scratch folder: not ebsfs itself.
    fn processes(&self) -> Vec<u32> {
        let scratch = format!("{}/ebsfs-drill-", self.at("scratch").display());
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter(|id: &u32| {
            let words = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&words).contains(&scratch)
        })
        .collect()
    }
}

/// Exit code, report and log of a drill with `--json`.
fn report(command: &mut Command) -> (i32, Value, String) {
    let output = command.arg("--json").output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap_or(-1), report, log)
}

/// Filesystem and result of each partition of all disks.
fn results(report: &Value) -> Vec<(String, String)> {
    let disks = report["disks"]
        .as_array()
        .unwrap_or_else(|| panic!("{report}"));
    let all = disks
        .iter()
        .flat_map(|disk| disk["partitions"].as_array().unwrap());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    all.map(|one| (text(&one["filesystem"]), text(&one["result"])))
        .collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = expected.iter();
    owned
        .map(|(name, result)| ((*name).to_owned(), (*result).to_owned()))
        .collect()
}

/// A disk as a power cut leaves it: ext4 with a journal to replay and a file that was removed while it was open, XFS with a log, btrfs,
/// a mounted FAT, swap, a partition of zeroes.
const IN_USE: &str = r#"
    truncate -s 660M image.raw
    printf 'label: gpt\nsize=64M\nsize=300M\nsize=120M\nsize=64M\nsize=8M\nsize=8M\n' | sfdisk --quiet image.raw
    part() { partx -rgbo START,SIZE --nr $1 image.raw; }
    attach() { read -r start size < <(part $1); losetup --find --show --offset $((start * 512)) --sizelimit $size image.raw; }
    fat=$(attach 4); mkfs.vfat -F 32 -s 1 $fat > /dev/null 2>&1
    # Mounted: the dirty bit of the boot sector.
    printf '\1' | dd of=$fat bs=1 seek=65 conv=notrunc status=none
    losetup --detach $fat
    swap=$(attach 5); mkswap $swap > /dev/null 2>&1; losetup --detach $swap
    tree=$(attach 3); mkfs.btrfs -q $tree; losetup --detach $tree
    number=0
    for kind in ext4 xfs; do
        number=$((number + 1))
        device[number]=$(attach $number)
        mkfs.$kind -q ${device[number]} > /dev/null
        mkdir -p mounted-$number
        mount ${device[number]} mounted-$number
        for file in $(seq 30); do echo $file > mounted-$number/file-$file; done
        sync -f mounted-$number
        exec {open[number]}> mounted-$number/orphan
        rm mounted-$number/orphan
        echo hello > mounted-$number/hello
        sync mounted-$number/hello
        xfs_io -x -c shutdown mounted-$number
    done
    cp --sparse=always image.raw used.raw
    for number in 1 2; do
        exec {open[number]}>&-
        umount mounted-$number
        losetup --detach ${device[number]}
    done
"#;

#[test]
fn journals_are_replayed_and_filesystems_checked_while_the_repository_stays_as_it_is() {
    let place = Place::new();
    let _held = Holders(place.folder.path().to_owned());
    place.sh(IN_USE);
    let repository = format!("file://{}", place.at("repository").display());
    init_repository(&repository);
    let image = place.at("used.raw");
    let mut sync = Command::new(EBSFS);
    sync.args([
        "sync",
        image.to_str().unwrap(),
        &repository,
        "--progress",
        "none",
    ]);
    run(sync.env("EBSFS_STATE_DIR", place.at("state")));
    let before = digests(&place.at("repository"));
    let source = format!("{repository}#latest");

    let (code, found, log) = report(&mut place.drill(&source, &["--replay-xfs"]));
    let mut expected = pairs(&[
        ("ext4", "replayed"),
        ("xfs", "replayed"),
        ("btrfs", "clean"),
        ("vfat", "clean"),
        ("swap", "not_checked"),
        ("empty", "not_checked"),
    ]);
    assert_eq!(results(&found), expected, "{found:#} {log}");
    assert_eq!(code, 0, "{log}");
    assert_eq!(found["isolation"]["own_mounts"], true);
    assert_eq!(found["isolation"]["no_network"], true);
    assert!(
        found["isolation"]["user"]
            .as_u64()
            .is_some_and(|user| user != 0)
    );
    place.assert_left_nothing();
    // The kernel of this machine reads no filesystem without the option for that.
    let (code, found, log) = report(&mut place.drill(&source, &[]));
    expected[1].1 = "not_checked".into();
    assert_eq!(results(&found), expected, "{found:#}");
    assert!(
        code == 11 && log.contains("partition 2 (xfs)"),
        "{code} {log}"
    );
    place.assert_left_nothing();
    // Readers renew a record of theirs, which ends with them.
    assert_eq!(digests(&place.at("repository")), before);
    let (code, found, log) = report(&mut place.drill(&source, &["--bandwidth", "100MiB"]));
    assert_eq!((code, results(&found)), (11, expected), "{log}");
    let image = image.to_str().unwrap();
    let (code, found, log) = report(&mut place.drill(image, &["--bandwidth", "100MiB"]));
    assert!(code == 2 && found.is_null(), "{code} {log}");
    assert!(
        log.contains("cannot use --bandwidth: it is for repositories alone"),
        "{log}"
    );
}

#[test]
fn damage_is_found_and_never_repaired_in_the_image_itself() {
    let place = Place::new();
    let _held = Holders(place.folder.path().to_owned());
    place.sh(
        "truncate -s 64M links.raw; mkfs.ext4 -q links.raw
         echo text > file; debugfs -w -R 'write file file' links.raw 2> /dev/null
         cp links.raw root.raw; cp links.raw head.raw
         debugfs -w -R 'sif file links_count 7' links.raw 2> /dev/null
         debugfs -w -R 'clri <2>' root.raw 2> /dev/null
         # No superblock is left that makes sense; the signature is.
         dd if=/dev/urandom of=head.raw bs=1 seek=1048 count=30 conv=notrunc status=none
         dd if=/dev/zero of=head.raw bs=1M seek=1 conv=notrunc status=none count=63
         truncate -s 300M xfs.raw; mkfs.xfs -q xfs.raw
         dd if=/dev/zero of=xfs.raw bs=512 seek=1 count=1 conv=notrunc status=none
         truncate -s 40M fat.raw; mkfs.vfat -F 32 -s 1 fat.raw > /dev/null
         # Both allocation tables: a chain of clusters that leads nowhere.
         sectors=$(od -An -tu4 -j36 -N4 fat.raw)
         for table in 16384 $((16384 + sectors * 512)); do
             printf '\\377\\377\\0\\0' | dd of=fat.raw bs=1 seek=$((table + 8)) conv=notrunc status=none
         done
         truncate -s 120M btrfs.raw; mkfs.btrfs -q -m single -d single btrfs.raw
         root=$(btrfs inspect-internal dump-super btrfs.raw | awk '$1 == \"root\" {print $2}')
         map=$(btrfs-map-logical -l $root btrfs.raw 2> /dev/null | sed -n 's/.*physical \\([0-9]*\\).*/\\1/p' | head -1)
         dd if=/dev/zero of=btrfs.raw bs=1 seek=$((map + 200)) count=64 conv=notrunc status=none",
    );
    for (name, filesystem, expected) in [
        ("links", "ext4", "repaired"),
        ("root", "ext4", "repaired"),
        ("head", "ext4", "damaged"),
        ("xfs", "xfs", "repaired"),
        ("fat", "vfat", "damaged"),
        ("btrfs", "btrfs", "damaged"),
    ] {
        let image = place.at(&format!("{name}.raw"));
        let before = fs::read(&image).unwrap();
        let (code, found, log) = report(&mut place.drill(image.to_str().unwrap(), &[]));
        let found_results = results(&found);
        assert_eq!(found_results.len(), 1);
        assert_eq!(found_results[0].1, expected, "{name}: {found:#} {log}");
        assert!(found_results[0].0.starts_with(&filesystem[..3]), "{name}");
        assert!(
            code == 8 && log.contains("found damage"),
            "{name} {code} {log}"
        );
        assert!(fs::read(&image).unwrap() == before, "{name} was written");
    }
    // An overlay that cannot take the repair proves nothing.
    let root = place.at("root.raw");
    let tiny = ["--overlay-limit", "256KiB"];
    let (code, found, log) = report(&mut place.drill(root.to_str().unwrap(), &tiny));
    assert_eq!(results(&found)[0].1, "not_checked", "{found:#} {log}");
    assert!(
        code == 11 && found.to_string().contains("reached the limit"),
        "{code} {found:#}"
    );
    place.assert_left_nothing();
}

/// Runs a drill of an image where a path of a program is covered by another file.
fn covered(place: &Place, cover: &Path, program: &str, more: &[&str]) -> (i32, Value, String) {
    let drill = place.drill(place.at("image.raw").to_str().unwrap(), more);
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        .arg("mount --bind \"$0\" \"$1\" && shift && exec \"$@\"")
        .arg(cover)
        .arg(program)
        .arg(drill.get_program())
        .args(drill.get_args())
        .env("EBSFS_STATE_DIR", place.at("state"));
    report(&mut command)
}

#[test]
fn a_checker_that_is_missing_silent_or_fails_is_never_a_pass() {
    let place = Place::new();
    place.sh("truncate -s 16M image.raw; mkfs.ext4 -q image.raw");
    let script = |name: &str, text: &str| {
        let path = place.at(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        sh(&format!("chmod 755 {}", path.display()));
        path
    };
    let e2fsck = sh("command -v e2fsck || echo /sbin/e2fsck");
    let e2fsck = e2fsck.trim();
    for (cover, more, reason) in [
        (
            "/dev/null".into(),
            &[][..],
            "not installed (package e2fsprogs)",
        ),
        (
            script("silent", "sleep 100"),
            &["--silence", "1s"][..],
            "gave no sign of work",
        ),
        (
            script("failing", "echo broken >&2; exit 16"),
            &[],
            "exit code 16: broken",
        ),
        (
            script("killed", "kill -SEGV $$"),
            &[],
            "a signal ended e2fsck",
        ),
    ] {
        let (code, found, log) = covered(&place, &cover, e2fsck, more);
        let one = &found["disks"][0]["partitions"][0];
        assert_eq!(one["result"], "not_checked", "{found:#} {log}");
        let text = one["reason"].as_str().unwrap();
        assert!(text.contains(reason) && code == 11, "{code} {text} {log}");
    }
    // Without what makes overlays there is no drill at all.
    let daemon = "/usr/bin/qemu-storage-daemon";
    let (code, found, log) = covered(&place, Path::new("/dev/null"), daemon, &[]);
    assert!(code == 1 && found.is_null(), "{code}");
    assert!(log.contains("install qemu-system-common"), "{log}");
    place.assert_left_nothing();
}

#[test]
fn a_disk_that_cannot_be_read_is_not_a_damaged_filesystem() {
    let place = Place::new();
    let emulator = Emulator::start();
    let volume = emulator.volume("vol-0a");
    sh(&format!(
        "truncate -s 1G {0}; mkfs.ext4 -q {0}",
        volume.display()
    ));
    let snapshot = emulator.snapshot("vol-0a");
    let drill = |more: &[&str]| {
        let mut command = emulator.ebsfs(&["drill", &snapshot, "--scratch"]);
        command.arg(place.at("scratch")).args(more);
        report(&mut command)
    };
    let (code, found, log) = drill(&[]);
    assert_eq!(
        (code, results(&found)),
        (0, pairs(&[("ext4", "clean")])),
        "{log}"
    );
    // The superblock can be read, an inode table cannot.
    emulator.set("rotten_block=1");
    let (code, found, log) = drill(&["--timeout", "1s"]);
    let one = &found["disks"][0]["partitions"][0];
    assert_eq!(
        (code, &one["result"]),
        (11, &"not_checked".into()),
        "{found:#} {log}"
    );
    assert!(
        one["reason"]
            .as_str()
            .unwrap()
            .contains("could not be read"),
        "{found:#}"
    );
    place.assert_left_nothing();
}

#[test]
fn every_command_of_the_drill_page_works_and_it_explains_every_json_member() {
    let emulator = Emulator::start();
    let volume = emulator.volume("vol-0a");
    sh(&format!(
        "truncate -s 1G {0}; mkfs.ext4 -q {0}",
        volume.display()
    ));
    let text = page("docs/drill.md");
    assert_eq!(blocks(&text).len(), 1);
    let folder = tempfile::tempdir().unwrap();
    let snapshot = emulator.snapshot("vol-0a");
    let output = commands(&emulator, &text, [&snapshot, &snapshot], folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(said.contains("clean"), "{said}");
    let mut found = std::collections::BTreeSet::new();
    let mut drill = emulator.ebsfs(&["drill", &snapshot]);
    members(&report(&mut drill).1, &mut found);
    assert!(found.len() > 15, "{found:?}");
    for name in found {
        assert!(text.contains(&format!("`{name}`")), "{name}");
    }
}
