use std::process::Command;

use super::*;
use crate::sysfs::tests::LoopDevice;

fn run(program: &str, args: &[&Path]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

#[test]
fn wrong_tables_are_read_without_harm() {
    let mut head = vec![0; HEAD];
    assert!(names_in(&head).is_empty() && partitions(&head).is_empty());
    head[512..520].copy_from_slice(b"EFI PART");
    assert!(names_in(&head).is_empty() && partitions(&head).is_empty());
    head[512 + 56..].fill(0xff);
    assert!(partitions(&head).is_empty());
    assert_eq!(guid_text(&[0xff; 16]).len(), 36);
    head.fill(0xff);
    head[510..512].copy_from_slice(b"\x55\xaa");
    assert_eq!(partitions(&head), [u64::from(u32::MAX) * 512; 4]);
    assert!(names_in(&[]).is_empty() && partitions(&[0; 511]).is_empty());
}

#[tokio::test]
async fn a_copy_of_a_mounted_filesystem_gets_a_warning_and_the_original_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let Some(device) = LoopDevice::partitioned(&path("image")) else {
        return;
    };
    let one = device.partition(1);
    run("mkfs.ext4", &[Path::new("-q"), &one]);
    std::fs::create_dir(path("point")).unwrap();
    assert!(mounted_twins(&path("image")).await.is_empty());
    run("mount", &[&one, &path("point")]);
    run("sync", &[]);
    std::fs::copy(path("image"), path("copy")).unwrap();
    let found = [
        mounted_twins(&path("copy")).await,
        mounted_twins(&path("image")).await,
        mounted_twins(device.path()).await,
        mounted_twins(&one).await,
    ];
    run("umount", &[&path("point")]);
    let [copy, original @ ..] = found;
    let ids = |path: &Path, what: &str| {
        let mut blkid = Command::new("blkid");
        blkid.args(["-p", "-o", "value", "-s", what]).arg(path);
        let text = String::from_utf8(blkid.output().unwrap().stdout).unwrap();
        text.trim().to_owned()
    };
    let point = path("point");
    let expected = [
        format!(
            "the source has the disk GUID {} of {}, which is in use at {}",
            ids(device.path(), "PTUUID").to_uppercase(),
            device.path().display(),
            point.display()
        ),
        format!(
            "the source has the filesystem UUID {} of what is mounted at {}",
            ids(&one, "UUID"),
            point.display()
        ),
    ];
    assert_eq!(copy, expected);
    assert_eq!(original, <[Vec<String>; 3]>::default());
}

#[tokio::test]
async fn names_are_those_that_blkid_reads() {
    let folder = tempfile::tempdir().unwrap();
    for (program, size) in [
        ("mkfs.ext4", 16 << 20),
        ("mkfs.xfs", 512 << 20),
        ("mkfs.btrfs", 128 << 20),
    ] {
        let image = folder.path().join(program);
        std::fs::File::create(&image)
            .unwrap()
            .set_len(size)
            .unwrap();
        run(program, &[Path::new("-q"), &image]);
        let names = names_of(&DiskSource::open(&image).unwrap()).await;
        let mut blkid = Command::new("blkid");
        blkid.args(["-p", "-o", "value", "-s", "UUID"]).arg(&image);
        let expected = String::from_utf8(blkid.output().unwrap().stdout).unwrap();
        let found: Vec<_> = names
            .iter()
            .map(|name| match name {
                VolumeName::Filesystem(uuid) => uuid_text(uuid),
                VolumeName::Disk(guid) => guid_text(guid),
            })
            .collect();
        assert_eq!(found, [expected.trim()], "{program}");
    }
}
