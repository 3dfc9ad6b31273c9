//! `ebsfs attach` and `detach`: a filesystem of a snapshot, mounted by the kernel, shows what the source shows; nothing is left of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::filesystems::pull_the_plug;
use crate::partitions::lvm_disk;
use crate::support::*;

/// Each attach undoes what a killed one has left, of any test: a test that kills one is alone.
pub static ATTACHMENTS: RwLock<()> = RwLock::new(());

/// Holds [`ATTACHMENTS`].
enum Turn {
    Shared(#[expect(dead_code, reason = "it is held")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "it is held")] RwLockWriteGuard<'static, ()>),
}

/// A folder with a mountpoint, a folder for temporary files, and what is attached there.
struct Place {
    folder: TempDir,
    process: Option<Child>,
    _turn: Turn,
}

impl Place {
    fn new() -> Self {
        let turn = ATTACHMENTS.read().unwrap_or_else(PoisonError::into_inner);
        Self::with(Turn::Shared(turn))
    }

    /// While no other test attaches anything.
    fn alone() -> Self {
        let turn = ATTACHMENTS.write().unwrap_or_else(PoisonError::into_inner);
        Self::with(Turn::Alone(turn))
    }

    fn with(turn: Turn) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // A drill of another test copies all mounts into a namespace of its own: those on a shared mount end there too.
        sh(&format!(
            "cd {}; mkdir shared; mount --bind shared shared; mount --make-shared shared; mkdir shared/files shared/scratch",
            folder.path().display()
        ));
        Self {
            folder,
            process: None,
            _turn: turn,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn files(&self) -> PathBuf {
        self.at("shared/files")
    }

    fn scratch(&self) -> PathBuf {
        self.at("shared/scratch")
    }

    /// `ebsfs attach WORDS FILES`, with the environment of a command.
    fn command(&self, mut ebsfs: Command, words: &[&str]) -> Command {
        ebsfs
            .arg("attach")
            .args(words)
            .arg(self.files())
            .arg("--scratch")
            .arg(self.scratch())
            .env("EBSFS_STATE_DIR", self.at("state"));
        ebsfs
    }

    /// Attaches, and waits until it is mounted.
    fn attach(&mut self, ebsfs: Command, words: &[&str]) {
        let log = fs::File::create(self.at("log")).unwrap();
        let mut command = self.command(ebsfs, words);
        self.process = Some(command.stderr(log).spawn().unwrap());
        wait_for("the mount", || {
            let ended = self.process.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{}", self.log());
            self.log().contains("INFO attached ")
        });
    }

    fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap()
    }

    fn signal(&self, name: &str) {
        let process = self.process.as_ref().unwrap().id().to_string();
        run(Command::new("kill").args([&format!("-{name}"), &process]));
    }

    /// Waits for the end of the process: its exit code.
    fn ended(&mut self) -> Option<i32> {
        let mut process = self.process.take().unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = process.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "it runs: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What is mounted at the folder: source, type, options.
    fn mounted(&self) -> Option<[String; 3]> {
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        let files = self.files().display().to_string();
        let lines = table
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>());
        let mut ours = lines.filter(|words| words[1] == files);
        ours.next()
            .map(|words| [words[0], words[2], words[3]].map(str::to_owned))
    }

