//! ext2, ext3 and ext4, read only.
//!
//! The crate `ext4-view` has no inode numbers, hard links, extended attributes, change times, device numbers or extents, and a copy
//! needs them all; the tests compare it with this reader, as a second opinion. A journal that was not replayed is replayed in
//! memory: a block that it holds is read from there ([`journal`]).
//!
//! <https://docs.kernel.org/filesystems/ext4/>

mod crc;
mod folder;
mod inode;
mod journal;
mod map;
mod xattr;

use std::io;

use super::reader::{
    DiskWindow, FoundValues, FsFailure, FsPage, FsReader, FsResult, cut_off, le16, le32,
};
use super::wire::TARGET_LIMIT;
use super::{FsEntry, FsNode, FsRemarks, FsSpan, NodeKind};
use inode::ExtInode;
use journal::Replayed;
use map::MOST_BLOCKS;

/// The inode of the root folder.
const ROOT: u64 = 2;
/// Groups whose descriptors are read: 2^32 blocks of 4 KiB have 2^17, 64 TiB of 1 KiB blocks 2^23.
const MOST_GROUPS: u64 = 1 << 23;

/// Features without which a volume cannot be read right.
mod feature {
    /// A compatible feature. It is the only one of them that changes the layout.
    pub(super) const SPARSE_SUPER_2: u32 = 0x200;
    pub(super) const FILE_TYPE: u32 = 0x2;
    pub(super) const RECOVER: u32 = 0x4;
    pub(super) const META_GROUPS: u32 = 0x10;
    pub(super) const BITS_64: u32 = 0x80;
    pub(super) const LARGE_FOLDERS: u32 = 0x4000;
    /// FILE_TYPE, RECOVER, META_GROUPS, extents, BITS_64, MMP, flexible groups, values in inodes, seed of checksums,
    /// LARGE_FOLDERS, inline data, encryption, case folding.
    pub(super) const KNOWN: u32 = FILE_TYPE
        | RECOVER
        | META_GROUPS
        | 0x40
        | BITS_64
        | 0x100
        | 0x200
        | 0x400
        | 0x2000
        | LARGE_FOLDERS
        | 0x8000
        | 0x1_0000
        | 0x2_0000;
}

/// What the superblock says, as far as it is needed.
#[derive(Clone, Debug)]
struct ExtLayout {
    block_size: u64,
    blocks: u64,
    inodes: u32,
    inodes_per_group: u32,
    blocks_per_group: u32,
    first_data_block: u64,
    inode_size: usize,
    descriptor_size: u64,
    first_meta_group: u64,
    compatible: u32,
    incompatible: u32,
    read_only: u32,
    journal_inode: u64,
    has_outside_journal: bool,
    /// With sparse_super2 the groups that have a copy of the superblock; 0: none.
    backups: [u32; 2],
}

