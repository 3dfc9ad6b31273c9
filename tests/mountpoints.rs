//! Where a mount can go, and that a mount process ends its own mount and no other.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::*;

/// An emulator with one snapshot, and a folder for mounts, from which all is unmounted at the end.
struct Place {
    // Before the folder: it holds what is mounted there.
    held: Holders,
    folder: TempDir,
    snapshot: String,
    emulator: Emulator,
}

impl Place {
    fn new() -> Self {
        let emulator = Emulator::start();
        emulator.make_volume("vol-0a", 2048, 0..64);
        let snapshot = emulator.snapshot("vol-0a");
        let folder = tempfile::tempdir().unwrap();
        Self {
            held: Holders(folder.path().to_owned()),
            folder,
            snapshot,
            emulator,
        }
    }

    /// An empty folder.
    fn empty(&self) -> TempDir {
        TempDir::new_in(self.folder.path()).unwrap()
    }

    fn mount_at(&self, point: TempDir) -> Mount {
        let command = self.emulator.ebsfs(&["mount"]);
        Mount::start_at(point, command, &[&self.snapshot])
    }

    fn mount(&self) -> Mount {
        self.mount_at(self.empty())
    }

    /// That the mount serves.
    fn reads(&self, point: &Path) {
        let disk = point.join("snapshots").join(&self.snapshot);
        let found = read_at(&disk.join("disk.raw"), BLOCK, 512);
        assert_eq!(found, content("vol-0a", 1)[..512]);
    }

    fn umount(&self, point: &Path, args: &[&str]) -> (i32, String) {
        ends(self.emulator.ebsfs(&["umount"]).args(args).arg(point))
    }

    /// How many mounts there are at a path, on top of each other.
    fn layers(&self, point: &Path) -> usize {
        let mounts = self.held.mounts();
        mounts.iter().filter(|at| Path::new(at) == point).count()
    }
}

/// Mounts a tmpfs with a file.
fn tmpfs(point: &Path) {
    sh(&format!(
        "mount -t tmpfs none {0} && echo mine > {0}/file",
        point.display()
    ));
}

/// That the tmpfs is still there.
fn is_tmpfs(point: &Path) {
    let file = std::fs::read_to_string(point.join("file"));
    assert_eq!(file.unwrap_or_default(), "mine\n", "the tmpfs has gone");
}

