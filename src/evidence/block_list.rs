//! The block list, `blocks.csv`: the whole volume in order and without a gap, one line for each block that is held and
//! for each run of blocks that is not.
//!
//! ```text
//! first_block,blocks,state,sha256,ebs_checksum
//! 0,1,data,6f3c...,bzw...
//! 1,1,zero,0785...,B4VN...
//! 2,1,damaged,,
//! 3,2045,hole,,
//! ```
//! `sha256` is computed here of the block's bytes. `ebs_checksum` is what EBS stated with the block (`x-amz-checksum`, the
//! SHA-256 in base64); a block whose bytes do not match it is never accepted: the run ends there, or the block is `damaged`, has
//! no digest here and is zeroes in the digests of the image. The checksum is empty where the blocks came from elsewhere. Each
//! line has one form alone, which is compared byte for byte when it is read.

use std::io::{BufRead, BufReader, Read};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::folder::{FileFacts, HashedFile};
use crate::block::{BlockIndex, Digest, Extent, Geometry, hexadecimal};
use crate::error::{Error, Kind, Result};
use crate::sync::{HeldBlock, digest_of_zeroes};

const HEAD: &str = "first_block,blocks,state,sha256,ebs_checksum\n";
/// Longer than any line: two numbers of 9 digits, 64 digits, 44 characters.
const LONGEST_LINE: u64 = 256;

/// What blocks hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockState {
    /// Nothing: they read as zeroes.
    Hole,
    /// Zeroes that are held.
    Zero,
    /// Bytes with this SHA-256.
    Data(Digest),
    /// Bytes that could not be read because they are damaged.
    Damaged,
}

/// A line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListedRun {
    pub(super) extent: Extent,
    pub(super) state: BlockState,
}

/// How many blocks of each state there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BlockCounts {
    /// Blocks with a byte that is not zero.
    pub(crate) data: u64,
    /// Blocks that are held and hold zeroes.
    pub(crate) zero: u64,
    /// Blocks that are not held.
    pub(crate) hole: u64,
    /// Blocks that are held and damaged. The JSON has the member only if there are any.
    #[serde(default, skip_serializing_if = "is_none")]
    pub(crate) damaged: u64,
}

/// Whether a count is 0 and left out.
fn is_none(count: &u64) -> bool {
    *count == 0
}

impl BlockCounts {
    /// The number of all blocks. None if no volume has so many.
    pub(super) fn sum(&self) -> Option<u64> {
        let counts = [self.data, self.zero, self.hole, self.damaged];
        counts.into_iter().try_fold(0u64, u64::checked_add)
    }

    fn count(&mut self, run: &ListedRun) {
        let blocks = u64::from(run.extent.count());
        match run.state {
            BlockState::Hole => self.hole += blocks,
            BlockState::Zero => self.zero += blocks,
            BlockState::Data(_) => self.data += blocks,
            BlockState::Damaged => self.damaged += blocks,
        }
    }
}

/// The one form of a line. `len` is the length of its first block.
fn line(run: &ListedRun, len: usize, is_of_ebs: bool) -> String {
    let (first, count) = (run.extent.start(), run.extent.count());
    let (state, digest) = match run.state {
        BlockState::Hole => return format!("{first},{count},hole,,\n"),
        BlockState::Damaged => return format!("{first},{count},damaged,,\n"),
        BlockState::Zero => ("zero", digest_of_zeroes(len)),
        BlockState::Data(digest) => ("data", digest),
    };
    let stated = match is_of_ebs {
        true => STANDARD.encode(digest),
        false => String::new(),
    };
    format!(
        "{first},{count},{state},{},{stated}\n",
        hexadecimal(&digest)
    )
}

/// Writes the block list while the blocks are read.
pub(super) struct BlockListWriter {
    file: HashedFile,
    geometry: Geometry,
    is_of_ebs: bool,
    next: BlockIndex,
    counts: BlockCounts,
}

impl BlockListWriter {
    /// Begins it. `is_of_ebs`: EBS states a checksum of each block.
    pub(super) fn begin(mut file: HashedFile, geometry: Geometry, is_of_ebs: bool) -> Result<Self> {
        file.add(HEAD.as_bytes())?;
        Ok(Self {
            file,
            geometry,
            is_of_ebs,
            next: BlockIndex(0),
            counts: BlockCounts::default(),
        })
    }

    /// Adds a block that is held; they come in order.
    pub(super) fn add(&mut self, block: &HeldBlock) -> Result<()> {
        self.hole_up_to(block.index)?;
        let state = match (block.is_damaged, block.is_zero) {
            (true, _) => BlockState::Damaged,
            (false, true) => BlockState::Zero,
            (false, false) => BlockState::Data(block.sha256),
        };
        let extent = Extent::of(block.index);
        self.put(ListedRun { extent, state })
    }

