//! Signals: those that were ignored when the program started stay ignored, and SIGHUP opens the log of a background mount again.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{EBSFS, Emulator, Mount, run, wait_for};

fn is_mounted(point: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    mounts.contains(point.to_str().unwrap())
}

fn send(name: &str, process: u32) {
    run(Command::new("kill").args([&format!("-{name}"), &process.to_string()]));
}

/// A signal that must not end the mount has had its time.
fn lives_on(point: &Path) -> bool {
    std::thread::sleep(Duration::from_millis(1200));
    is_mounted(point) && std::fs::read_dir(point).is_ok()
}

/// The process in the background that serves a mount; dropping it unmounts.
struct Background<'a> {
    point: &'a Path,
    process: u32,
}

impl<'a> Background<'a> {
    fn start(mut command: Command, point: &'a Path) -> Self {
        run(&mut command);
        let marker = point.to_str().unwrap();
        let serves = |entry: &std::fs::DirEntry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.contains("--background") && line.contains(marker)
        };
        let mut processes = std::fs::read_dir("/proc").unwrap().flatten();
        let found = processes.find(serves).unwrap();
        let process = found.file_name().to_str().unwrap().parse().unwrap();
        Self { point, process }
    }
}

impl Drop for Background<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fusermount3")
            .arg("-uzq")
            .arg(self.point)
            .status();
        let process = format!("/proc/{}", self.process);
        wait_for("its end", || !Path::new(&process).exists());
    }
}

fn with_snapshot() -> (Emulator, String) {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 8, 0..8);
    let snapshot = emulator.snapshot("vol-0a");
    (emulator, snapshot)
}

/// `ebsfs` run by a program that changes what it inherits.
fn through(emulator: &Emulator, program: &[&str]) -> Command {
    let mut command = emulator.command(program[0]);
    command.args(&program[1..]).arg(EBSFS);
    command
}

const WITHOUT_INTERRUPT: &[&str] = &["sh", "-c", "trap '' INT; exec \"$@\"", "-"];

#[test]
fn a_signal_that_a_mount_was_started_to_ignore_stays_ignored() {
    let (emulator, snapshot) = with_snapshot();
    for (program, signal) in [(&["nohup"][..], "HUP"), (WITHOUT_INTERRUPT, "INT")] {
        let mut command = through(&emulator, program);
        command.arg("mount");
        let mut mount = Mount::start(command, &[&snapshot]);
        mount.signal(signal);
        assert!(lives_on(mount.point.path()), "{program:?}");
        mount.signal("TERM");
        assert_eq!(mount.wait(Duration::from_secs(10)), Some(0));
    }
}

#[test]
fn a_foreground_mount_ends_when_its_terminal_closes() {
    let (emulator, snapshot) = with_snapshot();
    let mut mount = emulator.mount(&[&snapshot]);
    mount.signal("HUP");
    assert_eq!(mount.wait(Duration::from_secs(10)), Some(0));
    assert!(!is_mounted(mount.point.path()));
}

#[test]
fn a_background_mount_opens_its_log_again_on_sighup() {
    let (emulator, snapshot) = with_snapshot();
    let (point, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = logs.path().join("log");
    let mut command = emulator.ebsfs(&["-vv", "mount", "--background", "--log-file", "log"]);
    // A relative name, though the background changes to another folder.
    command
        .arg(point.path())
        .arg(&snapshot)
        .current_dir(logs.path());
    let mount = Background::start(command, point.path());
    let holds = |file: &Path, words: &str| {
        std::fs::read_to_string(file).is_ok_and(|text| text.contains(words))
    };
    wait_for("the log", || holds(&log, "mounted at"));
    let rotated = logs.path().join("log.1");
    std::fs::rename(&log, &rotated).unwrap();
    send("HUP", mount.process);
    wait_for("the new log", || holds(&log, "again"));
    assert!(lives_on(point.path()));
    let stderr = std::fs::read_link(format!("/proc/{}/fd/2", mount.process)).unwrap();
    assert_eq!(stderr, log);
    let disk = point
        .path()
        .join("snapshots")
        .join(&snapshot)
        .join("disk.raw");
    std::fs::read(&disk).unwrap();
    wait_for("requests in the new log", || {
        holds(&log, "GetSnapshotBlock")
    });

    // Where it cannot be opened the old file stays.
    std::fs::rename(&log, &rotated).unwrap();
    std::fs::create_dir(&log).unwrap();
    send("HUP", mount.process);
    wait_for("the warning", || {
        holds(&rotated, "cannot open the log file")
    });
    assert!(lives_on(point.path()));
}

#[test]
fn a_background_mount_without_a_log_survives_sighup_and_so_does_one_by_nohup() {
    let (emulator, snapshot) = with_snapshot();
    for program in [&["env"][..], &["nohup"]] {
        let point = tempfile::tempdir().unwrap();
        let mut command = through(&emulator, program);
        command
            .args(["mount", "--background"])
            .arg(point.path())
            .arg(&snapshot);
        let mount = Background::start(command, point.path());
        send("HUP", mount.process);
        assert!(lives_on(point.path()), "{program:?}");
    }
}

#[test]
fn a_copy_that_was_started_to_ignore_sigint_is_not_stopped_by_it() {
    let (emulator, snapshot) = with_snapshot();
    emulator.set("latency_ms=700");
    let target = tempfile::tempdir().unwrap();
    let copy = |program: &[&str]| -> Child {
        let image = target.path().join(program[0]);
        let mut command = through(&emulator, program);
        command.args(["sync", &snapshot]).arg(&image);
        let process = command.stderr(Stdio::null()).spawn().unwrap();
        // It has begun, and waits for its first blocks.
        emulator.reset();
        wait_for("a block", || emulator.gets() > 0);
        send("INT", process.id());
        process
    };
    let stopped = copy(&["env"]).wait().unwrap();
    assert_eq!(stopped.code(), Some(130));
    let done = copy(WITHOUT_INTERRUPT).wait().unwrap();
    assert_eq!(done.code(), Some(0));
}
