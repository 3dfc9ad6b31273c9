//! [`VolumeKey`]: which volume a snapshot is of, as repositories keep and select it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::block::hexadecimal;
use crate::error::{Error, Kind, Result};

const UNKNOWN: &str = "unknown";
/// Copies of snapshots, and snapshots made by the direct APIs, have this as their volume.
const NO_VOLUME: &str = "vol-ffffffff";
/// A key is a part of an object's name, which also has a time and a snapshot's id.
const LONGEST: usize = 64;

/// Which volume a snapshot is of: letters, digits, `-` and `_`. Snapshots of one key are versions of the same volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeKey(String);

impl VolumeKey {
    /// The key of all snapshots whose volume is not known. Two of them may be of different volumes.
    pub(crate) fn unknown() -> Self {
        Self(UNKNOWN.into())
    }

    /// The key of an EBS volume: its id.
    pub(crate) fn of_volume(id: &str) -> Self {
        match id.parse() {
            Ok(key) if id != NO_VOLUME => key,
            _ => Self::unknown(),
        }
    }

    /// A key that a person chose.
    ///
    /// # Errors
    /// `Invalid` when it is empty, too long, has other characters, or means something else where a snapshot is selected.
    pub(crate) fn named(name: &str) -> Result<Self> {
        let is_taken = [UNKNOWN, "latest", NO_VOLUME].contains(&name) || name.starts_with("snap-");
        if is_taken {
            let what = format!("cannot use {name:?} as a volume's name: it has another meaning");
            return Err(Error::new(Kind::Invalid, what));
        }
        name.parse()
    }

    /// The key of a disk: digits of the SHA-256 of what tells it from all others.
    pub(crate) fn of_identity(identity: &str) -> Self {
        let digest = hexadecimal(&Sha256::digest(identity));
        Self(format!("disk-{}", digest.get(..16).unwrap_or_default()))
    }

    /// Whether the volume is not known.
    pub(crate) fn is_unknown(&self) -> bool {
        self.0 == UNKNOWN
    }

    /// As text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for VolumeKey {
    fn default() -> Self {
        Self::unknown()
    }
}

impl fmt::Display for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for VolumeKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if text.is_empty() || text.len() > LONGEST || !text.chars().all(is_allowed) {
            let what = format!(
                "cannot use {text:?} as a volume's name: it must have 1 to {LONGEST} letters, digits, - and _"
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for VolumeKey {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<VolumeKey> for String {
    fn from(key: VolumeKey) -> Self {
        key.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_volume_id_a_name_or_a_digest_and_unknown_where_there_is_none() {
        assert_eq!(VolumeKey::of_volume("vol-0a").as_str(), "vol-0a");
        for none in ["", "vol-ffffffff", "/srv/vol-1.raw", "vol-0a.b"] {
            assert!(VolumeKey::of_volume(none).is_unknown(), "{none}");
        }
        assert_eq!(
            VolumeKey::named("web_root-1").unwrap().as_str(),
            "web_root-1"
        );
        let long = "a".repeat(65);
        for wrong in [
            "",
            "unknown",
            "latest",
            "snap-0a",
            "vol-ffffffff",
            "a.b",
            "a/b",
            "a b",
            &long,
        ] {
            let error = VolumeKey::named(wrong).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{wrong}");
        }
        let disk = VolumeKey::of_identity("device:wwid=naa.5000c500");
        assert!(disk.as_str().starts_with("disk-") && disk.as_str().len() == 21);
        assert_eq!(disk.as_str().parse::<VolumeKey>().unwrap(), disk);
        assert!(serde_json::from_str::<VolumeKey>("\"a.b\"").is_err());
        assert_eq!(serde_json::to_string(&disk).unwrap(), format!("\"{disk}\""));
    }
}
