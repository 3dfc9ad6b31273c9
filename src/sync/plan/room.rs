//! [`room`]: whether an image fits where it is written.

use crate::error::{Error, Kind, Result};

/// Whether an image fits where `free` bytes are free: an error if it cannot, a sentence if it may not (a block that is held may be
/// all zeroes and take no room).
///
/// # Errors
/// `NoSpace` when the clone and the reserve alone do not fit.
pub(in crate::sync) fn room(
    name: &str,
    free: u64,
    clone: u64,
    blocks: u64,
    reserve: u64,
) -> Result<Option<String>> {
    let size = bytesize::ByteSize::b;
    if free < clone.saturating_add(reserve) {
        let why = match (clone, reserve) {
            (0, reserve) => format!("{} are to stay free", size(reserve)),
            (clone, 0) => format!("a copy of the old image takes {}", size(clone)),
            (clone, reserve) => format!(
                "a copy of the old image takes {}, and {} are to stay free",
                size(clone),
                size(reserve)
            ),
        };
        let what = format!(
            "cannot write {name}: {} are free there, and {why}",
            size(free)
        );
        return Err(Error::new(Kind::NoSpace, what));
    }
    let wanted = blocks
        .saturating_mul(u64::from(crate::block::BLOCK_SIZE))
        .saturating_add(clone)
        .saturating_add(reserve);
    Ok((free < wanted).then(|| {
        format!(
            "{} are free there, up to {} are wanted: it may not fit",
            size(free),
            size(wanted)
        )
    }))
}
