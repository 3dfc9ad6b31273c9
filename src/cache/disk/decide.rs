//! The decisions of the disk cache: which blocks it keeps, when it may answer, which failures turn it off.

use std::io;
use std::time::Duration;

use tokio::time::Instant;

use crate::block::Block;
use crate::error::{Kind, Result};

/// How long the cache answers for a snapshot after an allowed request for one of its blocks: a revoked permission ends reads
/// within this time.
pub(super) const SERVED: Duration = Duration::from_secs(3600);

/// Whether blocks of a snapshot may lie on disk as plain bytes. An unknown state counts as encrypted.
pub(super) fn may_keep(encrypted: Option<bool>, keep_encrypted: bool) -> bool {
    keep_encrypted || encrypted == Some(false)
}

/// Whether the caller may read a snapshot, as its last requests showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Permission {
    allowed: Option<Instant>,
}

impl Permission {
    /// Whether the cache may answer.
    pub(super) fn may_serve(self, now: Instant) -> bool {
        self.allowed
            .is_some_and(|allowed| now.saturating_duration_since(allowed) < SERVED)
    }

    /// Takes the answer of the source. A block of zeroes proves nothing: it may be a hole, which needs no request.
    pub(super) fn learn(&mut self, fetched: &Result<Block>, now: Instant) {
        match fetched {
            Ok(Block::Data(..)) if !self.may_serve(now) => self.allowed = Some(now),
            Err(error) if [Kind::Denied, Kind::NotFound].contains(&error.kind()) => {
                self.allowed = None;
            }
            _ => {}
        }
    }
}

/// Whether an error turns the cache off. EFBIG concerns one block beyond the largest file, EINTR one call.
pub(super) fn turns_off(error: &io::Error) -> bool {
    ![Some(libc::EFBIG), Some(libc::EINTR)].contains(&error.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use bytes::Bytes;

    #[test]
    fn only_blocks_known_to_be_unencrypted_are_kept_unless_all_may_be() {
        for (encrypted, keep_encrypted, kept) in [
            (Some(false), false, true),
            (Some(true), false, false),
            (None, false, false),
            (Some(false), true, true),
            (Some(true), true, true),
            (None, true, true),
        ] {
            assert_eq!(may_keep(encrypted, keep_encrypted), kept, "{encrypted:?}");
        }
    }

    #[test]
    fn a_snapshot_is_served_for_an_hour_after_an_allowed_request_and_not_after_a_denied_one() {
        let data = || Ok(Block::Data(Bytes::from_static(b"x"), [1; 32]));
        let fails = |kind| Err(Error::new(kind, "no"));
        let start = Instant::now();
        // What came after how many seconds, and whether it is served one second later and an hour after the start.
        type Row = (&'static [(u64, fn() -> Result<Block>)], bool, bool);
        let rows: [Row; 7] = [
            (&[], false, false),
            (&[(0, || Ok(Block::Zero))], false, false),
            (
                &[(0, || Ok(Block::Data(Bytes::new(), [1; 32])))],
                true,
                false,
            ),
            // An allowed request within the hour does not extend it: each hour starts with a request.
            (
                &[
                    (0, || Ok(Block::Data(Bytes::new(), [1; 32]))),
                    (9, || Ok(Block::Data(Bytes::new(), [1; 32]))),
                ],
                true,
                false,
            ),
            (
                &[
                    (0, || Ok(Block::Data(Bytes::new(), [1; 32]))),
                    (9, || Err(Error::new(Kind::Denied, "no"))),
                ],
                false,
                false,
            ),
            (
                &[
                    (0, || Ok(Block::Data(Bytes::new(), [1; 32]))),
                    (9, || Err(Error::new(Kind::NotFound, "no"))),
                ],
                false,
                false,
            ),
            // An outage says nothing of permissions.
            (
                &[
                    (0, || Ok(Block::Data(Bytes::new(), [1; 32]))),
                    (9, || Err(Error::new(Kind::Unavailable, "no"))),
                ],
                true,
                false,
            ),
        ];
        for (number, (answers, soon, after_an_hour)) in rows.into_iter().enumerate() {
            let mut permission = Permission::default();
            let mut last = start;
            for (after, answer) in answers {
                last = start + Duration::from_secs(*after);
                permission.learn(&answer(), last);
            }
            let soon_after = last + Duration::from_secs(1);
            assert_eq!(permission.may_serve(soon_after), soon, "{number}");
            assert_eq!(
                permission.may_serve(start + SERVED),
                after_an_hour,
                "{number}"
            );
        }
        let mut permission = Permission::default();
        permission.learn(&data(), start);
        permission.learn(&data(), start + SERVED);
        permission.learn(&fails(Kind::Throttled), start + SERVED);
        assert!(permission.may_serve(start + SERVED * 2 - Duration::from_secs(1)));
    }

    #[test]
    fn every_failure_but_a_too_large_file_turns_the_cache_off() {
        for (errno, is_off) in [
            (libc::ENOSPC, true),
            (libc::EIO, true),
            (libc::EROFS, true),
            (libc::EDQUOT, true),
            (libc::EFBIG, false),
            (libc::EINTR, false),
        ] {
            assert_eq!(turns_off(&io::Error::from_raw_os_error(errno)), is_off);
        }
    }
}
