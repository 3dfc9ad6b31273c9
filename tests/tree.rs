//! What a mount shows: names, sizes, times, owners, attributes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use crate::support::*;

#[test]
fn the_tree_shows_the_snapshots_that_the_arguments_select_with_their_size_time_and_attributes() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0, 1, 2047]);
    emulator.make_volume("vol-0b", 2048, [5]);
    let first = emulator.snapshot("vol-0a");
    let second = emulator.snapshot("vol-0a");
    let other = emulator.snapshot("vol-0b");
    let mount = emulator.mount(&["vol-0a"]);
    let names = |path: &str| -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(mount.point.path().join(path))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["changes", "snapshots", "volumes"]);
    let mut expected = [first.clone(), second.clone()];
    expected.sort();
    assert_eq!(names("snapshots"), expected);
    assert_eq!(
        names(&format!("snapshots/{first}")),
        [
            "blocks.bmap",
            "blocks.csv",
            "blocks.json",
            "blocks.mapfile",
            "disk.raw",
            "disk.vhd",
            "disk.vmdk",
            "heatmap.svg",
            "snapshot.json"
        ]
    );
    assert_eq!(names("volumes"), ["vol-0a"]);

    let by_time = names("volumes/vol-0a");
    assert_eq!((by_time.len(), by_time[2].as_str()), (3, "latest"));
    assert!(!by_time[0].contains(':'), "{by_time:?}");
    let latest = fs::read_link(mount.point.path().join("volumes/vol-0a/latest")).unwrap();
    let newest =
        fs::read_link(mount.point.path().join("volumes/vol-0a").join(&by_time[1])).unwrap();
    assert_eq!(latest, newest, "snapshots follow each other in time");
    let linked =
        fs::canonicalize(mount.point.path().join("volumes/vol-0a").join(&by_time[0])).unwrap();
    assert!(
        linked.ends_with(&first) || linked.ends_with(&second),
        "{linked:?}"
    );

    // Any other snapshot can be opened by its id.
    assert_eq!(
        read_at(&mount.disk(&other), 5 * BLOCK, 4096),
        content("vol-0b", 5)[..4096]
    );
    assert_eq!(names("snapshots"), expected, "and is not listed for that");
    assert!(!mount.disk("snap-0123").exists());
    assert!(!mount.point.path().join("snapshots/README").exists());

    let stat = fs::metadata(mount.disk(&first)).unwrap();
    assert_eq!(stat.len(), 1 << 30);
    assert_eq!(stat.blocks(), 3 * BLOCK / 512, "FullSnapshotSizeInBytes");
    assert_eq!(stat.permissions().mode() & 0o7777, 0o400);
    assert_eq!(stat.uid(), nix::unistd::geteuid().as_raw());
    let json: serde_json::Value = serde_json::from_slice(
        &fs::read(mount.disk(&first).with_file_name("snapshot.json")).unwrap(),
    )
    .unwrap();
    assert_eq!(json["volume_id"], "vol-0a");
    let start = humantime::parse_rfc3339(json["start_time"].as_str().unwrap()).unwrap();
    assert_eq!(stat.modified().unwrap(), start);

    let attributes = sh(&format!(
        "getfattr -d --absolute-names {}",
        mount.disk(&first).display()
    ));
    for attribute in [
        format!("user.ebs.snapshot_id=\"{first}\""),
        "user.ebs.volume_id=\"vol-0a\"".into(),
        format!("user.ebs.start_time={}", json["start_time"]),
        "user.ebs.encrypted=\"false\"".into(),
    ] {
        assert!(
            attributes.contains(&attribute),
            "{attribute} in {attributes}"
        );
    }
}