impl ExtLayout {
    fn of(superblock: &[u8]) -> FsResult<Self> {
        let wrong = |what: &str| FsFailure::damaged(format!("the superblock is damaged: {what}"));
        if le16(superblock, 0x38) != 0xef53 {
            return Err(wrong("it has no signature"));
        }
        let shift = le32(superblock, 0x18);
        if shift > 6 {
            return Err(wrong("blocks are larger than 64 KiB"));
        }
        let incompatible = le32(superblock, 0x60);
        let is_old = le32(superblock, 0x4c) == 0;
        let has_64_bits = incompatible & feature::BITS_64 != 0;
        let high = if has_64_bits {
            le32(superblock, 0x150)
        } else {
            0
        };
        let layout = Self {
            block_size: 1024 << shift,
            blocks: u64::from(high) << 32 | u64::from(le32(superblock, 0x4)),
            inodes: le32(superblock, 0x0),
            inodes_per_group: le32(superblock, 0x28),
            blocks_per_group: le32(superblock, 0x20),
            first_data_block: le32(superblock, 0x14).into(),
            inode_size: if is_old {
                128
            } else {
                le16(superblock, 0x58).into()
            },
            descriptor_size: match has_64_bits {
                true => u64::from(le16(superblock, 0xfe)).max(32),
                false => 32,
            },
            first_meta_group: le32(superblock, 0x104).into(),
            compatible: if is_old { 0 } else { le32(superblock, 0x5c) },
            incompatible: if is_old { 0 } else { incompatible },
            read_only: if is_old { 0 } else { le32(superblock, 0x64) },
            journal_inode: le32(superblock, 0xe0).into(),
            has_outside_journal: le32(superblock, 0xe4) != 0,
            backups: [le32(superblock, 0x24c), le32(superblock, 0x250)],
        };
        let unknown = layout.incompatible & !feature::KNOWN;
        if unknown != 0 {
            let what = format!("it has features that this program does not know ({unknown:#x})");
            return Err(FsFailure::unsupported(what));
        }
        let is_possible = layout.inodes_per_group > 0
            && layout.blocks_per_group > 0
            && layout.inode_size.is_power_of_two()
            && layout.inode_size >= 128
            && layout.inode_size as u64 <= layout.block_size
            && layout.descriptor_size <= 1024
            && layout.groups() <= MOST_GROUPS
            && layout.first_data_block < layout.blocks;
        match is_possible {
            true => Ok(layout),
            false => Err(wrong("its numbers are impossible")),
        }
    }

    fn groups(&self) -> u64 {
        self.blocks
            .saturating_sub(self.first_data_block)
            .div_ceil(self.blocks_per_group.into())
    }

    /// Whether a group begins with a copy of the superblock.
    fn has_superblock(&self, group: u64) -> bool {
        if group > 0 && self.compatible & feature::SPARSE_SUPER_2 != 0 {
            return self
                .backups
                .iter()
                .any(|backup| u64::from(*backup) == group);
        }
        let is_power = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        // Without sparse_super each group has one.
        self.read_only & 0x1 == 0 || group <= 1 || [3, 5, 7].into_iter().any(is_power)
    }

    /// The block and the byte in it where the descriptor of a group is.
    fn descriptor_at(&self, group: u64) -> (u64, u64) {
        let in_a_block = (self.block_size / self.descriptor_size).max(1);
        let (number, within) = (group / in_a_block, group % in_a_block);
        let is_meta = self.incompatible & feature::META_GROUPS != 0;
        // The superblock is at byte 1024, and the first group begins there or, with clusters of several blocks, before it.
        let superblock = 1024 / self.block_size;
        let block = match is_meta && number >= self.first_meta_group {
            false => superblock + 1 + number,
            true => {
                let first = number * in_a_block;
                let start = self.first_data_block + first * u64::from(self.blocks_per_group);
                let gap = if number == 0 {
                    superblock.saturating_sub(self.first_data_block)
                } else {
                    0
                };
                start + gap + u64::from(self.has_superblock(first))
            }
        };
        (block, within * self.descriptor_size)
    }
}

/// An ext filesystem.
pub(super) struct ExtReader {
    window: DiskWindow,
    layout: ExtLayout,
    replayed: Replayed,
    remarks: FsRemarks,
}

impl ExtReader {
    /// Reads the superblock and replays the journal in memory.
    ///
    /// # Errors
    /// When it is damaged or has unknown features.
    pub(super) fn open(window: DiskWindow) -> FsResult<Self> {
        let layout = ExtLayout::of(&window.bytes_at(1024, 1024)?)?;
        let mut reader = Self {
            window,
            layout,
            replayed: Replayed::default(),
            remarks: FsRemarks::default(),
        };
        let bytes = reader
            .layout
            .blocks
            .saturating_mul(reader.layout.block_size);
        reader.remarks.damage = cut_off(bytes, &reader.window);
        if reader.layout.incompatible & feature::RECOVER == 0 {
            return Ok(reader);
        }
        if reader.layout.has_outside_journal {
            let note = "its journal is on another device and was not replayed";
            reader.remarks.notes.push(note.to_owned());
            return Ok(reader);
        }
        let (replayed, remarks) = journal::replay(&reader)?;
        reader.replayed = replayed;
        reader.remarks.notes.extend(remarks.notes);
        reader.remarks.damage.extend(remarks.damage);
        let (block, within) = (
            1024 / reader.layout.block_size,
            1024 % reader.layout.block_size,
        );
        let first = reader.block(block)?;
        let within = usize::try_from(within).unwrap_or(0);
        // The superblock can be in the journal too. It was good before: a worse one is not taken.
        if let Ok(layout) = ExtLayout::of(first.get(within..).unwrap_or_default()) {
            reader.layout = layout;
        }
        Ok(reader)
    }

