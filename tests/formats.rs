//! Formats of other clouds in a mount: read by QEMU, whose code is not ours, they are the image.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::changes::Chain;
use crate::support::*;

/// What `qemu-img COMMAND --output json` prints of a file.
pub fn qemu_json(command: &str, format: &str, file: &Path) -> Value {
    let said = run(Command::new("qemu-img")
        .args([command, "--output", "json", "-f", format])
        .arg(file));
    serde_json::from_str(&said).unwrap()
}

/// Compares a file of a format with a raw image, as the guest sees them.
pub fn compare(image: &Path, format: &str, file: &Path) {
    let said = run(Command::new("timeout")
        .args(["120", "qemu-img", "compare", "-f", "raw", "-F", format])
        .args([image, file]));
    assert!(said.contains("Images are identical."), "{said}");
}

#[test]
fn vmdk_and_vhd_of_a_mount_are_the_image_and_share_its_cache() {
    let chain = Chain::new();
    for n in [1, 4] {
        let (id, image) = (&chain.snapshots[n], chain.image(n));
        let mount = chain.emulator.mount(&[id]);
        let disk = mount.disk(id);
        run(Command::new("cmp").args([&disk, &image]));
        chain.emulator.reset();
        let size = fs::metadata(&image).unwrap().len();
        for (name, format) in [("disk.vmdk", "vmdk"), ("disk.vhd", "vpc")] {
            let file = disk.with_file_name(name);
            compare(&image, format, &file);
            let info = qemu_json("info", format, &file);
            assert_eq!(info["virtual-size"], size, "{info:#}");
        }
        assert_eq!(chain.emulator.gets(), 0, "blocks are fetched once");
        let vhd = disk.with_file_name("disk.vhd");
        assert_eq!(fs::metadata(&vhd).unwrap().len(), size + 512);
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.vhd");
        run(Command::new("cp")
            .arg("--sparse=always")
            .args([&vhd, &copy]));
        compare(&image, "vpc", &copy);
        run(Command::new("truncate").arg("--size=-512").arg(&copy));
        assert_same(&copy, &image);
    }
}

#[test]
fn an_overlay_rebased_and_committed_gives_the_head_and_its_map_is_the_delta() {
    let chain = Chain::new();
    // Written and new, freed, grown, with a last block that changed.
    for (base, head) in [(0, 1), (1, 2), (0, 4), (3, 3)] {
        let (from, to) = (&chain.snapshots[base], &chain.snapshots[head]);
        let mount = chain.emulator.mount(&[from, to]);
        let overlay = mount.pair(from, to).join("overlay.qcow2");
        let image = chain.image(head);
        let checked = qemu_json("check", "qcow2", &overlay);
        assert_eq!(checked["check-errors"], 0);
        for member in ["corruptions", "leaks"] {
            assert!(checked[member].as_u64().is_none_or(|n| n == 0), "{checked}");
        }
        // Where it is, its backing file is the other image of the mount.
        compare(&image, "qcow2", &overlay);
        let info = qemu_json("info", "qcow2", &overlay);
        assert_eq!(info["backing-filename-format"], "raw");
        let backing = format!("../../snapshots/{from}/disk.raw");
        assert_eq!(info["backing-filename"], backing.as_str());

        let csv = chain.changes(base, head, "csv");
        let expected = |state: &str| -> u64 {
            let lines = csv.lines().filter(|line| line.ends_with(state));
            lines
                .map(|line| line.split(',').nth(2).unwrap().parse::<u64>().unwrap())
                .sum()
        };
        let map = qemu_json("map", "qcow2", &overlay);
        let found = |is_data: bool| -> u64 {
            let runs = map.as_array().unwrap().iter();
            runs.filter(|run| run["depth"] == 0 && run["data"] == is_data)
                .map(|run| run["length"].as_u64().unwrap())
                .sum()
        };
        assert_eq!(found(true), expected(",written"), "{csv}\n{map:#}");
        assert_eq!(found(false), expected(",zeroed"), "{csv}\n{map:#}");

        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let len = fs::metadata(&overlay).unwrap().len();
        sh(&format!(
            "cp --sparse=always {overlay} {at}/overlay.qcow2
             test $(stat -c %s {at}/overlay.qcow2) = {len}
             cp --sparse=always {base} {at}/base.raw
             cd {at}
             qemu-img rebase -u -f qcow2 -F raw -b ./base.raw overlay.qcow2
             cp overlay.qcow2 alone.qcow2
             qemu-img rebase -f qcow2 -b '' alone.qcow2
             qemu-img commit -q -f qcow2 overlay.qcow2",
            overlay = overlay.display(),
            base = chain.image(base).display(),
        ));
        compare(&image, "qcow2", &folder.path().join("alone.qcow2"));
        assert_same(&folder.path().join("base.raw"), &image);
    }
}

