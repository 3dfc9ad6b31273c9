//! Block and page tokens: opaque, URL-safe, about 95 characters, sealed with a key that lives as long as the emulator.
//!
//! A token says when it was made and until when it is good, and carries a MAC over that and what it is bound to, so that
//! the emulator need not remember the tokens that it gave out.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::record::millis;

/// Bytes of a token: kind, made, good until, payload, padding, MAC.
const LEN: usize = 71;
/// Bytes of a page token of ListChangedBlocks, which is longer: 115 characters where the others have 95.
const LEN_CHANGED: usize = 86;
const MAC: usize = 32;
/// Bytes that say what a token is for: captured tokens begin with `AlMB`, `AlMC` and `AlMD`.
const KIND: usize = 3;

/// The kind of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Block,
    Page,
    ChangedPage,
}

impl TokenKind {
    fn bytes(self) -> [u8; KIND] {
        [2, 0x53, self as u8 + 1]
    }

    fn len(self) -> usize {
        match self {
            Self::ChangedPage => LEN_CHANGED,
            Self::Block | Self::Page => LEN,
        }
    }
}

#[derive(Debug)]
pub(super) struct Sealer {
    key: [u8; 32],
}

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenFault {
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
        kind: TokenKind,
        scope: &str,
        payload: u64,
        now: SystemTime,
        life: Duration,
    ) -> String {
        let mut head = Vec::with_capacity(kind.len());
        head.extend_from_slice(&kind.bytes());
        for field in [millis(now), millis(now + life), payload] {
            head.extend_from_slice(&field.to_le_bytes());
        }
        // Each token is another one, as AWS's are.
        head.resize_with(kind.len() - MAC, || fastrand::u8(..));
        let mac = self.mac(&head, scope);
        head.extend_from_slice(&mac);
        URL_SAFE_NO_PAD.encode(head)
    }

    /// The payload of a token that is bound to `scope`, made at or after `not_before` and not expired.
    pub(super) fn open(
        &self,
        kind: TokenKind,
        scope: &str,
        token: &str,
        now: SystemTime,
        not_before: SystemTime,
    ) -> Result<u64, TokenFault> {
        let bytes = URL_SAFE_NO_PAD
            .decode(token)
            .map_err(|_| TokenFault::Foreign)?;
        if bytes.len() != kind.len() || !bytes.starts_with(&kind.bytes()) {
            return Err(TokenFault::Foreign);
        }
        let (head, mac) = bytes.split_at(bytes.len() - MAC);
        if self.mac(head, scope) != mac {
            return Err(TokenFault::Foreign);
        }
        let field = |n: usize| {
            head.get(KIND + 8 * n..KIND + 8 + 8 * n)
                .and_then(|bytes| bytes.try_into().ok())
                .map_or(0, u64::from_le_bytes)
        };
        if millis(now) >= field(1) || field(0) < millis(not_before) {
            return Err(TokenFault::Expired);
        }
        Ok(field(2))
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

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_token_is_good_for_its_scope_and_time_only() {
        let sealer = Sealer::new();
        let start = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let token = sealer.seal(
            TokenKind::Block,
            "get/snap-1/7",
            7,
            start,
            Duration::from_secs(60),
        );
        assert_eq!(token.len(), 95);
        assert!(token.starts_with("AlMB"), "{token}");
        let page = sealer.seal(
            TokenKind::ChangedPage,
            "changed",
            1 << 32,
            start,
            Duration::from_secs(60),
        );
        assert_eq!((page.len(), page.get(..4)), (115, Some("AlMD")));
        assert_eq!(
            sealer.open(TokenKind::ChangedPage, "changed", &page, start, start),
            Ok(1 << 32)
        );
        assert_eq!(
            sealer.open(TokenKind::Page, "changed", &page, start, start),
            Err(TokenFault::Foreign)
        );
        assert!(
            token
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        );
        let later = start + Duration::from_secs(59);
        assert_eq!(
            sealer.open(TokenKind::Block, "get/snap-1/7", &token, later, start),
            Ok(7)
        );
        assert_eq!(
            sealer.open(TokenKind::Block, "get/snap-1/8", &token, later, start),
            Err(TokenFault::Foreign)
        );
        assert_eq!(
            sealer.open(TokenKind::Block, "get/snap-1/7", "rubbish", later, start),
            Err(TokenFault::Foreign)
        );
        let late = start + Duration::from_secs(60);
        assert_eq!(
            sealer.open(TokenKind::Block, "get/snap-1/7", &token, late, start),
            Err(TokenFault::Expired)
        );
        assert_eq!(
            sealer.open(TokenKind::Block, "get/snap-1/7", &token, later, later),
            Err(TokenFault::Expired)
        );
        assert_eq!(
            Sealer::new().open(TokenKind::Block, "get/snap-1/7", &token, later, start),
            Err(TokenFault::Foreign)
        );
    }
}
