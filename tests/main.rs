//! The real program on real FUSE mounts, against the emulator. One binary: one link.
//!
//! Every test reads and compares bytes or counts requests; its name says what it proves. They need root (or
//! fusermount3), /dev/fuse and loop devices, which `scripts/test` provides.
#![expect(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test fails by panicking"
)]

mod support;

mod attach;
#[cfg(feature = "ec2")]
mod aws;
mod changes;
mod commands;
#[cfg(feature = "ec2")]
mod contract;
mod counts;
mod disk_cache;
#[cfg(feature = "ec2")]
mod doctor;
mod drill;
#[cfg(feature = "ec2")]
mod ebs_target;
#[cfg(feature = "ec2")]
mod ec2;
mod emulator;
mod ends;
#[cfg(feature = "ec2")]
mod evidence;
mod faults;
mod files;
mod filesystems;
mod first_run;
mod formats;
mod hostile_api;
#[cfg(feature = "ec2")]
mod inventory;
mod large;
mod layers;
mod log;
mod manual;
mod metrics;
mod mount_limits;
mod mountpoints;
#[cfg(feature = "ec2")]
mod networks;
#[cfg(feature = "ec2")]
mod packaging;
mod pairs;
mod partitions;
#[cfg(feature = "ec2")]
mod policy;
mod read_only;
mod readme;
mod refusals;
#[cfg(feature = "ec2")]
mod replicate;
mod repository;
#[cfg(feature = "ec2")]
mod restore;
mod signals;
mod slow_line;
#[cfg(feature = "ec2")]
mod snapshot;
mod soak;
mod stress;
mod stress_reads;
mod style;
mod sync;
mod tls;
mod tree;
