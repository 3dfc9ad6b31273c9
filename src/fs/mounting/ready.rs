//! Whether this process could mount, without a mount.

use std::io;

use nix::unistd::geteuid;

use super::{FailedMount, FuseDevice, unmount};
use crate::error::{Error, Kind, Remedy, Result};

/// The bit of CAP_SYS_ADMIN (linux/capability.h).
const SYS_ADMIN: u32 = 21;

/// What decides whether a mount is possible.
#[derive(Clone, Copy, Debug)]
struct MountingFacts {
    device: FuseDevice,
    is_root: bool,
    /// CAP_SYS_ADMIN; none where the kernel does not say.
    is_admin: Option<bool>,
    has_fusermount: bool,
    allows_others: bool,
    /// `user_allow_other` of /etc/fuse.conf.
    may_allow_others: bool,
}

impl MountingFacts {
    fn observe(allows_others: bool) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let settings = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders = std::env::split_paths(&path);
        Self {
            device: FuseDevice::look(),
            is_root: geteuid().is_root(),
            is_admin: has_capability(&status, SYS_ADMIN),
            has_fusermount: folders.any(|folder| folder.join(unmount::FUSERMOUNT).is_file()),
            allows_others,
            may_allow_others: settings
                .lines()
                .any(|line| line.trim() == "user_allow_other"),
        }
    }

    /// What is wrong, and the mount that would fail for it.
    fn obstacle(self) -> Option<(&'static str, FailedMount)> {
        let (what, reason) = match self.device {
            FuseDevice::Missing => ("there is no /dev/fuse", io::ErrorKind::NotFound),
            FuseDevice::NoDriver => ("/dev/fuse has no driver", io::ErrorKind::Other),
            FuseDevice::Denied | FuseDevice::Forbidden => (
                "/dev/fuse may not be opened",
                io::ErrorKind::PermissionDenied,
            ),
            FuseDevice::Other => ("/dev/fuse is another file", io::ErrorKind::Other),
            FuseDevice::Usable if self.is_root => match self.is_admin {
                Some(false) => ("this root has no CAP_SYS_ADMIN", io::ErrorKind::Other),
                _ => return None,
            },
            FuseDevice::Usable if !self.has_fusermount => {
                ("there is no fusermount3", io::ErrorKind::NotFound)
            }
            FuseDevice::Usable if self.allows_others && !self.may_allow_others => (
                "/etc/fuse.conf has no user_allow_other",
                io::ErrorKind::PermissionDenied,
            ),
            FuseDevice::Usable => return None,
        };
        let failed = FailedMount {
            device: self.device,
            is_root: self.is_root,
            allows_others: self.allows_others,
            has_fusermount: self.has_fusermount,
            reason,
        };
        Some((what, failed))
    }
}

/// Checks that this process could mount somewhere; with `allows_others` for other users too.
///
/// # Errors
/// `Io` with the first obstacle and its remedy.
pub(crate) fn check_mounting(allows_others: bool) -> Result<()> {
    let Some((what, failed)) = MountingFacts::observe(allows_others).obstacle() else {
        return Ok(());
    };
    let error = Error::new(Kind::Io, format!("cannot mount: {what}"));
    Err(match failed.remedy() {
        Some(remedy) => error.with_remedy(Remedy::Do(remedy.into())),
        None => error,
    })
}

/// Whether the effective capabilities in /proc/self/status have this one.
fn has_capability(status: &str, bit: u32) -> Option<bool> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    let mask = u64::from_str_radix(line.trim(), 16).ok()?;
    Some(mask & (1 << bit) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_obstacle_of_a_mount_is_named_with_its_remedy() {
        use FuseDevice::{Forbidden, Missing, NoDriver, Usable};
        let facts = |device, is_root, is_admin, has_fusermount, allows_others| MountingFacts {
            device,
            is_root,
            is_admin: Some(is_admin),
            has_fusermount,
            allows_others,
            may_allow_others: false,
        };
        for (facts, what, remedy) in [
            (facts(Usable, true, true, false, true), "", ""),
            (facts(Usable, false, false, true, false), "", ""),
            (
                facts(Missing, true, true, true, false),
                "no /dev/fuse",
                "modprobe",
            ),
            (
                facts(NoDriver, false, false, true, false),
                "no driver",
                "modprobe",
            ),
            (
                facts(Forbidden, true, true, true, false),
                "may not",
                "--device",
            ),
            (
                facts(Usable, true, false, true, false),
                "CAP_SYS_ADMIN",
                "SYS_ADMIN",
            ),
            (
                facts(Usable, false, false, false, false),
                "fusermount3",
                "fuse3",
            ),
            (
                facts(Usable, false, false, true, true),
                "fuse.conf",
                "user_allow_other",
            ),
        ] {
            let found = facts.obstacle();
            let (said, advice) = found.map_or(("", ""), |(said, failed)| {
                (said, failed.remedy().unwrap_or_default())
            });
            assert_eq!(said.is_empty(), what.is_empty(), "{facts:?}: {said}");
            assert!(
                said.contains(what) && advice.contains(remedy),
                "{facts:?}: {said}: {advice}"
            );
        }
    }

    #[test]
    fn capabilities_are_read_from_the_status_of_the_process() {
        let status = "Name:\tx\nCapEff:\t000001ffffffffff\n";
        assert_eq!(has_capability(status, SYS_ADMIN), Some(true));
        let without = "CapEff:\t00000000a80425fb\n";
        assert_eq!(has_capability(without, SYS_ADMIN), Some(false));
        assert_eq!(has_capability("Name:\tx\n", SYS_ADMIN), None);
    }
}
