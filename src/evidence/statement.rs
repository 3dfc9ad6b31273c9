//! [`EvidenceStatement`]: what a directory of evidence states, as `evidence.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::block_list::BlockCounts;
use super::facts::{HostFacts, ProgramFacts};
use super::folder::{BLOCKS, FileFacts, IMAGE, REQUESTS};
use super::request_log::ClockFacts;
use super::signature::NAMESPACE;
use crate::aws::{ActionCounts, CallerIdentity};
use crate::block::{BLOCK_SIZE, Geometry, MAX_VOLUME_SIZE};
use crate::error::{Error, Kind, Result};

/// The largest statement that is read: the tags of a snapshot take some 20 KB at most.
pub(super) const LARGEST: u64 = 1 << 20;
/// What `format` is.
const FORMAT: &str = "ebsfs-evidence";
/// The version that this program writes and reads.
const VERSION: u64 = 1;
/// Characters of a parser's reason in a message.
const LONGEST_REASON: usize = 200;
const OTHER_FILES: &str = "it names other files than evidence has";

/// The statement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EvidenceStatement {
    /// `ebsfs-evidence`.
    pub(crate) format: String,
    /// 1.
    pub(crate) version: u64,
    /// The whole image.
    pub(crate) image: ImageFacts,
    /// Its blocks.
    pub(crate) blocks: BlockCounts,
    /// What was read.
    pub(crate) source: SourceFacts,
    /// Who called AWS; none where nothing of AWS was called, or STS did not answer.
    pub(crate) caller: Option<CallerIdentity>,
    /// Why the caller is not known.
    pub(crate) caller_unknown: Option<String>,
    /// The program.
    pub(crate) program: ProgramFacts,
    /// The machine and the user.
    pub(crate) machine: HostFacts,
    /// When the run began, by the clock of the machine, RFC 3339.
    pub(crate) started: String,
    /// When the last byte was read.
    pub(crate) ended: String,
    /// The clocks of the services.
    pub(crate) clocks: Vec<ClockFacts>,
    /// Requests by IAM action.
    pub(crate) requests: BTreeMap<String, RequestFacts>,
    /// Lines of `requests.jsonl`.
    pub(crate) requests_listed: u64,
    /// What a person should know.
    pub(crate) warnings: Vec<String>,
    /// The other files.
    pub(crate) files: Vec<FileFacts>,
    /// How it is signed, if it was to be.
    pub(crate) signature: Option<SignatureFacts>,
}

/// The whole image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageFacts {
    /// Its bytes.
    pub(crate) bytes: u64,
    /// Bytes of a block.
    pub(crate) block_bytes: u32,
    /// SHA-256 of the image, in hexadecimal. Holes and damaged blocks are zeroes in it, and in the other digests.
    pub(crate) sha256: String,
    /// SHA-1.
    pub(crate) sha1: String,
    /// MD5.
    pub(crate) md5: String,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceFacts {
    /// Its name: an id, or a path.
    pub(crate) name: String,
    /// `ebs`, `repository` or `disk`.
    pub(crate) kind: SourceKind,
    /// All that EC2 states of the snapshot, as far as it is known.
    pub(crate) snapshot: Option<Value>,
    /// The Region.
    pub(crate) region: Option<String>,
    /// Where the blocks came from.
    pub(crate) endpoint: Option<String>,
}

/// Where blocks came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SourceKind {
    /// The EBS direct APIs.
    Ebs,
    /// A repository.
    Repository,
    /// An image or device of the machine.
    Disk,
}

/// Requests of one IAM action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RequestFacts {
    /// Sent, repeated ones included.
    pub(crate) sent: u64,
    /// Sent again after a failure.
    pub(crate) retries: u64,
    /// Sent a second time because the first was slow.
    pub(crate) hedges: u64,
    /// Refused because there were too many.
    pub(crate) throttles: u64,
}

impl From<ActionCounts> for RequestFacts {
    fn from(counts: ActionCounts) -> Self {
        Self {
            sent: counts.sent,
            retries: counts.retries,
            hedges: counts.hedges,
            throttles: counts.throttles,
        }
    }
}

/// How a statement is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignatureFacts {
    /// `SSHSIG`, that of `ssh-keygen -Y`.
    pub(crate) format: String,
    /// The namespace of `ssh-keygen -n`.
    pub(crate) namespace: String,
}

