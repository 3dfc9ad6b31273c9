//! Checks evidence: its signature, its files, and an object against it. Anybody may have written all of it.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::block_list::{BlockListReader, BlockState, ListedRun};
use super::folder::{BLOCKS, FileFacts, ReadFolder, SIGNATURE, STATEMENT};
use super::signature::{self, SignatureState, SignerRequest};
use super::statement::{self, EvidenceStatement};
use crate::block::{BlockIndex, BlockSet, Digest, Extent, Geometry, hexadecimal};
use crate::error::{Error, Kind, Result};
use crate::files::blocking;
use crate::progress::Progress;
use crate::source::BlockSource;
use crate::sync::{
    DigestRequest, HeldBlock, OnDamage, describe, digest_of_zeroes, digest_with, ranges,
};
use crate::target::Stop;

/// Names of a directory that are looked at.
const MOST_NAMES: usize = 1000;
/// Bytes of a file read between two looks at the stop: some 10 ms.
const READ: usize = 1 << 20;

/// A directory of evidence.
#[derive(Debug)]
pub(crate) struct EvidenceFolder {
    folder: Arc<ReadFolder>,
    statement: EvidenceStatement,
    bytes: Vec<u8>,
    signature: Option<Vec<u8>>,
    unlisted: Vec<String>,
}

