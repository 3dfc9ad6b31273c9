//! ext2, ext3 and ext4: the kernel and the crate ext4-view are the oracles.

use super::*;

/// Everything that a filesystem can hold, made by the kernel.
const CONTENT: &str = r#"
    mkdir -p deep/a/b/c empty many
    echo hello > hello.txt
    : > empty.txt
    head -c 3000000 /dev/urandom > deep/a/large.bin
    truncate -s 5G sparse.bin
    echo middle | dd of=sparse.bin bs=1 seek=$((3 << 30)) conv=notrunc status=none
    echo -n end | dd of=sparse.bin bs=1 seek=$(((5 << 30) - 3)) conv=notrunc status=none
    # ext2 and ext3 have no such blocks.
    fallocate -l 1M unwritten.bin 2>/dev/null || : > unwritten.bin
    for n in $(seq 40); do echo $n | dd of=pieces.bin bs=4096 seek=$((n * 3)) conv=notrunc status=none; done
    ln hello.txt deep/a/b/hard.txt
    ln -s hello.txt short-link
    ln -s /etc/passwd absolute-link
    ln -s $(printf 'x%.0s' $(seq 200))/y long-link
    ln -s ../../../../../../outside up-link
    mknod null c 1 3
    mknod disk b 259 70000
    mkfifo pipe
    python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
    printf 'raw' > "$(printf 'name-\377\376')"
    printf 'line' > "$(printf 'two\nlines')"
    printf 'long' > $(printf 'n%.0s' $(seq 255))
    seq -f 'many/file with a rather long name to fill the blocks of the folder %g' 700 | xargs -d '\n' touch
    chown 1234:70000 hello.txt; chown -h 5:6 short-link
    cp /bin/true setuid; chmod 6755 setuid
    chmod 1777 empty; chmod 0 empty.txt
    touch -d '1903-02-03T04:05:06Z' hello.txt
    touch -d '2399-02-03T04:05:06.123456789Z' deep/a/large.bin
    setfattr -n user.small -v value hello.txt
    setfattr -n user.large -v $(head -c 700 /dev/zero | tr '\0' v) hello.txt
    setfattr -n trusted.bytes -v 0x00ff00 deep
    setfattr -n user.empty -v '' deep
    python3 - <<'END'
import os, struct
def acl(*entries):
    return struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *e) for e in entries)
none = 0xffffffff
os.setxattr('deep/a/large.bin', 'system.posix_acl_access', acl((1, 6, none), (2, 4, 1000), (4, 4, none), (16, 6, none), (32, 0, none)))
os.setxattr('deep', 'system.posix_acl_default', acl((1, 7, none), (4, 5, none), (8, 7, 77), (16, 7, none), (32, 5, none)))
END
"#;

/// Forms of ext that differ on the disk.
const FORMS: [(&str, &str); 5] = [
    ("ext4", "-t ext4 -b 4096 -I 256"),
    ("small", "-t ext4 -b 1024 -I 256 -O inline_data,^64bit"),
    (
        "metabg",
        "-t ext4 -b 4096 -O meta_bg,^resize_inode,^metadata_csum,ea_inode",
    ),
    ("ext3", "-t ext3 -b 1024"),
    ("ext2", "-t ext2 -I 128"),
];

/// Makes an image of a form, mounted at `mounted`, with the content.
fn make(images: &Images, form: &str) {
    images.sh(&format!(
        "truncate -s 160M image.raw
         mkfs.ext4 -q {form} -N 4000 image.raw
         mkdir -p mounted
         mount -o loop,user_xattr,acl image.raw mounted
         cd mounted
         {CONTENT}"
    ));
}

/// Mounts a copy of an image by the kernel, which replays its journal there.
fn oracle(images: &Images, image: &str) -> PathBuf {
    images.sh(&format!(
        "cp --sparse=always {image} oracle.raw
         mkdir -p oracle
         mount -o loop,noatime oracle.raw oracle"
    ));
    images.at("oracle")
}

