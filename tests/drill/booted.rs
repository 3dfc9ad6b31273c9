//! `--boot`: a boot sector that prints a line on the serial console stands for an operating system.

use std::os::unix::fs::FileExt;

use super::{Place, report};
#[cfg(feature = "ec2")]
use crate::support::*;

/// Prints a text on the first serial port, and halts.
pub fn boot_sector(text: &str) -> Vec<u8> {
    let mut sector = vec![
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0xfc, // cld
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xbe, 0x16, 0x7c, // mov si, 0x7c16: the text
        0xac, // next: lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x03, // jz halt
        0xee, // out dx, al
        0xeb, 0xf8, // jmp next
        0xf4, // halt: hlt
        0xeb, 0xfd, // jmp halt
    ];
    assert_eq!(sector.len(), 0x16);
    sector.extend_from_slice(text.as_bytes());
    sector.resize(510, 0);
    sector.extend_from_slice(&[0x55, 0xaa]);
    sector
}

/// A disk of 8 MiB that boots so far.
pub fn boot_image(place: &Place, text: &str) -> String {
    let path = place.at("boot.raw");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_all_at(&boot_sector(text), 0).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_disk_boots_when_its_text_comes_and_fails_when_it_does_not() {
    let place = Place::new();
    let image = boot_image(&place, "starting\r\ndrilled login: ");
    let before = std::fs::read(&image).unwrap();
    for bus in ["nvme", "virtio", "sata"] {
        let (code, found, log) = report(&mut place.drill(&image, &["--boot", "--bus", bus]));
        let boot = &found["boot"];
        assert!(
            code == 0 && boot["booted"] == true,
            "{bus} {code} {found:#} {log}"
        );
        assert_eq!(
            (&boot["firmware"], &boot["wait_for"]),
            (&"bios".into(), &"login:".into())
        );
    }
    let console = place.at("console");
    let more = [
        "--boot",
        "--boot-timeout",
        "3s",
        "--wait-for",
        "another text",
        "--console",
    ];
    let mut command = place.drill(&image, &more);
    let (code, found, log) = report(command.arg(&console));
    let boot = &found["boot"];
    assert!(code == 11 && boot["booted"] == false, "{code} {found:#}");
    assert!(log.contains("did not come within 3s"), "{log}");
    assert_eq!(boot["console"][1], "drilled login:");
    let printed = std::fs::read_to_string(&console).unwrap();
    assert_eq!(printed, "starting\r\ndrilled login: ");
    assert!(std::fs::read(&image).unwrap() == before);
    place.assert_left_nothing();
}

#[cfg(feature = "ec2")]
#[test]
fn all_disks_of_an_instance_are_checked_and_its_root_disk_boots() {
    let place = Place::new();
    let emulator = Emulator::start();
    let root = emulator.make_volume("vol-0a", 16, []);
    writable(&root)
        .write_all_at(&boot_sector("web login: "), 0)
        .unwrap();
    let data = emulator.volume("vol-0b");
    sh(&format!(
        "truncate -s 64M {0}; mkfs.ext4 -q {0}",
        data.display()
    ));
    let repository = format!("file://{}", place.at("repository").display());
    init_repository(&repository);
    let instance = "i-0123456789abcdef0";
    let ebsfs = |args: &[&str]| {
        let mut command = emulator.ebsfs(args);
        command.env("EBSFS_STATE_DIR", place.at("state"));
        run(&mut command)
    };
    let made = ebsfs(&["snapshot", "--instance", instance]);
    for line in made.lines() {
        let snapshot = line.split(' ').next().unwrap();
        ebsfs(&["sync", snapshot, &repository, "--progress", "none"]);
    }
    let inventory = place.at("instance.json");
    std::fs::write(&inventory, ebsfs(&["inventory", instance])).unwrap();
    let file = inventory.to_str().unwrap();
    ebsfs(&["repository", "instances", &repository, "--add", file]);
    let set = format!("{repository}#{instance}");
    emulator.reset();
    // The emulator's instances have UEFI, whose firmware finds nothing to start here.
    let uefi = ["--boot", "--boot-timeout", "2s"];
    let (code, found, log) = report(&mut place.drill(&set, &uefi));
    assert!(
        code == 11 && found["boot"]["firmware"] == "uefi",
        "{code} {found:#} {log}"
    );
    let bios = ["--boot", "--firmware", "bios"];
    let (code, found, log) = report(&mut place.drill(&set, &bios));
    assert_eq!(code, 0, "{found:#} {log}");
    assert_eq!(found["instance"], instance);
    let names: Vec<&str> = found["disks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|disk| disk["disk"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["/dev/xvda", "/dev/xvdb"]);
    assert_eq!(found["disks"][1]["volume"], "vol-0b");
    assert_eq!(super::results(&found)[1], ("ext4".into(), "clean".into()));
    assert_eq!(found["boot"]["booted"], true);
    assert_eq!(emulator.gets(), 0, "AWS is not asked");
    place.assert_left_nothing();
}