#[test]
fn hostile_names_of_a_mountpoint_change_nothing_of_what_qemu_reads() {
    let chain = Chain::new();
    let (from, to) = (&chain.snapshots[0], &chain.snapshots[1]);
    for prefix in ["json:{\"driver\":\"null-co\"},", "nbd:a,b='c' \"d\":"] {
        let point = tempfile::Builder::new().prefix(prefix).tempdir().unwrap();
        let mount = Mount::start_at(point, chain.emulator.ebsfs(&["mount"]), &[from, to]);
        compare(
            &chain.image(1),
            "qcow2",
            &mount.pair(from, to).join("overlay.qcow2"),
        );
        let vmdk = mount.disk(to).with_file_name("disk.vmdk");
        compare(&chain.image(1), "vmdk", &vmdk);
    }
}

#[test]
fn the_largest_vhd_is_shown_and_copied_and_a_larger_one_is_neither() {
    let emulator = Emulator::with(&[
        "--synthetic",
        "snap-0a:2040:2",
        "--synthetic",
        "snap-0b:2041:2",
    ]);
    let mount = emulator.mount(&["snap-0a", "snap-0b"]);
    let vhd = mount.disk("snap-0a").with_file_name("disk.vhd");
    let info = qemu_json("info", "vpc", &vhd);
    assert_eq!(info["virtual-size"], 2040u64 << 30);
    let large = mount.disk("snap-0b").with_file_name("disk.vhd");
    let error = fs::metadata(&large).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    let names = fs::read_dir(large.parent().unwrap()).unwrap();
    let mut names = names.map(|entry| entry.unwrap().file_name());
    assert!(names.all(|name| name != "disk.vhd"));
    let info = qemu_json("info", "vmdk", &large.with_file_name("disk.vmdk"));
    assert_eq!(info["virtual-size"], 2041u64 << 30);

    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("disk.vhd");
    let sync = |id: &str| {
        let state = folder.path().join("state");
        let mut command = emulator.ebsfs(&["sync", "--progress", "none", id]);
        command.arg(&target).arg("--state-dir").arg(state);
        ends(&mut command)
    };
    let (code, said) = sync("snap-0b");
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("a VHD has at most 2040 GiB"), "{said}");
    assert!(!target.exists());
    let (code, said) = sync("snap-0a");
    assert_eq!(code, 0, "{said}");
    let info = qemu_json("info", "vpc", &target);
    assert_eq!(info["virtual-size"], 2040u64 << 30);
}

/// Boots a disk in QEMU without KVM, writes to a temporary overlay, and waits for a text on the serial console.
fn boots(format: &str, file: &Path, text: &str) {
    let file = file.display().to_string().replace(',', ",,");
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-machine", "pc,accel=tcg", "-m", "64", "-display", "none"])
        .args(["-nodefaults", "-no-user-config", "-snapshot"])
        .args(["-serial", "stdio", "-drive"])
        .arg(format!("file={file},format={format},if=virtio"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut console = std::io::BufReader::new(qemu.stdout.take().unwrap());
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        while std::io::BufRead::read_line(&mut console, &mut line).is_ok_and(|n| n > 0) {
            let _ = sender.send(std::mem::take(&mut line));
        }
    });
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let mut said = String::new();
    while !said.contains(text) {
        let left = end.saturating_duration_since(std::time::Instant::now());
        match receiver.recv_timeout(left) {
            Ok(line) => said.push_str(&line),
            Err(error) => panic!("{format}: {error}, and the console has {said:?}"),
        }
    }
    qemu.kill().unwrap();
    qemu.wait().unwrap();
}

#[test]
fn a_machine_boots_from_each_format() {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, [7]);
    let text = "booted from a snapshot";
    let sector = crate::drill::boot_sector(&format!("{text}\r\n"));
    std::os::unix::fs::FileExt::write_all_at(&writable(&volume), &sector, 0).unwrap();
    let id = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&id]);
    for (name, format) in [("disk.vmdk", "vmdk"), ("disk.vhd", "vpc")] {
        boots(format, &mount.disk(&id).with_file_name(name), text);
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, format) in [("a.qcow2", "qcow2"), ("a.vhd", "vpc"), ("a.vmdk", "vmdk")] {
        let target = folder.path().join(name);
        run(emulator
            .ebsfs(&["sync", "--progress", "none", &id])
            .arg(&target)
            .arg("--state-dir")
            .arg(folder.path().join("state")));
        boots(format, &target, text);
    }
}
