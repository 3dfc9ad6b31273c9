//! [`LoopDevice`]: a file as a block device, by losetup of util-linux.
//!
//! A read-only device uses direct I/O: without it the page cache holds all data twice, and the loop thread of the kernel handles
//! one request at a time. A writable device must do exactly that. With several writes in flight, FUSE exports of
//! qemu-storage-daemon write the bytes of one at the offset of another: QEMU 7.2 in half of all writes. The fix was posted in
//! 2025 ("fuse: Copy write buffer content before polling"), and no version number shows whether a distribution has it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::debug;

use crate::block::BLOCK_SIZE;
use crate::drill::{find_program, run_program};
use crate::error::{Error, Kind, Remedy, Result};

/// losetup makes a few system calls.
const LOSETUP: Duration = Duration::from_secs(60);
/// Bytes that the kernel reads ahead of a reader in order: eight blocks.
const READAHEAD: u32 = 8 * BLOCK_SIZE;

/// A loop device. Dropping it frees it, unless the kernel does.
#[derive(Debug)]
pub(super) struct LoopDevice {
    path: PathBuf,
    /// What the kernel says that it shows.
    backing: Option<String>,
    /// Whether the kernel frees it. From then on its number can be another program's at any time: nothing here detaches it again.
    frees_itself: bool,
}

impl LoopDevice {
    /// Makes a device of a file; `made` puts its path on record.
    ///
    /// # Errors
    /// `Io` without losetup or a free device.
    pub(super) async fn make(
        file: &Path,
        is_read_only: bool,
        made: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let mut args: Vec<OsString> = ["--find", "--show"].map(OsString::from).to_vec();
        let more: &[&str] = match is_read_only {
            true => &["--read-only", "--direct-io=on"],
            false => &["--direct-io=off"],
        };
        args.extend(more.iter().map(OsString::from));
        args.extend(["--".into(), file.as_os_str().to_owned()]);
        let lines = losetup(args).await.map_err(|why| {
            let what = format!("cannot make a loop device: {why}");
            let remedy = "it needs the kernel's module loop (modprobe loop); a container needs --device /dev/loop-control and free /dev/loop*";
            Error::new(Kind::Io, what).with_remedy(Remedy::Do(remedy.into()))
        })?;
        let path = lines.into_iter().find(|line| line.starts_with("/dev/"));
        let Some(path) = path else {
            let what = "cannot make a loop device: losetup named none";
            return Err(Error::new(Kind::Io, what));
        };
        let mut device = Self {
            path: path.into(),
            backing: None,
            frees_itself: false,
        };
        device.remember();
        made(&device.path)?;
        device.set_readahead();
        Ok(device)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Sets the kernel's readahead. The driver asks for one read after the other, so with one block a file of 800 MiB took 7 to 10 s at
    /// 30 ms a block, and with eight 3.3 s; small files, parts of files and searches fetched the same blocks with both.
    fn set_readahead(&self) {
        let name = self.path.file_name().unwrap_or_default();
        let setting = Path::new("/sys/block")
            .join(name)
            .join("queue/read_ahead_kb");
        if let Err(error) = std::fs::write(&setting, (READAHEAD / 1024).to_string()) {
            debug!("{}: {error}", setting.display());
        }
    }

    /// Lets the kernel free the device when its last user closes it: the mount, from now on.
    ///
    /// # Errors
    /// `Io` with what losetup says.
    pub(super) async fn free_with_last_user(&mut self) -> Result<()> {
        let args = vec!["--detach".into(), self.path.clone().into_os_string()];
        let freed = losetup(args).await;
        freed.map_err(|why| {
            let what = format!("cannot free {}: {why}", self.path.display());
            Error::new(Kind::Io, what)
        })?;
        self.frees_itself = true;
        Ok(())
    }

    /// Remembers what the device shows now: the path of a file changes when its mount is detached.
    pub(super) fn remember(&mut self) {
        self.backing = backing_of(&self.path);
    }

    /// Whether the device still shows the file.
    pub(super) fn is_ours(&self) -> bool {
        self.backing.is_some() && backing_of(&self.path) == self.backing
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if !self.frees_itself && self.is_ours() {
            detach_now(&self.path);
        }
    }
}

/// Frees a device of a process that has ended, if it still shows a file of its private folder.
pub(super) fn free_left(device: &Path, folder: &Path) {
    let Some(backing) = backing_of(device) else {
        return;
    };
    if Path::new(&backing).starts_with(folder) {
        detach_now(device);
    }
}

fn detach_now(device: &Path) {
    let Some(program) = find_program("losetup") else {
        return;
    };
    let mut losetup = std::process::Command::new(program);
    let done = losetup.arg("--detach").arg(device).output();
    debug!("losetup --detach {}: {done:?}", device.display());
}

/// What the kernel says that a device shows; none: it shows nothing.
fn backing_of(device: &Path) -> Option<String> {
    let name = device.file_name()?;
    let file = Path::new("/sys/block").join(name).join("loop/backing_file");
    std::fs::read_to_string(file).ok()
}

/// Runs losetup: its lines, or why it failed.
async fn losetup(args: Vec<OsString>) -> std::result::Result<Vec<String>, String> {
    let program = find_program("losetup").ok_or("losetup is not installed (package util-linux)")?;
    let mut words = vec![program.into_os_string()];
    words.extend(args);
    let end = run_program("losetup", &words, LOSETUP, || None).await;
    let end = end.map_err(|error| error.chain())?;
    match end.code {
        Some(0) => Ok(end.lines),
        _ => Err(end.last_line()),
    }
}
