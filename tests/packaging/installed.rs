//! What `scripts/package` lays out and makes, from the program of these tests: files, units, the container image. The packages of
//! Debian and RPM need cargo-deb and cargo-generate-rpm; `scripts/packaging/check-install` installs those.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::packaging;
use crate::support::*;

/// The result of `scripts/package`, made once: `tree`, `dist`, `image`.
fn packages() -> &'static Path {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut command =
            Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/package"));
        command.args(["--no-build", EBSFS, "--only", "image"]);
        run(command.arg("--output").arg(folder.path()));
        folder
    })
    .path()
}

fn tree(name: &str) -> PathBuf {
    packages().join("tree").join(name)
}

/// All paths below a folder, relative to it.
fn files(folder: &Path) -> Vec<String> {
    let found = run(Command::new("find")
        .arg(folder)
        .args(["-mindepth", "1", "-printf", "%P\n"]));
    let mut found: Vec<String> = found.lines().map(str::to_owned).collect();
    found.sort_unstable();
    found
}

/// The values of a directive of a unit.
fn directive(unit: &str, name: &str) -> Vec<String> {
    let text = fs::read_to_string(packaging(&format!("systemd/{unit}"))).unwrap();
    let values = text
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    values.map(str::to_owned).collect()
}

#[test]
fn the_packages_hold_what_they_promise_and_no_file_that_others_can_write() {
    let found = files(&packages().join("tree"));
    for wanted in [
        "usr/bin/ebsfs",
        "usr/sbin/mount.ebsfs",
        "usr/lib/systemd/system/ebsfs-mount@.service",
        "usr/lib/systemd/system/ebsfs-replicate-once@.service",
        "usr/lib/systemd/system/ebsfs-replicate@.service",
        "usr/lib/systemd/system/ebsfs-replicate@.timer",
        "usr/lib/tmpfiles.d/ebsfs.conf",
        "usr/lib/udev/rules.d/61-ebsfs-replicas.rules",
        "usr/share/bash-completion/completions/ebsfs",
        "usr/share/fish/vendor_completions.d/ebsfs.fish",
        "usr/share/zsh/vendor-completions/_ebsfs",
        "usr/share/man/man1/ebsfs-mount.1.gz",
        "usr/share/man/man5/ebsfs-job.5.gz",
        "usr/share/man/man8/mount.ebsfs.8.gz",
        "usr/share/doc/ebsfs/THIRD-PARTY-LICENCES.gz",
        "usr/share/doc/ebsfs/examples/web.toml",
        "usr/share/doc/ebsfs/install.md",
    ] {
        assert!(
            found.iter().any(|name| name == wanted),
            "{wanted}: {found:?}"
        );
    }
    for name in &found {
        let meta = fs::symlink_metadata(tree(name)).unwrap();
        if !meta.is_symlink() {
            let is_program = name == "usr/bin/ebsfs" || meta.is_dir();
            let mode = if is_program { 0o755 } else { 0o644 };
            assert_eq!(meta.permissions().mode() & 0o7777, mode, "{name}");
        }
        // What cargo-deb and cargo-generate-rpm are to pack.
        let is_packed = name.starts_with("usr/lib")
            || name.starts_with("usr/share")
            || name.starts_with("usr/bin");
        assert!(
            is_packed || name.starts_with("usr/sbin") || name == "usr",
            "{name}"
        );
    }
    let helper = run(Command::new(tree("usr/sbin/mount.ebsfs")).arg("--version"));
    assert!(helper.starts_with("mount.ebsfs "), "{helper}");
    // The symbols are apart, and gdb finds them by their link.
    let sections = run(Command::new("objdump").arg("-h").arg(tree("usr/bin/ebsfs")));
    assert!(
        sections.contains(".gnu_debuglink") && !sections.contains(".debug_line"),
        "{sections}"
    );
    // No lists of the recipe of RPM leaves a folder out.
    let recipe = crate::readme::page("Cargo.toml");
    for name in found
        .iter()
        .filter(|name| !tree(name).is_dir() && !name.starts_with("usr/sbin"))
    {
        let folder = Path::new(name).parent().unwrap().display().to_string();
        let is_named = [format!("tree/{folder}/*\""), format!("tree/{name}\"")];
        assert!(is_named.iter().any(|part| recipe.contains(part)), "{name}");
    }
}

