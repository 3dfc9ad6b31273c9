//! The places that a volume can be written to, each a [`Sink`](crate::sink::Sink): [`mod@file`] and [`device`], both over [`raw`].

mod device;
mod file;
mod raw;

pub use device::DeviceSink;
pub use file::{FileSink, Part};
