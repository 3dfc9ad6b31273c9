//! The places that a volume can be written to, each a [`Sink`](crate::sink::Sink): [`mod@file`] and [`device`], both over
//! [`raw`], and [`snapshot`]. [`mod@identity`] tells devices apart, [`mod@clone`] gives a new image what an old one holds.

mod clone;
mod device;
mod file;
mod identity;
mod raw;
mod snapshot;

pub use device::DeviceSink;
pub use file::{FileSink, Part};
pub use identity::{identity, mark_of};
pub use snapshot::{SnapshotSink, SnapshotTarget};