#[test]
fn units_pass_systemds_checks_and_a_damaged_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let unit = |name: &str, bad: &str| {
        let text = fs::read_to_string(packaging(&format!("systemd/{name}"))).unwrap();
        let text = text.replace("/usr/bin/ebsfs", EBSFS);
        fs::write(folder.path().join(name), format!("{text}{bad}")).unwrap();
        folder.path().join(name)
    };
    let verify = |path: &Path| {
        let mut command = Command::new("systemd-analyze");
        ends(command.args(["verify", "--man=no"]).arg(path))
    };
    for (name, most) in [
        ("ebsfs-replicate-once@.service", 30),
        ("ebsfs-replicate@.service", 30),
        ("ebsfs-mount@.service", 45),
        ("ebsfs-replicate@.timer", 0),
    ] {
        let path = unit(name, "");
        assert_eq!(verify(&path), (0, String::new()), "{name}");
        if most > 0 {
            // Exposure in tenths; it ends with another code where there is more.
            let mut command = Command::new("systemd-analyze");
            command.args(["security", "--offline=yes", &format!("--threshold={most}")]);
            let (code, text) = ends(command.arg(&path));
            assert_eq!(code, 0, "{name}: {text}");
        }
    }
    let damaged = unit("ebsfs-replicate@.timer", "\n[Timer]\nOnCalender=daily\n");
    assert!(verify(&damaged).1.contains("OnCalender"));
    // Every directive that gives a mount namespace, and would hide the mount, is named as left out and not set.
    let text = fs::read_to_string(packaging("systemd/ebsfs-mount@.service")).unwrap();
    for name in [
        "PrivateMounts",
        "PrivateTmp",
        "PrivateDevices",
        "ProtectSystem",
        "ProtectHome",
        "ProtectKernelTunables",
    ] {
        assert!(directive("ebsfs-mount@.service", name).is_empty(), "{name}");
        assert!(text.contains(&format!("{name}=")), "{name}");
    }
}

/// A shell line for a command of a unit: `$NAME` is split at blanks, `${NAME}` is not.
fn shell_line(command: &str) -> String {
    let words =
        command
            .trim_start_matches('-')
            .split(' ')
            .map(|word| match word.starts_with("${") {
                true => format!("\"{word}\""),
                false => word.to_owned(),
            });
    words
        .collect::<Vec<_>>()
        .join(" ")
        .replace("/usr/bin/ebsfs", EBSFS)
}

/// The command of a unit, with its rights and not more, and these variables.
fn as_unit(
    emulator: &Emulator,
    unit: &str,
    command: &str,
    variables: &BTreeMap<String, String>,
) -> Command {
    let rights = directive(unit, "CapabilityBoundingSet")
        .remove(0)
        .to_lowercase();
    let rights: String = rights
        .split(' ')
        .map(|right| format!(",+{}", right.trim_start_matches("cap_")))
        .collect();
    let mut program = emulator.command("setpriv");
    program
        .args([
            "--no-new-privs",
            "--inh-caps=-all",
            &format!("--bounding-set=-all{rights}"),
            "bash",
            "-c",
        ])
        .arg(format!("umask 077; exec {}", shell_line(command)))
        .envs(variables);
    program
}

#[test]
fn the_unit_of_a_mount_works_as_its_example_says_with_the_rights_that_it_has() {
    let unit = "ebsfs-mount@.service";
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, [0, 1, 2047]);
    let snapshot = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let held = Holders(folder.path().to_owned());
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::create_dir(at("mnt")).unwrap();
    let example = fs::read_to_string(packaging("examples/mount-example.conf")).unwrap();
    let values = example
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='));
    let mut variables: BTreeMap<String, String> = values
        .map(|(name, value)| {
            let value = value.replace("snap-0123456789abcdef0", &snapshot);
            let value = value
                .replace("/mnt/ebs", &at("mnt"))
                .replace("/var/cache/ebsfs/example", &at("cache"));
            (name.to_owned(), value.replace("eu-central-1", "us-east-1"))
        })
        .collect();
    assert_eq!(variables.len(), 3, "{example}");
    let socket = UnixDatagram::bind(at("notify")).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    variables.insert("NOTIFY_SOCKET".into(), at("notify"));
    let start = directive(unit, "ExecStart").remove(0);
    let mut service = as_unit(&emulator, unit, &start, &variables)
        .spawn()
        .unwrap();
    let mut bytes = [0; 64];
    let length = socket.recv(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"READY=1");
    let disk = folder
        .path()
        .join("mnt/snapshots")
        .join(&snapshot)
        .join("disk.raw");
    assert_same(&disk, &volume);
    // In use it stays; then it is unmounted, and the service ends.
    let stop = directive(unit, "ExecStop").remove(0);
    let user = fs::File::open(&disk).unwrap();
    let (code, text) = ends(&mut as_unit(&emulator, unit, &stop, &variables));
    assert_eq!(code, 1, "{text}");
    drop(user);
    let (code, text) = ends(&mut as_unit(&emulator, unit, &stop, &variables));
    assert_eq!(code, 0, "{text}");
    assert_eq!(service.wait().unwrap().code(), Some(0));
    // Killed, it leaves a mount without a process, which ExecStopPost removes.
    let mut service = as_unit(&emulator, unit, &start, &variables)
        .spawn()
        .unwrap();
    let length = socket.recv(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"READY=1");
    service.kill().unwrap();
    service.wait().unwrap();
    assert_eq!(held.mounts().len(), 1);
    let after = directive(unit, "ExecStopPost").remove(0);
    let script = after
        .split_once("-c '")
        .unwrap()
        .1
        .trim_end_matches('\'')
        .replace("/usr/bin/ebsfs", EBSFS);
    for _ in 0..2 {
        // The second time there is nothing to do.
        let _ = ends(
            emulator
                .command("sh")
                .args(["-c", &script])
                .envs(&variables),
        );
        assert!(held.mounts().is_empty());
    }
}

