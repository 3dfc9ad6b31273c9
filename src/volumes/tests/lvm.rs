//! Physical volumes made by hand; `tests/partitions.rs` has those that LVM makes.

use super::*;
use crate::volumes::lvm::{read_group, volumes};

/// The sum that LVM begins with.
const CRC_START: u32 = 0xf597_a6cf;
const PV: usize = 4 << 20;
const EXTENT: u64 = 64 << 10;

/// A physical volume with this text at this offset of its metadata area, which has 128 KiB at 4,096.
pub(super) fn physical_volume(text: &str, offset: usize) -> Vec<u8> {
    let mut disk = vec![0; PV];
    let (area, size) = (4096, 128 << 10);
    let mut label = vec![0; 512];
    put(&mut label, 0, b"LABELONE\x01\0\0\0\0\0\0\0");
    put(&mut label, 20, &32_u32.to_le_bytes());
    put(&mut label, 24, b"LVM2 001");
    put(&mut label, 32, b"0123456789abcdefghijklmnopqrstuv");
    put(&mut label, 72, &(1_u64 << 20).to_le_bytes());
    put(&mut label, 104, &(area as u64).to_le_bytes());
    put(&mut label, 112, &(size as u64).to_le_bytes());
    let sum = crc32(CRC_START, &label[20..]);
    put(&mut label, 16, &sum.to_le_bytes());
    put(&mut disk, 512, &label);
    let mut header = vec![0; 512];
    put(&mut header, 4, b" LVM2 x[5A%r0N*>\x01");
    put(&mut header, 24, &(area as u64).to_le_bytes());
    put(&mut header, 32, &(size as u64).to_le_bytes());
    put(&mut header, 40, &(offset as u64).to_le_bytes());
    put(&mut header, 48, &(text.len() as u64).to_le_bytes());
    put(
        &mut header,
        56,
        &crc32(CRC_START, text.as_bytes()).to_le_bytes(),
    );
    let sum = crc32(CRC_START, &header[4..]);
    put(&mut header, 0, &sum.to_le_bytes());
    put(&mut disk, area, &header);
    for (place, byte) in text.bytes().enumerate() {
        let at = offset + place;
        let at = if at < size { at } else { at - size + 512 };
        disk[area + at] = byte;
    }
    disk
}

/// A group of two physical volumes, this one first, with these volumes: name, status, segments.
pub(super) fn group(logical: &[(&str, &str, &[&str])]) -> String {
    let volume = |(name, status, segments): &(&str, &str, &[&str])| {
        let segments = segments.iter().zip(1..);
        let segments: Vec<_> = segments
            .map(|(one, number)| format!("segment{number} {{ {one} }}\n"))
            .collect();
        format!(
            "{name} {{ id = \"x-y\"\nstatus = [{status}]\n{}}}\n",
            segments.concat()
        )
    };
    let logical: Vec<_> = logical.iter().map(volume).collect();
    format!(
        "vg-1 {{\nextent_size = {}\nphysical_volumes {{\n\
         pv0 {{ id = \"012345-6789-abcd-efgh-ijkl-mnop-qrstuv\"\ndevice = \"/dev/sda2\"\npe_start = 2048\n }}\n\
         pv1 {{ id = \"other\"\ndevice = \"/dev/sdb\"\n }} }}\nlogical_volumes {{\n{} }} }}\n",
        EXTENT / 512,
        logical.concat()
    )
}

pub(super) fn segment(start: u64, count: u64, kind: &str, stripes: &str) -> String {
    let parts = stripes.matches('"').count() / 2;
    format!(
        "start_extent = {start}\nextent_count = {count}\ntype = \"{kind}\"\nstripe_count = {parts}\nstripes = [{stripes}]"
    )
}

const VISIBLE: &str = "\"READ\", \"WRITE\", \"VISIBLE\"";

