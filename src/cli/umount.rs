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

/// The path as the mount table has it. What is mounted there is not touched: it may not answer.
fn absolute(path: &Path) -> Result<PathBuf> {
    let shown = path.display().to_string();
    let failed = |error| Error::with_source(Kind::Io, shown.clone(), error);
    let mut path = std::path::absolute(path).map_err(failed)?;
    // As deep as the kernel follows links.
    for _ in 0..40 {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            break;
        };
        path = parent.canonicalize().map_err(failed)?.join(name);
        match std::fs::read_link(&path) {
            Ok(target) => {
                path = path.parent().unwrap_or(Path::new("/")).join(target);
                // `a/..` is not an end that has a name.
                if path.file_name().is_none() {
                    path = path.canonicalize().map_err(failed)?;
                }
            }
            Err(_) => break,
        }
    }
    Ok(path)
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
