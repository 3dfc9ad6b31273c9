//! Replicas: every kind of target, from nothing and from what it held, killed at any moment, refused where it must be.

mod damaged;
mod ebs;
mod evidence;
mod failing;
mod foreign;
mod formats;
mod half_way;
mod hostile;
mod killed;
mod output;
mod parents;
mod refused;
mod restored;
mod staged;
mod taken_over;
mod targets;
mod verify;
mod whole;

pub use killed::kill_some;
pub use killed::{kill_until_done, kill_until_ended};

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::changes::Chain;
use crate::support::*;

/// A loop device over a file; detached when dropped.
pub struct Loop(pub String);

impl Loop {
    pub fn over(file: &Path) -> Self {
        Self::with(&file.display().to_string())
    }

    /// With options of losetup, the file last.
    fn with(options: &str) -> Self {
        let device = sh(&format!("losetup --find --show {options}"));
        // Partitions that a killed test has left on it would be the device's own.
        let _ = Command::new("partx")
            .args(["--delete", device.trim()])
            .stderr(Stdio::null())
            .status();
        Self(device.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("partx")
            .args(["--delete", &self.0])
            .stderr(Stdio::null())
            .status();
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// `ebsfs sync` with a state folder of the test's own.
fn sync(emulator: &Emulator, args: &[&str]) -> Command {
    let mut command = emulator.ebsfs(&["sync", "--progress", "none"]);
    command
        .arg("--state-dir")
        .arg(emulator.folder.path().join("state"));
    command.args(args);
    command
}

/// Exit code and stderr of a run that may read a whole target before it ends.
fn decides(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), said)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn status(emulator: &Emulator, target: &str) -> String {
    run(&mut sync(emulator, &["--status", target]))
}

/// What is said of a target that held a snapshot and may have been written since.
fn held_by_its_digests(id: &str) -> String {
    format!(
        "held {id} when it was recorded; its mark has changed since: the next run compares it with its digests\n"
    )
}

/// What a finished run keeps beside an image.
const KEPT: [&str; 2] = [".ebsfs-digests", ".ebsfs.json"];

/// What is beside an image besides itself.
fn left_beside(image: &Path) -> Vec<String> {
    let name = image.file_name().unwrap().to_str().unwrap();
    let folder = fs::read_dir(image.parent().unwrap()).unwrap();
    let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut left: Vec<_> = names
        .filter(|other| other.starts_with(name) && other != name)
        .map(|other| other[name.len()..].to_owned())
        .collect();
    left.sort();
    left
}

/// State files are believed only where no one else can write them.
fn private(path: &Path) {
    sh(&format!("chmod 600 {}", path.display()));
}

/// Two snapshots of 1 GiB, some 800 blocks and 400 changes.
pub fn large_pair() -> Emulator {
    Emulator::with(&[
        "--synthetic",
        "snap-0a:1:400000",
        "--synthetic-child",
        "snap-0b:snap-0a:200000",
        "--set",
        "latency_ms=20",
    ])
}

/// A mount of one snapshot, and its image.
pub fn mounted(emulator: &Emulator, id: &str) -> (Mount, PathBuf) {
    emulator.set("latency_ms=0");
    let mount = emulator.mount(&[id]);
    let disk = mount.disk(id);
    (mount, disk)
}

/// Blocks that an image holds, as its file's size on disk tells.
pub fn held(disk: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&fs::metadata(disk).unwrap()) * 512 / BLOCK
}

fn sha256(path: &Path) -> String {
    let said = run(Command::new("sha256sum").arg(path));
    said.split(' ').next().unwrap().to_owned()
}
