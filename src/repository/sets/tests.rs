use super::*;
use crate::inventory::{MachineParts, assemble};

fn name(text: &str) -> ManifestName {
    text.parse().unwrap()
}

fn disk(volume: &str, is_root: bool) -> InventoryDisk {
    InventoryDisk {
        device: Some(format!("/dev/{volume}")),
        volume: volume.to_owned(),
        is_root,
        ..InventoryDisk::default()
    }
}

fn manifests() -> Vec<ManifestName> {
    let mut names = [
        "20260630T120000000Z.vol-0a.snap-01",
        "20260630T120000000Z.vol-0b.snap-02",
        "20260630T120000000Z.vol-0c.snap-03",
        // One disk of this instant is not copied yet.
        "20260630T130000000Z.vol-0a.snap-04",
        "20260630T130000001Z.vol-0b.snap-05",
        "20260630T140000000Z.vol-0c.snap-06",
    ]
    .map(name);
    names.sort();
    names.to_vec()
}

#[test]
fn a_set_is_the_newest_instant_that_all_disks_have() {
    let names = manifests();
    let disks = ["vol-0a", "vol-0b", "vol-0c", "vol-0d"].map(|id| disk(id, id == "vol-0a"));
    let [a, b, c, d] = &disks;
    for (of, expected) in [
        (
            &[a, b][..],
            Ok(("2026-06-30T12:00:00.000Z", &["snap-01", "snap-02"][..])),
        ),
        (
            &[b, a],
            Ok(("2026-06-30T12:00:00.000Z", &["snap-02", "snap-01"])),
        ),
        (&[a], Ok(("2026-06-30T13:00:00.000Z", &["snap-04"]))),
        (&[c], Ok(("2026-06-30T14:00:00.000Z", &["snap-06"]))),
        (&[a, d], Err("it has none of vol-0d")),
        (&[d], Err("no snapshot of its disks")),
        (&[], Err("no snapshot of its disks")),
    ] {
        match (newest_set(of, &names), expected) {
            (Ok((time, found)), Ok((at, snapshots))) => {
                assert_eq!(rfc3339_millis(time), at);
                let found: Vec<_> = found.iter().map(|disk| disk.snapshot.as_str()).collect();
                assert_eq!(found, snapshots);
            }
            (Err(what), Err(words)) => assert!(what.contains(words), "{what}"),
            (found, expected) => panic!("{found:?}, not {expected:?}"),
        }
    }
}

#[test]
fn a_set_is_read_as_written_and_a_truncated_one_is_refused() {
    let machine = crate::inventory::Machine {
        disks: vec![disk("vol-0a", true)],
        ..Default::default()
    };
    let inventory = assemble(
        machine,
        MachineParts::default(),
        None,
        SystemTime::UNIX_EPOCH,
    );
    let inventory = inventory.unwrap();
    let disks: Vec<_> = inventory.disks.iter().collect();
    let (time, disks) = newest_set(&disks, &manifests()).unwrap();
    let set = MachineSet {
        format: SET_FORMAT,
        instance: "i-0a".to_owned(),
        time,
        disks,
        left_out: Vec::new(),
        inventory,
    };
    let (name, bytes) = (set.name(), set.encode());
    assert_eq!(name.to_string(), "20260630T130000000Z.i-0a");
    assert_eq!(name.to_string().parse::<SetName>().unwrap(), name);
    assert_eq!(MachineSet::decode(&bytes, &name).unwrap(), set);
    for cut in 0..bytes.len() {
        let error = MachineSet::decode(&bytes[..cut], &name).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
    }
    // Another set under this name, a later format, and no disks.
    let other = SetName {
        instance: "i-0b".to_owned(),
        ..name.clone()
    };
    let kind = |bytes: &[u8], name: &SetName| MachineSet::decode(bytes, name).unwrap_err().kind();
    assert_eq!(kind(&bytes, &other), Kind::Corrupt);
    let later = MachineSet {
        format: 2,
        ..set.clone()
    };
    assert_eq!(kind(&later.encode(), &name), Kind::Invalid);
    let empty = MachineSet {
        disks: Vec::new(),
        ..set
    };
    assert_eq!(kind(&empty.encode(), &name), Kind::Corrupt);
}

#[test]
fn names_that_are_no_sets_are_refused() {
    for text in [
        "",
        "i-0a",
        "20260630T130000000Z.vol-0a",
        "20260630T130000000Z.i-0a/..",
        "x.i-0a",
    ] {
        assert!(text.parse::<SetName>().is_err(), "{text}");
    }
}
