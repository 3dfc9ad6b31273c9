//! Partitions, requests, the copy's borders, the mount, and the differences of two snapshots.

use std::time::Duration;

use super::*;

/// A disk with a GPT: an EFI system partition, an ext4 with files, an XFS.
fn make_disk(images: &Images, disk: &Path) {
    images.sh(&format!(
        "rm -f parts.*; truncate -s 700M {disk}
         printf 'label: gpt\nsize=40M,type=U\nsize=300M\nsize=320M\n' | sfdisk --quiet {disk}
         mkdir -p content/etc/ssh content/var
         echo host > content/etc/hostname
         head -c 2000000 /dev/urandom > content/var/blob
         for n in $(seq 400); do echo $n > content/var/file-$n; done
         ln -s /etc/hostname content/etc/link
         read -r start size < <(partx -rgbo START,SIZE --nr 1 {disk}); mkfs.fat -F 32 --offset $start {disk} $((size / 1024)) > /dev/null
         read -r start size < <(partx -rgbo START,SIZE --nr 2 {disk}); mkfs.ext4 -q -d content -E offset=$((start * 512)) {disk} $((size / 1024))k
         truncate -s 320M parts.xfs; mkfs.xfs -q parts.xfs
         read -r start size < <(partx -rgbo START,SIZE --nr 3 {disk}); dd if=parts.xfs of={disk} bs=1M oflag=seek_bytes seek=$((start * 512)) conv=notrunc,sparse status=none",
        disk = disk.display()
    ));
}

#[test]
fn only_blocks_with_metadata_and_the_wanted_file_are_fetched() {
    let emulator = Emulator::start();
    let images = Images::new();
    make_disk(&images, &emulator.volume("vol-0a"));
    let snapshot = emulator.snapshot("vol-0a");
    let run = |words: &[&str]| {
        emulator.reset();
        let output = emulator
            .ebsfs(&[&["files"], words].concat())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        (output.stdout, emulator.gets())
    };
    let (text, gets) = run(&["cat", &snapshot, "/etc/hostname"]);
    assert_eq!(text, b"host\n");
    // The table and what each of three partitions begins with; the superblock's block has the descriptors. The inode table, two
    // folders, the file.
    assert!(gets <= 10, "{gets}");
    let (text, few) = run(&["ls", &snapshot, "/var"]);
    assert_eq!(text.split(|byte| *byte == b'\n').count(), 402);
    assert!(few <= 10, "{few}");
    let (blob, gets) = run(&["cat", &snapshot, "/var/blob"]);
    assert_eq!(blob, fs::read(images.at("content/var/blob")).unwrap());
    // 2,000,000 bytes lie in 4 or 5 blocks.
    assert!(gets <= 10 + 5, "{gets}");
}

#[test]
fn a_partition_is_chosen_or_named_and_others_name_the_kernel() {
    let images = Images::new();
    make_disk(&images, &images.at("disk.raw"));
    // The EFI system partition is passed over.
    assert_eq!(images.run(&["cat", "disk.raw", "etc/hostname"]), b"host\n");
    assert_eq!(images.run(&["ls", "disk.raw", "--partition", "1"]), b"");
    for (words, code, message) in [
        (
            &["ls", "disk.raw", "--partition", "3"][..],
            2,
            "cannot read xfs without the kernel: ebsfs attach mounts it, as root",
        ),
        (
            &["ls", "disk.raw", "--partition", "9"],
            3,
            "it has 1 (vfat), 2 (ext4), 3 (xfs)",
        ),
        (
            &["ls", "disk.raw", "/no/such"],
            3,
            "cannot open /no/such: there is no such file",
        ),
        (
            &["cat", "disk.raw", "/etc/link/x"],
            2,
            "/etc/link is a link to /etc/hostname, and links are not followed",
        ),
        (
            &["cat", "disk.raw", "/etc/link"],
            2,
            "it is no regular file (symlink)",
        ),
        (
            &["cat", "disk.raw", "/etc/hostname/x"],
            2,
            "/etc/hostname is no folder",
        ),
    ] {
        let (ended, said) = ends(&mut images.files(words));
        assert_eq!(ended, code, "{words:?}: {said}");
        assert!(said.contains(message), "{words:?}: {said}");
    }
    // Of two filesystems none is taken.
    images.sh("sfdisk --quiet --part-type disk.raw 1 L 2>/dev/null");
    let (code, said) = ends(&mut images.files(&["ls", "disk.raw"]));
    assert_eq!(code, 11, "{said}");
    assert!(
        said.contains("it has 1 (vfat), 2 (ext4), 3 (xfs): --partition PARTITION names one"),
        "{said}"
    );
}