#[test]
fn inode_numbers_are_the_same_in_every_mount_and_df_shows_the_volumes_sizes() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0]);
    let ids = [emulator.snapshot("vol-0a"), emulator.snapshot("vol-0a")];
    let numbers = |mount: &Mount| {
        let at = mount.point.path().display();
        // Neither the link nor what it leads to is left out.
        let found = sh(&format!("cd {at} && find . -printf '%i %p\\n' | sort -k2"));
        let df = sh(&format!("df --output=size,avail,itotal -B1 {at} | tail -1"));
        (
            found,
            df.split_whitespace()
                .map(|n| n.parse().unwrap())
                .collect::<Vec<u64>>(),
        )
    };
    let mut first = emulator.mount(&["vol-0a"]);
    let (found, df) = numbers(&first);
    assert!(
        found.contains(&format!("./changes/{}..{}/delta.raw", ids[0], ids[1])),
        "{found}"
    );
    assert_eq!(df, [2 << 30, 0, 2]);
    first.signal("TERM");
    first.wait(std::time::Duration::from_secs(10));
    // Looked up in another order, beside other snapshots.
    emulator.make_volume("vol-0b", 2048, [0]);
    let other = emulator.snapshot("vol-0b");
    let second = emulator.mount(&["vol-0a"]);
    fs::metadata(second.disk(&other)).unwrap();
    fs::metadata(second.disk(&ids[1])).unwrap();
    assert_eq!(numbers(&second).0, found);
}

#[test]
fn a_handle_of_a_snapshot_is_opened_after_the_kernel_has_dropped_its_inode() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [3]);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&["vol-0a"]);
    // As an NFS server does: a handle instead of a path.
    let script = r#"
import ctypes, os, sys
class Handle(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint), ("type", ctypes.c_int), ("bytes", ctypes.c_ubyte * 128)]
libc = ctypes.CDLL(None, use_errno=True)
mount, disk = os.open(sys.argv[1], os.O_RDONLY), sys.argv[2]
handle, number = Handle(128), ctypes.c_int()
assert libc.name_to_handle_at(-100, disk.encode(), ctypes.byref(handle), ctypes.byref(number), 0) == 0
open("/proc/sys/vm/drop_caches", "w").write("2")
file = libc.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY)
assert file >= 0, os.strerror(ctypes.get_errno())
sys.stdout.write(os.pread(file, 8, 3 * 512 * 1024).hex())
"#;
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(mount.point.path());
    let read = run(python.arg(mount.disk(&snapshot)));
    let hex: String = content("vol-0a", 3)[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(read, hex);
}

#[test]
fn the_log_records_who_opened_which_image_and_how_much_was_read() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..8);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&["-v", "vol-0a"]);
    let disk = mount.disk(&snapshot);
    run(Command::new("dd")
        .arg(format!("if={}", disk.display()))
        .args(["of=/dev/null", "bs=512K", "count=4", "iflag=direct"]));
    wait_for("the closing", || mount.log().contains("closed"));
    let log = mount.log();
    let line = |word: &str| {
        log.lines()
            .find(|line| line.contains(word))
            .unwrap()
            .to_owned()
    };
    let (opened, closed) = (line("opened"), line("closed"));
    for part in [
        snapshot.as_str(),
        "volume vol-0a",
        "account ",
        "Region us-east-1",
        &emulator.url(),
        "caller ",
        "uid 0",
        "(dd)",
    ] {
        assert!(opened.contains(part), "{part} in {opened}");
        assert!(closed.contains(part), "{part} in {closed}");
    }
    assert!(
        closed.contains(&format!("{} bytes in", 4 * BLOCK)),
        "{closed}"
    );
}