impl EvidenceFolder {
    /// Reads the statement and the signature. Nothing is believed yet.
    ///
    /// # Errors
    /// `NotFound` when there is no directory or no statement in it; `Corrupt` when one of them is malformed; the
    /// system's error.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let folder = ReadFolder::open(path)?;
        let Some(bytes) = folder.small(STATEMENT, statement::LARGEST)? else {
            let what = format!(
                "cannot read {}: it has no evidence.json, so it is no finished evidence",
                path.display()
            );
            return Err(Error::new(Kind::NotFound, what));
        };
        let statement = EvidenceStatement::decode(&bytes)?;
        let signature = folder.small(SIGNATURE, signature::LARGEST)?;
        let mut unlisted = folder.names(MOST_NAMES)?;
        unlisted.retain(|name| {
            let is_own = [STATEMENT, SIGNATURE].contains(&name.as_str());
            !is_own && statement.file(name).is_none()
        });
        Ok(Self {
            folder: Arc::new(folder),
            statement,
            bytes,
            signature,
            unlisted,
        })
    }

    /// What it states.
    pub(crate) fn statement(&self) -> &EvidenceStatement {
        &self.statement
    }

    /// SHA-256 of the statement, in hexadecimal.
    pub(crate) fn sha256(&self) -> String {
        hexadecimal(&Sha256::digest(&self.bytes))
    }

    /// Files in it that the statement does not name, so that nothing here covers them.
    pub(crate) fn unlisted(&self) -> &[String] {
        &self.unlisted
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// `Corrupt` when it is missing, wrong, or not of an allowed signer; why it cannot be checked; `Stopped`.
    pub(crate) async fn check_signature(
        &self,
        asked: &SignerRequest,
        stop: &Stop,
    ) -> Result<SignatureState> {
        let signature = self.signature.as_deref();
        let is_stated = self.statement.signature.is_some();
        signature::check(&self.bytes, signature, is_stated, asked, stop).await
    }

    /// Reads every file that the statement names, and the block list by its format.
    ///
    /// # Errors
    /// `Corrupt` when one is missing, is not as it is stated, or contradicts the statement; `Stopped`; the system's error.
    pub(crate) async fn check_files(&self, progress: &Progress, stop: &Stop) -> Result<()> {
        let listed = self.statement.requests_listed;
        for facts in &self.statement.files {
            let (file, facts) = (self.file(facts)?, facts.clone());
            progress.begin(format!("checking {}", facts.name), 0);
            let (name, stopped) = (facts.name.clone(), stop.clone());
            if name == BLOCKS {
                self.check_block_list(file, stop).await?;
                continue;
            }
            let read = blocking(move || {
                let (sha256, lines) = digest_of(file, &facts, &stopped)?;
                as_stated(&facts, facts.bytes, &sha256)?;
                Ok(lines)
            });
            let lines = stop.unless(read).await?;
            if name == super::folder::REQUESTS && lines != listed {
                let what = format!(
                    "cannot use requests.jsonl: it has {lines} lines, and evidence.json states {listed}"
                );
                return Err(Error::new(Kind::Corrupt, what));
            }
        }
        Ok(())
    }

    async fn check_block_list(&self, file: File, stop: &Stop) -> Result<()> {
        let geometry = self.statement.geometry()?;
        let stopped = stop.clone();
        let read = blocking(move || {
            let mut list = BlockListReader::begin(file, geometry)?;
            while list.next_run()?.is_some() {
                stopped.check()?;
            }
            Ok(list.end())
        });
        let (sha256, bytes, counts) = stop.unless(read).await?;
        self.block_list_as_stated(&sha256, bytes)?;
        if counts != self.statement.blocks {
            let what = "cannot use blocks.csv: its blocks are not those that evidence.json counts";
            return Err(Error::new(Kind::Corrupt, what));
        }
        Ok(())
    }

    fn block_list_as_stated(&self, sha256: &str, bytes: u64) -> Result<()> {
        as_stated(self.statement.block_list()?, bytes, sha256)
    }

    /// Opens a file that the statement names, of the length that it states.
    fn file(&self, facts: &FileFacts) -> Result<File> {
        let name = &facts.name;
        let Some(file) = self.folder.file(name)? else {
            let what = format!(
                "cannot read {}: evidence.json names it, and it is missing",
                self.folder.path().join(name).display()
            );
            return Err(Error::new(Kind::Corrupt, what));
        };
        let path = self.folder.path().join(name);
        let found = file.metadata();
        let found = found.map_err(|error| Error::of_file(&path, "cannot read", error))?;
        if found.len() != facts.bytes {
            let what = format!(
                "cannot use {name}: it has {} bytes, and evidence.json states {}",
                found.len(),
                facts.bytes
            );
            return Err(Error::new(Kind::Corrupt, what));
        }
        Ok(file)
    }

    /// Reads a whole object and compares each block with the block list, and its digests with those of the image.
    ///
    /// # Errors
    /// `Corrupt` when the block list changes meanwhile; `Stopped`; why a block cannot be read.
    pub(crate) async fn compare(
        &self,
        object: &EvidenceObject,
        in_flight: usize,
        progress: &Progress,
        stop: &Stop,
    ) -> Result<ObjectReport> {
        let geometry = self.statement.geometry()?;
        let facts = self.statement.block_list()?;
        let list = BlockListReader::begin(self.file(facts)?, geometry)?;
        let mut matcher = Matcher::new(list, geometry);
        let blocks = u64::from(geometry.block_count());
        progress.begin(format!("reading {}", object.name), blocks);
        let mut on_block = |block: HeldBlock| matcher.block(&block);
        let request = DigestRequest {
            with_md5: true,
            with_sha1: true,
            in_flight,
            // A block that was damaged may still be damaged: it is zeroes in the evidence too.
            on_damage: match self.statement.blocks.damaged {
                0 => OnDamage::Fail,
                _ => OnDamage::Mark,
            },
            on_block: Some(&mut on_block),
            copy: None,
        };
        let reach = |blocks| progress.reach(blocks);
        let found = digest_with(&*object.blocks, request, &reach, stop).await?;
        let (differing, (sha256, bytes, _)) = matcher.end()?;
        self.block_list_as_stated(&sha256, bytes)?;
        let image = &self.statement.image;
        let is_same = hexadecimal(&found.sha256) == image.sha256
            && hexadecimal(&found.sha1.unwrap_or_default()) == image.sha1
            && hexadecimal(&found.md5.unwrap_or_default()) == image.md5;
        let size = object.size.unwrap_or(geometry.size());
        Ok(ObjectReport {
            object: object.name.clone(),
            geometry,
            differing,
            has_same_digests: is_same,
            missing: geometry.size().saturating_sub(size),
            surplus: match object.may_be_larger {
                true => 0,
                false => size.saturating_sub(geometry.size()),
            },
        })
    }
}

/// Refuses a file that is not as it is stated.
fn as_stated(facts: &FileFacts, bytes: u64, sha256: &str) -> Result<()> {
    if bytes == facts.bytes && sha256 == facts.sha256 {
        return Ok(());
    }
    let what = format!(
        "cannot use {}: its SHA-256 is {sha256}, and evidence.json states {}",
        facts.name, facts.sha256
    );
    Err(Error::new(Kind::Corrupt, what))
}

/// SHA-256 of a file in hexadecimal, and how many lines it has. One that grows is read no further than it is stated to be long.
fn digest_of(file: File, facts: &FileFacts, stop: &Stop) -> Result<(String, u64)> {
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; READ];
    let mut limited = file.take(facts.bytes);
    let mut lines = 0;
    loop {
        stop.check()?;
        let read = limited.read(&mut buffer);
        let read =
            read.map_err(|error| Error::of_file(facts.name.as_ref(), "cannot read", error))?;
        if read == 0 {
            return Ok((hexadecimal(&sha256.finalize()), lines));
        }
        let bytes = buffer.get(..read).unwrap_or_default();
        sha256.update(bytes);
        lines += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
    }
}

