//! VMDK: a text file, the descriptor, that names the raw image beside it (VMware Virtual Disk Format 5.0, `monolithicFlat`).
//!
//! Flat, because the image is then the raw one: blocks come in any order, a delta is applied to it, a run resumes. A
//! `streamOptimized` file is one compressed stream from the first sector to the last.

use super::SECTOR;
use crate::error::{Error, Kind, Result};

/// Heads and sectors of a track of a SCSI disk, as VMware has them.
const HEADS: u64 = 255;
const TRACK: u64 = 63;

/// The descriptor of an image of `size` bytes in the file `extent` of the same folder.
///
/// # Errors
/// As for [`check_extent_name`].
pub(crate) fn vmdk_descriptor(size: u64, extent: &str) -> Result<String> {
    check_extent_name(extent)?;
    let sectors = size.div_ceil(SECTOR);
    let cylinders = sectors / (HEADS * TRACK);
    Ok(format!(
        "# Disk DescriptorFile\n\
         version=1\n\
         encoding=\"UTF-8\"\n\
         CID=fffffffe\n\
         parentCID=ffffffff\n\
         createType=\"monolithicFlat\"\n\
         \n\
         # Extent description\n\
         RW {sectors} FLAT \"{extent}\" 0\n\
         \n\
         # The Disk Data Base\n\
         #DDB\n\
         \n\
         ddb.virtualHWVersion = \"4\"\n\
         ddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"{HEADS}\"\n\
         ddb.geometry.sectors = \"{TRACK}\"\n\
         ddb.adapterType = \"lsilogic\"\n"
    ))
}

/// Whether a descriptor can name a file: it has no escapes, and QEMU takes a name with a colon for a protocol and one with a slash
/// for another folder.
///
/// # Errors
/// `Invalid` with the first character that it cannot have.
pub(crate) fn check_extent_name(name: &str) -> Result<()> {
    let is_wrong = |c: &char| c.is_control() || matches!(c, '"' | ':' | '/' | '\\');
    match name.chars().find(is_wrong) {
        Some(wrong) => {
            let what = format!("a VMDK descriptor cannot name a file with {wrong:?} in its name");
            Err(Error::new(Kind::Invalid, what))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_names_all_sectors_of_the_image() {
        let text = vmdk_descriptor((8 << 30) + 1, "disk.raw").unwrap();
        assert!(text.starts_with("# Disk DescriptorFile\nversion=1\n"));
        assert!(
            text.contains("\nRW 16777217 FLAT \"disk.raw\" 0\n"),
            "{text}"
        );
        assert!(
            text.contains("ddb.geometry.cylinders = \"1044\"\n"),
            "{text}"
        );
        let largest = vmdk_descriptor(64 << 40, "disk.raw").unwrap();
        assert!(largest.contains("RW 137438953472 FLAT"));
    }

    #[test]
    fn names_that_a_descriptor_cannot_hold_are_refused() {
        for name in [
            "a\"b", "json:{}", "nbd:x", "a/b", "a\nb", "a\rb", "a\\b", "\u{7f}",
        ] {
            let refused = vmdk_descriptor(512, name).unwrap_err();
            assert_eq!(refused.kind(), Kind::Invalid, "{name:?}");
        }
        for name in ["a b, c='d'-flat.vmdk", "\u{e4}-flat.vmdk"] {
            assert!(vmdk_descriptor(512, name).is_ok(), "{name}");
        }
    }
}
