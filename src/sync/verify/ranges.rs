//! Sets of blocks as people and programs read them.

use bytesize::ByteSize;

use crate::block::{BlockIndex, BlockSet, Extent, Geometry};

/// Ranges named in a message.
const NAMED: usize = 8;

/// The runs of a set as (offset, length) in bytes, ascending.
pub(crate) fn ranges(
    set: &BlockSet,
    geometry: Geometry,
) -> impl Iterator<Item = (u64, u64)> + use<'_> {
    runs(set, geometry).map(move |run| {
        let start = geometry.offset(run.start());
        (start, geometry.offset(run.end()) - start)
    })
}

/// A set in words, with its first eight runs: "blocks 12-15, 40 (2.5 MiB)".
pub(crate) fn describe(set: &BlockSet, geometry: Geometry) -> String {
    let name = |run: Extent| match run.count() {
        1 => run.start().to_string(),
        _ => format!("{}-{}", run.start(), run.end().0.saturating_sub(1)),
    };
    let named: Vec<_> = runs(set, geometry).take(NAMED).map(name).collect();
    let more = runs(set, geometry).skip(NAMED).count();
    let bytes = ranges(set, geometry).map(|(_, bytes)| bytes).sum();
    let noun = if set.len() == 1 { "block" } else { "blocks" };
    let more = match more {
        0 => String::new(),
        1 => " and 1 more range".to_owned(),
        _ => format!(" and {more} more ranges"),
    };
    format!("{noun} {}{more} ({})", named.join(", "), ByteSize(bytes))
}

fn runs(set: &BlockSet, geometry: Geometry) -> impl Iterator<Item = Extent> + use<'_> {
    set.runs_in(BlockIndex(0), BlockIndex(geometry.block_count()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_described_by_its_first_ranges_and_its_bytes() {
        let geometry = Geometry::new((100 << 19) + 1024).unwrap();
        let mut set = BlockSet::new();
        for index in [12, 13, 14, 15, 40] {
            set.insert(BlockIndex(index));
        }
        assert_eq!(describe(&set, geometry), "blocks 12-15, 40 (2.5 MiB)");
        let found: Vec<_> = ranges(&set, geometry).collect();
        assert_eq!(found, [(12 << 19, 4 << 19), (40 << 19, 1 << 19)]);
        // The last block is short.
        let mut last = BlockSet::new();
        last.insert(BlockIndex(100));
        assert_eq!(describe(&last, geometry), "block 100 (1.0 KiB)");
        for index in (50..64).step_by(2) {
            set.insert(BlockIndex(index));
        }
        assert_eq!(
            describe(&set, geometry),
            "blocks 12-15, 40, 50, 52, 54, 56, 58, 60 and 1 more range (6.0 MiB)"
        );
    }
}
