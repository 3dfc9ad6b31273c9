//! Evidence of a snapshot: digests of the whole image and of each block, who read it where and when, and a signature.
//!
//! One pass over the source makes a directory:
//!
//! ```text
//! blocks.csv          each block that is held, with its SHA-256; holes as runs ([`block_list`])
//! requests.jsonl      each request to AWS with AWS's id of it, one a line ([`request_log`])
//! disk.raw            the image itself, if it is asked for
//! evidence.json       the statement: digests of the image and of these files, source, caller, program, machine, clock ([`statement`])
//! evidence.json.sig   its signature by `ssh-keygen -Y sign` ([`signature`])
//! ```
//! The statement is written last: a directory without it is not evidence. It names all other files by their SHA-256, so the one
//! signature covers everything. [`verify`] reads such a directory, which anybody may have changed: names, sizes, links and formats
//! are checked before anything is believed.
//!
//! [`custody`] is the log of who opened which image of a mount.
//!
//! Memory: what is in flight, and a line of each file.

mod block_list;
mod collect;
mod custody;
mod facts;
mod folder;
mod request_log;
mod signature;
mod statement;
mod verify;

pub(crate) use collect::{EvidenceJob, collect};
pub(crate) use custody::{CustodyLog, CustodyReport, check_custody};
pub(crate) use facts::ProgramFacts;
pub(crate) use folder::NewFolder;
pub(crate) use request_log::RequestLog;
pub(crate) use signature::{KeyFile, SignatureState, SignerRequest};
pub(crate) use statement::EvidenceStatement;
pub(crate) use verify::{EvidenceFolder, EvidenceObject, ObjectReport};
