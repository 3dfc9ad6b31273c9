//! [`mount`]: mounts a block device as the plan says, by mount(2) or ntfs-3g, and identifies the mount.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::MsFlags;

use super::blocking;
use super::driver::AttachPlan;
use crate::drill::{find_program, run_program};
use crate::error::{Error, Kind, Remedy, Result};
use crate::fs::{MountIdentity, MountLine, MountTable};

/// How long ntfs-3g may take: it reads the volume's own files.
const NTFS_3G: Duration = Duration::from_secs(300);

/// What files on the filesystem may do; each is forbidden by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AttachRights {
    /// Programs can be run.
    pub(crate) exec: bool,
    /// Programs run as their owner.
    pub(crate) suid: bool,
    /// Device nodes are devices.
    pub(crate) dev: bool,
}

impl AttachRights {
    fn flags(self) -> MsFlags {
        let mut flags = MsFlags::MS_RDONLY | MsFlags::MS_NOATIME;
        flags.set(MsFlags::MS_NOEXEC, !self.exec);
        flags.set(MsFlags::MS_NOSUID, !self.suid);
        flags.set(MsFlags::MS_NODEV, !self.dev);
        flags
    }

    /// The same as words of mount(8).
    fn words(self) -> String {
        let allowed = [("exec", self.exec), ("suid", self.suid), ("dev", self.dev)];
        let words = allowed.map(|(word, is_allowed)| match is_allowed {
            true => word.to_owned(),
            false => format!("no{word}"),
        });
        format!("ro,{}", words.join(","))
    }
}

/// Mounts a device at a folder.
///
/// # Errors
/// `Io` with the reason, the driver that is missing, or the remedy.
pub(super) async fn mount(
    plan: &AttachPlan,
    device: &Path,
    dir: &Path,
    rights: AttachRights,
) -> Result<MountIdentity> {
    let mut failed = Errno::ENODEV;
    for (driver, options) in plan.attempts.iter().copied() {
        let (device, at) = (device.to_owned(), dir.to_owned());
        let done = blocking(move || Ok(call(&device, &at, driver, options, rights))).await?;
        match done {
            Ok(()) => return identify(dir),
            // A driver that is missing says nothing about the filesystem.
            Err(Errno::ENODEV) => {}
            Err(error) => failed = error,
        }
    }
    if failed == Errno::ENODEV && plan.has_ntfs_3g {
        return ntfs_3g(device, dir, rights).await;
    }
    Err(refused(plan, dir, failed))
}

fn call(
    device: &Path,
    dir: &Path,
    driver: &str,
    options: &str,
    rights: AttachRights,
) -> std::result::Result<(), Errno> {
    let options = (!options.is_empty()).then_some(options);
    nix::mount::mount(Some(device), dir, Some(driver), rights.flags(), options)
}

/// The error of a mount that the kernel refused.
fn refused(plan: &AttachPlan, dir: &Path, error: Errno) -> Error {
    let (name, at) = (plan.filesystem, dir.display());
    let (why, remedy) = match error {
        Errno::ENODEV => (
            format!("this kernel has no driver for {name}"),
            Some(Remedy::Do(format!(
                "modprobe {}; some systems have it in a package of its own (Ubuntu: linux-modules-extra, Amazon Linux: kernel-modules-extra)",
                plan.attempts.first().map_or(name, |(driver, _)| driver)
            ))),
        ),
        Errno::EEXIST | Errno::EBUSY => (
            "it is mounted already, or another filesystem with its UUID is".to_owned(),
            Some(Remedy::Do(
                "unmount that one first, or use another machine".into(),
            )),
        ),
        Errno::EPERM | Errno::EACCES => (
            format!("mounting is not allowed: {}", error.desc()),
            Some(Remedy::Do("root may mount only with CAP_SYS_ADMIN".into())),
        ),
        error => (
            format!(
                "the kernel refuses it: {} (dmesg has the reason)",
                error.desc()
            ),
            plan.can_replay.then_some(Remedy::ReplayInOverlay),
        ),
    };
    let failed = Error::new(Kind::Io, format!("cannot mount {name} at {at}: {why}"));
    match remedy {
        Some(remedy) => failed.with_remedy(remedy),
        None => failed,
    }
}

/// Mounts an NTFS by the program ntfs-3g, which serves it as a process of its own until it is unmounted.
async fn ntfs_3g(device: &Path, dir: &Path, rights: AttachRights) -> Result<MountIdentity> {
    let Some(program) = find_program("ntfs-3g") else {
        let what = format!(
            "cannot mount ntfs at {}: this kernel has no driver ntfs3, and ntfs-3g is not installed",
            dir.display()
        );
        let remedy = Remedy::Do("install ntfs-3g (Debian's name of the package)".into());
        return Err(Error::new(Kind::Io, what).with_remedy(remedy));
    };
    let options = format!("{},norecover", rights.words());
    let mut words = vec![program.into_os_string(), "-o".into(), options.into()];
    words.extend([device, dir].map(|path| OsString::from(path.as_os_str())));
    let end = run_program("ntfs-3g", &words, NTFS_3G, || None).await?;
    match end.code {
        Some(0) => identify(dir),
        _ => {
            let what = format!(
                "cannot mount ntfs at {}: ntfs-3g: {}",
                dir.display(),
                end.last_line()
            );
            Err(Error::new(Kind::Io, what))
        }
    }
}

/// The mount of an attachment. Dropping it detaches what is still mounted.
#[derive(Debug)]
pub(super) struct AttachMount(pub(super) MountIdentity);

impl Drop for AttachMount {
    fn drop(&mut self) {
        // It is absent, but where a step after the mount failed or it is busy at the end.
        let _ = crate::fs::unmount(&self.0, true);
    }
}

/// The mount that is at a folder now.
fn identify(dir: &Path) -> Result<MountIdentity> {
    let table = MountTable::read()?;
    let found = table.mounted_at(dir).map(MountLine::identity);
    found.ok_or_else(|| {
        let what = format!(
            "cannot mount at {}: it was unmounted at once",
            dir.display()
        );
        Error::new(Kind::Io, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_programs_and_their_owners_rights_are_forbidden_unless_allowed() {
        let none = AttachRights::default();
        assert_eq!(none.words(), "ro,noexec,nosuid,nodev");
        let forbidden = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        assert!(none.flags().contains(forbidden | MsFlags::MS_RDONLY));
        let all = AttachRights {
            exec: true,
            suid: true,
            dev: true,
        };
        assert_eq!(all.words(), "ro,exec,suid,dev");
        assert!(!all.flags().intersects(forbidden));
        assert!(all.flags().contains(MsFlags::MS_RDONLY));
    }

    #[test]
    fn a_refused_mount_names_the_driver_or_the_remedy() {
        let plan = AttachPlan {
            filesystem: "xfs",
            attempts: vec![("xfs", "")],
            has_ntfs_3g: false,
            can_replay: true,
        };
        for (errno, why, words) in [
            (Errno::ENODEV, "no driver for xfs", "modprobe xfs"),
            (Errno::EBUSY, "another filesystem with its UUID", "unmount"),
            (Errno::EPERM, "not allowed", "CAP_SYS_ADMIN"),
            (Errno::EUCLEAN, "the kernel refuses it", ""),
        ] {
            let error = refused(&plan, Path::new("/mnt"), errno);
            assert!(error.chain().contains(why), "{}", error.chain());
            match error.remedy() {
                Some(Remedy::Do(remedy)) => assert!(remedy.contains(words), "{remedy}"),
                remedy => assert_eq!((remedy, words), (Some(&Remedy::ReplayInOverlay), "")),
            }
        }
    }
}
