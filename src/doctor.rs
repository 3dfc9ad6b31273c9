//! `ebsfs doctor`: why a verb does not work here, or would not: rows in the order in which things break, each with what was seen,
//! how long that took, and what to do.
//!
//! # Terms
//! *check*: one kind of row; *row*: a check of one object, such as the connection to one host; *finding*: the state
//! of a row, in words.
//! *origin*: scheme, host and port of a URL; services at one origin share its rows.
//!
//! # How the parts fit
//! Each check observes (I/O with a deadline of its own), and a pure function decides what that means: [`network`], [`account`],
//! [`permission`], [`making`], [`quota`], [`machine`], [`store`]. All of them report to one [`board`](row), which knows the rows
//! before their results: a row after a failed one that it depends on is unknown and names that one, and so is one without a result
//! in [`WHOLE`].
//! Connections are made by the functions of [`crate::aws`] that requests are sent by, so that a row shows what the verb meets.
//! [`refusal`] reads who has denied a request, as far as AWS says it.

mod account;
mod deadline;
mod job;
mod machine;
mod making;
mod network;
mod permission;
mod quota;
mod rate;
mod refusal;
mod resolver;
mod row;
mod store;

use std::time::Duration;

use futures_util::future::{join_all, join3};
use tokio::time::{Instant, timeout_at};

pub(crate) use job::{
    DoctorAccount, DoctorClients, DoctorJob, DoctorStore, MachineNeeds, MountNeeds,
    PlannedSnapshots, ReadNeeds, ServiceUse,
};
pub(crate) use row::{DoctorRow, RowState};

use row::RowBoard;

/// The time of all checks together.
pub(crate) const WHOLE: Duration = Duration::from_secs(15);

/// Checks everything that a job needs; the rows are in the order in which things break.
pub(crate) async fn examine(job: &DoctorJob, clients: &dyn DoctorClients) -> Vec<DoctorRow> {
    let board = RowBoard::default();
    let until = Instant::now() + WHOLE;
    let accounts = job
        .accounts
        .iter()
        .map(|one| account::check(&board, one, clients, until));
    let stores = job.stores.iter().enumerate();
    let stores =
        stores.map(|(number, one)| store::check(&board, number, one, job.writes, clients, until));
    let all = join3(
        machine::check(&board, &job.machine),
        join_all(accounts),
        join_all(stores),
    );
    // What has no result by then is unknown.
    let _ = timeout_at(until, all).await;
    board.into_rows(WHOLE)
}
