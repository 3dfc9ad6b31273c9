//! [`Lane`]: what one thread does with the bytes of an image: sums of them, or a copy.
//!
//! Each sum is a chain that no processor runs in parallel, so one thread for each is the least time where there are enough
//! processors. Measured on one core of a Zen 4 (MiB/s of CPU time): MD5 607, SHA-1 1,830, SHA-256 1,712 by its SHA extensions.
//! MD5 leaves most of the core idle: SHA-256 beside it, 64 bytes of each in turn, gives 533 for both instead of 448 one after
//! the other, and EBS sends at most 500 of one snapshot. So two threads do all three sums in 2.4 ms of CPU a MiB instead of 2.8;
//! a machine of two processors has the rest for the network. Without SHA extensions SHA-256 is the slow one, and has its own thread.

use std::fs::File;
use std::os::unix::fs::FileExt;

use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::ImageDigests;
use crate::block::{Block, ZEROES};
use crate::error::{Error, Kind, Result};

/// Bytes of an image: of a block, or so many zeroes.
pub(super) type LaneBlock = (Block, u64);

/// What all three functions take at once.
const STEP: usize = 64;

/// The work of one thread. Bytes come in order and without a gap.
#[derive(Default)]
pub(super) struct Lane {
    sha256: Option<Sha256>,
    sha1: Option<Sha1>,
    md5: Option<Md5>,
    copy: Option<(File, u64)>,
}

/// Whether SHA-256 and SHA-1 are instructions of this processor.
pub(super) fn has_sha_extensions() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::is_x86_feature_detected!("sha")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("sha2")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

/// Which sums share a thread.
pub(super) fn lanes(with_md5: bool, with_sha1: bool, has_sha_extensions: bool) -> Vec<Lane> {
    let shares = with_md5 && with_sha1 && has_sha_extensions;
    let mut first = Lane {
        sha256: Some(Sha256::new()),
        ..Lane::default()
    };
    let mut all = Vec::new();
    if with_md5 && shares {
        first.md5 = Some(Md5::new());
    } else if with_md5 {
        all.push(Lane {
            md5: Some(Md5::new()),
            ..Lane::default()
        });
    }
    if with_sha1 {
        all.push(Lane {
            sha1: Some(Sha1::new()),
            ..Lane::default()
        });
    }
    all.push(first);
    all
}

impl Lane {
    /// Writes the bytes to an empty file, which becomes `size` bytes long.
    pub(super) fn of_copy(file: File, size: u64) -> Result<Self> {
        file.set_len(size).map_err(not_copied)?;
        Ok(Self {
            copy: Some((file, 0)),
            ..Self::default()
        })
    }

    pub(super) fn data(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some((file, at)) = &mut self.copy {
            file.write_all_at(bytes, *at).map_err(not_copied)?;
            *at += bytes.len() as u64;
        }
        self.sum(bytes);
        Ok(())
    }

    /// Zeroes go through the functions like all bytes: none can skip them.
    pub(super) fn zeroes(&mut self, bytes: u64) {
        if let Some((_, at)) = &mut self.copy {
            *at += bytes;
            return;
        }
        let mut left = bytes;
        while left > 0 {
            let len = usize::try_from(left).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
            self.sum(ZEROES.get(..len).unwrap_or_default());
            left -= len as u64;
        }
    }

    fn sum(&mut self, bytes: &[u8]) {
        match (&mut self.sha256, &mut self.md5) {
            (Some(sha256), Some(md5)) => {
                for step in bytes.chunks(STEP) {
                    md5.update(step);
                    sha256.update(step);
                }
            }
            (Some(sha256), None) => sha256.update(bytes),
            (None, Some(md5)) => md5.update(bytes),
            (None, None) => {}
        }
        if let Some(sha1) = &mut self.sha1 {
            sha1.update(bytes);
        }
    }

    /// After the last piece: a copy is flushed to the disk.
    pub(super) fn end(&mut self) -> Result<()> {
        match self.copy.take() {
            Some((file, _)) => file.sync_all().map_err(not_copied),
            None => Ok(()),
        }
    }

    /// Takes over the sums of another lane.
    pub(super) fn merge(&mut self, other: Self) {
        self.sha256 = self.sha256.take().or(other.sha256);
        self.sha1 = self.sha1.take().or(other.sha1);
        self.md5 = self.md5.take().or(other.md5);
    }

    /// The sums of all lanes.
    pub(super) fn digests(self) -> Result<ImageDigests> {
        let none = || Error::new(Kind::Io, "cannot hash: the hashing thread ended");
        Ok(ImageDigests {
            sha256: self.sha256.ok_or_else(none)?.finalize().into(),
            sha1: self.sha1.map(|sha1| sha1.finalize().into()),
            md5: self.md5.map(|md5| md5.finalize().into()),
        })
    }
}

fn not_copied(error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Kind::NoSpace,
        _ => Kind::Io,
    };
    Error::with_source(kind, "cannot write the copy of the image", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The digests by these lanes of pieces: data, zeroes, data that ends within a step.
    fn by(lanes: Vec<Lane>, pieces: &[(&[u8], u64)]) -> ImageDigests {
        let mut whole = Lane::default();
        for mut lane in lanes {
            for (data, zeroes) in pieces {
                lane.data(data).unwrap();
                lane.zeroes(*zeroes);
            }
            lane.end().unwrap();
            whole.merge(lane);
        }
        whole.digests().unwrap()
    }

    #[test]
    fn the_sums_are_those_of_the_whole_bytes_however_threads_share_them() {
        let data: Vec<u8> = (0..=250u8).cycle().take(100_003).collect();
        let pieces: [(&[u8], u64); 3] =
            [(&data[..1000], 70_000), (&data, 1 << 20), (&data[..65], 0)];
        let mut bytes = Vec::new();
        for (data, zeroes) in pieces {
            bytes.extend_from_slice(data);
            bytes.resize(bytes.len() + usize::try_from(zeroes).unwrap(), 0);
        }
        for (md5, sha1, extensions, threads) in [
            (true, true, true, 2),
            (true, true, false, 3),
            (true, false, true, 2),
            (false, true, true, 2),
            (false, false, false, 1),
        ] {
            let lanes = lanes(md5, sha1, extensions);
            assert_eq!(lanes.len(), threads);
            let found = by(lanes, &pieces);
            assert_eq!(found.sha256, *Sha256::digest(&bytes));
            assert_eq!(found.sha1, sha1.then(|| Sha1::digest(&bytes).into()));
            assert_eq!(found.md5, md5.then(|| Md5::digest(&bytes).into()));
        }
    }

    #[test]
    fn a_copy_has_the_bytes_and_leaves_holes() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("copy");
        let size = (8 << 20) + 3;
        let mut lane = Lane::of_copy(File::create_new(&path).unwrap(), size).unwrap();
        lane.zeroes(8 << 20);
        lane.data(b"end").unwrap();
        lane.end().unwrap();
        let read = std::fs::read(&path).unwrap();
        assert_eq!(read.len() as u64, size);
        assert!(read.ends_with(b"\0end"));
        assert!(path.metadata().unwrap().blocks() * 512 < 1 << 20);
    }
}