#[test]
fn every_file_of_each_form_of_ext_is_copied_as_the_kernel_reads_it() {
    for (name, form) in FORMS {
        let images = Images::new();
        // Large times and attributes do not fit into inodes of 128 bytes.
        make(&images, form);
        images.sh("umount mounted");
        let oracle = oracle(&images, "image.raw");
        images.sh("mkdir copy");
        images.run(&["cp", "image.raw", "/", "copy"]);
        let files = assert_same_tree(&images.at("copy"), &oracle);
        assert!(files > 720, "{name}: {files}");
        let found = images.json(&["find", "image.raw", "--json"]);
        assert_same_metadata(&found, &oracle);
        // Holes stay holes.
        let copied = images.at("copy/sparse.bin").metadata().unwrap();
        assert!(
            copied.blocks() * 512 < 1 << 20,
            "{name}: {} blocks",
            copied.blocks()
        );
        images.sh("umount oracle");
    }
}

#[test]
fn a_journal_that_was_not_replayed_is_replayed_in_memory() {
    let images = Images::new();
    make(&images, "-t ext4 -J size=8");
    // Committed and not at its place: the journal alone has it. Blocks that are journal, freed and data again are revoked.
    images.sh("cd mounted
         for n in $(seq 300); do mkdir -p new/$n; echo $n > new/$n/file; done
         rm -r many; sync -f .
         for n in $(seq 20); do head -c 100000 /dev/urandom > again-$n; done
         echo synced > synced.txt
         xfs_io -x -c shutdown . || true
         cd ..; cp --sparse=always image.raw dirty.raw; umount mounted");
    let state = images.sh("dumpe2fs -h dirty.raw 2>/dev/null | grep features");
    assert!(state.contains("needs_recovery"), "{state}");
    let before = images.sh("sha256sum dirty.raw");
    let oracle = oracle(&images, "dirty.raw");
    assert!(oracle.join("new/300/file").exists());
    images.sh("mkdir copy");
    let output = images
        .files(&["cp", "dirty.raw", "/", "copy"])
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && log.contains("its journal was replayed in memory"),
        "{log}"
    );
    assert_same_tree(&images.at("copy"), &oracle);
    assert_same_metadata(&images.json(&["find", "dirty.raw", "--json"]), &oracle);
    assert_eq!(
        images.sh("sha256sum dirty.raw"),
        before,
        "the image was written"
    );
}

#[test]
fn data_that_is_in_the_journal_too_is_read_from_there() {
    let images = Images::new();
    images.sh(
        "truncate -s 64M image.raw; mkfs.ext4 -q -J size=8 image.raw; mkdir mounted
         mount -o loop,data=journal image.raw mounted
         cd mounted
         for n in $(seq 30); do head -c 50000 /dev/urandom > file-$n; done
         # A block that begins with the signature of the journal is escaped there.
         printf '\\xc0\\x3b\\x39\\x98rest' > escaped
         sync -f .
         cd ..; cp --sparse=always image.raw dirty.raw; umount mounted",
    );
    let oracle = oracle(&images, "dirty.raw");
    images.sh("mkdir copy");
    images.run(&["cp", "dirty.raw", "/", "copy"]);
    assert_same_tree(&images.at("copy"), &oracle);
}

#[test]
fn a_second_reader_agrees_on_every_file() {
    let images = Images::new();
    make(&images, "-t ext4");
    // The crate refuses times before 1970 and after 2038.
    images.sh("touch mounted/hello.txt mounted/deep/a/large.bin; sync -f mounted; cp --sparse=always image.raw dirty.raw; umount mounted");
    let other = ext4_view::Ext4::load(Box::new(fs::read(images.at("dirty.raw")).unwrap())).unwrap();
    let found = images.json(&["find", "dirty.raw", "--json"]);
    let mut compared = 0;
    for (name, value) in found {
        let metadata = other.symlink_metadata(&*name).unwrap();
        assert_eq!(
            format!("{:04o}", metadata.mode()),
            value["mode"].as_str().unwrap()
        );
        assert_eq!(u64::from(metadata.uid()), value["uid"].as_u64().unwrap());
        if metadata.file_type().is_regular_file() && metadata.len() < 1 << 24 {
            use std::os::unix::ffi::OsStringExt;
            let path = OsString::from_vec(name.clone());
            let output = images
                .files(&["cat", "dirty.raw"])
                .arg(path)
                .output()
                .unwrap();
            if compared < 20 {
                assert_eq!(output.stdout, other.read(&*name).unwrap());
            }
            compared += 1;
        }
        if compared >= 20 {
            break;
        }
    }
    assert!(compared > 3);
}
