//! Roots: what a snapshot is, and which segments say where its blocks are.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::SEGMENT_BLOCKS;
use super::pack::Name;
use crate::block::{BLOCK_SIZE, Geometry, hexadecimal};
use crate::error::{Error, Kind, Result};
use crate::snapshot::{Snapshot, SnapshotId, State};

/// The year 9999 since 1970, nearly.
const LAST: Duration = Duration::from_secs(253_000_000_000);

/// What this program writes and reads.
pub(super) const FORMAT: u32 = 1;

/// The root of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    pub(super) format: u32,
    /// The run that brought it.
    pub run: String,
    /// The snapshot's id; of an image one that is made of the run's.
    pub snapshot: SnapshotId,
    /// The volume that it is of, or the image's path; none where nobody knew.
    pub volume: Option<String>,
    /// The instant whose bytes it holds; of an image when the run began.
    pub time: SystemTime,
    /// Bytes of the volume.
    pub volume_bytes: u64,
    /// What only the changes were sent since.
    pub base: Option<SnapshotId>,
    /// The description and the tags that it has where it comes from.
    pub description: Option<String>,
    /// See `description`.
    pub tags: BTreeMap<String, String>,
    /// When this was written.
    pub written: SystemTime,
    /// Whether it is encrypted where it comes from; here it is not.
    pub encrypted: Option<bool>,
    /// Blocks held.
    pub blocks: u64,
    /// Blocks that the run sent, their bytes, and what was stored for them.
    pub sent_blocks: u64,
    /// See `sent_blocks`.
    pub sent_bytes: u64,
    /// See `sent_blocks`.
    pub stored_bytes: u64,
    /// Runs of blocks (first, end) that are zero here because their source was damaged: the next delta writes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<(u32, u32)>,
    /// The segments that hold something, ascending.
    pub(super) segments: Vec<SegmentOf>,
}

/// A segment of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SegmentOf {
    /// Which [`super::SEGMENT_BLOCKS`] of the volume.
    pub(super) number: u32,
    #[serde(with = "hex")]
    pub(super) name: Name,
    /// Blocks held.
    pub(super) blocks: u32,
}

impl Root {
    /// The volume's size.
    ///
    /// # Errors
    /// `Corrupt` when it is none.
    pub fn geometry(&self) -> Result<Geometry> {
        let geometry = Geometry::new(self.volume_bytes);
        geometry.map_err(|error| Error::with_source(Kind::Corrupt, "the root's volume", error))
    }

    /// The segment of a number.
    pub(super) fn segment(&self, number: u32) -> Option<&SegmentOf> {
        let at = self.segments.binary_search_by_key(&number, |of| of.number);
        self.segments.get(at.ok()?)
    }

    /// The object's name within `snapshots/`.
    pub fn name(&self) -> RootName {
        RootName {
            time: self.time,
            volume: RootName::volume_key(self.volume.as_deref()),
            snapshot: self.snapshot.clone(),
        }
    }

    /// As a catalog shows it.
    pub fn shown(&self) -> Snapshot {
        Snapshot {
            volume_id: self.volume.clone(),
            state: Some(State::Completed),
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
        // Nothing in it can fail to serialise.
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        let digest = hexadecimal(&Sha256::digest(&bytes));
        bytes.extend_from_slice(digest.as_bytes());
        bytes.push(b'\n');
        bytes
    }

    /// What was stored.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged, `Invalid` when it is of a version that nobody here knows.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let damaged = || Error::new(Kind::Corrupt, "it is damaged");
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (json, digest) = bytes.split_at(end.ok_or_else(damaged)? + 1);
        if digest.trim_ascii() != hexadecimal(&Sha256::digest(json)).as_bytes() {
            return Err(damaged());
        }
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
        let root: Self = serde_json::from_slice(json).map_err(|_| damaged())?;
        let end = root.geometry()?.block_count();
        let is_sorted = root.segments.is_sorted_by(|a, b| a.number < b.number);
        let last = root.segments.last().map_or(0, |of| of.number);
        let is_within = last <= end / SEGMENT_BLOCKS && root.blocks <= end.into();
        // Times are written with four digits of a year.
        let is_time = |time: SystemTime| time < SystemTime::UNIX_EPOCH + LAST;
        let is_good = is_sorted && is_within && is_time(root.time) && is_time(root.written);
        if is_good { Ok(root) } else { Err(damaged()) }
    }
}

