//! The actions that reading snapshots needs, tried by reads that change nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::deadline::within;
use super::job::{DoctorClients, ReadNeeds};
use super::network::OriginReach;
use super::row::{CheckKind, RowBoard, RowFinding, RowId};
use super::{rate, refusal};
use crate::aws::{Aws, IamAction};
use crate::block::{BlockIndex, Extent};
use crate::error::{Error, Kind, Result};
use crate::snapshot::{Descriptions, ListingProgress, Selector, SnapshotId};
use crate::source::BlockSource;

/// How long a call may take, with its retries.
pub(super) const CALL: Duration = Duration::from_secs(6);
/// What is left of the whole time after a sample.
const SPARE: Duration = Duration::from_millis(1500);

/// The rows of what is read.
#[derive(Clone, Copy)]
pub(super) struct ReadRows {
    describe: RowId,
    list: RowId,
    get: RowId,
    rate: Option<RowId>,
}

/// What cannot be tried without a new snapshot.
pub(super) const OF_NEW_SNAPSHOTS: [IamAction; 4] = [
    IamAction::StartSnapshot,
    IamAction::PutSnapshotBlock,
    IamAction::CompleteSnapshot,
    IamAction::CreateTags,
];
/// What a job does with snapshots that it has made.
pub(super) const OF_CYCLES: [IamAction; 2] = [IamAction::CreateTags, IamAction::DeleteSnapshot];
/// What a job asks EC2 for, by what it selects.
const OF_JOBS: [IamAction; 3] = [
    IamAction::DescribeVolumes,
    IamAction::CreateSnapshot,
    IamAction::CreateSnapshots,
];
/// What needs two snapshots of one volume.
pub(super) const OF_DELTAS: [IamAction; 1] = [IamAction::ListChangedBlocks];

/// The row of actions that are not tried.
pub(super) fn not_tried(board: &RowBoard, role: &str, actions: &[IamAction], why: &str) {
    let actions: Vec<&str> = actions.iter().map(|action| action.name()).collect();
    let object = format!("{} of {role}", actions.join(", "));
    let row = board.plan(CheckKind::Permission, object);
    board.fill(row, RowFinding::unknown(format!("not tried: {why}")));
}

/// How the services were reached; none where they are not asked.
#[derive(Clone, Copy)]
pub(super) struct ServiceReach {
    pub(super) ec2: Option<OriginReach>,
    pub(super) ebs: Option<OriginReach>,
}