    /// Nothing is left: no mount, no file, no record.
    fn assert_left_nothing(&self) {
        assert_eq!(self.mounted(), None);
        let left: Vec<_> = fs::read_dir(self.scratch()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        let files = self.files().display().to_string();
        for record in fs::read_dir("/run/ebsfs").unwrap().flatten() {
            let text = fs::read_to_string(record.path()).unwrap_or_default();
            assert!(!text.contains(&files), "{text}");
        }
        let held = Holders(self.folder.path().to_owned());
        let mut mounts = held.mounts();
        mounts.retain(|point| !point.ends_with("/shared"));
        assert_eq!((held.loops().len(), mounts.len()), (0, 0));
        std::mem::forget(held);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
            let _ = ebsfs()
                .arg("detach")
                .arg("--lazy")
                .arg(self.files())
                .status();
        }
        drop(Holders(self.folder.path().to_owned()));
    }
}

fn ebsfs() -> Command {
    Command::new(EBSFS)
}

/// Everything that a filesystem shows: names, kinds, modes, owners, sizes, times, links, digests.
fn shown(folder: &Path) -> String {
    sh(&format!(
        "cd {} && find . -path ./lost+found -prune -o -printf '%p %y %m %U:%G %n %s %T@ %l\\n' | LC_ALL=C sort
         find . -path ./lost+found -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum",
        folder.display()
    ))
}

/// A disk with five filesystems of the same files, and a partition that is encrypted.
const DISK: &str = r#"
    cd "$1"
    mkdir -p tree/a/b mounted
    for size in 1 4095 4096 70000 700000; do head -c $size /dev/urandom > tree/a/file-$size; done
    ln -s ../file-1 tree/a/b/link; ln tree/a/file-1 tree/a/hard; truncate -s 3M tree/sparse; echo end >> tree/sparse
    chmod 4711 tree/a/file-1; chown 12:34 tree/a/file-4096; touch -d '2001-02-03 04:05:06.789' tree/a/file-1
    truncate -s 600M "$2"
    printf 'label: gpt\nsize=36M,type=uefi\nsize=32M,name=root\nsize=300M,name=data\nsize=112M,name=tree\nsize=16M,name=win\nsize=1M,name=secret\n' |
        sfdisk --quiet "$2"
    attach() {
        read -r start size < <(partx -rgbo START,SIZE --nr $1 "$2")
        losetup --find --show --offset $((start * 512)) --sizelimit $size "$2"
    }
    trap 'losetup --detach $device' EXIT
    device=$(attach 1 "$2"); mkfs.vfat -F 32 -s 1 -n ESP $device > /dev/null 2>&1; losetup --detach $device
    device=$(attach 2 "$2"); mkfs.ext4 -q -L rootfs -d tree $device; losetup --detach $device
    device=$(attach 3 "$2"); mkfs.xfs -q -L data $device; mount $device mounted; cp -a tree/. mounted; umount mounted; losetup --detach $device
    device=$(attach 4 "$2"); mkfs.btrfs -q -L mytree --rootdir tree $device > /dev/null 2>&1; losetup --detach $device
    device=$(attach 5 "$2"); mkntfs -Q -q $device 2> /dev/null; ntfs-3g $device mounted; cp -r tree/a mounted; umount mounted
    losetup --detach $device
    device=$(attach 6 "$2"); printf 'LUKS\xba\xbe' | dd of=$device conv=notrunc status=none
"#;

fn make(script: &str, folder: &Path, disk: &Path) {
    let mut command = Command::new("timeout");
    command.args([
        "--kill-after=10",
        "120",
        "bash",
        "-euo",
        "pipefail",
        "-c",
        script,
        "bash",
    ]);
    run(command.arg(folder).arg(disk));
}

#[test]
fn each_filesystem_shows_what_the_source_shows_and_is_fetched_in_part() {
    let emulator = Emulator::start();
    let mut place = Place::new();
    let volume = emulator.volume("vol-0a");
    make(DISK, place.folder.path(), &volume);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&snapshot]);
    let all = fs::metadata(mount.disk(&snapshot)).unwrap().len() / BLOCK;
    fs::create_dir(place.at("oracle")).unwrap();
    let oracle = place.at("oracle");
    let held = Holders(place.at("oracle"));
    for (partition, number, kind, options) in [
        ("root", 2, "ext4", "ro,noload"),
        ("3-data.raw", 3, "xfs", "ro,norecovery,nouuid"),
        ("4", 4, "btrfs", "ro,rescue=nologreplay"),
        ("win", 5, "fuseblk", "ro,norecover"),
    ] {
        let driver = if number == 5 {
            "ntfs-3g".to_owned()
        } else {
            format!("mount -t {kind}")
        };
        let at = oracle.display();
        let disk = volume.display();
        // btrfs takes two devices of one UUID for one filesystem: the two are looked at one after the other.
        sh(&format!(
            "read -r start size < <(partx -rgbo START,SIZE --nr {number} {disk})
             device=$(losetup --find --show --read-only --offset $((start * 512)) --sizelimit $size {disk})
             blkid -p -s LABEL -s UUID -o export $device > {at}.blkid
             {driver} -o {options} $device {at}
             losetup --detach $device"
        ));
        let expected = shown(&oracle);
        sh(&format!("umount {at}"));
        assert!(expected.contains("file-700000"), "{expected}");

        // The name of the filesystem is that of blkid; the label of an NTFS is not in its first bytes.
        let described = fs::read(
            mount
                .disk(&snapshot)
                .with_file_name("partitions/partitions.json"),
        );
        let described: serde_json::Value = serde_json::from_slice(&described.unwrap()).unwrap();
        let described = &described["partitions"][number - 1];
        let named = fs::read_to_string(oracle.with_extension("blkid")).unwrap();
        for (key, member) in [("LABEL", "label"), ("UUID", "content_uuid")] {
            let line = named
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{key}=")));
            let ours = described[member].as_str();
            assert_eq!(
                ours,
                line.filter(|_| number != 5 || key == "UUID"),
                "{named}"
            );
        }

        emulator.reset();
        place.attach(emulator.command(EBSFS), &[&snapshot, partition]);
        let [source, found, flags] = place.mounted().unwrap();
        assert_eq!(found, kind);
        for flag in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(flags.split(',').any(|one| one == flag), "{flags}");
        }
        let direct = format!("/sys/block/{}/loop/dio", source.trim_start_matches("/dev/"));
        assert_eq!(fs::read_to_string(&direct).unwrap(), "1\n");
        let readahead = direct.replace("loop/dio", "queue/read_ahead_kb");
        assert_eq!(fs::read_to_string(readahead).unwrap(), "4096\n");
        assert_eq!(shown(&place.files()), expected, "{kind}");
        let gets = emulator.gets();
        assert!(gets < all / 8, "{kind}: {gets} of {all} blocks");
        sh(&format!("umount {}", place.files().display()));
        assert_eq!(place.ended(), Some(0), "{}", place.log());
        place.assert_left_nothing();
    }
    drop(held);

    // What no driver here can mount is named, with what to do.
    let refused = |words: &[&str]| ends(&mut place.command(emulator.command(EBSFS), words));
    let (code, said) = refused(&[&snapshot]);
    assert_eq!(code, 11, "{said}");
    assert!(
        said.contains("give one of 2-root (ext4), 3-data (xfs)"),
        "{said}"
    );
    let (code, said) = refused(&[&snapshot, "secret"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("cryptsetup open --readonly"), "{said}");
    let (code, said) = refused(&[&snapshot, "7"]);
    assert_eq!(code, 3, "{said}");
    let (code, said) = refused(&[&snapshot, "1", "--overlay"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("replays no journal"), "{said}");
    let drivers = fs::read_to_string("/proc/filesystems").unwrap();
    if !drivers.contains("vfat") {
        let (code, said) = refused(&[&snapshot, "1"]);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("no driver for vfat: modprobe vfat"), "{said}");
    }
    place.assert_left_nothing();
}

