//! Filesystems that were in use when the snapshot was taken: the files that a mount without replay misses, and the commands of
//! docs/filesystems.md, which replay the journal in an overlay.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::readme::{blocks, commands, page};
use crate::support::*;

/// How a filesystem is made and mounted: partition, type, options that forbid the replay.
const FILESYSTEMS: [(u32, &str, &str); 3] = [
    (1, "ext4", "ro,noload"),
    (2, "xfs", "ro,norecovery,nouuid"),
    (3, "btrfs", "ro,rescue=nologreplay"),
];

/// The content of the synced file of each filesystem of a disk, without replay.
fn without_replay(disk: &Path, folder: &Path) -> [String; 3] {
    let files = folder.join("files");
    fs::create_dir_all(&files).unwrap();
    let (disk, at) = (disk.display(), files.display());
    FILESYSTEMS.map(|(number, kind, options)| {
        sh(&format!(
            "read -r start size < <(partx -rgbo START,SIZE --nr {number} {disk})
             timeout 60 mount -t {kind} -o {options},loop,offset=$((start * 512)),sizelimit=$size {disk} {at}"
        ));
        let old = fs::read_to_string(files.join("old.txt")).unwrap();
        assert_eq!(old, "from before\n", "{kind}");
        let synced = fs::read_to_string(files.join("hello.txt")).unwrap_or_default();
        sh(&format!("timeout 60 umount {at}"));
        synced
    })
}

/// A disk with three mounted filesystems, each with a file that was synced just now, as a power cut would leave it.
///
/// `shutdown` stops all writes of ext4 and xfs. btrfs has no such call: it writes nothing before its next commit.
pub fn pull_the_plug(folder: &Path, image: &Path) {
    // mkfs.btrfs refuses while another device of the same file is mounted.
    let script = r#"
        cd "$1"
        truncate -s 520M source.raw
        printf 'label: gpt\nsize=64M\nsize=300M\nsize=128M\n' | sfdisk --quiet source.raw
        number=0
        for kind in ext4 xfs btrfs; do
            number=$((number + 1))
            read -r start size < <(partx -rgbo START,SIZE --nr $number source.raw)
            device[number]=$(losetup --find --show --offset $((start * 512)) --sizelimit $size source.raw)
            mkfs.$kind -q ${device[number]} > /dev/null
        done
        for number in 1 2 3; do
            mkdir mounted-$number
            options=rw
            [ $number != 3 ] || options=commit=300
            mount -o $options ${device[number]} mounted-$number
            echo 'from before' > mounted-$number/old.txt
            umount mounted-$number
            mount -o $options ${device[number]} mounted-$number
            echo "hello from partition $number" > mounted-$number/hello.txt
            sync mounted-$number/hello.txt
            [ $number = 3 ] || xfs_io -x -c shutdown mounted-$number
        done
        cp --sparse=always source.raw "$2"
        umount mounted-{1,2,3}
    "#;
    run(Command::new("timeout")
        .args(["--kill-after=10", "120", "bash", "-euo", "pipefail", "-c"])
        .args([script, "bash"])
        .args([folder, image]));
}

#[test]
fn a_synced_file_is_missing_without_replay_and_whole_in_an_overlay_that_leaves_the_snapshot_alone()
{
    let emulator = Emulator::start();
    let volume = emulator.volume("vol-0a");
    // A `sync` of the whole machine, which other tests run, can come between the two steps and write everything to its place.
    let made = (0..5).any(|_| {
        let folder = tempfile::tempdir().unwrap();
        let _held = Holders(folder.path().to_owned());
        pull_the_plug(folder.path(), &volume);
        without_replay(&volume, folder.path()).concat().is_empty()
    });
    assert!(made, "no journal holds the synced file");
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&snapshot]);
    let disk = mount.disk(&snapshot);
    let sum = || {
        run(Command::new("timeout")
            .args(["120", "sha256sum"])
            .arg(&disk))
    };
    let before = sum();

    let folder = tempfile::tempdir().unwrap();
    let held = Holders(folder.path().to_owned());
    assert_eq!(without_replay(&disk, folder.path()), [""; 3]);

    let _turn = crate::attach::ATTACHMENTS
        .read()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    // The page's commands name a mount in their folder.
    std::os::unix::fs::symlink(mount.point.path(), folder.path().join("ebs")).unwrap();
    let text = page("docs/filesystems.md");
    assert!(blocks(&text).len() >= 5);
    let ids = [&*snapshot, &snapshot];
    let output = commands(&emulator, &text, ids, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    let lines: Vec<&str> = said.lines().collect();
    // `ebsfs attach` comes first.
    let numbers = [1]
        .into_iter()
        .chain(FILESYSTEMS.map(|(number, ..)| number));
    let expected: Vec<_> = numbers
        .map(|number| format!("hello from partition {number}"))
        .collect();
    assert_eq!(lines, expected, "{errors}");
    assert_eq!(sum(), before);
    assert_eq!(held.loops(), [""; 0], "the page leaves loop devices");
    assert_eq!(held.mounts(), [""; 0], "the page leaves mounts");
}
