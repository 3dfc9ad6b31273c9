//! Manifests: the root objects of snapshots, with descriptions and segments.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::SEGMENT_BLOCKS;
use super::header::{self, Magic};
use super::pack::Name;
use crate::block::{BLOCK_SIZE, Geometry};
use crate::error::{Error, Kind, Result};
use crate::snapshot::{Snapshot, SnapshotId, SnapshotState};
use crate::target::VolumeKey;

/// The year 9999 since 1970, nearly.
const LAST: Duration = Duration::from_secs(253_000_000_000);

/// What this program writes and reads.
pub(super) const FORMAT: u32 = 2;
const MAGIC: &Magic = b"ebsfman2";
/// In place of a manifest that its own run has taken back, where it may not delete it.
const WITHDRAWN: &Magic = b"ebsfwdr2";

/// The manifest of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(super) format: u32,
    /// The run that wrote it.
    pub(crate) run: String,
    /// The snapshot's id; of an image one that is made of the run's.
    pub(crate) snapshot: SnapshotId,
    /// The volume that it is of, or the path of the image or device; none where it is unknown.
    pub(crate) volume: Option<String>,
    /// Which volume it is a version of.
    pub(crate) volume_key: VolumeKey,
    /// The instant whose bytes it holds; of an image when the run began.
    pub(crate) time: SystemTime,
    /// Bytes of the volume.
    pub(crate) volume_bytes: u64,
    /// The base: only the changes since it were sent.
    pub(crate) base: Option<SnapshotId>,
    /// The description and the tags that it has where it comes from.
    pub(crate) description: Option<String>,
    /// See `description`.
    pub(crate) tags: BTreeMap<String, String>,
    /// When this was written.
    pub(crate) written: SystemTime,
    /// Whether it is encrypted where it comes from; here it is not.
    pub(crate) encrypted: Option<bool>,
    /// Blocks held.
    pub(crate) blocks: u64,
    /// Blocks that the run sent, their bytes, and what was stored for them.
    pub(crate) sent_blocks: u64,
    /// See `sent_blocks`.
    pub(crate) sent_bytes: u64,
    /// See `sent_blocks`.
    pub(crate) stored_bytes: u64,
    /// Runs of blocks (first, end) that are zero here because their source was damaged: the next delta writes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) damaged: Vec<(u32, u32)>,
    /// The segments that hold something, ascending.
    pub(super) segments: Vec<SegmentOf>,
}

/// A segment of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SegmentOf {
    /// Which [`super::SEGMENT_BLOCKS`] of the volume.
    pub(super) number: u32,
    #[serde(with = "hex")]
    pub(super) name: Name,
    /// Blocks held.
    pub(super) blocks: u32,
}

/// The object that the manifest of a name is.
pub(super) fn manifest_object(name: &(impl std::fmt::Display + ?Sized)) -> String {
    format!("snapshots/{name}")
}

impl Manifest {
    /// The volume's size.
    ///
    /// # Errors
    /// `Corrupt` when it is none.
    pub(crate) fn geometry(&self) -> Result<Geometry> {
        let geometry = Geometry::new(self.volume_bytes);
        geometry.map_err(|error| Error::with_source(Kind::Corrupt, "the manifest's volume", error))
    }

    /// The segment of a number.
    pub(super) fn segment(&self, number: u32) -> Option<&SegmentOf> {
        let at = self.segments.binary_search_by_key(&number, |of| of.number);
        self.segments.get(at.ok()?)
    }

    /// The object's name within `snapshots/`.
    pub(crate) fn name(&self) -> ManifestName {
        ManifestName {
            time: whole_millis(self.time),
            volume: self.volume_key.clone(),
            snapshot: self.snapshot.clone(),
        }
    }

    /// As a catalog shows it.
    pub(crate) fn shown(&self) -> Snapshot {
        Snapshot {
            volume_id: self.volume.clone(),
            state: Some(SnapshotState::Completed),
            start_time: Some(self.time),
            volume_size: Some(self.volume_bytes),
            full_size: Some(self.blocks * u64::from(BLOCK_SIZE)),
            encrypted: self.encrypted,
            description: self.description.clone(),
            tags: self.tags.clone(),
            ..Snapshot::unknown(self.snapshot.clone())
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        self.encode_as(MAGIC)
    }

    /// The object that its run writes over it when the data may be incomplete.
    pub(super) fn encode_withdrawn(&self) -> Vec<u8> {
        self.encode_as(WITHDRAWN)
    }

    fn encode_as(&self, magic: &Magic) -> Vec<u8> {
        // Nothing in it can fail to serialise.
        let json = serde_json::to_vec(self).unwrap_or_default();
        let run = header::salt_of_run(&self.run);
        let mut bytes = header::encode(magic, &run, &json).to_vec();
        bytes.extend(json);
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        bytes
    }

    /// What was stored.
    ///
    /// # Errors
    /// `NotFound` when its run withdrew it; else as for [`Manifest::read`].
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        Self::read(bytes)?.ok_or_else(|| {
            let what = "its run withdrew it, because a prune may have removed some of its data";
            Error::new(Kind::NotFound, what)
        })
    }