#[test]
fn a_linear_volume_is_attached_without_device_mapper() {
    let mut place = Place::new();
    let disk = place.at("disk.raw");
    let pieces = lvm_disk(place.folder.path(), &disk);
    let group = format!("test-{}", std::process::id());
    // An ext4, written to the two pieces where LVM says that they are.
    sh(&format!(
        "cd {}
         mkdir tree; head -c 3000000 /dev/urandom > tree/file; truncate -s 9M root.raw; mkfs.ext4 -q -d tree root.raw",
        place.folder.path().display()
    ));
    let image = fs::read(place.at("root.raw")).unwrap();
    let (file, mut done) = (writable(&disk), 0);
    for (_, first, count) in pieces.iter().filter(|(name, ..)| name == "root") {
        use std::os::unix::fs::FileExt;
        // The partition begins at 5 MiB, its extents at 1 MiB.
        let len = (count << 20) as usize;
        file.write_all_at(&image[done..done + len], (6 + first) << 20)
            .unwrap();
        done += len;
    }
    assert_eq!(done, image.len());
    let name = disk.to_str().unwrap();
    place.attach(ebsfs(), &[name, &format!("{group}/root")]);
    assert_same(&place.files().join("file"), &place.at("tree/file"));
    run(ebsfs().arg("detach").arg(place.files()));
    assert_eq!(place.ended(), Some(0));
    let (code, said) = ends(&mut place.command(ebsfs(), &[name, &format!("{group}/wide")]));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("striped over 2 physical volumes"), "{said}");
    place.assert_left_nothing();
}