#[test]
fn the_units_of_a_job_replicate_with_the_rights_that_they_have() {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, [0, 1, 2047]);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let repository = format!("file://{}", at("repository"));
    init_repository(&repository);
    let example = fs::read_to_string(packaging("examples/web.toml")).unwrap();
    let job = example
        .replace(
            "instances = [\"i-0123456789abcdef0\"]",
            "volumes = [\"vol-0a\"]",
        )
        .replace("s3://dr-bucket/replicas", &repository)
        .replace("/srv/replicas", &at("images"));
    assert_ne!(job, example);
    fs::write(at("web.toml"), job).unwrap();
    // A folder of another user.
    fs::create_dir(at("images")).unwrap();
    fs::set_permissions(at("images"), fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(at("images"), Some(12345), Some(12345)).unwrap();
    let variables = BTreeMap::from([
        ("EBSFS_OPTIONS".to_owned(), "--json".to_owned()),
        ("EBSFS_STATE_DIR".to_owned(), at("state")),
    ]);
    let unit = "ebsfs-replicate-once@.service";
    let start = directive(unit, "ExecStart")
        .remove(0)
        .replace("/etc/ebsfs/%i.toml", &at("web.toml"));
    run(&mut as_unit(&emulator, unit, &start, &variables));
    assert_same(Path::new(&at("images/vol-0a.raw")), &volume);
    // The service has the same rights and job.
    let service = "ebsfs-replicate@.service";
    for name in [
        "CapabilityBoundingSet",
        "DeviceAllow",
        "ProtectSystem",
        "SystemCallFilter",
        "UMask",
    ] {
        assert_eq!(directive(service, name), directive(unit, name), "{name}");
    }
    let its = directive(service, "ExecStart").remove(0);
    let once = directive(unit, "ExecStart").remove(0);
    assert_eq!(its, once.replace("--once ", ""));
}

#[test]
fn the_rule_of_udev_marks_the_disks_of_its_list_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let _held = Holders(folder.path().to_owned());
    let at = |name: &str| folder.path().join(name).display().to_string();
    let rule = fs::read_to_string(packaging("udev/61-ebsfs-replicas.rules")).unwrap();
    assert_eq!(rule.matches("/etc/ebsfs/replicas").count(), 7);
    fs::write(
        at("61.rules"),
        rule.replace("/etc/ebsfs/replicas", &at("replicas")),
    )
    .unwrap();
    // Loop devices have no identity of their own.
    let identity = "KERNEL==\"loop*\", ENV{ID_SERIAL}=\"disk_7\", ENV{ID_SERIAL_SHORT}=\"7\", ENV{ID_WWN}=\"0x5002\"\n";
    fs::write(at("60-zz.rules"), identity).unwrap();
    for (list, is_replica) in [
        (None, false),
        (Some(""), false),
        (Some("\n70\ndisk_70\nxwwn-0x5002\n"), false),
        (Some("other\n7\n"), true),
        (Some("disk_7\n"), true),
        (Some("wwn-0x5002\n"), true),
    ] {
        if let Some(list) = list {
            fs::write(at("replicas"), list).unwrap();
        }
        let script = format!(
            "mount -t tmpfs none /run; mkdir -p /run/udev/rules.d; cp {0}/*.rules /run/udev/rules.d
             truncate -s 16M {0}/disk; mkfs.ext4 -qF {0}/disk
             device=$(losetup --find --show {0}/disk)
             udevadm test --action=add /sys/block/${{device#/dev/}} 2>/dev/null
             losetup --detach $device",
            folder.path().display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "bash", "-euc"]);
        let found = run(command.arg(script));
        for mark in [
            "EBSFS_REPLICA=1",
            "ID_FS_TYPE=ebsfs_replica",
            "UDISKS_IGNORE=1",
            "DM_UDEV_DISABLE_OTHER_RULES_FLAG=1",
        ] {
            assert_eq!(found.contains(mark), is_replica, "{list:?} {mark}: {found}");
        }
        // What is on it is found, and hidden from the rules behind this one.
        let is_seen = found.contains("ID_FS_TYPE=ext4");
        assert_eq!(is_seen, !is_replica, "{list:?}: {found}");
    }
}

