//! A sync: blocks of a source into one or several targets, each proven.

mod checkpoint;
mod copy;
mod digests;
mod job;
mod lock;
mod plan;
mod progress;
mod record;
mod report;
mod verify;
