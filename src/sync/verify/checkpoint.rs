//! [`CompareCheckpoint`]: the progress of a comparison.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tracing::warn;

use super::Digests;
use crate::block::{BlockIndex, BlockSet};
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::target::Mark;

const VERSION: u32 = 1;

/// How far a comparison of a target with its digests is, and what it has found. It is a JSON file beside the digests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CompareCheckpoint {
    version: u32,
    /// [`Digests::run`].
    run: String,
    /// The target as it was.
    mark: Option<Mark>,
    /// Bytes of the volume.
    volume_bytes: u64,
    /// The first block that is not compared.
    pub(super) next: u32,
    pub(super) unknown: u64,
    #[serde(serialize_with = "encode", deserialize_with = "decode")]
    pub(super) differing: BlockSet,
}

impl CompareCheckpoint {
    /// A comparison that has compared nothing.
    pub(super) fn new(digests: &Digests, mark: Option<&Mark>) -> Self {
        Self {
            version: VERSION,
            run: digests.run().to_owned(),
            mark: mark.cloned(),
            volume_bytes: digests.volume_bytes(),
            next: 0,
            unknown: 0,
            differing: BlockSet::new(),
        }
    }

    /// Saves it; it survives a crash when this returns.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self).map_err(|error| {
            let what = format!("cannot write {}", path.display());
            Error::with_source(Kind::Io, what, error)
        })?;
        files::replace(path, &bytes)
    }

    /// What an earlier comparison saved, if the digests are those of the same run and the target's mark is still the same.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn load(path: &Path, digests: &Digests, mark: &Mark) -> Result<Option<Self>> {
        let bytes = match files::read_ours(path) {
            Err(error) if error.kind() == Kind::Corrupt => {
                warn!("{}: comparing from the start", error.chain());
                None
            }
            read => read?,
        };
        let Some(bytes) = bytes else { return Ok(None) };
        let Ok(found) = serde_json::from_slice::<Self>(&bytes) else {
            warn!("{} is damaged: comparing from the start", path.display());
            return Ok(None);
        };
        let geometry = digests.geometry();
        let is_valid = found.version == VERSION
            && found.run == digests.run()
            && found.mark.as_ref() == Some(mark)
            && found.volume_bytes == geometry.size()
            && found.next <= geometry.block_count()
            && found.differing.next_in(BlockIndex(found.next)).is_none();
        Ok(is_valid.then_some(found))
    }

    /// Removes it, if it is there.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn remove(path: &Path) -> Result<()> {
        files::remove_if_there(path)
    }
}

fn encode<S: Serializer>(set: &BlockSet, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    let mut bytes = Vec::new();
    set.encode(&mut bytes);
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn decode<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<BlockSet, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
    let mut rest = bytes.as_slice();
    BlockSet::decode(&mut rest)
        .filter(|_| rest.is_empty())
        .ok_or_else(|| serde::de::Error::custom("not a set of blocks"))
}