#[test]
fn the_container_image_is_whole_has_no_root_and_mounts_in_a_chroot() {
    let made = packages();
    let version = env!("CARGO_PKG_VERSION");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let unpack = |archive: &Path, name: &str| {
        fs::create_dir_all(at(name)).unwrap();
        run(Command::new("tar")
            .arg("-xpf")
            .arg(archive)
            .arg("-C")
            .arg(at(name)));
    };
    unpack(&made.join(format!("dist/ebsfs-{version}-oci.tar")), "oci");
    let json = |bytes: Vec<u8>| -> Value { serde_json::from_slice(&bytes).unwrap() };
    let path = |descriptor: &Value| {
        let digest = descriptor["digest"]
            .as_str()
            .unwrap()
            .strip_prefix("sha256:")
            .unwrap();
        let path = at("oci/blobs/sha256").join(digest);
        let sum = run(Command::new("sha256sum").arg(&path));
        assert!(sum.starts_with(digest), "{sum}");
        assert_eq!(descriptor["size"], fs::metadata(&path).unwrap().len());
        path
    };
    assert_eq!(
        json(fs::read(at("oci/oci-layout")).unwrap())["imageLayoutVersion"],
        "1.0.0"
    );
    let index = json(fs::read(at("oci/index.json")).unwrap());
    let manifest = json(fs::read(path(&index["manifests"][0])).unwrap());
    let config = json(fs::read(path(&manifest["config"])).unwrap());
    let layer = path(&manifest["layers"][0]);
    // The image and the recipe of the Containerfile agree.
    let recipe = fs::read_to_string(packaging("container/Containerfile")).unwrap();
    assert_eq!(config["config"]["User"], "65532:65532");
    assert!(recipe.contains("\nUSER 65532:65532\n") && recipe.contains("ADD rootfs.tar /"));
    assert!(recipe.contains("ENV PATH=/usr/bin HOME=/var/lib/ebsfs"));
    let sum = run(Command::new("sha256sum").arg(made.join("image/rootfs.tar")));
    let diff = config["rootfs"]["diff_ids"][0].as_str().unwrap();
    assert_eq!(diff.strip_prefix("sha256:"), sum.split(' ').next());
    unpack(&layer, "root");
    let certificates = fs::read_to_string(at("root/etc/ssl/certs/ca-certificates.crt")).unwrap();
    assert!(certificates.matches("BEGIN CERTIFICATE").count() > 100);
    for name in files(&at("root")) {
        let meta = fs::symlink_metadata(at("root").join(&name)).unwrap();
        let is_own = name == "var/lib/ebsfs";
        assert_eq!(meta.uid(), if is_own { 65532 } else { 0 }, "{name}");
        assert_eq!(meta.mode() & 0o6000, 0, "{name}");
    }
    // As the image's user, and with no other file than its own.
    let mut command = Command::new("/usr/sbin/chroot");
    command
        .args(["--userspec=65532:65532"])
        .arg(at("root"))
        .args(["/usr/bin/ebsfs", "--version"]);
    assert_eq!(run(command.env_clear()), format!("ebsfs {version}\n"));
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, [0, 2047]);
    let snapshot = emulator.snapshot("vol-0a");
    fs::create_dir(at("root/mnt")).unwrap();
    fs::copy(
        emulator.folder.path().join("credentials"),
        at("root/credentials"),
    )
    .unwrap();
    let script = format!(
        "mkdir dev proc
         for device in fuse null; do touch dev/$device; mount --bind /dev/$device dev/$device; done
         mount -t proc proc proc
         chroot . /usr/bin/ebsfs mount --background /mnt {snapshot}
         cmp mnt/snapshots/{snapshot}/disk.raw {}
         chroot . /usr/bin/ebsfs umount /mnt",
        volume.display()
    );
    let mut command = emulator.command("unshare");
    command.args([
        "--mount",
        "--propagation",
        "private",
        "timeout",
        "60",
        "bash",
        "-euc",
        &script,
    ]);
    run(command
        .env("AWS_SHARED_CREDENTIALS_FILE", "/credentials")
        .current_dir(at("root")));
}
