//! [`volume_key_of`]: which volume an image or a device of this machine is, for repositories.

use std::path::Path;

use super::identity::{Identity, identity};
use crate::files::machine_id;
use crate::target::VolumeKey;

/// Identities that a manufacturer or a cloud gives to one disk in the world. Serial numbers of virtual disks (`QM00001`) and UUIDs
/// of LVM and md are the same on each clone of a machine.
const WORLDWIDE: &[&str] = &["naa.", "eui.", "uuid.", "nvme."];
/// The NVMe vendor of QEMU, whose serial numbers are chosen for each machine.
const QEMU: &str = "nvme.1b36-";

/// The key of the image or device at a whole path. It never depends on the path alone: two machines have a disk at one path.
pub(crate) fn volume_key_of(path: &Path) -> VolumeKey {
    let machine = machine_id();
    // An image has no identity of its own.
    let device = identity(path).ok();
    key(
        device.as_ref(),
        machine.as_deref(),
        &path.display().to_string(),
    )
}

/// The key of a device with this identity, or of an image.
fn key(device: Option<&Identity>, machine: Option<&str>, path: &str) -> VolumeKey {
    let Some(device) = device.filter(|device| device.is_stable) else {
        let identity = machine.map(|machine| format!("machine:{machine}:path={path}"));
        return identity.map_or_else(VolumeKey::unknown, |id| VolumeKey::of_identity(&id));
    };
    // A disk that has grown is the same volume.
    let id = device
        .id
        .rsplit_once(":size=")
        .map_or(&*device.id, |(id, _)| id);
    let value = id.split_once('=').map_or("", |(_, value)| value);
    let is_worldwide = WORLDWIDE.iter().any(|kind| value.starts_with(kind));
    if is_worldwide && !value.starts_with(QEMU) {
        return VolumeKey::of_identity(id);
    }
    let identity = machine.map(|machine| format!("machine:{machine}:{id}"));
    identity.map_or_else(VolumeKey::unknown, |id| VolumeKey::of_identity(&id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: &str, is_stable: bool) -> Identity {
        Identity {
            id: id.into(),
            tokens: vec!["/dev/sdb".into()],
            is_stable,
        }
    }

    #[test]
    fn a_path_alone_is_no_volume_and_a_disk_is_the_same_wherever_it_is_attached() {
        let wwn = |size: u64| device(&format!("device:wwid=naa.5000c500a1:size={size}"), true);
        let of =
            |device: &Identity, machine: Option<&str>, path: &str| key(Some(device), machine, path);
        // Another machine, another path, another size.
        assert_eq!(
            of(&wwn(1), Some("a"), "/dev/sdb"),
            of(&wwn(2), Some("b"), "/dev/sdc")
        );
        assert!(!of(&wwn(1), None, "/dev/sdb").is_unknown());
        let part = device(
            "device:wwid=naa.5000c500a1:partition=1:start=2048:size=1",
            true,
        );
        assert_ne!(of(&wwn(1), None, "/dev/sdb"), of(&part, None, "/dev/sdb1"));
        // The same serial number, LVM UUID or loop file on two machines: two volumes.
        for id in [
            "device:serial=QM00001:size=1",
            "device:device/wwid=t10.ATA QEMU HARDDISK QM00001:size=1",
            "device:wwid=nvme.1b36-31:size=1",
            "device:dm/uuid=LVM-abc:size=1",
            "device:loop=/srv/a.raw:inode=7:offset=0:size=1",
        ] {
            let disk = device(id, true);
            assert_ne!(
                of(&disk, Some("a"), "/d"),
                of(&disk, Some("b"), "/d"),
                "{id}"
            );
            assert_eq!(
                of(&disk, Some("a"), "/d"),
                of(&disk, Some("a"), "/e"),
                "{id}"
            );
            assert!(of(&disk, None, "/d").is_unknown(), "{id}");
        }
        // Nothing tells the device from others but its path.
        let nameless = device("device:path=/dev/vdb:size=1", false);
        assert_ne!(
            of(&nameless, Some("a"), "/dev/vdb"),
            of(&nameless, Some("b"), "/dev/vdb")
        );
        assert!(of(&nameless, None, "/dev/vdb").is_unknown());
        assert_ne!(key(None, Some("a"), "/x"), key(None, Some("b"), "/x"));
        assert_ne!(key(None, Some("a"), "/x"), key(None, Some("a"), "/y"));
        assert!(key(None, None, "/x").is_unknown());
    }
}