#[test]
fn a_synced_file_is_there_with_an_overlay_alone_and_the_image_stays_as_it_is() {
    let mut place = Place::new();
    let image = place.at("image.raw");
    // A `sync` of the whole machine, which other tests run, can come between and write everything to its place.
    let made = (0..5).any(|_| {
        let folder = tempfile::tempdir().unwrap();
        let _held = Holders(folder.path().to_owned());
        pull_the_plug(folder.path(), &image);
        ["1", "2", "3"].iter().all(|partition| {
            place.attach(ebsfs(), &[image.to_str().unwrap(), partition]);
            let old = fs::read_to_string(place.files().join("old.txt")).unwrap();
            assert_eq!(old, "from before\n");
            let synced = fs::read_to_string(place.files().join("hello.txt"));
            place.signal("TERM");
            assert_eq!(place.ended(), Some(0));
            synced.unwrap_or_default().is_empty()
        })
    });
    assert!(made, "no journal holds the synced file");
    let before = place.at("before.raw");
    let mut copy = Command::new("cp");
    run(copy.arg("--sparse=always").arg(&image).arg(&before));
    for partition in ["1", "2", "3"] {
        place.attach(ebsfs(), &[image.to_str().unwrap(), partition, "--overlay"]);
        let synced = fs::read_to_string(place.files().join("hello.txt")).unwrap();
        assert_eq!(synced, format!("hello from partition {partition}\n"));
        let [source, .., flags] = place.mounted().unwrap();
        // qemu-storage-daemon mixes up the bytes of concurrent writes.
        let direct = format!("/sys/block/{}/loop/dio", source.trim_start_matches("/dev/"));
        assert_eq!(fs::read_to_string(direct).unwrap(), "0\n");
        assert!(flags.split(',').any(|one| one == "ro"), "{flags}");
        let private = fs::read_dir(place.scratch())
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        let mode = |path: &Path| {
            use std::os::unix::fs::PermissionsExt;
            fs::metadata(path).unwrap().permissions().mode() & 0o777
        };
        assert_eq!(mode(&private.path()), 0o700);
        assert_eq!(mode(&private.path().join("overlay.qcow2")), 0o600);
        run(ebsfs().arg("detach").arg(place.files()));
        assert_eq!(place.ended(), Some(0), "{}", place.log());
        place.assert_left_nothing();
    }
    assert_same(&image, &before);
}

/// A disk without a table.
fn bare_disk(place: &Place) -> String {
    sh(&format!(
        "cd {} && mkdir -p tree && echo hello > tree/hello && truncate -s 8M bare.raw && mkfs.ext4 -q -F -d tree bare.raw",
        place.folder.path().display()
    ));
    place.at("bare.raw").to_str().unwrap().to_owned()
}

