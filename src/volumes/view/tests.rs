use super::*;
use crate::volumes::{DiskContent, FilesystemLabel, PartitionKind};

const XFS: DiskContent = DiskContent::Xfs;
const FAT: DiskContent = DiskContent::Vfat {
    dirty_at: 0x41,
    is_dirty: false,
};

/// Partitions of one MiB each: name, byte of the kind, content.
fn layout(partitions: &[(&str, u8, DiskContent)]) -> DiskLayout {
    let mut layout = DiskLayout::new(super::super::TableKind::Gpt, 1 << 30, 512);
    for (number, (name, kind, content)) in (1..).zip(partitions) {
        layout.push(DiskPartition {
            number,
            name: (*name).to_owned(),
            kind: PartitionKind::of_mbr(*kind),
            uuid: None,
            start: u64::from(number) << 20,
            size: 1 << 20,
            filesystem: Some(DiskFilesystem {
                content: content.clone(),
                label: FilesystemLabel {
                    label: Some(format!("label{number}")),
                    uuid: None,
                },
            }),
        });
    }
    layout
}

#[test]
fn one_filesystem_is_taken_and_of_several_a_person_chooses() {
    let luks = || DiskContent::Other("luks");
    type Expected<'a> = std::result::Result<&'a str, (Kind, &'a str)>;
    type Partition<'a> = (&'a str, u8, DiskContent);
    let table: [(&[Partition<'_>], Expected<'_>); 7] = [
        (&[("root", 0x83, XFS)], Ok("1-root")),
        (&[("", 0xef, FAT), ("", 0x83, XFS)], Ok("2")),
        (&[("", 0xef, FAT)], Ok("1")),
        (
            &[
                ("a", 0x83, XFS),
                ("b", 0x83, XFS),
                ("", 0x82, DiskContent::Empty),
            ],
            Err((Kind::Undecided, "give one of 1-a (xfs), 2-b (xfs)")),
        ),
        (&[("a", 0x83, luks())], Err((Kind::NotFound, "cryptsetup"))),
        (
            &[("a", 0x83, DiskContent::Unknown)],
            Err((Kind::NotFound, "1-a (unknown)")),
        ),
        (&[], Err((Kind::NotFound, "no partition"))),
    ];
    for (partitions, expected) in table {
        match (layout(partitions).select(None), expected) {
            (Ok(view), Ok(name)) => assert_eq!(view.name, name),
            (Err(error), Err((kind, words))) => {
                assert_eq!(error.kind(), kind);
                assert!(error.chain().contains(words), "{}", error.chain());
            }
            (found, expected) => panic!("{found:?} and not {expected:?}"),
        }
    }
}

#[test]
fn a_partition_is_selected_by_number_name_label_or_file() {
    let layout = layout(&[
        ("root", 0x83, XFS),
        ("2", 0x83, XFS),
        ("my data", 0x83, XFS),
        ("x", 0xef, FAT),
        ("x", 0x83, FAT),
    ]);
    for (wanted, expected) in [
        ("1", Ok("1-root.raw")),
        ("2", Ok("2-2.raw")),
        ("root", Ok("1-root.raw")),
        ("1-root.raw", Ok("1-root.raw")),
        ("3-my_data", Ok("3-my_data.raw")),
        ("my data", Ok("3-my_data.raw")),
        ("label4", Ok("4-x.raw")),
        ("x", Err(Kind::Undecided)),
        ("6", Err(Kind::NotFound)),
        ("", Err(Kind::NotFound)),
        ("vg/lv", Err(Kind::NotFound)),
    ] {
        let found = layout.select(Some(wanted));
        let found = found.map(|view| view.file).map_err(|error| error.kind());
        assert_eq!(found, expected.map(str::to_owned), "{wanted}");
    }
}

#[test]
fn files_have_safe_names_and_no_two_the_same() {
    for (name, safe) in [
        ("EFI System", "EFI_System"),
        ("a/b\0c", "a_b_c"),
        ("donn\u{e9}es", "donn\u{e9}es"),
        ("\u{1b}[2J", "__2J"),
    ] {
        assert_eq!(safe_name(name), safe);
    }
    assert_eq!(safe_name(&"\u{e9}".repeat(100)).len(), MOST_NAME);
    let mut layout = layout(&[
        ("vg-root", 0x8e, DiskContent::Other("lvm")),
        ("", 0xef, FAT),
    ]);
    let volume = |name: &str| LogicalVolume {
        partition: 1,
        group: "vg".into(),
        name: name.into(),
        uuid: None,
        size: 5,
        ranges: Ok(vec![ByteRange { start: 0, size: 5 }]),
        filesystem: None,
    };
    layout.volumes = vec![volume("root"), volume("a-b")];
    let files: Vec<_> = layout.views().into_iter().map(|view| view.file).collect();
    assert_eq!(
        files,
        [
            "1-vg-root.raw",
            "2-EFI.raw",
            "1-vg-root~2.raw",
            "1-vg-a--b.raw"
        ]
    );
    assert_eq!(
        layout.select(Some("vg/root")).unwrap().file,
        "1-vg-root~2.raw"
    );
}

#[test]
fn a_view_of_several_ranges_is_read_in_their_order() {
    let disk: Vec<u8> = (0..100).collect();
    let read = |offset: u64, len: usize| {
        let start = usize::try_from(offset).unwrap();
        Ok(disk[start..disk.len().min(start + len)].to_vec())
    };
    let ranges = [
        ByteRange { start: 50, size: 3 },
        ByteRange { start: 10, size: 2 },
    ];
    let all = [50, 51, 52, 10, 11];
    for offset in 0..6 {
        for len in 0..7 {
            let found = read_view(&read, &ranges, offset as u64, len).unwrap();
            assert_eq!(found, all[offset.min(5)..(offset + len).min(5)]);
        }
    }
    assert_eq!(locate(&ranges, 4), Some((11, 1)));
    assert_eq!(locate(&ranges, 5), None);
}