    fn hole_up_to(&mut self, end: BlockIndex) -> Result<()> {
        match Extent::new(self.next, end) {
            None => Ok(()),
            Some(extent) => self.put(ListedRun {
                extent,
                state: BlockState::Hole,
            }),
        }
    }

    fn put(&mut self, run: ListedRun) -> Result<()> {
        let len = self.geometry.block_len(run.extent.start());
        self.file.add(line(&run, len, self.is_of_ebs).as_bytes())?;
        self.counts.count(&run);
        self.next = run.extent.end();
        Ok(())
    }

    /// Ends it.
    pub(super) fn end(mut self) -> Result<(FileFacts, BlockCounts)> {
        self.hole_up_to(BlockIndex(self.geometry.block_count()))?;
        Ok((self.file.end()?, self.counts))
    }
}

/// Reads a block list, without trust in its content.
pub(super) struct BlockListReader<R> {
    from: BufReader<R>,
    geometry: Geometry,
    next: BlockIndex,
    lines: u64,
    counts: BlockCounts,
    sha256: Sha256,
    bytes: u64,
    buffer: Vec<u8>,
}

impl<R: Read> BlockListReader<R> {
    /// Reads the head line.
    ///
    /// # Errors
    /// `Corrupt` when it is another one; the system's error.
    pub(super) fn begin(from: R, geometry: Geometry) -> Result<Self> {
        let mut reader = Self {
            from: BufReader::with_capacity(1 << 16, from),
            geometry,
            next: BlockIndex(0),
            lines: 0,
            counts: BlockCounts::default(),
            sha256: Sha256::new(),
            bytes: 0,
            buffer: Vec::new(),
        };
        reader.read_line()?;
        match reader.buffer == HEAD.as_bytes() {
            true => Ok(reader),
            false => Err(reader.wrong()),
        }
    }

    /// The next run; none at the end of the volume, where the file must end too.
    ///
    /// # Errors
    /// `Corrupt` when a line has not its one form, is out of order, or a part of the volume is missing; the system's error.
    pub(super) fn next_run(&mut self) -> Result<Option<ListedRun>> {
        let is_line = self.read_line()?;
        if self.next.0 >= self.geometry.block_count() {
            return match is_line {
                true => Err(self.wrong()),
                false => Ok(None),
            };
        }
        let run = std::str::from_utf8(&self.buffer).ok().and_then(parse);
        let fits = |run: &ListedRun| {
            let len = self.geometry.block_len(run.extent.start());
            let is_alone = run.state == BlockState::Hole || run.extent.count() == 1;
            let is_in_order = run.extent.start() == self.next
                && run.extent.end().0 <= self.geometry.block_count();
            let has_form = |of_ebs| line(run, len, of_ebs).as_bytes() == self.buffer.as_slice();
            is_alone && is_in_order && (has_form(false) || has_form(true))
        };
        let Some(run) = run.filter(fits) else {
            return Err(self.wrong());
        };
        self.next = run.extent.end();
        self.counts.count(&run);
        Ok(Some(run))
    }

    /// The whole file, once [`BlockListReader::next_run`] has returned none: SHA-256 in hexadecimal, bytes, blocks of each state.
    pub(super) fn end(self) -> (String, u64, BlockCounts) {
        let sha256 = hexadecimal(&self.sha256.finalize());
        (sha256, self.bytes, self.counts)
    }

    fn read_line(&mut self) -> Result<bool> {
        self.buffer.clear();
        let mut limited = (&mut self.from).take(LONGEST_LINE);
        let read = limited.read_until(b'\n', &mut self.buffer);
        read.map_err(|error| Error::with_source(Kind::Io, "cannot read blocks.csv", error))?;
        self.lines += 1;
        self.sha256.update(&self.buffer);
        self.bytes += self.buffer.len() as u64;
        Ok(!self.buffer.is_empty())
    }

    fn wrong(&self) -> Error {
        let what = format!("cannot use blocks.csv: line {} is malformed", self.lines);
        Error::new(Kind::Corrupt, what)
    }
}

/// A line as it may be; whether it has the one form is checked after that.
fn parse(text: &str) -> Option<ListedRun> {
    let mut cells = text.trim_end().split(',');
    let (first, count) = (cells.next()?, cells.next()?);
    let (first, count): (u32, u32) = (first.parse().ok()?, count.parse().ok()?);
    let (state, digest) = (cells.next()?, cells.next()?);
    let state = match state {
        "hole" => BlockState::Hole,
        "zero" => BlockState::Zero,
        "damaged" => BlockState::Damaged,
        "data" => BlockState::Data(parse_digest(digest)?),
        _ => return None,
    };
    let end = BlockIndex(first.checked_add(count)?);
    let extent = Extent::new(BlockIndex(first), end)?;
    Some(ListedRun { extent, state })
}

/// A SHA-256 of 64 hexadecimal digits.
fn parse_digest(text: &str) -> Option<Digest> {
    let bytes = text.as_bytes();
    if bytes.len() != 64 {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(bytes.chunks(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests;