#[test]
fn linear_volumes_are_ranges_and_all_others_have_a_reason() {
    let linear = segment(0, 4, "striped", "\"pv0\", 2");
    let second = segment(4, 1, "linear", "\"pv0\", 0");
    let follows = segment(4, 2, "striped", "\"pv0\", 6");
    let elsewhere = segment(0, 4, "striped", "\"pv1\", 2");
    let striped = segment(0, 4, "striped", "\"pv0\", 2, \"pv1\", 2");
    let thin = segment(0, 4, "thin", "\"pv0\", 2");
    let beyond = segment(0, 4, "striped", "\"pv0\", 60");
    let gap = segment(7, 4, "striped", "\"pv0\", 6");
    let cow = "start_extent = 0\nextent_count = 4\ntype = \"snapshot\"\norigin = \"root\"\ncow_store = \"cow\"";
    let text = group(&[
        ("root", VISIBLE, &[&linear]),
        ("two", VISIBLE, &[&second, &linear]),
        ("one", VISIBLE, &[&follows, &linear]),
        ("away", VISIBLE, &[&elsewhere]),
        ("striped", VISIBLE, &[&striped]),
        ("thin", VISIBLE, &[&thin]),
        ("beyond", VISIBLE, &[&beyond]),
        ("gap", VISIBLE, &[&linear, &gap]),
        ("cow", VISIBLE, &[&linear]),
        ("empty", VISIBLE, &[]),
        ("hidden", "\"READ\"", &[&linear]),
        ("snapshot0", "\"READ\"", &[cow]),
    ]);
    let first = 1 << 20;
    let ranges = |list: &[(u64, u64)]| {
        let ranges = list.iter().map(|(start, count)| ByteRange {
            start: first + start * EXTENT,
            size: count * EXTENT,
        });
        Ok(ranges.collect::<Vec<_>>())
    };
    let expected = [
        ("root", ranges(&[(2, 4)])),
        ("two", ranges(&[(2, 4), (0, 1)])),
        ("one", ranges(&[(2, 6)])),
        ("away", Err("another physical volume (/dev/sdb)")),
        ("striped", Err("striped over 2")),
        ("thin", Err("of the type thin")),
        ("beyond", Err("damaged")),
        ("gap", Err("damaged")),
        ("cow", Err("changes of a snapshot of root")),
        ("empty", Err("no segments")),
    ];
    // The text may begin anywhere in its area, and go on at its start.
    for offset in [512, 4096, (128 << 10) - 512] {
        let layout = all_found(&physical_volume(&text, offset));
        assert_eq!(layout.notes, [""; 0]);
        assert_eq!(layout.volumes.len(), expected.len());
        for (volume, (name, ranges)) in layout.volumes.iter().zip(&expected) {
            assert_eq!(
                (volume.group.as_str(), volume.name.as_str()),
                ("vg-1", *name)
            );
            match (&volume.ranges, ranges) {
                (Ok(found), Ok(ranges)) => assert_eq!(found, ranges, "{name}"),
                (Err(why), Err(words)) => assert!(why.contains(words), "{name}: {why}"),
                (found, _) => panic!("{name}: {found:?}"),
            }
        }
        let files: Vec<_> = layout.views().into_iter().map(|view| view.file).collect();
        assert_eq!(
            files,
            [
                "disk.raw",
                "0-vg--1-root.raw",
                "0-vg--1-two.raw",
                "0-vg--1-one.raw"
            ]
        );
    }
}

#[test]
fn damaged_metadata_is_a_note() {
    let linear = segment(0, 4, "striped", "\"pv0\", 2");
    let good = physical_volume(&group(&[("root", VISIBLE, &[&linear])]), 512);
    for (at, words) in [
        (512 + 20, "the label of LVM is damaged"),
        (4096 + 40, "an area of LVM metadata is damaged"),
        (
            4096 + 512 + 9,
            "an area of LVM metadata has a wrong checksum",
        ),
    ] {
        let mut disk = good.clone();
        disk[at] ^= 0x80;
        let range = ByteRange {
            start: 0,
            size: PV as u64,
        };
        let read = read_group(&reader(&disk), range).unwrap();
        assert_eq!(read.notes, [words]);
        assert!(volumes(0, range, read.metadata.as_ref()).is_empty());
    }
    let cut = &good[..4700];
    assert_eq!(
        all_found(cut).notes,
        ["an area of LVM metadata has a wrong checksum"]
    );
    let wrong = physical_volume("vg {", 512);
    assert_eq!(
        all_found(&wrong).notes,
        ["an area of LVM metadata cannot be parsed"]
    );
}