#[test]
fn an_attachment_that_is_in_use_stays_until_a_second_signal_or_lazy_detach() {
    let mut place = Place::new();
    let disk = bare_disk(&place);
    place.attach(ebsfs(), &[&disk]);
    let file = open(&place.files().join("hello"));
    let (code, said) = ends(ebsfs().arg("detach").arg(place.files()));
    assert_eq!(code, 10, "{said}");
    assert!(said.contains("it is in use"), "{said}");
    let (code, said) = ends(&mut place.command(ebsfs(), &[&disk]));
    assert_eq!(code, 10, "{said}");
    assert!(
        said.contains("ebsfs attach has mounted there already"),
        "{said}"
    );
    place.signal("TERM");
    wait_for("the warning", || {
        place.log().contains("is busy and stays mounted")
    });
    assert!(place.mounted().is_some());
    place.signal("TERM");
    assert_eq!(place.ended(), Some(0));
    drop(file);
    place.assert_left_nothing();

    // Lazily: the file that is open can be read, and the process ends with it.
    place.attach(ebsfs(), &[&disk]);
    let file = open(&place.files().join("hello"));
    run(ebsfs().args(["detach", "--lazy"]).arg(place.files()));
    assert_eq!(place.mounted(), None);
    assert_eq!(std::io::read_to_string(&file).unwrap(), "hello\n");
    drop(file);
    assert_eq!(place.ended(), Some(0));
    place.assert_left_nothing();
    let (code, said) = ends(ebsfs().arg("detach").arg(place.files()));
    assert_eq!(code, 3, "{said}");
}

#[test]
fn what_a_killed_process_has_left_is_removed_by_detach_and_by_the_next_attach() {
    let mut place = Place::alone();
    let disk = bare_disk(&place);
    for words in [&[disk.as_str()][..], &[&disk, "--overlay"]] {
        place.attach(ebsfs(), words);
        place.signal("KILL");
        assert_eq!(place.ended(), None);
        assert!(place.mounted().is_some());
        run(ebsfs().arg("detach").arg(place.files()));
        place.assert_left_nothing();

        place.attach(ebsfs(), words);
        place.signal("KILL");
        assert_eq!(place.ended(), None);
        place.attach(ebsfs(), &[&disk]);
        let hello = fs::read_to_string(place.files().join("hello")).unwrap();
        assert_eq!(hello, "hello\n");
        place.signal("INT");
        assert_eq!(place.ended(), Some(0));
        place.assert_left_nothing();
    }
}

#[test]
fn an_attachment_goes_to_the_background_and_is_refused_where_it_cannot_be() {
    let place = Place::new();
    let disk = bare_disk(&place);
    run(&mut place.command(ebsfs(), &["--background", "--exec", &disk]));
    let [_, kind, flags] = place.mounted().unwrap();
    assert_eq!(kind, "ext4");
    assert!(
        !flags.contains("noexec") && flags.contains("nosuid"),
        "{flags}"
    );
    run(ebsfs().arg("detach").arg(place.files()));
    place.assert_left_nothing();

    // A folder with files in it, an empty disk, and a user that may not mount.
    fs::write(place.files().join("mine"), "x").unwrap();
    let (code, said) = ends(&mut place.command(ebsfs(), &[&disk]));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("it is not empty"), "{said}");
    fs::remove_file(place.files().join("mine")).unwrap();
    fs::write(place.at("zero.raw"), vec![0; 1 << 20]).unwrap();
    let zero = place.at("zero.raw");
    let (code, said) = ends(&mut place.command(ebsfs(), &[zero.to_str().unwrap()]));
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("the whole disk (empty)"), "{said}");
    sh(&format!(
        "chmod 755 {0}; chmod 644 {disk}",
        place.folder.path().display()
    ));
    let mut other = Command::new("setpriv");
    other.args(["--reuid=65534", "--regid=65534", "--clear-groups", EBSFS]);
    let (code, said) = ends(&mut place.command(other, &[&disk]));
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("only root may mount"), "{said}");
    place.assert_left_nothing();
}