impl SignatureFacts {
    /// By ssh-keygen.
    pub(super) fn of_ssh() -> Self {
        Self {
            format: "SSHSIG".into(),
            namespace: NAMESPACE.into(),
        }
    }
}

impl EvidenceStatement {
    /// The format and version that this program writes.
    pub(super) fn format() -> (String, u64) {
        (FORMAT.to_owned(), VERSION)
    }

    /// The bytes of its file.
    pub(super) fn encoded(&self) -> Vec<u8> {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text.into_bytes()
    }

    /// Reads a statement that may hold anything.
    ///
    /// # Errors
    /// `Corrupt` when it is no statement, has a member that this version does not have, or contradicts itself; `Invalid` when it is of
    /// a later version.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|error| broken(&format!("it is no JSON object ({})", printable(&error))))?;
        if value.get("format").and_then(Value::as_str) != Some(FORMAT) {
            return Err(broken("it is no statement of ebsfs"));
        }
        match value.get("version").and_then(Value::as_u64) {
            Some(VERSION) => {}
            Some(later) if later > VERSION => {
                let what = format!(
                    "cannot use evidence.json: it is of version {later}, and this program reads version {VERSION}"
                );
                return Err(Error::new(Kind::Invalid, what));
            }
            _ => return Err(broken("it has no version")),
        }
        // From the text, not the value: a member that is there twice is refused.
        let statement: Self = serde_json::from_slice(bytes)
            .map_err(|error| broken(&format!("it is malformed ({})", printable(&error))))?;
        match statement.fault() {
            None => Ok(statement),
            Some(fault) => Err(broken(fault)),
        }
    }

    /// What it contradicts.
    fn fault(&self) -> Option<&'static str> {
        let image = &self.image;
        if image.bytes == 0 || image.bytes > MAX_VOLUME_SIZE || image.block_bytes != BLOCK_SIZE {
            return Some("it states a size that no volume has");
        }
        if self.blocks.sum() != Some(image.bytes.div_ceil(u64::from(BLOCK_SIZE))) {
            return Some("its counts of blocks are not those of its image");
        }
        let is_hex = |text: &str, digits: usize| {
            let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            text.len() == digits && text.bytes().all(is_digit)
        };
        let sums = [(&image.sha256, 64), (&image.sha1, 40), (&image.md5, 32)];
        let is_sum = |(text, digits): &(&String, usize)| is_hex(text, *digits);
        if !sums.iter().all(is_sum) || !self.files.iter().all(|file| is_hex(&file.sha256, 64)) {
            return Some("it has a malformed digest");
        }
        let names: Vec<&str> = self.files.iter().map(|file| file.name.as_str()).collect();
        if names != [BLOCKS, REQUESTS] && names != [BLOCKS, REQUESTS, IMAGE] {
            return Some(OTHER_FILES);
        }
        let copy = self.files.get(2);
        if copy.is_some_and(|copy| copy.sha256 != image.sha256 || copy.bytes != image.bytes) {
            return Some("its copy of the image is not its image");
        }
        let is_ssh = |facts: &SignatureFacts| *facts == SignatureFacts::of_ssh();
        if !self.signature.as_ref().is_none_or(is_ssh) {
            return Some("its kind of signature is unknown to this program");
        }
        None
    }

    /// The size of the image.
    ///
    /// # Errors
    /// None that [`EvidenceStatement::decode`] lets through.
    pub(crate) fn geometry(&self) -> Result<Geometry> {
        Geometry::new(self.image.bytes)
    }

    /// A file that it names.
    pub(super) fn file(&self, name: &str) -> Option<&FileFacts> {
        self.files.iter().find(|file| file.name == name)
    }

    /// The block list.
    ///
    /// # Errors
    /// None that [`EvidenceStatement::decode`] lets through.
    pub(super) fn block_list(&self) -> Result<&FileFacts> {
        self.file(BLOCKS).ok_or_else(|| broken(OTHER_FILES))
    }
}

/// What a parser says, which repeats names that anybody has written: a short text without control characters.
fn printable(error: &serde_json::Error) -> String {
    let plain = error.to_string();
    let plain = plain.chars().filter(|c| !c.is_control());
    plain.take(LONGEST_REASON).collect()
}

fn broken(why: &str) -> Error {
    let what = format!("cannot use evidence.json: {why}");
    Error::new(Kind::Corrupt, what)
}

#[cfg(test)]
mod tests;
