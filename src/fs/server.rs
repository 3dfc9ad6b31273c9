//! `ebsfs umount`: it unmounts a mount that another process serves, and finds out why that process does not end. A FUSE
//! connection ends when its last mount in any namespace is unmounted and its last file is closed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::mount_table::{MountIdentity, MountTable};
use super::mountpoint::{ask_mount, ours_at};
use super::unmount::{Unmounted, unmount};
use crate::error::Result;

/// Extended attribute of a mountpoint: the id of the process that serves it, in decimal digits.
pub(super) const PID_ATTRIBUTE: &str = "user.ebsfs.pid";

/// How long to wait for the end of the process after the unmount.
const END: Duration = Duration::from_secs(3);
/// Most holders that a report names.
const MOST_HOLDERS: usize = 5;

/// The result of [`unmount_at`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnmountReport {
    /// The result of the unmount.
    pub(crate) unmounted: Unmounted,
    /// The id of the process that still serves it, if known; only for [`Unmounted::Done`].
    pub(crate) server: Option<u32>,
    /// Holders of the connection in words: mount namespaces, open files. At most five are named, and only visible processes.
    pub(crate) holders: Vec<String>,
    /// The mount did not answer within 2 s. The request for its process id stays pending and keeps it busy.
    pub(crate) hangs: bool,
}

/// Unmounts the mount of ebsfs at a path, and waits up to 3 s for the end of its process. `lazy` detaches a busy mount.
///
/// # Errors
/// `Io` when there is no mount of ebsfs, it is locked, or the system refuses the unmount.
pub(crate) fn unmount_at(path: &Path, lazy: bool) -> Result<UnmountReport> {
    let identity = ours_at(path)?;
    let asked = server_of(path);
    let hangs = asked.is_none();
    let server = asked.flatten();
    let unmounted = unmount(&identity, lazy)?;
    let mut report = UnmountReport {
        unmounted,
        server: None,
        holders: Vec::new(),
        hangs,
    };
    let Some(server) = server.filter(|_| report.unmounted == Unmounted::Done) else {
        return Ok(report);
    };
    let until = Instant::now() + END;
    while server.lives() {
        let held = holders(&identity, server.pid);
        // Without a holder its last requests end soon.
        if !held.is_empty() || Instant::now() > until {
            report.server = Some(server.pid);
            report.holders = held;
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(report)
}

/// A process, identified by its id and start time.
struct Server {
    pid: u32,
    started: String,
}

impl Server {
    fn lives(&self) -> bool {
        start_time(self.pid).is_some_and(|started| started == self.started)
    }
}

/// `None`: the mount does not answer. `Some(None)`: its process is in another PID namespace or has died.
fn server_of(path: &Path) -> Option<Option<Server>> {
    let path = path.to_path_buf();
    let asked = ask_mount(move || {
        let mut value = [0_u8; 16];
        let read = rustix::fs::getxattr(&path, PID_ATTRIBUTE, &mut value[..]);
        read.map(|len| value.iter().take(len).copied().collect::<Vec<u8>>())
    });
    let Ok(answer) = asked else {
        return Some(None);
    };
    let value = answer?;
    let named = value.ok().and_then(|value| server_named(&value));
    Some(named)
}

fn server_named(value: &[u8]) -> Option<Server> {
    let pid = std::str::from_utf8(value).ok()?.parse().ok()?;
    let started = start_time(pid)?;
    Some(Server { pid, started })
}

/// When a process started, in clock ticks since the boot; `None` for a zombie.
///
/// <https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>
fn start_time(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command, in parentheses, can hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    (state != "Z").then(|| fields.nth(18).map(str::to_owned))?
}

/// The holders of a connection, in words, among the processes that this user may inspect.
fn holders(identity: &MountIdentity, server: u32) -> Vec<String> {
    let mut found = Vec::new();
    let mut namespaces = HashSet::new();
    namespaces.extend(std::fs::read_link("/proc/self/ns/mnt").ok());
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return found;
    };
    let pids = processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != server && *pid != std::process::id());
    for pid in pids {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let namespace = std::fs::read_link(folder.join("ns/mnt")).ok();
        let is_new = namespace.is_some_and(|namespace| namespaces.insert(namespace));
        let how = if is_new && is_mounted_for(&folder, identity) {
            "mounted in the mount namespace"
        } else if has_open_file(&folder, identity) {
            "open"
        } else {
            continue;
        };
        if found.len() == MOST_HOLDERS {
            found.push("others".into());
            break;
        }
        let comm = std::fs::read_to_string(folder.join("comm")).unwrap_or_default();
        let comm = comm.trim_end().escape_default();
        found.push(format!("{how} of process {pid} ({comm})"));
    }
    found
}

fn is_mounted_for(process: &Path, identity: &MountIdentity) -> bool {
    let table = std::fs::read(process.join("mountinfo")).unwrap_or_default();
    MountTable::parse(&table).has_device(&identity.device)
}

/// Whether a descriptor or a mapping of a process belongs to the mount.
fn has_open_file(process: &Path, identity: &MountIdentity) -> bool {
    let descriptors = std::fs::read_dir(process.join("fdinfo"));
    let mut descriptors = descriptors.into_iter().flatten().flatten();
    let mount = identity.id;
    descriptors.any(|fd| {
        let text = std::fs::read_to_string(fd.path()).unwrap_or_default();
        mount_of(&text) == Some(mount)
    }) || {
        let maps = std::fs::read(process.join("maps")).unwrap_or_default();
        maps_device(&String::from_utf8_lossy(&maps), &identity.device)
    }
}

/// The id of the mount that an open file belongs to.
fn mount_of(fdinfo: &str) -> Option<u64> {
    let mut lines = fdinfo.lines();
    let id = lines.find_map(|line| line.strip_prefix("mnt_id:"))?;
    id.trim().parse().ok()
}

/// Whether a process maps a file of a device; its maps write the two numbers in hexadecimal digits.
fn maps_device(maps: &str, device: &str) -> bool {
    let Some((major, minor)) = device.split_once(':') else {
        return false;
    };
    let (Ok(major), Ok(minor)) = (major.parse::<u32>(), minor.parse::<u32>()) else {
        return false;
    };
    let written = format!("{major:02x}:{minor:02x}");
    let mut lines = maps.lines();
    lines.any(|line| line.split_ascii_whitespace().nth(3) == Some(written.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_tells_its_mount_and_a_mapping_its_device() {
        let fdinfo = "pos:\t0\nflags:\t0100000\nmnt_id:\t29\nino:\t7\n";
        assert_eq!(mount_of(fdinfo), Some(29));
        assert_eq!(mount_of("pos:\t0\n"), None);
        let maps = "7f1-7f2 r--p 00000000 00:34 1234 /mnt/disk.raw\n7f3-7f4 rw-p 0 00:00 0\n";
        assert!(maps_device(maps, "0:52"));
        assert!(!maps_device(maps, "0:51"));
        assert!(!maps_device(maps, "x"));
    }

    #[test]
    fn a_process_is_identified_by_its_start() {
        let server = Server {
            pid: std::process::id(),
            started: start_time(std::process::id()).unwrap(),
        };
        assert!(server.lives());
        let other = Server {
            started: "1".into(),
            ..server
        };
        assert!(!other.lives());
    }
}
