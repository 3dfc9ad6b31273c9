//! Listings of blocks, for a snapshot and for what differs between two alike.
//!
//! [`cursor`] reads pages and decides what a page proves, [`in_flight`] knows which listings are under way,
//! [`token_pages`] keeps the tokens of all snapshots within one bound, and a [`token_index`] finds the page of a block.
//!
//! # Absence is a claim
//! A block that is not listed reads as zeroes: the one silent way to corrupt. Therefore:
//! - A reply without its list is a broken reply, whatever its status; the client asks again. `null` is an empty list.
//! - A page proves what it lists and the holes between; it proves nothing behind its last block while another page follows.
//! - The next page begins with the last block of the page before (the *anchor*), so that a lost or doubled page shows.
//! - A reply without a next token proves an end only when one more request from the next block on is answered with an empty
//!   list and no token. A lost token therefore costs one request, not the rest of the volume.

pub(super) mod cursor;
pub(super) mod in_flight;
pub(super) mod token_index;
pub(super) mod token_pages;

use std::fmt;
use std::time::SystemTime;

use crate::block::BlockIndex;

/// A block or page token: a secret, for any caller of the API can use one. Its Debug prints none of it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Token(Box<str>);

impl Token {
    /// A token as the service sent it. Nothing is assumed of its characters.
    pub(super) fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The token for the request that needs it.
    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// The state of a block by ListChangedBlocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ChangedBlock {
    /// Both snapshots hold it, and it was written in between. The token is the head's.
    Rewritten(Token),
    /// Only the head holds it. The token is the head's.
    Gained(Token),
    /// Only the base holds it: it reads as zeroes in the head.
    Lost,
}

impl ChangedBlock {
    /// The token of its bytes in the head.
    pub(super) fn token(&self) -> Option<&Token> {
        match self {
            Self::Rewritten(token) | Self::Gained(token) => Some(token),
            Self::Lost => None,
        }
    }
}

/// Where a list request begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ListFrom {
    /// The first listed block at or after this one.
    Index(BlockIndex),
    /// The page after the one that carried this token.
    Page(Token),
}

/// One reply of ListSnapshotBlocks or ListChangedBlocks, as the service sent it.
#[derive(Debug)]
pub(super) struct ListReply<T> {
    /// Each block and its entry: its [`Token`], or a [`ChangedBlock`].
    pub(super) blocks: Vec<(BlockIndex, T)>,
    /// When its block tokens expire.
    pub(super) expiry: Option<SystemTime>,
    /// The volume's size in bytes; a reply may leave it out.
    pub(super) volume_size: Option<u64>,
    /// The token of the next page; none at the end, or where it was lost.
    pub(super) next: Option<Token>,
}