/// What is compared with evidence.
pub(crate) struct EvidenceObject {
    /// As a person names it.
    pub(crate) name: String,
    /// Its blocks, of the size that the evidence states.
    pub(crate) blocks: Arc<dyn BlockSource>,
    /// Its own bytes, if it can have other ones than the image.
    pub(crate) size: Option<u64>,
    /// Whether bytes behind the image do not matter: of a device.
    pub(crate) may_be_larger: bool,
}

/// What a comparison with evidence has found.
#[derive(Clone, Debug)]
pub(crate) struct ObjectReport {
    /// The object.
    pub(crate) object: String,
    geometry: Geometry,
    differing: BlockSet,
    has_same_digests: bool,
    missing: u64,
    surplus: u64,
}

impl ObjectReport {
    /// What differs, as (offset, length) in bytes, ascending: whole blocks of 512 KiB, and what lies behind the end of the image.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + use<'_> {
        let end = self.geometry.size();
        let behind = (self.surplus > 0).then_some((end, self.surplus));
        ranges(&self.differing, self.geometry).chain(behind)
    }

    /// Blocks that differ.
    pub(crate) fn differing_blocks(&self) -> u64 {
        self.differing.len()
    }

    /// Bytes at the end of the image that the object does not have.
    pub(crate) fn missing(&self) -> u64 {
        self.missing
    }

    /// Whether nothing differs.
    pub(crate) fn is_equal(&self) -> bool {
        self.differing.is_empty() && self.has_same_digests && (self.missing, self.surplus) == (0, 0)
    }

    /// What the check ends with.
    ///
    /// # Errors
    /// `Corrupt` when anything differs.
    pub(crate) fn result(&self) -> Result<()> {
        let object = &self.object;
        let what = match (self.differing.is_empty(), self.missing, self.surplus) {
            _ if self.is_equal() => return Ok(()),
            (false, ..) => format!(
                "cannot verify {object}: {} differ from the evidence",
                describe(&self.differing, self.geometry)
            ),
            (_, 1.., _) => format!(
                "cannot verify {object}: {} bytes at the end are missing",
                self.missing
            ),
            (.., 1..) => format!(
                "cannot verify {object}: it has {} bytes behind the end of the image",
                self.surplus
            ),
            _ => format!(
                "cannot verify {object}: each block matches blocks.csv, but the image does not match the digests of evidence.json"
            ),
        };
        Err(Error::new(Kind::Corrupt, what))
    }
}

/// Compares blocks, which come in order, with the lines of a block list.
struct Matcher<R> {
    list: BlockListReader<R>,
    geometry: Geometry,
    /// The line that the next block may be in.
    run: Option<ListedRun>,
    next: BlockIndex,
    differing: BlockSet,
}

impl<R: Read> Matcher<R> {
    fn new(list: BlockListReader<R>, geometry: Geometry) -> Self {
        Self {
            list,
            geometry,
            run: None,
            next: BlockIndex(0),
            differing: BlockSet::new(),
        }
    }

    /// A block that the object holds. Those before it are holes.
    fn block(&mut self, block: &HeldBlock) -> Result<()> {
        self.hole_up_to(block.index)?;
        let len = self.geometry.block_len(block.index);
        let found = match block.is_zero {
            true => digest_of_zeroes(len),
            false => block.sha256,
        };
        let stated = self.stated(block.index)?;
        // What cannot be read is equal to nothing, but was not read then either.
        let is_unread = block.is_damaged && stated != BlockState::Damaged;
        if is_unread || self.digest(stated, len) != found {
            self.differing.insert(block.index);
        }
        self.next = Extent::of(block.index).end();
        Ok(())
    }

    fn hole_up_to(&mut self, end: BlockIndex) -> Result<()> {
        while self.next < end {
            let at = self.next;
            let state = self.stated(at)?;
            let run_end = self.run.map_or(end, |run| run.extent.end());
            if let BlockState::Data(digest) = state
                && digest != digest_of_zeroes(self.geometry.block_len(at))
            {
                self.differing.insert(at);
            }
            self.next = run_end.min(end).max(Extent::of(at).end());
        }
        Ok(())
    }

    fn digest(&self, state: BlockState, len: usize) -> Digest {
        match state {
            BlockState::Data(digest) => digest,
            BlockState::Hole | BlockState::Zero | BlockState::Damaged => digest_of_zeroes(len),
        }
    }

    /// What the block list states of a block.
    fn stated(&mut self, index: BlockIndex) -> Result<BlockState> {
        loop {
            if let Some(run) = self.run
                && index < run.extent.end()
            {
                return Ok(run.state);
            }
            match self.list.next_run()? {
                Some(run) => self.run = Some(run),
                // A block list covers its volume.
                None => {
                    let what = format!("cannot use blocks.csv: it has no block {index}");
                    return Err(Error::new(Kind::Corrupt, what));
                }
            }
        }
    }