#[test]
fn listings_have_names_metadata_and_patterns() {
    let images = Images::new();
    make_disk(&images, &images.at("disk.raw"));
    let text = |words: &[&str]| String::from_utf8(images.run(words)).unwrap();
    assert_eq!(
        text(&["find", "disk.raw", "/etc", "--type", "f"]),
        "/etc/hostname\n"
    );
    assert_eq!(
        text(&["find", "disk.raw", "--name", "file-39?", "-0"])
            .split_terminator('\0')
            .count(),
        10
    );
    assert_eq!(
        text(&["tree", "disk.raw", "/etc"]),
        "/etc/\n  hostname\n  link -> /etc/hostname\n  ssh/\n"
    );
    let long = text(&["ls", "disk.raw", "/etc", "-l"]);
    assert!(
        long.lines()
            .any(|line| line.starts_with("-rw-r--r-- 1 0 0") && line.ends_with(" hostname")),
        "{long}"
    );
    assert!(long.contains("link -> /etc/hostname"), "{long}");
    let stat = text(&["stat", "disk.raw", "/etc/hostname"]);
    assert!(
        stat.contains("size      5\n") && stat.contains("mode      0644 -rw-r--r--\n"),
        "{stat}"
    );
    let body = text(&["timeline", "disk.raw", "/etc"]);
    assert_eq!(body.lines().count(), 4);
    assert!(
        body.lines().all(|line| line.split('|').count() == 11),
        "{body}"
    );
}

#[test]
fn a_copy_stays_below_its_destination_and_replaces_nothing_unasked() {
    let images = Images::new();
    images.sh(
        "mkdir -p content/d; echo new > content/d/file; ln -s /etc content/d/out; truncate -s 32M image.raw
         mkfs.ext4 -q -d content image.raw
         mkdir -p to/d outside; echo old > to/d/file; ln -s $PWD/outside to/d/out",
    );
    let (code, said) = ends(&mut images.files(&["cp", "image.raw", "/d", "to"]));
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("/d/file: something is there already")
            && said.contains("--overwrite replaces files that are there"),
        "{said}"
    );
    assert_eq!(fs::read(images.at("to/d/file")).unwrap(), b"old\n");
    // A link where a folder is to be is not followed.
    images.sh("mkdir into; ln -s $PWD/outside into/d");
    let (code, said) = ends(&mut images.files(&["cp", "image.raw", "/d", "into", "--overwrite"]));
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("cannot open the folder: something else is there"),
        "{said}"
    );
    assert_eq!(fs::read_dir(images.at("outside")).unwrap().count(), 0);
    images.run(&["cp", "image.raw", "/d", "to", "--overwrite"]);
    assert_eq!(fs::read(images.at("to/d/file")).unwrap(), b"new\n");
    assert_eq!(
        fs::read_link(images.at("to/d/out")).unwrap(),
        Path::new("/etc")
    );
    assert_eq!(fs::read_dir(images.at("outside")).unwrap().count(), 0);
    // One file to a new name.
    images.run(&["cp", "image.raw", "/d/file", "named"]);
    assert_eq!(fs::read(images.at("named")).unwrap(), b"new\n");
}

#[test]
fn a_file_that_cannot_be_read_leaves_what_it_was_to_replace() {
    let images = Images::new();
    images.sh(
        "mkdir -p content/d; echo new > content/d/file; echo new > content/d/other; ln content/d/other content/d/name
         ln -s target content/d/link; ln -s target content/d/secret; mkfifo content/d/pipe; truncate -s 32M image.raw
         mkfs.ext4 -q -d content image.raw
         debugfs -w -R 'sif /d/file flags 0x80800' image.raw 2> /dev/null
         debugfs -w -R 'sif /d/secret flags 0x800' image.raw 2> /dev/null
         mkdir -p to/d; for name in file other name link secret pipe; do echo old > to/d/$name; done",
    );
    let words = ["cp", "image.raw", "/d", "to", "--overwrite"];
    let (code, said) = ends(&mut images.files(&words));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("/d/file: the file is encrypted"), "{said}");
    assert!(said.contains("/d/secret: the link is encrypted"), "{said}");
    // No half file is left either.
    let listed = images
        .sh("cd to/d; LC_ALL=C ls -A; cat file secret other name; readlink link; test -p pipe");
    assert_eq!(
        listed,
        "file\nlink\nname\nother\npipe\nsecret\nold\nold\nnew\nnew\ntarget\n"
    );
    let number = |name: &str| images.at(name).metadata().unwrap().ino();
    assert_eq!(number("to/d/other"), number("to/d/name"));
}