    fn block_len(&self) -> usize {
        usize::try_from(self.layout.block_size).unwrap_or(1 << 16)
    }

    /// A block, as it is after the replay of the journal.
    fn block(&self, block: u64) -> io::Result<Vec<u8>> {
        match self.replayed.find(block) {
            Some(copy) => {
                let mut bytes = self.raw_block(copy.block)?;
                copy.finish(&mut bytes)?;
                Ok(bytes)
            }
            None => self.raw_block(block),
        }
    }

    /// A block as it is on the disk.
    fn raw_block(&self, block: u64) -> io::Result<Vec<u8>> {
        let at = block.checked_mul(self.layout.block_size);
        self.window
            .bytes_at(at.unwrap_or(u64::MAX), self.block_len())
    }

    fn inode(&self, number: u64) -> FsResult<ExtInode> {
        if number == 0 || number > u64::from(self.layout.inodes) {
            return Err(FsFailure::damaged(format!("there is no inode {number}")));
        }
        let (group, within) = (
            (number - 1) / u64::from(self.layout.inodes_per_group),
            (number - 1) % u64::from(self.layout.inodes_per_group),
        );
        if group >= self.layout.groups() {
            return Err(FsFailure::damaged(format!("there is no inode {number}")));
        }
        let (block, at) = self.layout.descriptor_at(group);
        let descriptors = self.block(block)?;
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let high = match self.layout.descriptor_size >= 64 {
            true => le32(&descriptors, at + 0x28),
            false => 0,
        };
        let table = u64::from(high) << 32 | u64::from(le32(&descriptors, at + 0x8));
        let byte = within * self.layout.inode_size as u64;
        let block = table.saturating_add(byte / self.layout.block_size);
        let bytes = self.block(block)?;
        let at = usize::try_from(byte % self.layout.block_size).unwrap_or(usize::MAX);
        let raw = bytes
            .get(at..)
            .and_then(|rest| rest.get(..self.layout.inode_size));
        let raw = raw.ok_or_else(|| FsFailure::damaged("an inode is cut"))?;
        let has_large = self.layout.incompatible & feature::LARGE_FOLDERS != 0;
        let inode = ExtInode::of(number, raw, has_large);
        match inode.size <= MOST_BLOCKS * self.layout.block_size {
            true => Ok(inode),
            false => Err(FsFailure::damaged(format!(
                "the size of inode {number} is impossible"
            ))),
        }
    }

    /// The metadata of an inode; the target of a link is read.
    fn node(&self, number: u64) -> FsResult<FsNode> {
        let inode = self.inode(number)?;
        let mut node = inode.node()?;
        if node.kind == NodeKind::Link {
            node.target = self.target(&inode)?;
            if node.target.is_empty() || node.target.contains(&0) {
                return Err(FsFailure::damaged(format!(
                    "the link of inode {number} is damaged"
                )));
            }
        }
        Ok(node)
    }