/// A process that is killed at the end.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process in a mount namespace of its own, which holds this mount and no other of the tests.
fn hold_in_another_namespace(point: &Path) -> Killed {
    let script = r#"
        while read -r _ at _; do
            case $at in
                "$1") ;;
                "$2"/*) umount --lazy "$at" || true ;;
            esac
        done < <(cat /proc/self/mounts)
        exec sleep 60
    "#;
    let holder = Command::new("unshare")
        .args(["--mount", "bash", "-c", script, "bash"])
        .args([point, &std::env::temp_dir()])
        .spawn()
        .unwrap();
    let name = format!("/proc/{}/comm", holder.id());
    let holder = Killed(holder);
    wait_for("the other namespace", || {
        std::fs::read_to_string(&name).is_ok_and(|name| name == "sleep\n")
    });
    holder
}

#[test]
fn a_mount_on_an_empty_mountpoint_leaves_the_lower_mount_unchanged() {
    let place = Place::new();
    sh(&format!(
        "cd {}
         mkdir other inner fs
         mount -t tmpfs none other
         mkdir other/inner
         truncate -s 128M btrfs.raw
         mkfs.btrfs -q btrfs.raw
         mount -o loop btrfs.raw fs",
        place.folder.path().display()
    ));
    for (kind, prepare) in [
        ("a tmpfs", "mount -t tmpfs none $at"),
        (
            "a shared tmpfs",
            "mount -t tmpfs none $at; mount --make-rshared $at",
        ),
        ("a bind mount", "mount --bind inner $at"),
        (
            "a bind mount from another filesystem",
            "mount --bind other/inner $at",
        ),
        (
            "a btrfs subvolume",
            "btrfs subvolume create fs/sub > /dev/null; mount --bind fs/sub $at",
        ),
    ] {
        println!("{kind}");
        let point = place.empty();
        let at = point.path().display().to_string();
        sh(&format!(
            "cd {}; at={at}; {prepare}",
            place.folder.path().display()
        ));
        let mut mount = place.mount_at(point);
        let point = mount.point.path().to_owned();
        place.reads(&point);
        mount.signal("TERM");
        assert_eq!(mount.wait(Duration::from_secs(10)), Some(0), "{kind}");
        assert_eq!(place.layers(&point), 1, "{kind}");
        std::fs::write(point.join("file"), "x").unwrap();
        std::fs::remove_file(point.join("file")).unwrap();
    }
    // A subvolume has a device number of its own without being a mount.
    let point = TempDir::new_in(place.folder.path().join("fs")).unwrap();
    let at = point.path().display();
    sh(&format!(
        "rmdir {at}; btrfs subvolume create {at} > /dev/null"
    ));
    let mut mount = place.mount_at(point);
    let point = mount.point.path().to_owned();
    place.reads(&point);
    assert_eq!(place.umount(&point, &[]).0, 0);
    assert_eq!(mount.wait(Duration::from_secs(10)), Some(0));
    assert_eq!(place.layers(&point), 0);
    assert!(point.is_dir());
}

#[test]
fn a_mount_onto_a_folder_with_files_or_onto_a_mount_of_ebsfs_is_refused_with_a_line_that_says_why()
{
    let place = Place::new();
    let full = place.empty();
    std::fs::write(full.path().join("file"), "mine\n").unwrap();
    let mounted = place.empty();
    tmpfs(mounted.path());
    let ours = place.mount();
    for (kind, point, why) in [
        ("a folder with a file", full.path(), "not empty"),
        ("a tmpfs with a file", mounted.path(), "not empty"),
        ("a mount of ebsfs", ours.point.path(), "mounted"),
    ] {
        for more in [&[][..], &["--background"]] {
            let mut command = place.emulator.ebsfs(&["mount"]);
            let (code, said) = ends(command.args(more).arg(point).arg(&place.snapshot));
            assert_eq!(code, 1, "{kind}: {said}");
            let lines: Vec<&str> = said.trim_end().lines().collect();
            assert_eq!(lines.len(), 1, "{kind}: {said}");
            assert!(said.contains(why), "{kind}: {said}");
            assert!(said.contains(point.to_str().unwrap()), "{kind}: {said}");
        }
    }
    is_tmpfs(full.path());
    is_tmpfs(mounted.path());
    place.reads(ours.point.path());
    assert_eq!(place.layers(ours.point.path()), 1);
}

#[test]
fn a_mount_that_another_namespace_held_does_not_unmount_what_was_mounted_at_its_path_later() {
    let place = Place::new();
    let mut mount = place.mount();
    let point = mount.point.path().to_owned();
    place.reads(&point);
    let holder = hold_in_another_namespace(&point);
    let (code, said) = place.umount(&point, &[]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(place.layers(&point), 0);
    tmpfs(&point);
    let (code, said) = place.umount(&point, &[]);
    assert_ne!(code, 0, "a tmpfs is not ours: {said}");
    drop(holder);
    assert_eq!(mount.wait(Duration::from_secs(10)), Some(0));
    is_tmpfs(&point);
}

#[test]
fn a_signal_to_a_mount_that_is_held_elsewhere_leaves_what_was_mounted_at_its_path_later() {
    let place = Place::new();
    let mut mount = place.mount();
    let point = mount.point.path().to_owned();
    let elsewhere = place.empty();
    let (from, to) = (point.display(), elsewhere.path().display());
    sh(&format!("mount --bind {from} {to}; umount {from}"));
    tmpfs(&point);
    place.reads(elsewhere.path());
    mount.signal("TERM");
    std::thread::sleep(Duration::from_secs(1));
    is_tmpfs(&point);
    if mount.process.try_wait().unwrap().is_none() {
        mount.signal("TERM");
    }
    assert_eq!(mount.wait(Duration::from_secs(10)), Some(0));
    is_tmpfs(&point);
}

#[test]
fn a_mount_detached_with_an_open_file_serves_it_to_its_end_and_leaves_the_next_mount_at_its_path() {
    let place = Place::new();
    let mut mount = place.mount();
    let point = mount.point.path().to_owned();
    let file = open(&mount.disk(&place.snapshot));
    let (code, said) = place.umount(&point, &["--lazy"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(place.layers(&point), 0);
    // The next mount is of ebsfs too, in a process of its own.
    let mut next = place.emulator.ebsfs(&["mount", "--background"]);
    run(next.arg(&point).arg(&place.snapshot));
    let mut bytes = vec![0; 512];
    file.read_exact_at(&mut bytes, 40 * BLOCK).unwrap();
    assert_eq!(bytes, content("vol-0a", 40)[..512]);
    drop(file);
    assert_eq!(mount.wait(Duration::from_secs(10)), Some(0));
    assert_eq!(place.layers(&point), 1);
    place.reads(&point);
    let (code, said) = place.umount(&point, &[]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn a_mount_that_something_is_mounted_over_leaves_it_there() {
    let place = Place::new();
    let mut mount = place.mount();
    let point = mount.point.path().to_owned();
    tmpfs(&point);
    let (code, said) = place.umount(&point, &[]);
    is_tmpfs(&point);
    assert_eq!(code, 1, "{said}");
    let (code, said) = place.umount(&point, &["--lazy"]);
    is_tmpfs(&point);
    assert_eq!(code, 1, "{said}");
    mount.signal("TERM");
    wait_for("an end or a reason", || {
        let ended = mount.process.try_wait().unwrap();
        ended.is_some() || mount.log().contains("stays mounted")
    });
    is_tmpfs(&point);
    if mount.process.try_wait().unwrap().is_none() {
        sh(&format!("umount {}", point.display()));
        place.reads(&point);
        mount.signal("TERM");
    }
    assert_eq!(mount.wait(Duration::from_secs(10)), Some(0));
}

#[test]
fn of_two_mounts_that_start_at_once_at_one_folder_the_second_one_is_refused() {
    let place = Place::new();
    let point = place.empty();
    // Both have looked at the folder before one of them mounts.
    place.emulator.set("latency_ms=300");
    let start = || {
        let mut command = place.emulator.ebsfs(&["mount", "--background"]);
        command.arg(point.path()).arg(&place.snapshot);
        command.stderr(std::process::Stdio::piped());
        command.spawn().unwrap()
    };
    let both = [start(), start()].map(|child| child.wait_with_output().unwrap());
    let refused: Vec<String> = both
        .iter()
        .filter(|output| !output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stderr).into_owned())
        .collect();
    assert_eq!(refused.len(), 1, "{both:?}");
    assert!(refused[0].contains("mounted there already"), "{refused:?}");
    assert_eq!(place.layers(point.path()), 1);
    place.reads(point.path());
    let (code, said) = place.umount(point.path(), &[]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn a_process_whose_root_is_a_folder_that_is_no_mount_mounts_there_and_unmounts() {
    let place = Place::new();
    let root = place.empty();
    // Its programs are those outside.
    let script = r#"
        cd "$1"; mkdir -p m proc dev usr etc lib lib64 ebsfs
        for at in dev usr etc lib lib64; do mount --rbind "/$at" "$at"; done
        mount -t proc none proc
        mount --bind "$(dirname "$2")" ebsfs
        exec chroot . /ebsfs/ebsfs mount --lazy /m "$3"
    "#;
    let mut command = place.emulator.command("unshare");
    command.args(["--mount", "bash", "-euc", script, "bash"]);
    command.arg(root.path()).args([EBSFS, &place.snapshot]);
    let credentials = root.path().join("credentials");
    std::fs::copy(
        place.emulator.folder.path().join("credentials"),
        credentials,
    )
    .unwrap();
    command.env("AWS_SHARED_CREDENTIALS_FILE", "/credentials");
    let process = command
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let at = format!("/proc/{}/root/m/snapshots", process.id());
    let mut process = Killed(process);
    wait_for("the mount, or an end", || {
        process.0.try_wait().unwrap().is_some() || Path::new(&at).exists()
    });
    run(Command::new("kill").arg(process.0.id().to_string()));
    wait_for("the end", || process.0.try_wait().unwrap().is_some());
    let mut said = String::new();
    let mut stderr = process.0.stderr.take().unwrap();
    std::io::Read::read_to_string(&mut stderr, &mut said).unwrap();
    assert!(process.0.wait().unwrap().success(), "{said}");
}

#[test]
fn a_mount_that_another_user_namespace_has_locked_is_not_called_unmounted() {
    let place = Place::new();
    let mut mount = place.mount();
    let point = mount.point.path().to_owned();
    let mut command = place.emulator.command("unshare");
    command.args(["--user", "--map-root-user", "--mount", EBSFS, "umount"]);
    let (code, said) = ends(command.arg(&point));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("locked"), "{said}");
    place.reads(&point);
    let (code, said) = place.umount(&point, &[]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(mount.wait(Duration::from_secs(10)), Some(0));
}

#[test]
fn a_mount_that_hangs_is_detached_and_an_umount_without_that_says_that_it_hangs() {
    let place = Place::new();
    let mut mount = place.mount();
    let point = mount.point.path().to_owned();
    mount.signal("STOP");
    // A request that one of its threads has taken would keep the one who asks, even dead, until it is answered.
    let threads = format!("/proc/{}/task", mount.process.id());
    wait_for("a stop of all threads", || {
        let mut threads = std::fs::read_dir(&threads).unwrap();
        threads.all(|thread| {
            let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('T')
        })
    });
    let mut another = place.emulator.ebsfs(&["mount"]);
    let (code, said) = ends(another.arg(&point).arg(&place.snapshot));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("mounted there already"), "{said}");
    let (code, said) = place.umount(&point, &[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("does not answer"), "{said}");
    let (code, said) = place.umount(&point, &["--lazy"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(place.layers(&point), 0);
    mount.signal("CONT");
    assert_eq!(mount.wait(Duration::from_secs(10)), Some(0));
}