#[test]
fn a_name_that_linux_does_not_allow_is_shown_as_an_error() {
    let images = Images::new();
    images.sh(
        "mkdir content; echo x > content/good; echo x > content/bad-name; truncate -s 32M ext.raw
         mkfs.ext4 -q -O ^metadata_csum -d content ext.raw
         truncate -s 32M ntfs.raw; mkfs.ntfs -q -F -f ntfs.raw > /dev/null
         ntfscp -q ntfs.raw content/good good; ntfscp -q ntfs.raw content/good bad-name
         python3 - <<'END'
for image, code in (('ext.raw', 'ascii'), ('ntfs.raw', 'utf-16le')):
    data = open(image, 'rb').read()
    assert 'bad-name'.encode(code) in data
    open(image, 'wb').write(data.replace('bad-name'.encode(code), 'bad/name'.encode(code)))
END",
    );
    for image in ["ext.raw", "ntfs.raw"] {
        let (code, said) = ends(&mut images.files(&["ls", image]));
        assert_eq!(code, 8, "{image}: {said}");
        assert!(
            said.contains("bad?name: its name is not allowed on Linux"),
            "{image}: {said}"
        );
        assert_eq!(images.run(&["cat", image, "/good"]), b"x\n");
    }
}

#[test]
fn another_user_copies_what_he_may_keep_and_is_given_the_counts() {
    let images = Images::new();
    images.sh(
        "mkdir content; echo x > content/file; chmod 4755 content/file; mknod content/null c 1 3; truncate -s 32M image.raw
         mkfs.ext4 -q -d content image.raw
         mkdir to; chown 4242:4242 to; chmod 755 .; chmod 644 image.raw; rmdir state 2>/dev/null || true; mkdir state; chown 4242 state",
    );
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid=4242",
            "--regid=4242",
            "--clear-groups",
            EBSFS,
            "files",
            "cp",
            "image.raw",
            "/",
            "to",
        ])
        .current_dir(images.folder.path())
        .env("EBSFS_STATE_DIR", images.at("state"));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for line in [
        "owners were not kept",
        "1 set-user-id and set-group-id bits were not kept",
        "1 devices were not made",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let found = images.at("to/file").metadata().unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid()), (0o755, 4242));
}

#[test]
fn a_mount_shows_the_files_read_only_and_ends_with_a_signal() {
    let images = Images::new();
    make_disk(&images, &images.at("disk.raw"));
    let point = tempfile::tempdir().unwrap();
    let at = point.path().to_owned();
    let mut mount = Mount::start_at(point, images.files(&["mount", "disk.raw"]), &[]);
    let blob = fs::read(images.at("content/var/blob")).unwrap();
    assert_eq!(fs::read(at.join("var/blob")).unwrap(), blob);
    assert_eq!(
        fs::read_link(at.join("etc/link")).unwrap(),
        Path::new("/etc/hostname")
    );
    assert_eq!(fs::read_dir(at.join("var")).unwrap().count(), 401);
    let error = fs::write(at.join("etc/new"), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let options = sh(&format!("findmnt -no OPTIONS {}", at.display()));
    assert!(
        ["ro", "nosuid", "nodev", "noexec"]
            .iter()
            .all(|option| options.contains(option)),
        "{options}"
    );
    mount.signal("TERM");
    assert_eq!(mount.wait(Duration::from_secs(10)), Some(0));
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
}

#[test]
fn differences_of_two_snapshots_are_exact_and_cost_the_changed_blocks() {
    let emulator = Emulator::start();
    let images = Images::new();
    let disk = emulator.volume("vol-0a");
    make_disk(&images, &disk);
    let base = emulator.snapshot("vol-0a");
    images.sh(&format!(
        "read -r start size < <(partx -rgbo START,SIZE --nr 2 {disk})
         mkdir mounted; mount -o loop,offset=$((start * 512)),sizelimit=$size {disk} mounted
         cd mounted
         echo added > var/added; mkdir etc/new; echo in > etc/new/in
         rm var/file-7
         printf 'HOST\n' > etc/hostname
         chmod 600 var/file-8
         # The same bytes again: its times differ.
         cat var/file-9 > tmp-9; cat tmp-9 > var/file-9; rm tmp-9
         # Bytes that differ, all times as before.
         old=$(stat -c %y var/file-10); echo XX > var/file-10; touch -d \"$old\" var/file-10
         cd ..; umount mounted",
        disk = disk.display()
    ));
    let head = emulator.snapshot("vol-0a");
    emulator.reset();
    let output = emulator
        .ebsfs(&["files", "changes", &base, &head])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("M /etc") || line.contains("etc/"))
        .collect();
    lines.retain(|line| !["M /", "M /var", "M /etc"].contains(line));
    assert_eq!(
        lines,
        [
            "C /etc/hostname",
            "A /etc/new",
            "A /etc/new/in",
            "A /var/added",
            "C /var/file-10",
            "R /var/file-7",
            "M /var/file-8",
            "M /var/file-9",
        ]
    );
    assert!(emulator.gets() <= 40, "{}", emulator.gets());
    let output = emulator
        .ebsfs(&["files", "changes", &base, &base, "--json"])
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"");
}