    fn target(&self, inode: &ExtInode) -> FsResult<Vec<u8>> {
        if inode.is_encrypted() {
            return Err(FsFailure::unsupported("the link is encrypted"));
        }
        let len = usize::try_from(inode.size).unwrap_or(usize::MAX);
        if len > TARGET_LIMIT {
            return Err(FsFailure::damaged(format!(
                "the link of inode {} is too long",
                inode.number
            )));
        }
        if !inode.is_inline() && len < inode.area.len() && !inode.has_extents() {
            return Ok(inode.area.get(..len).unwrap_or_default().to_vec());
        }
        self.bytes_of(inode, 0, len)
    }

    /// Bytes of a file by its map, holes as zeroes.
    fn bytes_of(&self, inode: &ExtInode, offset: u64, len: usize) -> FsResult<Vec<u8>> {
        let left = usize::try_from(inode.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = len.min(left);
        if inode.is_inline() {
            let all = self.inline_bytes(inode)?;
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let mut bytes = all.get(start..).unwrap_or_default().to_vec();
            bytes.resize(len, 0);
            return Ok(bytes);
        }
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let at = offset + bytes.len() as u64;
            let within = usize::try_from(at % self.layout.block_size).unwrap_or(0);
            let logical = at / self.layout.block_size;
            let take = (self.block_len() - within).min(len - bytes.len());
            let (runs, _) = self.runs(inode, logical, 1)?;
            match runs.first().and_then(|run| run.physical_at(logical)) {
                Some(physical) => {
                    let block = self.block(physical)?;
                    bytes.extend(block.get(within..within + take).unwrap_or_default());
                }
                None => bytes.resize(bytes.len() + take, 0),
            }
        }
        Ok(bytes)
    }

    /// # Errors
    /// `Damaged` when a file in its inode has more bytes than fit there.
    fn check_inline(&self, inode: &ExtInode) -> FsResult<()> {
        let most = self.inline_bytes(inode)?.len() as u64;
        match inode.size <= most {
            true => Ok(()),
            false => Err(FsFailure::damaged(format!(
                "inode {} has more bytes than fit into it",
                inode.number
            ))),
        }
    }

    /// The data of a small file in its inode: 60 bytes there, the rest as an extended attribute.
    fn inline_bytes(&self, inode: &ExtInode) -> FsResult<Vec<u8>> {
        let mut bytes = inode.area.to_vec();
        let rest = self.all_xattrs(inode)?;
        let rest = rest.into_iter().find(|(name, _)| name == b"system.data");
        bytes.extend(rest.map(|(_, value)| value).unwrap_or_default());
        Ok(bytes)
    }
}

impl FsReader for ExtReader {
    fn name(&self) -> &'static str {
        let has_journal = self.layout.compatible & 0x4 != 0;
        match (has_journal, self.layout.incompatible & 0x2c0 != 0) {
            (_, true) => "ext4",
            (true, false) => "ext3",
            (false, false) => "ext2",
        }
    }

    fn remarks(&self) -> FsRemarks {
        self.remarks.clone()
    }

    fn root(&mut self) -> FsResult<FsNode> {
        self.node(ROOT)
    }

    fn list(&mut self, folder: u64, cursor: u64) -> FsResult<FsPage<FsEntry>> {
        self.list_page(folder, cursor)
    }

    fn find(&mut self, folder: u64, name: &[u8]) -> FsResult<Option<FsNode>> {
        match self.find_name(folder, name)? {
            Some(number) => self.node(number).map(Some),
            None => Ok(None),
        }
    }

    fn spans(&mut self, file: u64, offset: u64) -> FsResult<FsPage<FsSpan>> {
        self.span_page(file, offset)
    }

    fn content(&mut self, file: u64, offset: u64, len: usize) -> FsResult<Vec<u8>> {
        let inode = self.inode(file)?;
        if inode.is_encrypted() {
            return Err(FsFailure::unsupported("the file is encrypted"));
        }
        self.bytes_of(&inode, offset, len)
    }

    fn xattrs(&mut self, file: u64) -> FsResult<FoundValues> {
        let inode = self.inode(file)?;
        let mut found = self.all_xattrs(&inode)?;
        found.retain(|(name, _)| name != b"system.data");
        Ok((found, 0))
    }
}