impl ReadRows {
    pub(super) fn plan(board: &RowBoard, role: &str, reads: &ReadNeeds) -> Self {
        let plan = |action: IamAction| {
            board.plan(
                CheckKind::Permission,
                format!("{} of {role}", action.name()),
            )
        };
        let has_sample = !reads.sample.is_zero() && named(reads).is_some();
        Self {
            describe: plan(IamAction::DescribeSnapshots),
            list: plan(IamAction::ListSnapshotBlocks),
            get: plan(IamAction::GetSnapshotBlock),
            rate: has_sample.then(|| board.plan(CheckKind::Rate, role)),
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<RowId> {
        let mut all = vec![self.describe, self.list, self.get];
        all.extend(self.rate);
        all
    }
}

/// The first snapshot that is named.
fn named(reads: &ReadNeeds) -> Option<&SnapshotId> {
    reads.select.iter().find_map(|selector| match selector {
        Selector::Snapshot(id) => Some(id),
        _ => None,
    })
}

/// Tries the actions, and then the rate.
pub(super) async fn check(
    board: &RowBoard,
    rows: &ReadRows,
    reads: &ReadNeeds,
    aws: &Aws,
    clients: &dyn DoctorClients,
    reach: ServiceReach,
    until: Instant,
) {
    // A snapshot that is named is read without EC2 too.
    let is_named = named(reads).is_some();
    let describing = async {
        match reach.ec2 {
            Some(OriginReach::Broken(because)) => board.skip(&[rows.describe], because),
            _ => {
                board.start(rows.describe);
                let found = described(aws, clients, reads).await;
                board.fill(
                    rows.describe,
                    finding(IamAction::DescribeSnapshots, found).unless_needed(!is_named),
                );
            }
        }
    };
    let blocks = async {
        let rest: Vec<RowId> = rows.all().into_iter().skip(1).collect();
        if let Some(OriginReach::Broken(because)) = reach.ebs {
            return board.skip(&rest, because);
        }
        let Some(id) = named(reads) else {
            let unknown =
                RowFinding::unknown("no snapshot is named: the id of one is needed to try it");
            board.fill(rows.list, unknown.clone());
            return board.fill(rows.get, unknown);
        };
        board.start(rows.list);
        let source = listed(aws, clients, reads, id).await;
        let seen = source.as_ref().map(|(_, first)| first_words(id, *first));
        board.fill(
            rows.list,
            finding(IamAction::ListSnapshotBlocks, seen.map_err(Clone::clone)),
        );
        let Ok((source, first)) = source else {
            return board.skip(rest.get(1..).unwrap_or_default(), rows.list);
        };
        let Some(first) = first else {
            let none = RowFinding::unknown(format!("{id} holds no block to get"));
            let rest = rest.iter().skip(1);
            return rest.for_each(|row| board.fill(*row, none.clone()));
        };
        board.start(rows.get);
        let got = within(CALL, source.read_block(first)).await;
        let seen = got.map(|_| format!("block {first} of {id}, verified by its checksum"));
        let is_got = seen.is_ok();
        board.fill(rows.get, finding(IamAction::GetSnapshotBlock, seen));
        let Some(row) = rows.rate else {
            return;
        };
        if !is_got {
            return board.skip(&[row], rows.get);
        }
        board.start(row);
        let left = until.saturating_duration_since(Instant::now());
        let limit = reads.sample.min(left.saturating_sub(SPARE));
        let sample = rate::sample(&source, first, reads.in_flight, limit).await;
        board.fill(row, rate::decide(&sample));
    };
    futures_util::future::join(describing, blocks).await;
}

fn first_words(id: &SnapshotId, first: Option<BlockIndex>) -> String {
    match first {
        Some(first) => format!("{id} is listed, its first block is {first}"),
        None => format!("{id} is listed and holds no block"),
    }
}

/// What EC2 says of what is read, in words.
async fn described(aws: &Aws, clients: &dyn DoctorClients, reads: &ReadNeeds) -> Result<String> {
    let Some(ec2) = clients.descriptions(aws)? else {
        return Ok("not needed: this build has no EC2 client".to_owned());
    };
    let Some(id) = named(reads) else {
        return within(CALL, first_page(&*ec2, &reads.select)).await;
    };
    let found = within(CALL, ec2.describe(&reads.select)).await?;
    match found.iter().find(|snapshot| snapshot.id == *id) {
        Some(snapshot) => {
            snapshot.readable()?;
            Ok(format!("{id} is described"))
        }
        None => {
            let what = format!("EC2 knows no {id} in this Region and account");
            Err(Error::new(Kind::NotFound, what))
        }
    }
}

/// The first page of a listing that can have thousands.
async fn first_page(ec2: &dyn Descriptions, select: &[Selector]) -> Result<String> {
    let has_page = Notify::new();
    let report = |progress: &ListingProgress| {
        if progress.snapshots > 0 {
            has_page.notify_one();
        }
    };
    tokio::select! {
        biased;
        listed = ec2.describe_reporting(select, &report) => {
            Ok(format!("{} snapshots are described", listed?.len()))
        }
        () = has_page.notified() => Ok("snapshots are described".to_owned()),
    }
}

/// A snapshot as a source, and the first block that it holds.
async fn listed(
    aws: &Aws,
    clients: &dyn DoctorClients,
    reads: &ReadNeeds,
    id: &SnapshotId,
) -> Result<(Arc<dyn BlockSource>, Option<BlockIndex>)> {
    let catalog = clients.catalog(aws, reads, CALL)?;
    let (_, source) = within(CALL, catalog.open(id)).await?;
    let first = within(CALL, source.next_extent(BlockIndex(0))).await?;
    Ok((source, first.map(Extent::start)))
}

/// The row of an action.
pub(super) fn finding(action: IamAction, tried: Result<String>) -> RowFinding {
    let error = match tried {
        Ok(seen) => return RowFinding::good(seen),
        Err(error) => error,
    };
    let failed = RowFinding::of_error(&error);
    if failed.fix.is_some() {
        return failed;
    }
    let fix = match error.kind() {
        Kind::Denied => refusal::advice(&failed.seen, action.name()),
        Kind::NotFound if OF_JOBS.contains(&action) => {
            "check what the job names, the Region and the account: aws ec2 describe-volumes --region REGION".to_owned()
        }
        Kind::Invalid if OF_JOBS.contains(&action) => "correct what the job selects and leaves out".to_owned(),
        Kind::Undecided => "aws ec2 delete-snapshot --snapshot-id ID; do not run it again with this endpoint".to_owned(),
        Kind::NotFound => "check the id, the Region and the account: aws ec2 describe-snapshots --snapshot-ids ID \
            --region REGION"
            .to_owned(),
        Kind::Pending => "wait until it is completed".to_owned(),
        Kind::Throttled => "other programs of this account use its quota: Service Quotas console > Amazon EBS".to_owned(),
        _ => "the rows above say whether the service is reached; else try again".to_owned(),
    };
    failed.fixed_by(fix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::row::RowState;
    use crate::error::Remedy;

    #[test]
    fn an_action_that_fails_says_who_denied_it_or_what_to_look_at() {
        let denied =
            "ebs:GetSnapshotBlock snap-1: AccessDeniedException (HTTP 403): not authorized";
        for (kind, text, words) in [
            (Kind::Denied, denied, "reason not given"),
            (
                Kind::Denied,
                "because no VPC endpoint policy allows the x action",
                "vpce-ID",
            ),
            (Kind::NotFound, "x", "describe-snapshots"),
            (Kind::Throttled, "x", "Service Quotas"),
            (Kind::Unavailable, "x", "rows above"),
        ] {
            let found = finding(IamAction::GetSnapshotBlock, Err(Error::new(kind, text)));
            assert_eq!(found.state, RowState::Failed);
            let Some(Remedy::Do(fix)) = &found.fix else {
                panic!("{found:?}");
            };
            assert!(fix.contains(words) && found.seen == text, "{found:?}");
        }
        let own = Error::new(Kind::Pending, "x").with_remedy(Remedy::TryLater);
        assert_eq!(
            finding(IamAction::GetSnapshotBlock, Err(own)).fix,
            Some(Remedy::TryLater)
        );
        assert_eq!(
            finding(IamAction::GetSnapshotBlock, Ok("x".into())).state,
            RowState::Good
        );
    }
}
