//! Where the disks of a set go: a pure function over names.

use std::path::PathBuf;

use crate::error::{Error, Kind, Result};
use crate::repository::SetDisk;

/// A disk by its name, and the device that it goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeviceMapping {
    /// EC2's name of the device, with or without `/dev/`, or the volume's id.
    pub(super) name: String,
    /// The device of this machine.
    pub(super) path: PathBuf,
}

/// Reads `NAME=/dev/...`.
pub(super) fn device_mapping(text: &str) -> std::result::Result<DeviceMapping, String> {
    let place = text
        .split_once('=')
        .filter(|(name, path)| !name.is_empty() && !path.is_empty());
    let (name, path) = place.ok_or_else(|| "must be NAME=DEVICE".to_owned())?;
    Ok(DeviceMapping {
        name: name.to_owned(),
        path: path.into(),
    })
}

/// Whether a disk has this name.
fn is_named(disk: &SetDisk, name: &str) -> bool {
    let device = disk.device.as_deref();
    disk.volume == name
        || device == Some(name)
        || device.and_then(|device| device.strip_prefix("/dev/")) == Some(name)
}

fn names(disks: &[SetDisk]) -> String {
    let names = disks.iter().map(|disk| match &disk.device {
        Some(device) => format!("{device} ({})", disk.volume),
        None => disk.volume.clone(),
    });
    names.collect::<Vec<_>>().join(", ")
}

/// The disks that these names select, in the order of the set; all without a name.
///
/// # Errors
/// `Invalid` for a name that no disk or several disks have, and for a disk that is named twice.
pub(super) fn select(disks: &[SetDisk], only: &[String]) -> Result<Vec<usize>> {
    let mut found = Vec::new();
    for name in only {
        let number = find(disks, name)?;
        if found.contains(&number) {
            let what = format!("cannot restore {name}: the disk is named twice");
            return Err(Error::new(Kind::Invalid, what));
        }
        found.push(number);
    }
    found.sort_unstable();
    match only.is_empty() {
        true => Ok((0..disks.len()).collect()),
        false => Ok(found),
    }
}

fn find(disks: &[SetDisk], name: &str) -> Result<usize> {
    let named = disks
        .iter()
        .enumerate()
        .filter(|(_, disk)| is_named(disk, name));
    let mut named = named.map(|(number, _)| number);
    match (named.next(), named.next()) {
        (Some(number), None) => Ok(number),
        (found, _) => {
            let count = if found.is_some() {
                "several disks"
            } else {
                "no disk"
            };
            let what = format!("cannot restore {name}: {count} of the set have this name");
            let error = Error::new(Kind::Invalid, format!("{what}: {}", names(disks)));
            Err(error)
        }
    }
}

/// The device of each selected disk.
///
/// # Errors
/// `Invalid` when a selected disk has no device, a device or a disk is named twice, or a name is of no selected disk.
pub(super) fn assign(
    disks: &[SetDisk],
    selected: &[usize],
    places: &[DeviceMapping],
) -> Result<Vec<PathBuf>> {
    let refused = |what: String| Err(Error::new(Kind::Invalid, what));
    let mut devices: Vec<Option<&PathBuf>> = vec![None; disks.len()];
    for (index, place) in places.iter().enumerate() {
        let number = find(disks, &place.name)?;
        let name = &place.name;
        if !selected.contains(&number) {
            return refused(format!(
                "cannot restore {name}: it is not among the disks to restore"
            ));
        }
        let earlier = places.get(..index).unwrap_or_default();
        if earlier.iter().any(|other| other.path == place.path) {
            let path = place.path.display();
            return refused(format!(
                "cannot restore to {path}: the device is named twice"
            ));
        }
        match devices.get_mut(number) {
            Some(device @ None) => *device = Some(&place.path),
            _ => return refused(format!("cannot restore {name}: the disk is named twice")),
        }
    }
    let mut found = Vec::new();
    for number in selected {
        match devices.get(*number).copied().flatten() {
            Some(path) => found.push(path.clone()),
            None => {
                let left = disks.get(*number..=*number).unwrap_or_default();
                return refused(format!("cannot restore {}: it has no device", names(left)));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks() -> Vec<SetDisk> {
        let disk = |device: Option<&str>, volume: &str| SetDisk {
            device: device.map(str::to_owned),
            is_root: false,
            volume: volume.to_owned(),
            snapshot: "snap-0a".parse().unwrap(),
        };
        vec![
            disk(Some("/dev/xvda"), "vol-0a"),
            disk(Some("/dev/sdf"), "vol-0b"),
            disk(None, "vol-0c"),
        ]
    }

    #[test]
    fn each_selected_disk_has_one_device_of_its_own() {
        let all = [0, 1, 2];
        for (selected, places, expected) in [
            (
                &all[..],
                &["xvda=/dev/a", "vol-0c=/dev/c", "/dev/sdf=/dev/b"][..],
                Ok(&["/dev/a", "/dev/b", "/dev/c"][..]),
            ),
            (&all[1..2], &["sdf=/dev/b"], Ok(&["/dev/b"])),
            (
                &all,
                &["xvda=/dev/a", "sdf=/dev/b"],
                Err("vol-0c: it has no device"),
            ),
            (
                &all,
                &["xvda=/dev/a", "vol-0a=/dev/b", "vol-0c=/dev/c"],
                Err("disk is named twice"),
            ),
            (
                &all,
                &["xvda=/dev/a", "sdf=/dev/a"],
                Err("/dev/a: the device is named twice"),
            ),
            (
                &all,
                &["xvdb=/dev/a"],
                Err("no disk of the set have this name: /dev/xvda (vol-0a)"),
            ),
            (&all[..1], &["sdf=/dev/b"], Err("not among the disks")),
        ] {
            let places: Vec<_> = places
                .iter()
                .map(|text| device_mapping(text).unwrap())
                .collect();
            let found = assign(&disks(), selected, &places).map_err(|error| error.chain());
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert!(
                    found.iter().eq(expected
                        .iter()
                        .map(PathBuf::from)
                        .collect::<Vec<_>>()
                        .iter())
                ),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, _) => panic!("{found:?}"),
            }
        }
        for wrong in ["", "xvda", "=/dev/a", "xvda="] {
            assert!(device_mapping(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_select_disks_in_the_order_of_the_set() {
        let names = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
            select(&disks(), &only).map_err(|error| error.kind())
        };
        assert_eq!(names(&[]), Ok(vec![0, 1, 2]));
        assert_eq!(names(&["vol-0c", "xvda"]), Ok(vec![0, 2]));
        assert_eq!(names(&["xvda", "vol-0a"]), Err(Kind::Invalid));
        assert_eq!(names(&["xvdz"]), Err(Kind::Invalid));
    }
}
