//! What goes wrong is said in one clear line, with the right exit code or errno: within 10 seconds, or where nothing answers 15
//! and a little.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use crate::support::*;

struct Case {
    emulator: Emulator,
    point: tempfile::TempDir,
    snapshot: String,
}

impl Case {
    fn new() -> Self {
        let emulator = Emulator::start();
        emulator.make_volume("vol-0a", 2048, [0]);
        let snapshot = emulator.snapshot("vol-0a");
        let point = tempfile::tempdir().unwrap();
        Self {
            emulator,
            point,
            snapshot,
        }
    }

    fn at(&self) -> &str {
        self.point.path().to_str().unwrap()
    }

    fn mount(&self, args: &[&str]) -> Command {
        let mut command = self.emulator.ebsfs(&["mount", self.at()]);
        command.args(args);
        command
    }
}

/// The command fails with this code and one line that says this.
#[track_caller]
fn refused(command: &mut Command, code: i32, says: &[&str]) {
    let limit = Duration::from_secs(if code == 7 { 20 } else { 10 });
    let (got, said) = ends_within(limit, command);
    assert_eq!(got, code, "{said}");
    let errors: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("ebsfs: "))
        .collect();
    assert_eq!(errors.len(), 1, "{said}");
    for word in says {
        assert!(errors[0].contains(word), "{word:?} in {said}");
    }
}

#[test]
fn a_snapshot_that_does_not_exist_is_not_found() {
    let case = Case::new();
    refused(
        &mut case.mount(&["snap-0123"]),
        3,
        &["snap-0123", "SNAPSHOT_NOT_FOUND", "Region"],
    );
    refused(
        &mut case.mount(&["--region", "eu-west-1", &case.snapshot]),
        3,
        &["SNAPSHOT_NOT_FOUND"],
    );
}

#[test]
fn ls_of_a_snapshot_that_does_not_exist_is_not_found() {
    let case = Case::new();
    refused(
        &mut case.emulator.ebsfs(&["ls", "snap-0123"]),
        3,
        &["snap-0123"],
    );
    refused(
        &mut case.emulator.ebsfs(&["ls", "snap-0123", &case.snapshot]),
        3,
        &["snap-0123"],
    );
}

#[test]
fn an_emulator_off_loopback_is_refused_before_it_makes_or_says_anything() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("emulator");
    let mut command = Command::new(EBSFS);
    command
        .arg("emulator")
        .arg(&inside)
        .args(["--listen", "0.0.0.0:0"]);
    refused(&mut command, 2, &["loopback only"]);
    assert!(!inside.exists() && command.output().unwrap().stdout.is_empty());
}

#[test]
fn a_denied_call_names_the_permission() {
    let case = Case::new();
    case.emulator.set("deny=ebs:ListSnapshotBlocks");
    refused(
        &mut case.mount(&[&case.snapshot]),
        4,
        &["ebs:ListSnapshotBlocks", "arn:aws:ec2:*::snapshot/*"],
    );
    case.emulator.set("deny=ec2:DescribeSnapshots");
    refused(&mut case.mount(&["vol-0a"]), 4, &["ec2:DescribeSnapshots"]);
    for ls in [&["ls"][..], &["ls", &case.snapshot]] {
        refused(&mut case.emulator.ebsfs(ls), 4, &["ec2:DescribeSnapshots"]);
    }
    case.emulator.set("deny=");
    case.emulator
        .post(&format!("snapshots/{}?kms_denied=1", case.snapshot));
    refused(
        &mut case.mount(&[&case.snapshot]),
        4,
        &["kms:Decrypt", "kms:DescribeKey"],
    );
}

