//! NTFS: ntfs-3g writes and reads the same volume.

use super::*;

#[test]
fn every_file_of_ntfs_is_as_ntfs_3g_reads_it_compressed_ones_too() {
    let images = Images::new();
    images.sh(
        r#"
        truncate -s 120M image.raw
        mkfs.ntfs -q -F -f image.raw > /dev/null
        mkdir mounted
        ntfs-3g -o compression,streams_interface=xattr image.raw mounted
        cd mounted
        mkdir -p deep/a/b packed many
        echo hello > hello.txt
        : > empty.txt
        head -c 3000000 /dev/urandom > deep/a/large.bin
        ln hello.txt deep/a/hard.txt
        ln -s hello.txt link
        mknod null c 1 3
        truncate -s 40M sparse.bin
        echo middle | dd of=sparse.bin bs=1 seek=20000000 conv=notrunc status=none
        printf 'x' > 'name with blanks.text'
        printf 'u' > "$(printf '\303\274ml\303\244ut')"
        for n in $(seq 300); do echo $n > "many/file $n with a rather long name"; done
        for n in $(seq 400); do echo $n | dd of=pieces-a bs=4096 seek=$n conv=notrunc status=none; echo $n | dd of=pieces-b bs=4096 seek=$((n * 2)) conv=notrunc status=none; done
        setfattr -n user.stream -v 'an alternate stream' hello.txt
        # New files in a folder with the flag are compressed.
        setfattr -h -n system.ntfs_attrib_be -v 0x00000810 packed
        seq 200000 > packed/text
        head -c 300000 /dev/urandom > packed/random
        head -c 1000000 /dev/zero > packed/zeroes
        (seq 9000; head -c 200000 /dev/zero; head -c 70000 /dev/urandom; seq 9000) > packed/mixed
        touch -d '2001-02-03T04:05:06.1234567Z' hello.txt
        cd ..
        umount mounted
        mkdir oracle
        ntfs-3g -o ro,streams_interface=xattr image.raw oracle
        "#,
    );
    let oracle = tree(&images.at("oracle"));
    let found = images.json(&["find", "image.raw", "--json"]);
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        oracle.keys().collect::<Vec<_>>()
    );
    images.sh("mkdir copy");
    images.run(&["cp", "image.raw", "/", "copy"]);
    let copy = tree(&images.at("copy"));
    for (name, path) in &oracle {
        let shown = String::from_utf8_lossy(name);
        let (ours, theirs) = (&copy[name], path.symlink_metadata().unwrap());
        if theirs.is_file() {
            assert_eq!(fs::read(ours).unwrap(), fs::read(path).unwrap(), "{shown}");
            assert_eq!(
                found[name]["size"].as_u64().unwrap(),
                theirs.len(),
                "{shown}"
            );
        }
        if theirs.file_type().is_char_device() {
            assert_eq!(ours.symlink_metadata().unwrap().rdev(), theirs.rdev());
        }
        if theirs.is_symlink() {
            assert_eq!(fs::read_link(ours).unwrap(), fs::read_link(path).unwrap());
            continue;
        }
        let time = time_text(theirs.mtime(), theirs.mtime_nsec());
        assert_eq!(found[name]["modified"].as_str().unwrap(), time, "{shown}");
    }
    let numbers = ["/hello.txt", "/deep/a/hard.txt"]
        .map(|name| copy[name.as_bytes()].metadata().unwrap().ino());
    assert_eq!(numbers[0], numbers[1]);
    assert_eq!(
        xattrs(&copy[&b"/hello.txt"[..]])[&OsString::from("user.stream")],
        b"an alternate stream"
    );
    let blocks = copy[&b"/sparse.bin"[..]].metadata().unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "{blocks}");
    images.sh("umount oracle");
    // The flag worked: most of the text is not on the disk as it is.
    let packed =
        images.sh("ntfsinfo -F packed/text image.raw | grep -c 'Attribute flags:.*0x0001'");
    assert_ne!(packed.trim(), "0", "no file was compressed");
    // A file of the filesystem itself is found by its name.
    assert!(
        images
            .run(&["cat", "image.raw", "/$MFT"])
            .starts_with(b"FILE")
    );
}

#[test]
fn a_file_whose_data_is_elsewhere_is_refused_and_its_streams_are_read() {
    let images = Images::new();
    // Reparse points: a tag, the bytes of the data, the data. It is the tag of cloud files.
    images.sh("truncate -s 40M image.raw
         mkfs.ntfs -q -F -f image.raw > /dev/null
         mkdir mounted
         ntfs-3g -o streams_interface=windows image.raw mounted
         cd mounted
         head -c 5000 /dev/zero > cloud; head -c 5000 /dev/zero > offline
         echo small > cloud:small
         setfattr -h -n system.ntfs_reparse_data -v 0x1a0000900400000001020304 cloud
         setfattr -h -n system.ntfs_attrib_be -v 0x00001000 offline
         cd ..
         umount mounted");
    for (path, why) in [
        (
            "/cloud",
            "the data of the file is elsewhere (reparse tag 0x9000001a)",
        ),
        (
            "/offline",
            "the data of the file is elsewhere (attributes 0x1000)",
        ),
    ] {
        let (code, said) = ends(&mut images.files(&["cat", "image.raw", path]));
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(
        images.run(&["cat", "image.raw", "/cloud:small"]),
        b"small\n"
    );
}

/// Where the value of an attribute in a record of the MFT is, and its length.
fn resident_value(image: &[u8], record: usize, wanted: u32) -> std::ops::Range<usize> {
    let le16 = |at: usize| usize::from(u16::from_le_bytes([image[at], image[at + 1]]));
    let le32 = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
    let cluster = le16(11) * usize::from(image[13]);
    let mft = usize::try_from(u64::from_le_bytes(image[48..56].try_into().unwrap())).unwrap();
    let record = mft * cluster + record * 1024;
    let mut at = record + le16(record + 20);
    while le32(at) != wanted {
        at += usize::try_from(le32(at + 4)).unwrap();
    }
    assert_eq!(image[at + 8], 0, "resident");
    let start = at + le16(at + 20);
    start..start + usize::try_from(le32(at + 16)).unwrap()
}

#[test]
fn names_of_a_folder_whose_index_misses_a_block_are_not_lost_in_silence() {
    let images = Images::new();
    images.sh("truncate -s 20M image.raw
        mkfs.ntfs -q -F -f image.raw > /dev/null
        mkdir mounted
        ntfs-3g image.raw mounted
        for n in 1 2 3; do echo $n > mounted/file$n; done
        umount mounted");
    let names = String::from_utf8(images.run(&["ls", "image.raw"])).unwrap();
    assert!(names.contains("file3"), "{names}");
    let path = images.at("image.raw");
    let mut image = fs::read(&path).unwrap();
    // The bitmap of the root folder: no block of its index is in use.
    let value = resident_value(&image, 5, 0xb0);
    image[value].fill(0);
    fs::write(&path, image).unwrap();
    for args in [&["ls", "image.raw"][..], &["cat", "image.raw", "/file1"]] {
        let output = images.files(args).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{args:?}: {message}");
        assert!(
            message.contains("index of a folder is damaged"),
            "{message}"
        );
    }
}