    /// After the last block: what differs, and the whole block list as its reader gives it.
    fn end(mut self) -> Result<(BlockSet, (String, u64, super::block_list::BlockCounts))> {
        self.hole_up_to(BlockIndex(self.geometry.block_count()))?;
        while self.list.next_run()?.is_some() {}
        Ok((self.differing, self.list.end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BLOCK_SIZE;

    /// A block list of these blocks: `h` hole, `z` zeroes, `d` data with a digest of their number.
    fn block_list(blocks: &[u8]) -> (String, Geometry) {
        let geometry = Geometry::new(blocks.len() as u64 * u64::from(BLOCK_SIZE)).unwrap();
        let mut text = "first_block,blocks,state,sha256,ebs_checksum\n".to_owned();
        for (index, state) in blocks.iter().enumerate() {
            let zeroes = hexadecimal(&digest_of_zeroes(BLOCK_SIZE as usize));
            let of_data = format!("{index:064x}");
            text.push_str(&match state {
                b'h' => format!("{index},1,hole,,\n"),
                b'z' => format!("{index},1,zero,{zeroes},\n"),
                b'l' => format!("{index},1,damaged,,\n"),
                _ => format!("{index},1,data,{of_data},\n"),
            });
        }
        (text, geometry)
    }

    /// The blocks that differ where the object holds these: `h` hole, `z` zeroes, `d` the data, `x` other data, `l` unreadable.
    fn differing(stated: &[u8], held: &[u8]) -> Vec<u32> {
        let (text, geometry) = block_list(stated);
        let list = BlockListReader::begin(text.as_bytes(), geometry).unwrap();
        let mut matcher = Matcher::new(list, geometry);
        for (number, state) in held.iter().enumerate() {
            let index = u32::try_from(number).unwrap();
            let mut sha256 = [0; 32];
            sha256[28..].copy_from_slice(&index.to_be_bytes());
            if *state == b'x' {
                sha256[0] = 1;
            }
            if *state != b'h' {
                let is_damaged = *state == b'l';
                let is_zero = is_damaged || *state == b'z';
                let index = BlockIndex(index);
                let block = HeldBlock {
                    index,
                    is_zero,
                    sha256,
                    is_damaged,
                };
                matcher.block(&block).unwrap();
            }
        }
        let (found, _) = matcher.end().unwrap();
        let all = found.runs_in(BlockIndex(0), BlockIndex(geometry.block_count()));
        all.flat_map(Extent::blocks).map(|index| index.0).collect()
    }

    #[test]
    fn zeroes_are_zeroes_however_they_are_held_and_data_must_be_the_data() {
        for (stated, held, expected) in [
            ("dddd", "dddd", vec![]),
            ("hzhz", "hhzz", vec![]),
            ("hzhz", "xdhh", vec![0, 1]),
            ("dddd", "hzxd", vec![0, 1, 2]),
            ("hhhd", "hhhh", vec![3]),
            ("hhhh", "hhhx", vec![3]),
            ("dhhh", "hhhh", vec![0]),
            ("hhhh", "hhhh", vec![]),
            // Damaged blocks are zeroes in the digests.
            ("lldd", "hzdd", vec![]),
            ("llhd", "xdhd", vec![0, 1]),
            ("lldd", "lldd", vec![]),
            ("zdhh", "llhl", vec![0, 1, 3]),
        ] {
            let found = differing(stated.as_bytes(), held.as_bytes());
            assert_eq!(found, expected, "{stated} {held}");
        }
    }

    #[test]
    fn random_volumes_are_compared_block_by_block() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        fastrand::seed(seed);
        for _ in 0..200 {
            let count = fastrand::usize(1..40);
            let pick = |states: &[u8]| -> Vec<u8> {
                (0..count)
                    .map(|_| states[fastrand::usize(..states.len())])
                    .collect()
            };
            let (stated, held) = (pick(b"hzd"), pick(b"hzdx"));
            // Data 0 has the digest of its number, which is none of zeroes.
            let is_zero = |state: u8| state == b'h' || state == b'z';
            let expected: Vec<u32> = stated
                .iter()
                .zip(&held)
                .enumerate()
                .filter(|(_, (stated, held))| match is_zero(**stated) {
                    true => !is_zero(**held),
                    false => **held != b'd',
                })
                .map(|(index, _)| u32::try_from(index).unwrap())
                .collect();
            assert_eq!(differing(&stated, &held), expected);
        }
    }
}
