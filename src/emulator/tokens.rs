//! Block and page tokens: opaque, URL-safe, about 95 characters, sealed with a key that dies with the emulator.
//!
//! A token says when it was made and until when it is good, and carries a MAC over that and what it is bound to, so that
//! the emulator need not remember the tokens that it gave out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Bytes of a token: version, made, good until, payload, padding, MAC.
const LEN: usize = 71;
const MAC: usize = 32;

#[derive(Debug)]
pub(super) struct Sealer {
    key: [u8; 32],
}

/// Why a token is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// Not made by this emulator, or for something else.
    Foreign,
    Expired,
}

impl Sealer {
    pub(super) fn new() -> Self {
        let mut key = [0; 32];
        fastrand::fill(&mut key);
        Self { key }
    }

    /// A token bound to `scope`, carrying `payload`.
    pub(super) fn seal(
        &self,
        scope: &str,
        payload: u32,
        now: SystemTime,
        life: Duration,
    ) -> String {
        let mut bytes = [0u8; LEN];
        let (head, mac) = bytes.split_at_mut(LEN - MAC);
        if let [version, rest @ ..] = head {
            *version = 2;
            let fields = [
                millis(now).to_le_bytes(),
                millis(now + life).to_le_bytes(),
                u64::from(payload).to_le_bytes(),
                fastrand::u64(..).to_le_bytes(),
            ];
            for (to, from) in rest.chunks_mut(8).zip(fields) {
                to.copy_from_slice(from.get(..to.len()).unwrap_or_default());
            }
        }
        mac.copy_from_slice(&self.mac(head, scope));
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The payload of a token that is bound to `scope`, made at or after `not_before` and not expired.
    pub(super) fn open(
        &self,
        scope: &str,
        token: &str,
        now: SystemTime,
        not_before: SystemTime,
    ) -> Result<u32, Bad> {
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| Bad::Foreign)?;
        if bytes.len() != LEN {
            return Err(Bad::Foreign);
        }
        let (head, mac) = bytes.split_at(LEN - MAC);
        if self.mac(head, scope) != mac {
            return Err(Bad::Foreign);
        }
        let field = |n: usize| {
            head.get(1 + 8 * n..9 + 8 * n)
                .and_then(|bytes| bytes.try_into().ok())
                .map_or(0, u64::from_le_bytes)
        };
        if millis(now) >= field(1) || field(0) < millis(not_before) {
            return Err(Bad::Expired);
        }
        u32::try_from(field(2)).map_err(|_| Bad::Foreign)
    }

    fn mac(&self, head: &[u8], scope: &str) -> [u8; MAC] {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.key) else {
            return [0; MAC];
        };
        mac.update(head);
        mac.update(scope.as_bytes());
        mac.finalize().into_bytes().into()
    }
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_scope_and_time_only() {
        let sealer = Sealer::new();
        let start = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let token = sealer.seal("get/snap-1/7", 7, start, Duration::from_secs(60));
        assert_eq!(token.len(), 95);
        assert!(
            token
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        );
        let later = start + Duration::from_secs(59);
        assert_eq!(sealer.open("get/snap-1/7", &token, later, start), Ok(7));
        assert_eq!(
            sealer.open("get/snap-1/8", &token, later, start),
            Err(Bad::Foreign)
        );
        assert_eq!(
            sealer.open("get/snap-1/7", "rubbish", later, start),
            Err(Bad::Foreign)
        );
        let late = start + Duration::from_secs(60);
        assert_eq!(
            sealer.open("get/snap-1/7", &token, late, start),
            Err(Bad::Expired)
        );
        assert_eq!(
            sealer.open("get/snap-1/7", &token, later, later),
            Err(Bad::Expired)
        );
        assert_eq!(
            Sealer::new().open("get/snap-1/7", &token, later, start),
            Err(Bad::Foreign)
        );
    }
}
