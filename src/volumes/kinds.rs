//! [`PartitionKind`]: what a table says that a partition is for.

/// The name of the kind of an EFI system partition.
pub(super) const EFI_SYSTEM: &str = "efi-system";

/// The kind of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartitionKind {
    /// A GUID, or a byte as `0x83`; empty for a whole disk.
    pub(crate) id: String,
    /// What people call it.
    pub(crate) name: &'static str,
}

impl PartitionKind {
    /// The whole disk.
    pub(super) fn whole() -> Self {
        Self {
            id: String::new(),
            name: "disk",
        }
    }

    /// By the 16 bytes of a GPT.
    pub(super) fn of_gpt(bytes: &[u8]) -> Self {
        let id = guid(bytes);
        let known = GPT.iter().find(|(known, _)| *known == id);
        Self {
            name: known.map_or("unknown", |(_, name)| name),
            id,
        }
    }

    /// By the byte of an MBR.
    pub(super) fn of_mbr(byte: u8) -> Self {
        let known = MBR.iter().find(|(known, _)| *known == byte);
        Self {
            id: format!("0x{byte:02x}"),
            name: known.map_or("unknown", |(_, name)| name),
        }
    }
}

/// A GUID as people write it: the first three fields are little-endian.
pub(super) fn guid(bytes: &[u8]) -> String {
    let Some(bytes) = bytes.first_chunk::<16>() else {
        return String::new();
    };
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut text = String::with_capacity(36);
    for (place, from) in order.into_iter().enumerate() {
        if [4, 6, 8, 10].contains(&place) {
            text.push('-');
        }
        let byte = bytes.get(from).copied().unwrap_or_default();
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// <https://uefi.org/specs/UEFI/2.10/05_GUID_Partition_Table_Format.html>, the Discoverable Partitions Specification, and Microsoft's
/// PARTITION_INFORMATION_GPT.
const GPT: &[(&str, &str)] = &[
    ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", EFI_SYSTEM),
    ("21686148-6449-6e6f-744e-656564454649", "bios-boot"),
    ("9e1a2d38-c612-4316-aa26-8b49521e5a8b", "prep-boot"),
    ("0fc63daf-8483-4772-8e79-3d69d8477de4", "linux"),
    ("4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "linux-root"),
    ("b921b045-1df0-41c3-af44-4c6f280d3fae", "linux-root"),
    ("44479540-f297-41b2-9af7-d131d5f0458a", "linux-root"),
    ("bc13c2ff-59e6-4262-a352-b275fd6f7172", "linux-boot"),
    ("933ac7e1-2eb4-4f13-b844-0e14e2aef915", "linux-home"),
    ("3b8f8425-20e0-4f3b-907f-1a25a76f98e8", "linux-srv"),
    ("4d21b016-b534-45c2-a9fb-5c16e091fd2d", "linux-var"),
    ("8da63339-0007-60c0-c436-083ac8230908", "linux-reserved"),
    ("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "swap"),
    ("e6d6d379-f507-44c2-a23c-238f2a3df928", "lvm"),
    ("a19d880f-05fc-4d3b-a006-743f0f84911e", "raid"),
    ("ca7d7ccb-63ed-4c53-861c-1742536059cc", "luks"),
    ("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", "windows-data"),
    ("e3c9e316-0b5c-4db8-817d-f92df00215ae", "windows-reserved"),
    ("de94bba4-06d1-4d40-a16a-bfd50179d6ac", "windows-recovery"),
    (
        "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3",
        "windows-dynamic-metadata",
    ),
    ("af9b60a0-1431-4f62-bc68-3311714a69ad", "windows-dynamic"),
    (
        "e75caf8f-f680-4cee-afa3-b001e56efc2d",
        "windows-storage-spaces",
    ),
    ("83bd6b9d-7f41-11dc-be0b-001560b84f0f", "freebsd-boot"),
    ("516e7cb5-6ecf-11d6-8ff8-00022d09712b", "freebsd-swap"),
    ("516e7cb6-6ecf-11d6-8ff8-00022d09712b", "freebsd-ufs"),
    ("516e7cba-6ecf-11d6-8ff8-00022d09712b", "zfs"),
    ("6a898cc3-1dd2-11b2-99a6-080020736631", "zfs"),
];

const MBR: &[(u8, &str)] = &[
    (0x01, "fat12"),
    (0x04, "fat16"),
    (0x06, "fat16"),
    (0x0e, "fat16"),
    (0x0b, "fat32"),
    (0x0c, "fat32"),
    (0x07, "ntfs"),
    (0x27, "windows-recovery"),
    (0x42, "windows-dynamic"),
    (0x82, "swap"),
    (0x83, "linux"),
    (0x8e, "lvm"),
    (0xfd, "raid"),
    (0xa5, "freebsd"),
    (0xef, EFI_SYSTEM),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_named_by_its_guid_or_byte() {
        let efi = [
            0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e,
            0xc9, 0x3b,
        ];
        assert_eq!(PartitionKind::of_gpt(&efi).name, EFI_SYSTEM);
        assert_eq!(PartitionKind::of_gpt(&[7; 16]).name, "unknown");
        assert_eq!(PartitionKind::of_mbr(0xef).name, EFI_SYSTEM);
        assert_eq!(PartitionKind::of_mbr(0x99).id, "0x99");
        assert_eq!(guid(&[1; 3]), "");
        let ids = GPT.iter().map(|(id, _)| id.len());
        assert!(ids.clone().all(|len| len == 36) && ids.count() == GPT.len());
    }
}
