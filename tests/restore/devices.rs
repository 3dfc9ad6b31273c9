//! Restores to block devices and to new EBS snapshots.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{Account, BLOCKS, INSTANCE};
use crate::support::*;
use crate::sync::Loop;

/// An account with a set in its repository.
fn with_set() -> Account {
    let account = Account::new();
    let (snapshots, _) = account.capture("copies");
    account.bring(&snapshots);
    run(&mut account.add(&[]));
    account
}

/// A device of so many GiB, filled at its start.
fn device(account: &Account, name: &str, gib: u64) -> Loop {
    let file = account.at(name);
    let made = std::fs::File::create(&file).unwrap();
    made.set_len(gib << 30).unwrap();
    made.write_all_at(&[7; 1 << 20], 0).unwrap();
    Loop::over(&file)
}

fn restore(account: &Account, more: &[&str]) -> Command {
    let set = format!("{}#{INSTANCE}", account.repository());
    let mut command = account.ebsfs(&["restore", &set]);
    command.args(more);
    command
}

/// The bytes of a device begin with those of a volume's file; the rest of the volume reads as zeroes.
fn assert_device(device: &Loop, copy: &Path) {
    let len = usize::try_from(BLOCKS * BLOCK).unwrap();
    let found = read_at(Path::new(&device.0), 0, 1 << 30);
    assert!(found[..len] == std::fs::read(copy).unwrap(), "{}", device.0);
    assert!(found[len..].iter().all(|byte| *byte == 0), "{}", device.0);
}

#[test]
fn disks_are_restored_to_devices_that_a_person_has_named_and_no_other() {
    let account = with_set();
    let (a, b) = (device(&account, "a", 1), device(&account, "b", 2));
    let small = device(&account, "small", 1);
    writable(&account.at("small"))
        .set_len((1 << 30) - BLOCK)
        .unwrap();
    run(Command::new("losetup").args(["--set-capacity", &small.0]));
    // Its end and all but its start are holes.
    let start = || read_at(Path::new(&a.0), 0, (BLOCKS * BLOCK) as usize);
    let before = start();
    let (to_a, to_b) = (format!("xvda={}", a.0), format!("vol-0b={}", b.0));
    let to_small = format!("xvdb={}", small.0);
    let file = format!("xvdb={}", account.at("copies").join("vol-0b").display());
    let link = account.at("link");
    std::os::unix::fs::symlink(&a.0, &link).unwrap();
    let to_link = format!("xvdb={}", link.display());
    let (name_a, name_b) = ("--overwrite", "--overwrite");
    for (args, code, words) in [
        (&["--device", &to_a][..], 2, "vol-0b): it has no device"),
        (
            &["--device", &to_a, "--device", &file],
            2,
            "it is no block device",
        ),
        (
            &["--device", &to_a, "--device", "xvdb=/dev/none"],
            3,
            "cannot find /dev/none",
        ),
        (
            &["--device", &to_a, "--device", &to_link],
            2,
            "it is the same device as",
        ),
        (&["--device", &to_a, "--device", &to_b], 11, "--overwrite"),
        // One that cannot be written stops the others.
        (
            &[
                "--device", &to_a, "--device", &to_small, name_a, &a.0, name_b, &small.0,
            ],
            2,
            "it does not fit",
        ),
        (
            &["--device", &to_a, "--to", "folder"],
            2,
            "cannot be used with",
        ),
        (
            &[
                "--device",
                &to_a,
                "--only",
                "xvda",
                "--kms-key",
                "arn:aws:kms:x",
            ],
            2,
            "no new EBS snapshots",
        ),
    ] {
        let (ended, said) = ends(&mut restore(&account, args));
        assert!(
            ended == code && said.contains(words),
            "{args:?} {ended}: {said}"
        );
        assert!(start() == before, "{args:?} wrote");
    }
    let inventory = account.at("inventory-out.json");
    let args = [
        "--device",
        &to_a,
        "--device",
        &to_b,
        name_a,
        &a.0,
        name_b,
        &b.0,
        "--inventory",
    ];
    let said = run(restore(&account, &args).arg(&inventory));
    assert_device(&a, &account.at("copies/vol-0a"));
    assert_device(&b, &account.at("copies/vol-0b"));
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].ends_with(&a.0) && lines[1].ends_with(&b.0),
        "{said}"
    );
    let inventory: Value = serde_json::from_slice(&std::fs::read(&inventory).unwrap()).unwrap();
    assert_eq!(inventory["instance"]["id"], INSTANCE);
}

#[test]
fn disks_are_restored_as_new_snapshots_and_only_once() {
    let account = with_set();
    let there = Emulator::beside(&account.emulator);
    let url = there.url();
    let to = ["--to", "ebs:us-east-1", "--to-endpoint-url", &url, "--json"];
    let new = |said: &str| -> Vec<String> {
        let report: Value = serde_json::from_str(said).unwrap();
        let disks = report["disks"].as_array().unwrap().iter();
        let snapshots = disks.map(|disk| disk["result"]["snapshot"].as_str().unwrap().to_owned());
        snapshots.collect()
    };
    let made = new(&run(&mut restore(&account, &to)));
    assert_eq!((made.len(), there.made().len()), (2, 2));
    for (snapshot, volume) in made.iter().zip(["vol-0a", "vol-0b"]) {
        let image = account.at(snapshot);
        run(there
            .ebsfs(&["sync", snapshot, "--progress", "none"])
            .arg(&image));
        super::assert_image(&image, &account.at("copies").join(volume));
    }
    assert_eq!(
        new(&run(&mut restore(&account, &to))),
        made,
        "the same command again"
    );
    assert_eq!(there.made().len(), 2);
    let parent = ["--to", "ebs:", "--parent", "snap-0123456789abcdef0"];
    let (code, said) = ends(&mut restore(&account, &parent));
    assert!(
        code == 2 && said.contains("it is of one snapshot"),
        "{code} {said}"
    );
    assert_eq!(account.emulator.made().len(), 2);
}
