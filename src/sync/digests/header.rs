//! The header of a digests file.

use sha2::{Digest as _, Sha256};

use crate::block::{Digest, Geometry};
use crate::error::{Error, Kind, Result};

const MAGIC: &[u8; 8] = b"ebsfsdig";
const VERSION: u32 = 2;
const RUN_BYTES: usize = 64;
/// Bytes of the header before its own SHA-256.
pub(super) const FIELDS: usize = 88;
const WHOLE: u32 = 1;
/// Bytes of the header that are not zero.
pub(super) const HEADER_BYTES: usize = FIELDS + size_of::<Digest>();

/// # Errors
/// `Invalid` for a run id that is empty, longer than 64 bytes or not ASCII.
pub(super) fn encode_header(run: &str, geometry: Geometry, is_whole: bool) -> Result<Vec<u8>> {
    if run.is_empty() || run.len() > RUN_BYTES || !run.bytes().all(|byte| byte.is_ascii_graphic()) {
        let what =
            format!("cannot use the run id {run:?}: it must be 1 to {RUN_BYTES} ASCII characters");
        return Err(Error::new(Kind::Invalid, what));
    }
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(run.as_bytes());
    header.resize(MAGIC.len() + size_of::<u32>() + RUN_BYTES, 0);
    header.extend_from_slice(&geometry.size().to_le_bytes());
    header.extend_from_slice(&u32::from(is_whole).to_le_bytes());
    let digest = Sha256::digest(&header);
    header.extend_from_slice(&digest);
    Ok(header)
}

/// Run id, geometry, whether it is whole; none when this is no header of this version.
pub(super) fn decode_header(header: &[u8]) -> Option<(String, Geometry, bool)> {
    let (fields, digest) = header.split_at_checked(FIELDS)?;
    if Sha256::digest(fields).as_slice() != digest {
        return None;
    }
    let (magic, rest) = fields.split_first_chunk::<8>()?;
    let (version, rest) = rest.split_first_chunk::<4>()?;
    let (run, rest) = rest.split_first_chunk::<RUN_BYTES>()?;
    let (size, flags) = rest.split_first_chunk::<8>()?;
    if magic != MAGIC || u32::from_le_bytes(*version) != VERSION {
        return None;
    }
    let end = run.iter().position(|byte| *byte == 0).unwrap_or(RUN_BYTES);
    let run = str::from_utf8(run.get(..end)?).ok()?;
    let geometry = Geometry::new(u64::from_le_bytes(*size)).ok()?;
    let flags = u32::from_le_bytes(flags.try_into().ok()?);
    Some((run.to_owned(), geometry, flags & WHOLE != 0))
}