    /// What was stored; none when its run withdrew it.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged, `Invalid` when this version of ebsfs does not know its format.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<Self>> {
        let damaged = || Error::new(Kind::Corrupt, "it is damaged");
        let (proven, digest) = bytes.split_last_chunk::<32>().ok_or_else(damaged)?;
        if *Sha256::digest(proven) != *digest {
            return Err(damaged());
        }
        if header::split(WITHDRAWN, proven).is_some() {
            return Ok(None);
        }
        let (_, json) = header::split(MAGIC, proven).ok_or_else(|| {
            let what = "it is sealed, or of another format than this ebsfs knows";
            Error::new(Kind::Invalid, what)
        })?;
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let version: Version = serde_json::from_slice(json).map_err(|_| damaged())?;
        if version.format != FORMAT {
            let what = format!(
                "its format is {}, this ebsfs knows {FORMAT}",
                version.format
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        let manifest: Self = serde_json::from_slice(json).map_err(|_| damaged())?;
        let end = manifest.geometry()?.block_count();
        let is_sorted = manifest.segments.is_sorted_by(|a, b| a.number < b.number);
        let last = manifest.segments.last().map_or(0, |of| of.number);
        let is_within = last <= end / SEGMENT_BLOCKS && manifest.blocks <= end.into();
        // Times are written with four digits of a year.
        let is_time = |time: SystemTime| time < SystemTime::UNIX_EPOCH + LAST;
        let is_good = is_sorted && is_within && is_time(manifest.time) && is_time(manifest.written);
        if is_good {
            Ok(Some(manifest))
        } else {
            Err(damaged())
        }
    }
}

/// Names have milliseconds.
pub(super) fn whole_millis(time: SystemTime) -> SystemTime {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
}

/// A time in the name of an object: `20260630T120000000Z`.
pub(super) fn time_text(time: SystemTime) -> String {
    crate::time::rfc3339_millis(time).replace(['-', ':', '.'], "")
}

/// The time that [`time_text`] wrote.
pub(super) fn parse_time(text: &str) -> Option<SystemTime> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let (y, m, d) = (date.get(..4)?, date.get(4..6)?, date.get(6..)?);
    let (hour, minute, second) = (clock.get(..2)?, clock.get(2..4)?, clock.get(4..6)?);
    let time = format!("{y}-{m}-{d}T{hour}:{minute}:{second}.{}Z", clock.get(6..)?);
    humantime::parse_rfc3339(&time).ok()
}

/// The parts of a manifest's name, which one listing shows for all snapshots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ManifestName {
    /// The instant whose bytes it holds, in whole milliseconds.
    pub(crate) time: SystemTime,
    /// Which volume it is a version of.
    pub(crate) volume: VolumeKey,
    /// The snapshot's id.
    pub(crate) snapshot: SnapshotId,
}

impl fmt::Display for ManifestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = time_text(self.time);
        write!(f, "{time}.{}.{}", self.volume, self.snapshot)
    }
}

impl FromStr for ManifestName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let read = || {
            let (time, rest) = text.split_once('.')?;
            let (volume, snapshot) = rest.split_once('.')?;
            Some(Self {
                time: parse_time(time)?,
                volume: volume.parse().ok()?,
                snapshot: snapshot.parse().ok()?,
            })
        };
        read().ok_or_else(|| Error::new(Kind::Invalid, format!("{text:?} is no manifest's name")))
    }
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Name;
    use crate::block::hexadecimal;

    pub(super) fn serialize<S: Serializer>(name: &Name, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hexadecimal(name))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Name, D::Error> {
        let text = String::deserialize(from)?;
        crate::repository::header::from_hex(&text).ok_or_else(|| D::Error::custom("no SHA-256"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            format: FORMAT,
            run: "1".into(),
            snapshot: "snap-0b".parse().unwrap(),
            volume: Some("vol-0a".into()),
            volume_key: VolumeKey::of_volume("vol-0a"),
            time: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            volume_bytes: 1 << 30,
            base: None,
            description: None,
            tags: BTreeMap::new(),
            written: SystemTime::UNIX_EPOCH,
            encrypted: None,
            blocks: 7,
            sent_blocks: 7,
            sent_bytes: 7,
            stored_bytes: 7,
            damaged: Vec::new(),
            segments: vec![SegmentOf {
                number: 0,
                name: [0xab; 32],
                blocks: 7,
            }],
        }
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written_and_damage_is_reported() {
        let manifest = manifest();
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(
                Manifest::decode(&bad).unwrap_err().kind(),
                Kind::Corrupt,
                "{at}"
            );
            assert!(Manifest::decode(&bytes[..at]).is_err());
        }
        let withdrawn = Manifest::decode(&manifest.encode_withdrawn());
        assert_eq!(withdrawn.unwrap_err().kind(), Kind::NotFound);
        let newer = Manifest {
            format: 3,
            ..manifest
        };
        assert_eq!(
            Manifest::decode(&newer.encode()).unwrap_err().kind(),
            Kind::Invalid
        );
    }

    #[test]
    fn a_name_tells_time_volume_and_snapshot() {
        let name = manifest().name();
        assert_eq!(name.to_string(), "20270115T080000000Z.vol-0a.snap-0b");
        assert_eq!(name.to_string().parse::<ManifestName>().unwrap(), name);
        for wrong in [
            "",
            "x",
            "20270115T080000000Z.vol-0a",
            "20270115T080000000Z.vol-0a.image",
            "20270115T080000000Z.vol 0a.snap-0b",
            "2.vol-0a.snap-0b",
        ] {
            assert!(wrong.parse::<ManifestName>().is_err(), "{wrong}");
        }
    }
}
