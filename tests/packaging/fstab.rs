//! `mount -t ebsfs` and lines of /etc/fstab, by the mount(8) of this machine. It looks for helpers in /sbin alone: each script runs in
//! a mount namespace of its own, where /sbin holds `mount.ebsfs` and nothing else.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::*;

/// An emulator with a snapshot, and a folder for mounts.
struct Machine {
    held: Holders,
    folder: TempDir,
    emulator: Emulator,
    snapshot: String,
}

impl Machine {
    fn new() -> Self {
        let emulator = Emulator::start();
        emulator.make_volume("vol-0a", 2048, [0, 1, 5, 2047]);
        let snapshot = emulator.snapshot("vol-0a");
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("mnt")).unwrap();
        Self {
            held: Holders(folder.path().to_owned()),
            folder,
            emulator,
            snapshot,
        }
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// The options that reach the emulator: no variable of the environment says where it is.
    fn options(&self) -> String {
        let keys = self.emulator.folder.path().join("credentials");
        format!(
            "endpoint_url={},region=us-east-1,config_file=/nonexistent,credentials_file={}",
            self.emulator.url(),
            keys.display()
        )
    }

    /// Runs a script of bash with an empty environment. `$M` is the mountpoint, `$S` the snapshot, `$O` the options.
    fn script(&self, script: &str) -> (i32, String) {
        let mut command = std::process::Command::new("unshare");
        command
            .args([
                "--mount",
                "--propagation",
                "private",
                "timeout",
                "60",
                "bash",
                "-euc",
            ])
            .arg(format!(
                "mount -t tmpfs none /usr/sbin; ln -s {EBSFS} /usr/sbin/mount.ebsfs\n{script}"
            ))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("M", self.at("mnt"))
            .env("S", &self.snapshot)
            .env("O", self.options())
            .current_dir(self.folder.path());
        // It may read a GiB.
        ends_within(Duration::from_secs(60), &mut command)
    }
}

#[test]
fn a_line_of_fstab_is_mounted_once_and_unmounted() {
    let machine = Machine::new();
    let line = format!(
        "{} {} ebsfs {},mode=0444,allow_other,_netdev,nofail,x-systemd.automount 0 0\n",
        machine.snapshot,
        machine.at("mnt"),
        machine.options()
    );
    std::fs::write(machine.at("fstab"), line).unwrap();
    let volume = machine.emulator.volume("vol-0a");
    let (code, text) = machine.script(&format!(
        "mount -T fstab -a
         cmp $M/snapshots/$S/disk.raw {}
         test $(findmnt -nro SOURCE,FSTYPE $M | tr ' ' :) = $S:fuse.ebsfs
         # A second time nothing happens.
         mount -T fstab -a
         test $(grep -c \" $M \" /proc/self/mountinfo) = 1
         test $(stat -c %a $M/snapshots/$S/disk.raw) = 444
         findmnt -nro OPTIONS $M | grep -q ^ro,nosuid,nodev,noexec
         code=0; mount -T fstab -o remount $M || code=$?; test $code = 1
         pid=$(getfattr --only-values -n user.ebsfs.pid $M)
         umount $M
         ! findmnt $M
         timeout 10 tail --pid $pid -f /dev/null",
        volume.display()
    ));
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("the option remount is not possible: a mount of ebsfs does not change"),
        "{text}"
    );
    assert!(machine.held.mounts().is_empty());
}

#[test]
fn a_mount_that_fails_is_one_line_and_an_exit_code_of_mount() {
    let machine = Machine::new();
    for (arguments, wanted, line) in [
        ("-o $O $S /nonexistent/mnt", 32, "/nonexistent/mnt"),
        ("-o $O,zzz=1 $S $M", 1, "the option zzz is unknown"),
        ("-o $O,memory=1KiB $S $M", 1, "mount.ebsfs: "),
        ("-o $O,exec $S $M", 1, "the option exec is not possible"),
        (
            "-o $O snap-0123456789abcdef0 $M",
            32,
            "snap-0123456789abcdef0",
        ),
        ("-o $O disk.raw $M", 1, "selects nothing"),
        (
            "-o $O,credentials_file=/nonexistent $S $M",
            32,
            "cannot read /nonexistent: ",
        ),
        (
            "-o $O file:///nonexistent/repository $M",
            32,
            "/nonexistent/repository",
        ),
    ] {
        // The helper itself: mount(8) refuses a missing folder before it runs one.
        let (code, text) = machine.script(
            &format!("exec mount.ebsfs {arguments}")
                .replace("exec mount.ebsfs", "exec /usr/sbin/mount.ebsfs"),
        );
        assert_eq!(code, wanted, "{arguments}: {text}");
        assert!(text.contains(line), "{arguments}: {text}");
        assert_eq!(text.trim().lines().count(), 1, "{arguments}: {text}");
    }
    // mount(8) passes the exit code on, and -f mounts nothing.
    let (code, text) = machine.script("mount -t ebsfs -o $O,zzz $S $M");
    assert_eq!(code, 1, "{text}");
    machine.emulator.reset();
    let (code, text) = machine.script("/usr/sbin/mount.ebsfs -f -o $O $S $M; ! findmnt $M");
    assert_eq!((code, machine.emulator.lists()), (0, 0), "{text}");
}

#[test]
fn a_repository_and_all_snapshots_are_sources_too() {
    let machine = Machine::new();
    let repository = format!("file://{}", machine.at("re,po"));
    init_repository(&repository);
    run(&mut machine
        .emulator
        .ebsfs(&["sync", &machine.snapshot, &repository]));
    let volume = machine.emulator.volume("vol-0a").display().to_string();
    let (code, text) = machine.script(&format!(
        "mount -t ebsfs {repository} $M
         test $(findmnt -nro SOURCE $M) = {repository}
         cmp $M/snapshots/$S/disk.raw {volume}
         umount $M
         mount -t ebsfs -o $O,'profile=\"default\"' ebsfs $M
         ls $M/snapshots | grep -qx $S
         cmp $M/snapshots/$S/disk.raw {volume}
         umount $M"
    ));
    assert_eq!(code, 0, "{text}");
    assert!(Path::new(&machine.at("mnt")).exists());
}