#[test]
fn a_missing_permission_to_get_is_eacces_for_the_reader_and_named_in_the_log() {
    let case = Case::new();
    let mount = case.emulator.mount(&[&case.snapshot]);
    case.emulator.set("deny=ebs:GetSnapshotBlock");
    let error = std::fs::read(mount.disk(&case.snapshot)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    assert!(
        mount
            .log()
            .contains("needs the permission ebs:GetSnapshotBlock"),
        "{}",
        mount.log()
    );
}

#[test]
fn snapshots_that_cannot_be_read_give_the_errno_that_fits_and_a_line() {
    let case = Case::new();
    let mount = case.emulator.mount(&[]);
    let try_read = |snapshot: &str| {
        let error = std::fs::read(mount.disk(snapshot)).unwrap_err();
        error.raw_os_error().unwrap()
    };
    let new = || case.emulator.snapshot("vol-0a");
    let archived = new();
    case.emulator
        .post(&format!("snapshots/{archived}?tier=archive"));
    assert_eq!(try_read(&archived), libc::EACCES);
    let public = new();
    case.emulator
        .post(&format!("snapshots/{public}?public=1&owner=444455556666"));
    assert_eq!(try_read(&public), libc::EACCES);
    case.emulator.set("pending_ms=3600000");
    let pending = new();
    assert_eq!(try_read(&pending), libc::EAGAIN);
    assert_eq!(try_read("snap-0123"), libc::ENOENT);
    for (id, words) in [
        (archived, "restore it first"),
        (public, "copy the public snapshot"),
        (pending, "still being made"),
        ("snap-0123".into(), "SNAPSHOT_NOT_FOUND"),
    ] {
        wait_for(&format!("a line about {id}: {words}"), || {
            let log = mount.log();
            log.lines()
                .any(|line| line.contains(&id) && line.contains(words))
        });
    }
}

#[test]
fn a_snapshot_that_ec2_knows_before_the_direct_apis_do_is_waited_for() {
    let emulator = Emulator::with(&["--set", "visible_ms=3000"]);
    emulator.make_volume("vol-0a", 2048, [4]);
    let mount = emulator.mount(&[]);
    let snapshot = emulator.snapshot("vol-0a");
    assert_eq!(
        read_at(&mount.disk(&snapshot), 4 * BLOCK, 8),
        content("vol-0a", 4)[..8]
    );
    assert!(
        mount.log().contains("waiting until it can be listed"),
        "{}",
        mount.log()
    );
}

#[test]
fn missing_credentials_region_and_endpoint_have_different_errors() {
    let case = Case::new();
    let id = case.snapshot.as_str();
    refused(
        case.mount(&[id])
            .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent"),
        4,
        &["no AWS credentials", "AWS_PROFILE"],
    );
    refused(
        case.mount(&[id]).env_remove("AWS_REGION"),
        2,
        &["no AWS Region", "--region"],
    );
    refused(
        &mut case.mount(&["--profile", "nobody", id]),
        4,
        &["no AWS credentials"],
    );
    let wrong_key = case.emulator.folder.path().join("wrong");
    std::fs::write(
        &wrong_key,
        "[default]\naws_access_key_id=AKIAWRONG\naws_secret_access_key=x\n",
    )
    .unwrap();
    refused(
        case.mount(&[id])
            .env("AWS_SHARED_CREDENTIALS_FILE", &wrong_key),
        4,
        &["credentials were refused"],
    );
    refused(
        &mut case.mount(&["--endpoint-url", "http://127.0.0.1:1", id]),
        7,
        &["ebs:ListSnapshotBlocks", "127.0.0.1:1"],
    );
    // A server that accepts and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    refused(
        &mut case.mount(&["--endpoint-url", &url, id]),
        7,
        &["no answer"],
    );
    // Something else answers there.
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", proxy.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in proxy.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(
                b"HTTP/1.1 403 Forbidden\r\ncontent-length: 7\r\nconnection: close\r\n\r\n<html/>",
            );
        }
    });
    refused(
        &mut case.mount(&["--endpoint-url", &url, id]),
        4,
        &["HTTP 403"],
    );
    refused(
        case.mount(&[id]).env("AWS_USE_FIPS_ENDPOINT", "true"),
        2,
        &["FIPS"],
    );
    refused(
        &mut case.mount(&["--endpoint-url", "nonsense", id]),
        2,
        &["it must look like"],
    );
}

#[test]
fn an_ec2_endpoint_that_is_silent_does_not_keep_named_snapshots_from_being_mounted() {
    let case = Case::new();
    let second = case.emulator.snapshot("vol-0a");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let mut command = case.mount(&["--background", &case.snapshot, &second]);
    let (code, said) = ends(command.env("AWS_ENDPOINT_URL_EC2", &url));
    assert_eq!(code, 0, "{said}");
    let disk = case
        .point
        .path()
        .join("snapshots")
        .join(&second)
        .join("disk.raw");
    assert_eq!(read_at(&disk, 0, 8), content("vol-0a", 0)[..8]);
    run(&mut case.emulator.ebsfs(&["umount", case.at()]));
    refused(
        case.mount(&["vol-0a"]).env("AWS_ENDPOINT_URL_EC2", &url),
        7,
        &["ec2:DescribeSnapshots"],
    );
}

