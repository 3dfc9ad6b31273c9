//! The calls of a job that makes snapshots of volumes, tried by dry runs.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::deadline::within;
use super::job::{DoctorClients, PlannedSnapshots};
use super::network::OriginReach;
use super::permission::finding;
use super::row::{CheckKind, RowBoard, RowFinding, RowId};
use crate::aws::{Aws, IamAction};
use crate::error::{Kind, Result};
use crate::snapshot::{NewSnapshots, SnapshotsOf};
use crate::time::in_words;

/// What the selection of the volumes leaves of the whole time, and how long a dry run may take.
const LATER: Duration = Duration::from_secs(3);

/// The rows of what is made.
#[derive(Clone, Copy)]
pub(super) struct CreateRows {
    describe: RowId,
    /// Of volumes alone.
    create: RowId,
    /// Of several volumes of an instance.
    create_set: RowId,
}

impl CreateRows {
    pub(super) fn plan(board: &RowBoard, role: &str) -> Self {
        let plan = |action: IamAction| {
            board.plan(
                CheckKind::Permission,
                format!("{} of {role}", action.name()),
            )
        };
        Self {
            describe: plan(IamAction::DescribeVolumes),
            create: plan(IamAction::CreateSnapshot),
            create_set: plan(IamAction::CreateSnapshots),
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> [RowId; 3] {
        [self.describe, self.create, self.create_set]
    }
}

/// Tries, by a dry run of the first call of each kind, what making the snapshots of the job needs.
pub(super) async fn check(
    board: &RowBoard,
    rows: &CreateRows,
    aws: &Aws,
    clients: &dyn DoctorClients,
    ec2: Option<OriginReach>,
    until: Instant,
) {
    if let Some(OriginReach::Broken(because)) = ec2 {
        return board.skip(&rows.all(), because);
    }
    board.start(rows.describe);
    let found = async {
        let maker = clients.maker(aws)?;
        let planned = clients.planned(&*maker).await?;
        Ok((maker, planned))
    };
    // A job asks for each volume that it names: many take longer than one call, and are no fault.
    let limit = (until - LATER).saturating_duration_since(Instant::now());
    let Ok(found) = timeout(limit, found).await else {
        let late = format!(
            "not all volumes of the job were described in {}",
            in_words(limit)
        );
        board.fill(rows.describe, RowFinding::unknown(late));
        return board.skip(&[rows.create, rows.create_set], rows.describe);
    };
    let seen = found.as_ref().map(|(_, planned)| planned);
    board.fill(rows.describe, selection(seen.map_err(Clone::clone)));
    let Ok((maker, planned)) = found else {
        return board.skip(&[rows.create, rows.create_set], rows.describe);
    };
    for (row, action) in [
        (rows.create, IamAction::CreateSnapshot),
        (rows.create_set, IamAction::CreateSnapshots),
    ] {
        let mut calls = planned.calls.iter();
        let Some(first) = calls.find(|call| action_of(call) == action) else {
            let why = unneeded(action, planned.calls.is_empty());
            board.fill(row, RowFinding::unknown(format!("not tried: {why}")));
            continue;
        };
        board.start(row);
        let tried = within(LATER, maker.may_create(first)).await;
        let has_made = tried
            .as_ref()
            .is_err_and(|error| error.kind() == Kind::Undecided);
        let seen = tried.map(|()| allowed(first));
        board.fill(row, finding(action, seen));
        // A service without dry runs would make a whole set next.
        if has_made && row == rows.create {
            return board.skip(&[rows.create_set], rows.create);
        }
    }
}

/// The action of a call.
fn action_of(call: &NewSnapshots) -> IamAction {
    match call.of {
        SnapshotsOf::Volume(_) => IamAction::CreateSnapshot,
        SnapshotsOf::Instance { .. } => IamAction::CreateSnapshots,
    }
}

/// The row of the volumes of a job. What it names and EC2 does not have fails the job too.
fn selection(found: Result<&PlannedSnapshots>) -> RowFinding {
    let action = IamAction::DescribeVolumes;
    match found {
        Ok(planned) => match planned.failures.first() {
            Some(error) => finding(action, Err(error.clone())),
            None => finding(
                action,
                Ok(match planned.calls.is_empty() {
                    true => format!(
                        "{} volumes are selected, none for this run",
                        planned.volumes
                    ),
                    false => format!("{} volumes are selected", planned.volumes),
                }),
            ),
        },
        Err(error) => finding(action, Err(error)),
    }
}

/// Why the job makes no call of this kind.
fn unneeded(action: IamAction, has_none: bool) -> &'static str {
    match (has_none, action) {
        (true, _) => "this run makes no snapshot, and a dry run needs one to make",
        (_, IamAction::CreateSnapshots) => "the job selects no instance, and no two volumes of one",
        _ => "each volume is in the set of its instance",
    }
}

fn allowed(call: &NewSnapshots) -> String {
    let of = match &call.of {
        SnapshotsOf::Volume(id) | SnapshotsOf::Instance { id, .. } => id,
    };
    format!("a dry run for {of} with the tags of the job is allowed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::row::RowState;
    use crate::error::Error;

    fn call(of: SnapshotsOf) -> NewSnapshots {
        NewSnapshots {
            of,
            description: None,
            tags: vec![("ebsfs:cycle".into(), "a/b".into())],
        }
    }

    #[test]
    fn a_call_is_tried_by_its_own_action_and_says_what_it_was_for() {
        let one = call(SnapshotsOf::Volume("vol-0a".into()));
        let set = call(SnapshotsOf::Instance {
            id: "i-0a".into(),
            without_boot: false,
            without: Vec::new(),
            copies_tags: false,
        });
        for (call, action, words) in [
            (one, IamAction::CreateSnapshot, "for vol-0a with the tags"),
            (set, IamAction::CreateSnapshots, "for i-0a with the tags"),
        ] {
            assert_eq!(action_of(&call), action);
            assert!(allowed(&call).contains(words));
        }
        for (action, has_none, words) in [
            (IamAction::CreateSnapshot, true, "makes no snapshot"),
            (IamAction::CreateSnapshots, true, "makes no snapshot"),
            (IamAction::CreateSnapshots, false, "selects no instance"),
            (IamAction::CreateSnapshot, false, "the set of its instance"),
        ] {
            assert!(unneeded(action, has_none).contains(words), "{words}");
        }
    }

    #[test]
    fn a_selector_without_a_volume_fails_the_row_of_the_volumes() {
        let mut planned = PlannedSnapshots {
            volumes: 3,
            calls: Vec::new(),
            failures: Vec::new(),
        };
        let good = selection(Ok(&planned));
        assert_eq!(
            (good.state, &*good.seen),
            (RowState::Good, "3 volumes are selected, none for this run")
        );
        planned
            .failures
            .push(Error::new(Kind::NotFound, "there is no vol-0b"));
        let failed = selection(Ok(&planned));
        assert_eq!(
            (failed.state, &*failed.seen),
            (RowState::Failed, "there is no vol-0b")
        );
        let denied = Error::new(
            Kind::Denied,
            "is not authorized to perform: ec2:DescribeInstances on resource: x",
        );
        let denied = selection(Err(denied));
        assert!(format!("{:?}", denied.fix).contains("Who can deny ec2:DescribeInstances"));
    }
}
