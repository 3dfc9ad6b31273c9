//! The EBS direct APIs as a [`Catalog`](crate::source::Catalog): [`client`] makes the calls, [`walk`] goes through listings,
//! [`block_map`] knows which blocks a snapshot holds and their tokens ([`pages`]), [`snapshot`] reads blocks with both,
//! [`delta`] lists what differs between two, [`changed`] reads it by that listing's tokens, [`catalog`] finds snapshots. The
//! client holds back what is too much ([`limit`]), signs and sends reads of blocks ([`wire`]), sends slow ones twice if told
//! to ([`hedge`]) and verifies them ([`crate::digest`]); it also makes new snapshots.
//!
//! Tokens are secrets (whoever may call GetSnapshotBlock can use one) and never leave this folder.

mod block_map;
mod catalog;
mod changed;
mod client;
mod delta;
mod hedge;
mod limit;
mod pages;
mod snapshot;
mod walk;
mod wire;

pub use catalog::EbsCatalog;
pub use client::{Client, Counts, NewSnapshot, Started};
pub use limit::Limits;
