//! Snapshots of an account that has far more of them than the folder: computed, so that 200,000 cost no memory.

use super::super::ACCOUNT;
use super::super::record::SnapshotRecord;

/// Ids look random and lead back to their positions: multiplication by an odd number is undone by its inverse.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
const GATHER: u64 = inverse(SPREAD);
/// The newest was made on 2026-01-01, each other one a minute before the next.
const NEWEST_MS: u64 = 1_767_225_600_000;
const MINUTE_MS: u64 = 60_000;
/// Snapshots of one volume.
const PER_VOLUME: u64 = 50;

/// The inverse of an odd number modulo 2^64. Newton: each step doubles the bits that are right, of 3 to begin with.
const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut step = 0;
    while step < 5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
        step += 1;
    }
    inverse
}

/// The position of an id among `count` computed ones.
pub(super) fn position(id: &str, count: u64) -> Option<u64> {
    let digits = id.strip_prefix("snap-0").filter(|d| d.len() == 16)?;
    let position = u64::from_str_radix(digits, 16).ok()?.wrapping_mul(GATHER);
    (position < count).then_some(position)
}

/// How many blocks EC2 states for the snapshot at a position.
pub(super) fn held(position: u64) -> u64 {
    position % 1000 + 1
}

/// The snapshot at a position.
pub(super) fn record(position: u64) -> SnapshotRecord {
    let id = format!("snap-0{:016x}", position.wrapping_mul(SPREAD));
    let volume = position / PER_VOLUME;
    let start_ms = NEWEST_MS.saturating_sub(position.saturating_mul(MINUTE_MS));
    let mut record = SnapshotRecord::new(0, id, ACCOUNT, start_ms);
    record.volume_id = format!("vol-0{:016x}", volume.wrapping_mul(SPREAD));
    record.state = "completed".into();
    record.settles_ms = Some(start_ms + MINUTE_MS);
    record.description = format!("nightly {position}");
    record.volume_gib = 8;
    let name = ("Name".to_owned(), format!("host-{volume}"));
    record.tags = [name].into();
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_lead_back_to_their_positions() {
        for at in [0, 1, 2, 199_999] {
            let record = record(at);
            assert_eq!(position(&record.id, 200_000), Some(at));
            assert_eq!(position(&record.id, at), None);
        }
        assert_eq!(position("snap-0a", 200_000), None);
    }
}
