//! [`Address`]: where a repository is, as people write it.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Kind, Result};

/// Where a repository is: `s3://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, `gs://BUCKET/PREFIX`, `file:///FOLDER`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub(super) scheme: Scheme,
    /// A bucket, or a folder's path.
    pub(super) bucket: String,
    pub(super) prefix: String,
    /// The snapshot, after `#`.
    pub(crate) select: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    S3,
    Azure,
    Google,
    Folder,
}

const SCHEMES: [(&str, Scheme); 4] = [
    ("s3://", Scheme::S3),
    ("az://", Scheme::Azure),
    ("gs://", Scheme::Google),
    ("file://", Scheme::Folder),
];

impl Address {
    /// Whether it reads like one, right or wrong.
    pub(crate) fn looks_like(text: &str) -> bool {
        SCHEMES.iter().any(|(scheme, _)| text.starts_with(scheme))
    }

    /// Refuses an address with a snapshot, for operations on the whole repository.
    ///
    /// # Errors
    /// `Invalid` when one is.
    pub(crate) fn names_no_snapshot(&self) -> Result<()> {
        match &self.select {
            None => Ok(()),
            Some(select) => {
                let what =
                    format!("{self}#{select}: leave out #{select}, all of the repository is meant");
                Err(Error::new(Kind::Invalid, what))
            }
        }
    }

    /// Whether it is in S3 or a server with the same API.
    pub(crate) fn is_s3(&self) -> bool {
        self.scheme == Scheme::S3
    }

    /// Whether it is a folder of this machine.
    pub(crate) fn is_folder(&self) -> bool {
        self.scheme == Scheme::Folder
    }

    /// The folder of this machine that it is, if it is one.
    pub(crate) fn folder(&self) -> Option<&std::path::Path> {
        self.is_folder().then(|| self.bucket.as_ref())
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |what: &str| Error::new(Kind::Invalid, format!("{text:?}: {what}"));
        let found = SCHEMES
            .iter()
            .find_map(|(name, scheme)| Some((*scheme, text.strip_prefix(name)?)));
        let (scheme, rest) = found
            .ok_or_else(|| wrong("a repository is s3://BUCKET/PREFIX, az://, gs:// or file:///"))?;
        let (rest, select) = match rest.split_once('#') {
            Some((rest, select)) if !select.is_empty() => (rest, Some(select.to_owned())),
            Some((rest, _)) => (rest, None),
            None => (rest, None),
        };
        let (bucket, prefix) = match scheme {
            Scheme::Folder if rest.starts_with('/') => (rest.trim_end_matches('/'), ""),
            Scheme::Folder => return Err(wrong("a folder's path must be whole: file:///FOLDER")),
            _ => rest.split_once('/').unwrap_or((rest, "")),
        };
        if bucket.is_empty() {
            return Err(wrong("it names no bucket or folder"));
        }
        Ok(Self {
            scheme,
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
            select,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = SCHEMES.iter().find(|(_, scheme)| *scheme == self.scheme);
        f.write_str(scheme.map_or("", |(name, _)| name))?;
        f.write_str(&self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_nonsense_is_refused() {
        let address: Address = "s3://bucket/a/b/#snap-1".parse().unwrap();
        assert_eq!(address.to_string(), "s3://bucket/a/b");
        assert_eq!(address.select.as_deref(), Some("snap-1"));
        let folder: Address = "file:///var/replicas/".parse().unwrap();
        assert_eq!(folder.to_string(), "file:///var/replicas");
        assert!(folder.is_folder());
        for wrong in [
            "",
            "s3://",
            "s3:///x",
            "file://relative",
            "http://x/y",
            "/a",
            "snap-1",
        ] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
        assert!(Address::looks_like("s3:///") && !Address::looks_like("/s3"));
    }
}
