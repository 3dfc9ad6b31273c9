//! Mounts, loop devices and daemons that still use a test's folder after a failed step.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::sh;

/// Ends everything that holds on to a folder: mounts below it, loop devices of its files, the daemon that it started.
pub struct Holders(pub PathBuf);

impl Holders {
    /// Loop devices of files in the folder.
    pub fn loops(&self) -> Vec<String> {
        let listed = sh("timeout 20 losetup --list --noheadings --raw --output NAME,BACK-FILE");
        let ours = listed.lines().filter_map(|line| line.split_once(' '));
        ours.filter(|(_, file)| Path::new(file).starts_with(&self.0))
            .map(|(name, _)| name.to_owned())
            .collect()
    }

    /// Mounts below the folder, the latest first.
    pub fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(1));
        let mut ours: Vec<String> = points
            .filter(|point| Path::new(point).starts_with(&self.0))
            .map(str::to_owned)
            .collect();
        ours.reverse();
        ours
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        let quietly = |program: &str, args: &[&str]| {
            let _ = Command::new("timeout")
                .args(["20", program])
                .args(args)
                .status();
        };
        // A file that is a mount has no path any more after that.
        let loops = self.loops();
        for point in self.mounts() {
            quietly("umount", &["--lazy", &point]);
        }
        for device in loops {
            quietly("losetup", &["--detach", &device]);
        }
        if let Ok(pid) = fs::read_to_string(self.0.join("overlay.pid")) {
            quietly("kill", &["-KILL", pid.trim()]);
        }
    }
}
