//! The EBS direct APIs as a [`Catalog`](crate::source::Catalog): [`client`] makes the calls, [`listing`] reads lists of
//! blocks and keeps their tokens, [`snapshot`] knows which blocks a snapshot holds and reads them, [`delta`] lists and reads
//! what differs between two, [`catalog`] finds snapshots.
//!
//! Tokens are secrets (any caller with GetSnapshotBlock can use one) and never leave this folder.

mod catalog;
mod client;
mod delta;
mod listing;
mod snapshot;

pub use catalog::EbsCatalog;
pub(crate) use client::url;
pub use client::{Client, Counts, Limits, NewSnapshot, StartedSnapshot};
