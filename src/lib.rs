//! # ebsfs: an Amazon EBS snapshot as a file
//!
//! `ebsfs mount` shows each snapshot as a read-only raw disk image, whose 512 KiB blocks are fetched with the EBS direct
//! APIs when something reads them. This page is the architecture; the page of each module has the details.
//!
//! # Words
//! *block*: 512 KiB, the unit of the EBS direct APIs. *extent*: a run of blocks, end exclusive. *hole*: blocks that a
//! snapshot does not hold, which read as zeroes. *geometry*: a volume's size in bytes and blocks. *image*: a volume's
//! bytes as one disk file, raw if no format is named. *token*: the secret that EBS requires for each read of a block. *fetch*: the one request for a
//! block that all its readers wait for. *listing*, *page*, *cursor*: a whole list operation, one reply of it, the position in
//! it.
//!
//! *base*, *head*: the two ends of a comparison. *delta*: what the base needs to become the head. A changed block is *written*
//! (it has data in the head) or *zeroed* (it reads as zeroes in the head).
//!
//! *source*, *target*: where blocks come from and go to. *sink*: the open target that takes writes. *job*, *run*: the request of the
//! user, one execution of it. *observe*, *decide*, *plan*: read the state of a target, choose the action, list the blocks to
//! write and zero. *record*, *checkpoint*: what a target holds now, the progress of an unfinished run. *part*: an image that is
//! not whole.
//! *resume*, *restart*, *take over*: continue the same run, drop its progress, continue from another run's half-written
//! target. *mark*: what the kernel reports about a target's last change. *evidence*: a mark that still matches, or a comparison
//! that found no difference; of a snapshot, the files that `ebsfs evidence` writes. *identity*: what distinguishes a device from others. *foreign write*: a write by something else.
//! *compare*,
//! *verify*: a target against its kept digests before a run, what was written after it. *publish*: make a finished target visible.
//!
//! *capture*: make snapshots of volumes. *cycle*: one capture of a job, however often it is run. *set*: the snapshots of one
//! instance's volumes at one instant. *adopt*: use a snapshot of the cycle that an earlier run, or a call without an answer,
//! made.
//!
//! # Layers
//! A row imports only rows above it; `tests/layers.rs` reads `src/` and fails on an import that climbs.
//!
//! | row | modules | what they must not know |
//! | --- | --- | --- |
//! | 0 | [`error`], [`block`], [`histogram`], `time` | anything |
//! | 1 | [`files`], `sysfs`, [`inventory`], [`snapshot`], [`source`], [`target`], [`readahead`], [`digest`], [`maps`], [`cost`], [`progress`], [`aws`] | who implements or uses them |
//! | 2 | [`ebs`], `ec2`, [`cache`], [`image`], [`compare`], `formats`, `volumes` | each other: they see only [`source::BlockSource`] |
//! | 3 | `browse`, [`targets`], [`repository`], [`capture`] | each other, cache, image; only [`targets`] sees [`ebs`] |
//! | 4 | [`fs`], [`sync`] | each other, ebs, ec2, cache, targets, repository, capture |
//! | 5 | `attach` | aws, ebs, ec2, repository, targets, capture, sync |
//! | 5 | [`drill`] | aws, ebs, ec2, repository, targets, capture, sync |
//! | 5 | [`replicate`] | ebs, ec2, targets, fs, drill, metrics |
//! | 5 | `doctor` | ebs, ec2, cache, image, compare, formats, volumes, browse, sync, replicate, drill, attach, metrics |
//! | 5 | `evidence` | ebs, ec2, repository, targets, capture, replicate |
//! | 5 | `policy` | everything but [`aws`]: it makes documents from a table |
//! | 5 | [`metrics`] | ebs, ec2, image, compare, targets, capture: it sees counts, and the status of a job |
//! | 6 | [`cli`] | nothing: the one place where concrete types are stacked |
//! | - | [`emulator`] | everything but [`error`]: it plays the other side |
//!
//! The whole table is in `tests/layers.rs`. A lower row names no option of the command line: its errors carry an
//! [`error::Remedy`], which `cli/remedy` words.
//!
//! # The path of a read
//! ```text
//! kernel READ(ino, offset, len)
//!  fs/fuse.rs     read        polled once: a hit is answered at once; else a task waits, and the reply moves into it
//!  image.rs       read_at     geometry.split -> parts, all blocks asked for at once; one block: a slice, no copy
//!                             readahead.observe -> a prefetch, requested after the reader's own blocks
//!  cache          read_block  memory; a known hole; else join or start its one fetch
//!  cache/disk     find        with --cache-dir: the block there, if it has its digest and EBS still allows the snapshot
//!  ebs/snapshot   read_block  map.token(index): none -> Block::Zero; else client.get; a stale token: list again, once
//!  ebs/snapshot/block_map     token: listed? else list a page around it (ebs/listing: what a page proves)
//!  ebs/client     get         retry with backoff around one attempt:
//!  ebs/client/limiter block   a place among the requests in flight, and a turn at the rate; waiting readers go first
//!  ebs/client/wire    send    one signed HTTPS GET, on the connections and credentials that the SDK set up
//!  digest         check       SHA-256, in parallel with other blocks that have arrived -> Block
//! ```
//! Readahead goes the same way by [`source::BlockSource::prefetch`], with a smaller budget of its own, gives way to readers
//! in the queue of `ebs/client/limiter`, and waits some milliseconds for a batch in `digest`. A reader that joins such a fetch
//! makes it [`source::Wanted`]. Bytes are verified where they enter the process (`ebs/client`, `cache/disk`) and nowhere else.
//!
//! # The path of a delta
//! ```text
//! kernel LOOKUP(changes/A..B, changes.json)
//!  fs/tree        drawn       the folder's map: kept, or listed once for all who look at the folder
//!  ebs/catalog    delta       the one listing of the pair; when a waiter is dropped, another one continues it
//!  ebs/delta/listing  run     pages of ListChangedBlocks, ranges in parallel -> Delta; overlapping pages must agree,
//!                             and blocks gained minus lost must be what EC2 states
//!  ebs/listing/cursor page    past empty pages, refused and lost page tokens, to the next page that proves something
//!  maps/text      new         scans the runs once: size, and where each 512th record begins
//! kernel READ(delta.raw)       as above, over source/delta (holes elsewhere), cached with the head's own blocks, by the
//!  ebs/delta/source   token   tokens of that listing
//! ```
//! `ebsfs changes` goes the same way and writes the map as a stream; `compare` makes deltas by bytes where a listing cannot.
//!
//! `cli/mount` stacks the types: an [`ebs::EbsCatalog`] over a client and EC2's descriptions, a [`cache::CachedCatalog`]
//! over that, an [`fs::Tree`] over that, mounted. `cli/demo` stacks the same over an [`emulator`] in its own process.
//! [`cli::command`] is the definition of the command line, from which `examples/manual.rs` makes man pages and completions.
//!
//! # The path of a listing of snapshots
//! ```text
//! kernel READDIR(snapshots/)
//!  fs/tree            listing    shown for a minute; else waits no longer than any reader may: EAGAIN, and the listing continues
//!  ebs/catalog/known  list       the one listing, a task that all waiters join; EC2's answers are kept by their times
//!  ec2/pages          list_pages 1,000 snapshots a page, until there is no token; tokens must not repeat
//!  ec2/call           call       attempts with backoff; a time-out by silence, a limit of bytes; throttles are waited out
//! ```
//! A snapshot that is opened by its id is described by [`snapshot::Descriptions`] in 3 s or later: blocks do not need it.
//!
//! # The path of a sync
//! ```text
//!  cli/sync         job        arguments -> SyncJob, Source, targets: plain values and traits from here on
//!  sync             run        each target by itself, one that fails does not stop the others:
//!  sync/lock        take         its name, its inode or disk
//!  target           observe      Facts: its content, its mark, its holders, the state of an unfinished run
//!  sync/plan        decide       a pure function of job, source and Observed -> Decision
//!  sync/observe     compare      where the mark has changed: the target against its kept digests, then decide again
//!  sync/planner     plan         Decision -> Delta: all blocks, the changed ones, or the remaining ones; each listing made once for all targets
//!  cli/sync/show    plans      shown; overwriting unknown content is confirmed
//!  sync/stage       fill       --stage: a delta for a target in place is fetched whole to local disk, and applied from there at once
//!  sync/execute     open       checkpoint saved, record "between": the target is named before it is touched
//!  sync/copy        copy       zero, then blocks in flight: each fetched once, written to every sink that wants it
//!  ebs/...          read_ahead   as above, without the cache; verified there
//!  target           write_block  targets/...: bytes of a file or device, PutSnapshotBlock; repository/sink: packs
//!  sync/copy        keep         flush, digests, checkpoint: in that order, while others are in flight
//!  sync/finish      verify     read back past the page cache, if it is asked for
//!  target           publish    fsync, rename, fsync of the folder; CompleteSnapshot, and wait (which is verified then)
//!  sync/finish      record     the target's content and mark; its digests stay, the checkpoint is removed
//! ```
//! [`sync`] is the page of it, `docs/sync.md` the one for operators. A `.qcow2`, `.vhd` or `.vmdk` file goes the same way:
//! `targets/image/layout` places its blocks and writes its tables, by the layouts of `formats`. In a mount `fs/tree/formatted`
//! computes such files around the image while they are read. `docs/convert.md` is the page for operators.
//!
//! # The path of a snapshot through a repository
//! ```text
//!  repository/target observe    whether the snapshot exists; the newest manifest of the volume is the parent, proven to its last segment and
//!                               pack
//!  sync/planner     plan        with a base, only the blocks changed since it are read
//!  repository/settled  among    a manifest whose removal has started, or whose own run has not ended, is no base
//!  repository/target open       the run is on record in the store before it relies on any object there
//!  repository/sink  write_block a block of the parent, the dedup index or this run is only referenced; else zstd, into a
//!                               pack; a full one is put and verified
//!  repository/pace  of          how large packs are, and how many are sent at once, from the line's rate and latency
//!  repository/store/bandwidth  turn  under a limit each piece of a body waits for its turn
//!  repository/sink  flush       the open pack is put; the locations of blocks survive a crash of this machine
//!  repository/sink  publish     each segment that changed
//!  repository/publish           the manifest: now the snapshot exists, unless a prune has started to delete its data
//!
//!  repository/catalog find      latest, an id, VOLUME@TIME -> a manifest, by a complete listing
//!  repository/source  read_block segment -> pack, offset, length; neighbours that are wanted together share one ranged GET
//!  digest             check      SHA-256 of the block, against the segment
//! ```
//! [`repository`] has the format and its safety rules.
//!
//! # The path of a capture
//! ```text
//!  cli/snapshot     job        arguments -> CaptureJob
//!  capture/plan     observe    DescribeVolumes, DescribeInstances; then a pure function: volumes of one instance are one call
//!  capture/take     look       the snapshots of the cycle, by their tag
//!  capture/adopt    decide     a pure function: adopt them, list again, or make them
//!  capture/hooks    before     the command before the calls; if it fails, nothing is made
//!  ec2/create       create     one attempt: made, refused, limited or unknown; take lists again before it repeats an unknown one
//!  capture/hooks    after      the command after the calls, whatever their outcome
//!  snapshot/own     tag        ebsfs:self, its own id
//!  capture/wait     completed  waits until EC2 has completed each, or reports why it failed
//! ```
//! [`capture`] has the rule of creation, `docs/snapshot.md` is the page for operators.
//!
//! # The path of a replication
//! ```text
//!  cli/replicate      job        the TOML file or arguments -> ReplicateJob; places: what opens sources and targets
//!  replicate/schedule due_cycle  a pure function: the cycle that is due, or the one that was not ended
//!  replicate/volumes  select     the volumes at present
//!  replicate/gateway  to_copy    a pure function: of a repository as the source, the volumes with a target that is behind
//!  capture            capture    as above: adopts or makes the snapshots of the cycle
//!  replicate/template assign     a pure function: which target belongs to which volume
//!  replicate/copy/local  apply_staged  what an earlier run has staged whole is applied; the source is not asked
//!  sync               run        as above, a volume at a time in each slot: from the base that each target is proven to hold
//!  replicate/sets     arrived    a pure function: all disks of an instance are there -> inventory, repository/sets add_set
//!  replicate/retain   removable  a pure function: the job's own snapshots that no target needs
//!  replicate/clean    retain     DeleteSnapshot; manifests of a repository by its retention
//!  replicate/drills   units      pure functions: which recovery points are drilled, and when; is_due
//!  cli/replicate/drill  drill_one  a process `ebsfs drill` of its own, beside cycles
//!  replicate/state    update     what the next run, and people, can read
//!
//!  cli/status         run        the state files of jobs; sync/status recorded: the records of images and devices
//!  replicate/status   of         a pure function: state, records, time -> JobStatus, for text, JSON, metrics and the exit code
//! ```
//! [`replicate`] has the rules, `docs/replicate.md` and `docs/status.md` are the pages for operators.
//!
//! # The path of a restore
//! ```text
//!  cli/inventory    run        inventory/gather: DescribeInstances, then what it names, all at once; a pure function assembles it
//!  repository/sets  add_set    the newest instant of which each disk has a manifest -> instances/TIME.INSTANCE
//!  cli/restore      restore    find_set, then a sync of each disk, in device order
//! ```
//! `docs/inventory.md` and `docs/restore.md` are the pages for operators.
//!
//! # The path of a file inside a disk
//! ```text
//!  cli/files        open       the source, as for a sync; its blocks in a cache of their own
//!  browse/session   start      this program once more, with one socket: the parser
//!  browse/sandbox   enter      it gives up files, network, user, capabilities and memory
//!  browse/view      lookup     name by name from the root; links are not followed
//!  browse/parser    answer     -> ext, fat, ntfs; pieces of the image are asked for through the socket
//!  browse/session   ask        reads them, checks what the parser says, ends it when it is silent or too busy
//!  browse/session/restart ask  for a mount: restarts a parser that has ended, without the request that ended it
//!  browse/view      spans      where the bytes are: in the image, where this process reads, or only known to the parser
//!  browse/copy      copy_out   below the destination, with modes, times, links, holes and attributes
//! ```
//! `docs/files.md` is the page for operators.
//!
//! # The path of a drill
//! ```text
//!  cli/drill        machine    find_set, or one source: DrillMachine, its disks as block sources
//!  drill/isolation  probe      the least rights that programs can have here
//!  drill/base       mount      the disks as files that the kernel lets nothing write
//!  volumes          layout     where the filesystems are; volumes/sniff: what they are
//!  drill/export     start      an overlay, a range of it as a file
//!  drill/check      partition  its checker runs there; drill/checks: pure functions, what the end of it means
//!  drill/boot       boot       the disks in QEMU, over new overlays
//! ```
//! [`drill`] has the rules, `docs/drill.md` is the page for operators.
//!
//! # The path of a partition
//! ```text
//! kernel LOOKUP(snapshots/snap-A/partitions, 2-root.raw)
//!  fs/tree/partitions table_of   kept, or read once by a thread for all who look; the folder of snap-A does not list it
//!  volumes          read_table   gpt or mbr; sniff each partition; lvm: the ranges of linear volumes
//!  volumes/view     views        a safe name and ranges of the disk for each
//! kernel READ(2-root.raw)
//!  fs/tree/partitions read_at    the range of the image: its blocks, its readahead
//!
//!  cli/attach       serve        arguments -> AttachJob, the disk as a block source
//!  attach/record    begin        what a killed process has left is removed; then this attachment is on record
//!  drill/base       mount        the disk as a private mount, with the files of its partitions
//!  attach/driver    plan         a pure function: filesystem -> drivers and options
//!  drill/export     start        with an overlay
//!  attach/loops     make         the file as a block device; it frees itself with its last user, which ends all
//!  attach/mounts    mount        mount(2), or ntfs-3g
//! ```
//! `docs/filesystems.md` is the page for operators.
//!
//! # The path of evidence
//! ```text
//!  cli/evidence       collect    arguments -> EvidenceJob; its request log gets each request of every client
//!  aws/http           send       a request, its answer, AWS's id and time of it -> evidence/request_log: a line of requests.jsonl
//!  evidence/collect   collect    one pass: sync/verify/image digest_with, as `ebsfs digest` has it
//!  sync/verify/image/lanes       MD5 and SHA-256 on one thread, SHA-1 on another, a copy of the image on a third
//!  evidence/block_list add        a line of blocks.csv for each block that is held
//!  evidence/signature sign       ssh-keygen signs the statement, which names the other files by their SHA-256
//!  evidence/collect   publish    evidence.json last: a directory without it is no evidence
//!
//!  fs/opened          new        of a mount: a Custodian is shown each opening and its blocks -> evidence/custody: chained lines
//!  cli/evidence/verify verify    evidence/signature check, then each file, then an object, block by block in the order of
//!                               blocks.csv, which is never held in memory as a whole
//! ```
//! `docs/forensics.md` is the page for investigators.
//!
//! # The path of a check
//! ```text
//!  cli/doctor         job        arguments of a verb -> DoctorJob: accounts, stores, what is needed of this machine
//!  doctor/row         plan       each row before its result: what has none after 15 s, or after a failed row, is unknown
//!  doctor/account     check      aws/config load, the URL of each service, then the way there and credentials at once
//!  doctor/network     check      aws/http/connect trace: the steps of a connection, as requests make them; two requests unsigned
//!  doctor/network/decide         pure functions: what a step means and what to do
//!  doctor/permission  check      harmless reads by the clients of the verb; doctor/refusal: who has denied one
//!  doctor/making      check      replicate planned_cycle: what the job would ask for now, with its tags, by dry runs
//!  doctor/quota       check      aws/quotas: what Service Quotas allows, where it can be reached
//!  doctor/machine     check      fs/mounting, fs/resources, targets/holders: what the verb itself checks
//!  doctor/store       check      repository/store: what is listed, what the bucket keeps; objects of its own with `--write`
//!  doctor/store       check      the way to Azure and Google: repository/store/origin
//! ```
//! `docs/doctor.md` is the page for operators.
//!
//! # Memory
//! Blocks, cached and in flight together, keep the budget of `--memory` (a hedge holds a second body for a moment). Tokens
//! are bounded for all snapshots together (32 MiB), and so is presence (48 MiB): two bitmaps in chunks for each snapshot that is
//! read, at most 16 MiB each for 64 TiB and next to nothing where all blocks of a chunk are alike. Maps that are shown are bitmaps
//! too, 48 MiB of them kept. A node of the tree is kept while the kernel knows it. A repository's segments are read and made one
//! by one, eight of them kept (3 MB each); blocks in packs that are filled or in flight take at most 72 MiB. The index of
//! `--dedup` is on disk; of the run's own blocks it remembers 2^17, in some 13 MB. A disk cache adds 16 MiB of blocks that wait
//! to be written and up to 8 MiB for the order of use. Partition tables of 32 snapshots are kept: some KB each, at most 1 MB. Nothing else grows with
//! how much is read.
//!
//! # Example
//! The delta between two images of this machine, and the changed bytes. A snapshot is read in the same way: its
//! [`source::BlockSource`] comes from a [`source::Catalog`].
//! ```
//! use std::sync::Arc;
//!
//! use ebsfs::block::{BLOCK_SIZE, BlockIndex, Change, Extent};
//! use ebsfs::compare;
//! use ebsfs::image::{Image, ReadaheadBudget};
//! use ebsfs::source::DiskSource;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let (old, new) = (folder.path().join("old.raw"), folder.path().join("new.raw"));
//! let mut bytes = vec![7; 4 * BLOCK_SIZE as usize];
//! std::fs::write(&old, &bytes)?;
//! let changed = 2 * u64::from(BLOCK_SIZE) + 100;
//! bytes[changed as usize] = 8;
//! std::fs::write(&new, &bytes)?;
//!
//! let (base, head) = (DiskSource::open(&old)?, DiskSource::open(&new)?);
//! let delta = compare::unrelated(&base, &head).await?;
//! let runs: Vec<_> = delta.runs().collect();
//! assert_eq!(runs, [(Extent::of(BlockIndex(2)), Change::Write)]);
//!
//! let image = Image::new(Arc::new(head), ReadaheadBudget::new(16));
//! assert_eq!(image.read_at(changed - 1, 3).await?[..], [7, 8, 7]);
//! # Ok(())
//! # }
//! ```
//!
//! # Errors
//! [`error::Kind`]s exist where a caller acts differently; an [`error::Remedy`] says what a person can do, as a value. Each border
//! has one table: AWS code to kind in [`aws`], kind to errno in `fs/fuse.rs`, kind to exit code in [`error::EXIT_CODES`],
//! remedy to words in `cli/remedy`.

pub mod error;

pub mod block;
mod histogram;
mod time;

pub mod aws;
mod cost;
mod digest;
pub mod files;
mod inventory;
mod maps;
mod progress;
pub mod readahead;
pub mod snapshot;
pub mod source;
mod sysfs;
pub mod target;

pub mod cache;
pub mod compare;

pub mod ebs;
#[cfg(feature = "ec2")]
pub mod ec2;
mod formats;
pub mod image;
pub mod repository;
mod volumes;

mod browse;
mod capture;
pub mod targets;

mod fs;
mod sync;

mod attach;
mod doctor;
mod drill;
mod metrics;
mod policy;

mod evidence;
mod replicate;

pub mod cli;

pub mod emulator;
