//! A repository: snapshots kept in an object store, each block's content once, readable without AWS.
//!
//! # Terms
//! *block*: 512 KiB of a volume. *pack*: up to [`pack::MOST_BLOCKS`] blocks in one object. *segment*: where
//! [`SEGMENT_BLOCKS`] consecutive blocks of a snapshot are. *root*: what a snapshot is, and its segments. *run*: a sync that
//! has begun and not ended. *garbage*: packs and segments that no root leads to.
//!
//! # Layout
//! ```text
//! PREFIX/ebsfs-repository.json             format, id, encryption (none): written once, by the first run
//! PREFIX/packs/HH/HEX                      a pack; HEX is the SHA-256 of its salt and its table, HH the first two digits
//! PREFIX/segments/HH/HEX                   a segment; HEX is the SHA-256 of the object
//! PREFIX/snapshots/TIME.VOLUME.SNAPSHOT    a root: TIME as 20260630T120000000Z, VOLUME as vol-0a, disk-HEX or unknown
//! PREFIX/runs/RUN                          a run: its start is when the object was written
//! PREFIX/clock                             rewritten by each prune, to learn the store's time
//! PREFIX/removed/TIME.VOLUME.SNAPSHOT.RUN  the root of a snapshot that was removed, until the grace is over
//! ```
//! Every other object is written once, by one PUT of at most 32 MiB, so that no multipart upload is ever left behind, and is
//! read back before anything names it. Packs and segments are named by their content: whatever is at such a name is either
//! right or damaged. By their salt no two runs write an object of one name, whatever blocks they bring.
//!
//! ```text
//! pack     "ebsfpak1", salt (16, of the run), blocks as stored; then the table, to the end: for each block SHA-256 of its
//!          bytes (32), offset (u32), length (u32, the top bit: zstd); how many blocks (u32), "ebsfend1"
//! segment  zstd of: "ebsfseg1", salt (16), how many packs (u32), their names (32 each), how many blocks (u32), then column by column
//!          of each block: index within the segment (u16), pack (u16), offset (u32), length (u32, as above), SHA-256 (32)
//! root     one line of JSON, then the SHA-256 of that line in hexadecimal
//! ```
//! Numbers are little-endian. A block that no segment speaks of is a hole. Blocks of zeroes are never stored.
//!
//! # What makes a snapshot visible
//! Its root, which is written last, and only where there is none of that name (`If-None-Match: *` where the store knows it).
//! It is there whole or not at all, and leads to all its blocks by itself: segments that did not change are shared with the
//! parent by name, and the parent can go.
//!
//! # What a crash can leave
//! Packs, segments and a run that no root leads to; never a root that leads to something missing. A resumed run finds its
//! packs again: nothing written or removed since the oldest unfinished run began is garbage.
//!
//! # Versions and encryption
//! `ebsfs-repository.json` says `"format": 1` and `"encryption": "none"`; a reader refuses what it does not know. Encryption
//! by the client would seal packs, segments and roots as whole objects, names being of the sealed bytes: nothing else of this changes.

mod catalog;
mod check;
mod index;
mod known;
mod locations;
mod pack;
mod prune;
mod root;
mod run;
mod segment;
mod segments;
mod sink;
mod source;
mod store;
mod target;

pub use catalog::RepositoryCatalog;
pub use check::{Checked, Damage, check};
pub use index::Index;
pub use prune::{Pruned, forget_run, prune, remove};
pub use root::{Root, RootName};
pub use run::{Parent, RunState};
pub use sink::RepositorySink;
pub use source::RepositorySource;
pub use store::{Address, BucketStyle, Connection, Deleted, S3Options, Store};
pub use target::RepositoryTarget;

/// Blocks of a segment: 32 GiB of a volume.
pub const SEGMENT_BLOCKS: u32 = 1 << 16;
