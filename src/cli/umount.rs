//! `ebsfs umount`.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::error::{Error, Kind, Result};

/// Unmount what `ebsfs mount` mounted
#[derive(Args, Debug)]
pub(super) struct UmountArgs {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Take it out of sight even if it is in use
    #[arg(long)]
    lazy: bool,
}

impl UmountArgs {
    pub(super) fn run(&self) -> Result<()> {
        let at = self.mountpoint.display();
        let path = absolute(&self.mountpoint)?;
        if !is_ours(&path)? {
            return Err(Error::new(
                Kind::Io,
                format!("{at} is not mounted by ebsfs"),
            ));
        }
        if crate::fs::unmount(&path, self.lazy)? {
            return Ok(());
        }
        Err(Error::new(
            Kind::Io,
            format!(
                "{at} is busy (fuser -vm {at} names who uses it); --lazy detaches it all the same"
            ),
        ))
    }
}

/// The path as the mount table has it. The last name is not followed: behind it may be a mount that does not answer.
fn absolute(path: &Path) -> Result<PathBuf> {
    let failed = |error| Error::with_source(Kind::Io, path.display().to_string(), error);
    let path = std::path::absolute(path).map_err(failed)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(path);
    };
    let named = parent.canonicalize().map_err(failed)?.join(name);
    Ok(std::fs::read_link(&named)
        .map(|target| parent.join(target))
        .unwrap_or(named))
}

/// Whether the mount table says that ebsfs is mounted there.
///
/// <https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html>
fn is_ours(path: &Path) -> Result<bool> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| Error::with_source(Kind::Io, "/proc/self/mountinfo", error))?;
    Ok(table.lines().any(|line| {
        let Some((mount, source)) = line.split_once(" - ") else {
            return false;
        };
        let at = mount.split(' ').nth(4).unwrap_or_default();
        // Mounted by root it is of type `fuse`, by fusermount3 of type `fuse.ebsfs`.
        let ours = source.starts_with("fuse ebsfs ") || source.starts_with("fuse.ebsfs ebsfs ");
        ours && Path::new(&unescape(at)) == path
    }))
}

/// The table writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}