#[test]
fn more_snapshots_than_can_be_listed_in_a_few_seconds_can_be_named() {
    let ids: Vec<String> = (0..300).map(|n| format!("snap-{n:017x}")).collect();
    let synthetic: Vec<String> = ids.iter().map(|id| format!("{id}:1:1000000")).collect();
    let args: Vec<&str> = synthetic
        .iter()
        .flat_map(|spec| ["--synthetic", spec])
        .collect();
    let emulator = Emulator::with(&args);
    let mount = emulator.mount(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(emulator.lists(), 300);
    assert!(emulator.count("DescribeSnapshots") <= 2);
    assert_eq!(
        std::fs::read_dir(mount.point.path().join("snapshots"))
            .unwrap()
            .count(),
        300
    );
}

#[test]
fn an_unusable_mountpoint_is_refused_before_any_call() {
    let case = Case::new();
    let id = case.snapshot.as_str();
    let mount = |at: &str| case.emulator.ebsfs(&["mount", at, id]);
    refused(&mut mount("/nonexistent/folder"), 1, &["does not exist"]);
    let file = case.point.path().join("file");
    std::fs::write(&file, "x").unwrap();
    refused(&mut mount(file.to_str().unwrap()), 1, &["is not a folder"]);
    refused(&mut mount(case.at()), 1, &["is not empty"]);
    refused(&mut mount("/proc"), 1, &["is not empty"]);
    let mounted = case.emulator.mount(&[id]);
    refused(
        &mut mount(mounted.point.path().to_str().unwrap()),
        1,
        &["has mounted there already"],
    );
    assert_eq!(case.emulator.lists(), 1, "only the one that was mounted");
}

#[test]
fn a_mount_whose_program_was_killed_is_recognised() {
    let case = Case::new();
    let mut mounted = case.emulator.mount(&[&case.snapshot]);
    mounted.process.kill().unwrap();
    mounted.process.wait().unwrap();
    let at = mounted.point.path().to_str().unwrap().to_owned();
    refused(
        &mut case.emulator.ebsfs(&["mount", &at, &case.snapshot]),
        1,
        &["has died", "fusermount3 -u"],
    );
    run(&mut case.emulator.ebsfs(&["umount", &at]));
}

#[test]
fn without_dev_fuse_the_error_names_it() {
    let case = Case::new();
    // In a mount namespace of its own, where /dev has no fuse.
    let script = format!(
        "mount -t tmpfs none /dev && exec {EBSFS} mount {} {}",
        case.at(),
        case.snapshot
    );
    let mut command = case.emulator.command("unshare");
    refused(
        command.args(["--mount", "--propagation=private", "sh", "-c", &script]),
        1,
        &["/dev/fuse", "modprobe fuse"],
    );
}

#[test]
fn a_user_who_may_not_open_dev_fuse_gets_the_remedy() {
    let case = Case::new();
    run(Command::new("chown").arg("65534").arg(case.point.path()));
    let script = format!(
        "mount -t tmpfs none /dev && mknod -m 600 /dev/fuse c 10 229 && mknod -m 666 /dev/null c 1 3 && \
         cp {EBSFS} /dev/ebsfs && exec setpriv --reuid=65534 --regid=65534 --clear-groups /dev/ebsfs mount --lazy {} {}",
        case.at(),
        case.snapshot
    );
    let mut command = case.emulator.command("unshare");
    refused(
        command.args(["--mount", "--propagation=private", "sh", "-c", &script]),
        1,
        &["may not open /dev/fuse"],
    );
}

#[test]
fn wrong_arguments_are_refused_with_the_accepted_ones() {
    let case = Case::new();
    for (args, says) in [
        (&["vol-"][..], "selects nothing"),
        (&["--mode", "0600"][..], "read bits only"),
        (&["--memory", "1MiB"][..], "too little"),
        (&["--timeout", "soon"][..], "--timeout"),
        (&["--max-in-flight", "0"][..], "--max-in-flight"),
    ] {
        let (code, said) = ends(&mut case.mount(args));
        assert_eq!(code, 2, "{args:?}: {said}");
        assert!(said.contains(says), "{args:?}: {said}");
    }
}
