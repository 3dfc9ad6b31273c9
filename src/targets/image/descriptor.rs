//! The two files of a VMDK: the descriptor, which has the name that a person gives, and the flat file with the blocks.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Remedy, Result};
use crate::files;
use crate::formats::vmdk_descriptor;

/// Bytes of a descriptor that are looked at; ours has some 500.
const LOOKED_AT: u64 = 64 << 10;

/// The flat file of the VMDK at `path`: `disk-flat.vmdk` of `disk.vmdk`, as VMware names it.
pub(super) fn flat_file_of(path: &Path) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push("-flat.vmdk");
    path.with_file_name(name)
}

/// The line of a descriptor that names a flat file, without its number of sectors.
fn names(descriptor: &str, flat: &str) -> bool {
    let ending = format!(" FLAT \"{flat}\" 0");
    let mut lines = descriptor.lines();
    lines.any(|line| line.starts_with("RW ") && line.ends_with(&ending))
}

/// Checks that the file in the descriptor's place may be replaced: there is none, or it is the descriptor of this flat file.
///
/// # Errors
/// `Undecided` when it is something else; why it cannot be read.
pub(super) fn check_descriptor(path: &Path, flat: &Path) -> Result<()> {
    let failed = |error| Error::of_file(path, "cannot look at", error);
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(LOOKED_AT)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let flat = flat.file_name().unwrap_or_default().to_string_lossy();
    if bytes.is_empty() || names(&String::from_utf8_lossy(&bytes), &flat) {
        return Ok(());
    }
    let path = path.display();
    let what = format!("cannot write {path}: it is not the descriptor of {flat}");
    let remedy = "move it away, or choose another name".into();
    Err(Error::new(Kind::Undecided, what).with_remedy(Remedy::Do(remedy)))
}

/// The descriptor that an image gets.
pub(super) struct VmdkDescriptor {
    pub(super) path: PathBuf,
    pub(super) flat: PathBuf,
    /// Bytes of the volume.
    pub(super) size: u64,
}

impl VmdkDescriptor {
    /// Writes it whole or not at all. One that is there already stays.
    pub(super) fn write(&self) -> Result<()> {
        let flat = self.flat.file_name().unwrap_or_default().to_string_lossy();
        let text = vmdk_descriptor(self.size, &flat)?;
        if std::fs::read(&self.path).is_ok_and(|there| there == text.as_bytes()) {
            return Ok(());
        }
        files::replace(&self.path, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_descriptor_of_its_own_flat_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b.vmdk");
        let flat = flat_file_of(&path);
        assert_eq!(flat, folder.path().join("a b-flat.vmdk"));
        check_descriptor(&path, &flat).unwrap();
        let ours = VmdkDescriptor {
            path: path.clone(),
            flat: flat.clone(),
            size: 1 << 30,
        };
        ours.write().unwrap();
        check_descriptor(&path, &flat).unwrap();
        let other = vmdk_descriptor(1 << 30, "other-flat.vmdk").unwrap();
        for text in ["KDMV sparse", "# Disk DescriptorFile\n", &other] {
            std::fs::write(&path, text).unwrap();
            let found = check_descriptor(&path, &flat).unwrap_err();
            assert_eq!(found.kind(), Kind::Undecided);
            let found = found.chain();
            assert!(
                found.contains("not the descriptor of a b-flat.vmdk"),
                "{found}"
            );
        }
        // An endless file, which is not read whole.
        let zero = folder.path().join("zero.vmdk");
        std::os::unix::fs::symlink("/dev/zero", &zero).unwrap();
        assert!(check_descriptor(&zero, &flat_file_of(&zero)).is_err());
    }
}