#[test]
fn without_ec2_permission_everything_but_listing_works() {
    let emulator = Emulator::with(&["--set", "deny=ec2:DescribeSnapshots"]);
    let volume = emulator.make_volume("vol-0a", 2048, [0, 3, 2047]);
    let snapshot = emulator.snapshot("vol-0a");
    let other = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&snapshot]);
    assert_same(&volume, &mount.disk(&snapshot));
    assert_same(&volume, &mount.disk(&other));
    let named: Vec<_> = fs::read_dir(mount.point.path().join("snapshots"))
        .unwrap()
        .collect();
    assert_eq!(named.len(), 1);
    let blocks = fs::metadata(mount.disk(&snapshot)).unwrap().blocks();
    assert!(
        blocks > 0 && blocks < (1 << 30) / 512,
        "{blocks}: unknown, and neither empty nor full"
    );
    assert!(
        mount.log().contains("ec2:DescribeSnapshots"),
        "{}",
        mount.log()
    );

    let all = emulator.mount(&[]);
    let error = fs::read_dir(all.point.path().join("snapshots"))
        .and_then(|mut names| names.next().transpose())
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    assert_eq!(
        read_at(&all.disk(&snapshot), 3 * BLOCK, 512),
        content("vol-0a", 3)[..512]
    );
}

#[test]
fn a_description_that_grows_is_read_whole() {
    let emulator = Emulator::with(&["--set", "deny=ec2:DescribeSnapshots"]);
    emulator.make_volume("vol-0a", 2048, [0]);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&["--lazy", &snapshot]);
    assert_eq!(
        fs::read_dir(mount.point.path().join("snapshots"))
            .unwrap()
            .count(),
        1
    );
    let json = mount.disk(&snapshot).with_file_name("snapshot.json");
    let size = || {
        serde_json::from_slice::<serde_json::Value>(&fs::read(&json).unwrap()).unwrap()["volume_size"].clone()
    };
    assert!(size().is_null());
    assert_eq!(
        read_at(&mount.disk(&snapshot), 0, 8),
        content("vol-0a", 0)[..8]
    );
    assert_eq!(size(), 1 << 30);
}

#[test]
fn every_write_fails_with_read_only_filesystem() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0]);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&snapshot]);
    let disk = mount.disk(&snapshot);
    let folder = disk.parent().unwrap();
    let read_only = |result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS));
    };
    read_only(fs::OpenOptions::new().write(true).open(&disk).map(drop));
    read_only(fs::write(folder.join("new"), b"x"));
    read_only(fs::create_dir(folder.join("new")));
    read_only(fs::remove_file(&disk));
    read_only(fs::rename(&disk, folder.join("new")));
    read_only(fs::set_permissions(
        &disk,
        fs::Permissions::from_mode(0o600),
    ));
    read_only(std::os::unix::fs::symlink("a", folder.join("b")));
    assert_eq!(read_at(&disk, 0, 512), content("vol-0a", 0)[..512]);
}

#[test]
fn a_second_user_is_refused_by_mode_and_let_in_by_mode() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0]);
    let snapshot = emulator.snapshot("vol-0a");
    let as_nobody = |disk: &std::path::Path| {
        Command::new("setpriv")
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "head",
                "-c1",
            ])
            .arg(disk)
            .output()
            .unwrap()
    };
    let reach = |mount: &Mount| {
        fs::set_permissions(
            mount.point.path().parent().unwrap(),
            fs::Permissions::from_mode(0o1777),
        )
        .unwrap();
    };
    for (options, allowed) in [
        (&[][..], false),
        (&["--allow-other"][..], false),
        (&["--allow-root", "--mode", "0444"][..], false),
        (&["--allow-other", "--mode", "0444"][..], true),
        (
            &["--allow-other", "--mode", "0440", "--gid", "65534"][..],
            true,
        ),
        (&["--allow-other", "--uid", "65534"][..], true),
    ] {
        let args: Vec<&str> = options.iter().copied().chain([snapshot.as_str()]).collect();
        let mount = emulator.mount(&args);
        reach(&mount);
        let output = as_nobody(&mount.disk(&snapshot));
        assert_eq!(output.status.success(), allowed, "{options:?}: {output:?}");
        if !allowed {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("Permission denied"), "{said}");
        }
    }
}
