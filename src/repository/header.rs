//! The header of every pack, segment and manifest: its kind, its sealing, and the salt of the object.
//!
//! Nothing is sealed in format 2. The header leaves room for it: the salt is different in each object and depends on what is in
//! it, so that a key can be derived for each object, in which the position of a part is its nonce.

use sha2::{Digest as _, Sha256};

use super::pack::Name;

/// Bytes of a header: magic (8), sealing (8, zeroes: not sealed), salt (16).
pub(super) const HEADER: usize = 32;
/// The sealing of an object that is not sealed.
const NOT_SEALED: [u8; 8] = [0; 8];

/// The magic of packs, segments and manifests of this format.
pub(super) type Magic = [u8; 8];
/// Bytes that differ between any two objects, and any two runs.
pub(super) type Salt = [u8; 16];

/// What distinguishes the objects of a run from those of every other one, so that no two runs write an object of one name.
pub(super) fn salt_of_run(run: &str) -> Salt {
    first_half(&Sha256::digest(run))
}

/// The header of an object of a run; the salt is made of the run and of `content`.
pub(super) fn encode(magic: &Magic, run: &Salt, content: &[u8]) -> [u8; HEADER] {
    let digest = Sha256::new().chain_update(magic).chain_update(run);
    let salt = first_half(&digest.chain_update(content).finalize());
    let mut header = [0; HEADER];
    let parts = magic.iter().chain(&NOT_SEALED).chain(&salt);
    header
        .iter_mut()
        .zip(parts)
        .for_each(|(to, from)| *to = *from);
    header
}

/// The header of an object, and what is behind it; none when it is of another kind, or sealed.
pub(super) fn split<'a>(magic: &Magic, object: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (header, rest) = object.split_at_checked(HEADER)?;
    let is_known = header.strip_prefix(magic)?.starts_with(&NOT_SEALED);
    is_known.then_some((header, rest))
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

fn first_half(digest: &[u8]) -> Salt {
    digest.first_chunk().copied().unwrap_or_default()
}
