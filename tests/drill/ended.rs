//! Drills that are stopped or killed, and the rights of the programs that they run.

use std::fs;
use std::process::{Child, Stdio};

use super::booted::boot_image;
use super::{Place, report};
use crate::support::*;

/// A drill whose machine runs and prints nothing that is waited for, and the machine's process.
fn booting(place: &Place, image: &str) -> (Child, u32) {
    let more = ["--boot", "--wait-for", "never", "--boot-timeout", "10m"];
    let console = place.at("console");
    let mut command = place.drill(image, &more);
    let drill = command
        .arg("--console")
        .arg(&console)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // One that loses its disk while it starts would end by itself, and where /dev/kvm is there and does not work a first one does.
    wait_for("the first words of the machine", || {
        fs::metadata(&console).is_ok_and(|file| file.len() > 0)
    });
    let mut machine = None;
    wait_for("the machine", || {
        machine = place.processes().into_iter().find(|id| {
            // Not yet the program that sets its rights.
            fs::read_to_string(format!("/proc/{id}/comm"))
                .is_ok_and(|name| name.starts_with("qemu-system"))
        });
        machine.is_some()
    });
    let machine = machine.unwrap();
    (drill, machine)
}

/// The descriptors of a process by which it has the drill's disk open.
fn open_disks(process: u32) -> Vec<fs::DirEntry> {
    let files = fs::read_dir(format!("/proc/{process}/fd"))
        .into_iter()
        .flatten();
    let is_disk =
        |file: &fs::DirEntry| fs::read_link(file.path()).is_ok_and(|to| to.ends_with("disk.raw"));
    files.flatten().filter(is_disk).collect()
}

fn kill(signal: &str, id: u32) {
    run(std::process::Command::new("kill").args([signal, &id.to_string()]));
}

#[test]
fn programs_have_no_rights_no_network_and_nothing_of_the_environment() {
    let place = Place::new();
    let image = boot_image(&place, "up ");
    let (mut drill, machine) = booting(&place, &image);
    let of = |name: &str| fs::read_to_string(format!("/proc/{machine}/{name}")).unwrap();
    let status = of("status");
    let line = |name: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(name));
        found
            .unwrap_or_else(|| panic!("{status}"))
            .split_whitespace()
            .collect::<Vec<_>>()
    };
    assert!(line("Uid:").iter().all(|id| *id != "0"), "{status}");
    assert!(line("Gid:").iter().all(|id| *id != "0"), "{status}");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(line(set), ["0000000000000000"], "{status}");
    }
    assert_eq!(line("NoNewPrivs:"), ["1"]);
    let environment = of("environ");
    assert!(!environment.contains("must-not-be-seen") && !environment.contains("HOME="));
    let space = |id: &str, kind: &str| fs::read_link(format!("/proc/{id}/ns/{kind}")).unwrap();
    for kind in ["net", "mnt"] {
        assert_ne!(space(&machine.to_string(), kind), space("self", kind));
    }
    // The disk is open for reading alone.
    let disks = open_disks(machine);
    assert!(!disks.is_empty());
    for file in disks {
        let number = file.file_name().into_string().unwrap();
        let info = of(&format!("fdinfo/{number}"));
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .unwrap();
        let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
        assert_eq!(flags & 0o3, 0, "{info}");
    }
    kill("-TERM", drill.id());
    assert_eq!(drill.wait().unwrap().code(), Some(130));
    place.assert_left_nothing();
}

#[test]
fn what_a_killed_drill_leaves_is_removed_by_the_next_one() {
    let place = Place::new();
    let image = boot_image(&place, "up login: ");
    let (mut drill, machine) = booting(&place, &image);
    kill("-KILL", drill.id());
    drill.wait().unwrap();
    wait_for("the end of the machine", || {
        !fs::read_to_string(format!("/proc/{machine}/comm"))
            .is_ok_and(|name| name.starts_with("qemu"))
    });
    assert_eq!(Holders(place.at("scratch")).mounts(), [""; 0]);
    assert_eq!(fs::read_dir(place.at("scratch")).unwrap().count(), 1);
    let (code, _, log) = report(&mut place.drill(&image, &["--boot"]));
    assert!(
        code == 0 && log.contains("its process was killed"),
        "{code} {log}"
    );
    place.assert_left_nothing();
}
