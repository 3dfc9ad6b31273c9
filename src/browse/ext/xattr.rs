//! Extended attributes: behind the fields of the inode, in one block of their own, and large values in inodes.

use super::super::reader::{FsFailure, FsResult, NamedValue, le16, le32};
use super::super::wire::VALUE_LIMIT;
use super::ExtReader;
use super::inode::ExtInode;

const MAGIC: u32 = 0xea02_0000;
/// Bytes of all values of a file, at most.
const MOST_BYTES: usize = 1 << 20;
/// What the numbers of prefixes stand for. ext4 knows no others.
const PREFIXES: [(u8, &[u8]); 7] = [
    (0, b""),
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
    (7, b"system."),
];

impl ExtReader {
    /// All attributes, with the one that holds the data of a small file.
    pub(super) fn all_xattrs(&self, inode: &ExtInode) -> FsResult<Vec<NamedValue>> {
        let mut found = Vec::new();
        let inside = inode.raw.get(inode.fields()..).unwrap_or_default();
        if inode.raw.len() > 128 && le32(inside, 0) == MAGIC {
            // Offsets of values count from the first entry.
            let area = inside.get(4..).unwrap_or_default();
            self.attributes(inode, area, 0, &mut found)?;
        }
        if inode.xattr_block != 0 {
            let block = self.block(inode.xattr_block)?;
            if le32(&block, 0) != MAGIC {
                return Err(wrong(inode));
            }
            self.attributes(inode, &block, 32, &mut found)?;
        }
        Ok(found)
    }

    fn attributes(
        &self,
        inode: &ExtInode,
        area: &[u8],
        first: usize,
        found: &mut Vec<NamedValue>,
    ) -> FsResult<()> {
        let mut at = first;
        while le32(area, at) != 0 {
            let entry = area.get(at..).unwrap_or_default();
            let &[name_len, prefix, ..] = entry else {
                return Ok(());
            };
            let name = entry.get(16..16 + usize::from(name_len));
            let name = name.ok_or_else(|| wrong(inode))?;
            let (offset, size) = (usize::from(le16(entry, 2)), le32(entry, 8) as usize);
            let total: usize = found.iter().map(|(_, value)| value.len()).sum();
            if size > VALUE_LIMIT || total + size > MOST_BYTES {
                return Err(wrong(inode));
            }
            let value = match le32(entry, 4) {
                0 if size == 0 => Vec::new(),
                0 => {
                    let value = area.get(offset..offset + size);
                    value.ok_or_else(|| wrong(inode))?.to_vec()
                }
                number => {
                    let value = self.inode(number.into())?;
                    // The data of a file in its inode is an attribute too, and could lead back here.
                    if !value.is_value() || value.is_inline() {
                        return Err(wrong(inode));
                    }
                    self.bytes_of(&value, 0, size)?
                }
            };
            let known = PREFIXES.iter().find(|(known, _)| *known == prefix);
            if let Some((_, text)) = known {
                let value = match prefix {
                    2 | 3 => acl(&value).ok_or_else(|| wrong(inode))?,
                    _ => value,
                };
                found.push(([text, name].concat(), value));
            }
            at += (16 + usize::from(name_len)).next_multiple_of(4);
        }
        Ok(())
    }
}

fn wrong(inode: &ExtInode) -> FsFailure {
    let what = format!(
        "the extended attributes of inode {} are damaged",
        inode.number
    );
    FsFailure::damaged(what)
}

/// An access control list as programs see it: on the disk entries without an id are shorter.
///
/// <https://www.man7.org/linux/man-pages/man5/acl.5.html>
fn acl(stored: &[u8]) -> Option<Vec<u8>> {
    /// Tags of entries for one user and for one group.
    const WITH_ID: [u16; 2] = [0x2, 0x8];
    if le32(stored, 0) != 1 {
        return None;
    }
    let mut shown = 2_u32.to_le_bytes().to_vec();
    let mut rest = stored.get(4..)?;
    while !rest.is_empty() {
        let (tag, permissions) = rest.split_first_chunk::<2>()?;
        let (permissions, after) = permissions.split_first_chunk::<2>()?;
        shown.extend(tag);
        shown.extend(permissions);
        rest = after;
        if WITH_ID.contains(&u16::from_le_bytes(*tag)) {
            let (id, after) = rest.split_first_chunk::<4>()?;
            shown.extend(id);
            rest = after;
        } else {
            shown.extend(u32::MAX.to_le_bytes());
        }
    }
    Some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_control_list_gets_an_id_in_each_entry() {
        let stored = [
            1, 0, 0, 0, // version
            1, 0, 6, 0, // owner: rw
            2, 0, 4, 0, 0xe8, 3, 0, 0, // user 1000: r
            0x20, 0, 0, 0, // others: nothing
        ];
        let shown = [
            2, 0, 0, 0, //
            1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, //
            2, 0, 4, 0, 0xe8, 3, 0, 0, //
            0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
        ];
        assert_eq!(acl(&stored).unwrap(), shown);
        assert_eq!(acl(&stored[..10]), None);
        assert_eq!(acl(&[2, 0, 0, 0]), None);
    }
}
