//! # ebsfs: an Amazon EBS snapshot as a file
//!
//! `ebsfs mount` shows each snapshot as a read-only raw disk image, whose 512 KiB blocks are fetched with the EBS direct
//! APIs the moment something reads them. This page is the architecture; each module's own page goes on from here.
//!
//! # Words
//! *block*: 512 KiB, the unit of the EBS direct APIs. *extent*: a run of blocks, end exclusive. *hole*: blocks that a
//! snapshot does not hold, which read as zeroes. *geometry*: a volume's size in bytes and blocks. *image*: a volume's
//! bytes as one raw disk file. *token*: what EBS wants with each read of a block. *flight*: the one fetch of a block that
//! all its readers wait for. *delta*: what the base needs to become the head. A changed block is *written* (it has data in
//! the head) or *zeroed* (it reads as zeroes in the head).
//!
//! # Layers
//! A row imports only rows above it; a test reads `src/` and fails on an import that climbs.
//!
//! | row | modules | what they must not know |
//! | --- | --- | --- |
//! | 0 | [`error`], [`block`] | anything |
//! | 1 | [`source`], [`sink`], [`readahead`], [`digest`], [`maps`], [`aws`] | who implements or uses them |
//! | 2 | [`ebs`], `ec2`, [`cache`], [`image`], [`disk`], [`compare`], [`repository`] | each other: they see only [`source::BlockSource`]; a repository writes files with `disk` |
//! | 3 | [`sinks`] | cache, image |
//! | 4 | [`fs`], [`sync`] | each other, ebs, ec2, cache, sinks |
//! | 5 | [`cli`] | nothing: the one place where concrete types are stacked |
//! | - | [`emulator`] | everything but [`error`]: it plays the other side |
//!
//! # The path of a read
//! ```text
//! kernel READ(ino, offset, len)
//!  fs/fuse.rs     read        polled once: a hit is answered at once; else a task waits, and the reply moves into it
//!  image.rs       read_at     geometry.split -> parts, all blocks asked for at once; one block: a slice, no copy
//!                             readahead.observe -> a wish, made after the reader's own blocks
//!  cache          read_block  memory; a known hole; else join or start the one flight
//!  ebs/snapshot   read_block  map.token(index): none -> Block::Zero; else client.get; a stale token: list again, once
//!  ebs/block_map  token       known? else list a page around it
//!  ebs/client     get         retry with backoff around one attempt:
//!  ebs/limit      get         a place among the requests in flight, and a turn at the rate; who waits goes first
//!  ebs/wire       get_block   one signed HTTPS GET, on the connections and credentials that the SDK set up
//!  digest         check       SHA-256, side by side with whatever else has come -> Block
//! ```
//! Readahead goes the same way by [`source::BlockSource::prefetch`], with a smaller budget of its own, gives way to readers
//! in the queue of `ebs/limit`, and waits some milliseconds for company in `digest`. A reader that joins such a flight
//! makes it [`source::Wanted`]. Bytes are verified where they enter the process (`ebs/client`) and nowhere else.
//!
//! # The path of a delta
//! ```text
//! kernel LOOKUP(changes/A..B, changes.json)
//!  fs/tree        drawn       the folder's map: kept, or listed once for all who look at the folder
//!  ebs/catalog    delta       the one listing of the pair, gone on with by whoever still waits
//!  ebs/delta      run         pages of ListChangedBlocks in ranges side by side -> Delta; where they meet they must agree
//!  ebs/walk       page        past empty pages and stale page tokens; its first block is the last one of the page before
//!  maps/text      new         goes through the runs once: size, and where each 512th record begins
//! kernel READ(delta.raw)       as above, over source/delta (holes elsewhere), cached with the head's own blocks, by the
//!  ebs/changed    token        tokens that the listing brought
//! ```
//! `ebsfs changes` goes the same way and writes the map as a stream; `compare` makes deltas by bytes where a listing cannot.
//!
//! # The path of a sync
//! ```text
//!  cli/sync/plan   choose      the target's record and checkpoint, --base -> Delta: all, what changed, or what is left
//!  cli/sync/choice open        checkpoint saved, record "between": the target is named before it is touched
//!  sync            copy        zero, then blocks in flight: each fetched once, written to every sink that wants it
//!  ebs/...         read_ahead  as above, without the cache; verified there
//!  sinks/...       write_block a file's or device's bytes, or PutSnapshotBlock
//!  sync            keep        flush, digests, checkpoint: in that order, while others are on their way
//!  sync/proof      verify      read back past the page cache, if it is asked for
//!  sinks/...       finish      fsync, rename, fsync of the folder; CompleteSnapshot, and wait (which is verified then)
//!  sync/record     end         what the target holds now; the checkpoint goes
//! ```
//!
//! `cli/mount` stacks the types: an [`ebs::EbsCatalog`] over a client and EC2's descriptions, a [`cache::CachedCatalog`]
//! over that, an [`fs::Tree`] over that, mounted.
//!
//! # The path of a snapshot through a repository
//! ```text
//!  cli/sync/plan    choose      the newest root of the volume is the parent; --base: only what changed since it is read
//!  repository/sink  open        the run is on record in the store before anything there is counted on
//!  repository/sink  write_block as the parent has it: noted; so is (--dedup) what repository/known finds; else zstd, into
//!                               a pack; a full one is put and read back
//!  repository/sink  flush       the open pack is put; where blocks are survives a crash of this machine
//!  repository/sink  finish      each segment that changed, then the root: now the snapshot is there
//!
//!  repository/catalog find      latest, an id, VOLUME@TIME -> a root
//!  repository/source  read_block segment -> pack, offset, length; neighbours that are wanted together are one ranged GET
//!  digest             check      SHA-256 of the block, as the segment says
//! ```
//! [`repository`] has the format and what makes it safe.
//!
//! # Memory
//! Blocks, cached and in flight together, keep the budget of `--memory` (a hedge holds a second body for a moment). Tokens
//! are bounded for all snapshots together (32 MiB). Presence is two bitmaps in chunks for each snapshot that is read, at
//! most 16 MiB each for 64 TiB and next to nothing where all blocks of a chunk are alike. Maps that are shown are bitmaps
//! too, 64 MiB of them kept. A repository's segments are read and made one by one, eight of them kept (3 MB each); blocks in
//! packs that are filled or on their way take at most 72 MiB. The index of `--dedup` is on disk; of the run's own blocks it
//! remembers 2^17, in some 13 MB. Nothing else grows with how much is read.
//!
//! # Errors
//! [`error::Kind`]s exist where a caller acts differently. Each border has one table: AWS code to kind in [`aws`], kind to
//! errno in `fs/fuse.rs`, kind to exit code in [`cli`].

pub mod error;

pub mod block;

pub mod aws;
pub mod digest;
pub mod files;
pub mod maps;
pub mod readahead;
pub mod source;
mod sysfs;
pub mod target;

pub mod cache;
pub mod compare;

pub mod ebs;
#[cfg(feature = "ec2")]
pub mod ec2;
pub mod image;
pub mod repository;

pub mod targets;

pub mod fs;
pub mod sync;

pub mod cli;

pub mod emulator;