/// What the name of a root tells: so much is known of all snapshots by one listing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootName {
    /// The instant whose bytes it holds, in whole milliseconds.
    pub time: SystemTime,
    /// `vol-...`, `disk-` and digits of an image's path, or `unknown`.
    pub volume: String,
    /// The snapshot's id.
    pub snapshot: SnapshotId,
}

impl RootName {
    /// What a volume is called in a name.
    pub fn volume_key(volume: Option<&str>) -> String {
        match volume {
            None => "unknown".into(),
            Some(volume) if volume.starts_with("vol-") && !volume.contains(['/', '.']) => {
                volume.into()
            }
            Some(path) => {
                let digest = hexadecimal(&Sha256::digest(path));
                format!("disk-{}", digest.get(..16).unwrap_or_default())
            }
        }
    }
}

impl fmt::Display for RootName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = crate::time::rfc3339_millis(self.time);
        let time = time.replace(['-', ':', '.'], "");
        write!(f, "{time}.{}.{}", self.volume, self.snapshot)
    }
}

impl FromStr for RootName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let read = || {
            let (time, rest) = text.split_once('.')?;
            let (volume, snapshot) = rest.split_once('.')?;
            let (date, clock) = time.strip_suffix('Z')?.split_once('T')?;
            let (y, m, d) = (date.get(..4)?, date.get(4..6)?, date.get(6..)?);
            let (hour, minute, second) = (clock.get(..2)?, clock.get(2..4)?, clock.get(4..6)?);
            let time = format!("{y}-{m}-{d}T{hour}:{minute}:{second}.{}Z", clock.get(6..)?);
            Some(Self {
                time: humantime::parse_rfc3339(&time).ok()?,
                volume: volume.to_owned(),
                snapshot: snapshot.parse().ok()?,
            })
        };
        read().ok_or_else(|| Error::new(Kind::Invalid, format!("{text:?} is no root's name")))
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
        super::from_hex(&text).ok_or_else(|| D::Error::custom("no SHA-256"))
    }
}

/// A name as objects have it.
pub(super) fn from_hex(text: &str) -> Option<Name> {
    let mut name = [0; 32];
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    for (byte, digits) in name.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: &u8| char::from(*digit).to_digit(16);
        let (high, low) = (digit(digits.first()?)?, digit(digits.last()?)?);
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Root {
        Root {
            format: FORMAT,
            run: "1".into(),
            snapshot: "snap-0b".parse().unwrap(),
            volume: Some("vol-0a".into()),
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
    fn a_root_is_read_as_it_was_written_and_damage_is_told() {
        let root = root();
        let bytes = root.encode();
        assert_eq!(Root::decode(&bytes).unwrap(), root);
        for at in 0..bytes.len() - 1 {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(
                Root::decode(&bad).unwrap_err().kind(),
                Kind::Corrupt,
                "{at}"
            );
            assert!(Root::decode(&bytes[..at]).is_err());
        }
        let newer = Root { format: 2, ..root };
        assert_eq!(
            Root::decode(&newer.encode()).unwrap_err().kind(),
            Kind::Invalid
        );
    }

    #[test]
    fn a_name_tells_time_volume_and_snapshot() {
        let name = root().name();
        assert_eq!(name.to_string(), "20270115T080000000Z.vol-0a.snap-0b");
        assert_eq!(name.to_string().parse::<RootName>().unwrap(), name);
        for wrong in [
            "",
            "x",
            "20270115T080000000Z.vol-0a",
            "20270115T080000000Z.vol-0a.image",
            "2.vol-0a.snap-0b",
        ] {
            assert!(wrong.parse::<RootName>().is_err(), "{wrong}");
        }
        assert_eq!(RootName::volume_key(None), "unknown");
        assert!(RootName::volume_key(Some("/dev/vol-1.raw")).starts_with("disk-"));
        assert_eq!(RootName::volume_key(Some("vol-a.b/c")).len(), 21);
    }
}
