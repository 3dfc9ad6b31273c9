//! What a bucket keeps of objects that are overwritten or deleted: versions, lifecycle rules, Object Lock. A verb works without an
//! answer, so that none of these rows fails.

use std::time::Duration;

use futures_util::future::join3;

use super::within;
use crate::aws::IamAction;
use crate::doctor::refusal;
use crate::doctor::row::{RowBoard, RowFinding, RowId};
use crate::error::{Error, Kind, Result};
use crate::repository::{BucketVersions, LifecycleEffects, ObjectLock, Store};

/// How long a request may take, with its retries.
const ASKED: Duration = Duration::from_secs(3);

/// The rows of a bucket.
#[derive(Clone, Copy)]
pub(super) struct BucketRows {
    versions: RowId,
    lifecycle: RowId,
    lock: RowId,
}

impl BucketRows {
    pub(super) fn plan(plan: &dyn Fn(&str) -> RowId) -> Self {
        Self {
            versions: plan("versions of"),
            lifecycle: plan("lifecycle rules of"),
            lock: plan("Object Lock of"),
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> [RowId; 3] {
        [self.versions, self.lifecycle, self.lock]
    }
}

/// Asks the bucket of a store.
pub(super) async fn check(board: &RowBoard, rows: &BucketRows, store: &Store) {
    let Some(bucket) = store.bucket() else {
        let none = RowFinding::unknown("the store has no such settings");
        return rows
            .all()
            .into_iter()
            .for_each(|row| board.fill(row, none.clone()));
    };
    rows.all().into_iter().for_each(|row| board.start(row));
    let (kept, effects, locked) = join3(
        within(ASKED, bucket.versions()),
        within(ASKED, bucket.lifecycle()),
        within(ASKED, bucket.object_lock()),
    )
    .await;
    board.fill(rows.versions, versions(kept, &effects));
    board.fill(rows.lifecycle, lifecycle(effects));
    board.fill(rows.lock, lock(locked));
}

/// The row of what has no answer: the verb works without it.
fn unanswered(error: &Error, action: IamAction) -> RowFinding {
    let seen = error.chain();
    let fix = (error.kind() == Kind::Denied).then(|| refusal::advice(&seen, action.name()));
    let row = RowFinding::unknown(seen);
    match fix {
        Some(fix) => row.fixed_by(format!("the verb works without it; {fix}")),
        None => row,
    }
}

/// The row of versions, for which the lifecycle rules count too.
fn versions(found: Result<BucketVersions>, effects: &Result<LifecycleEffects>) -> RowFinding {
    let fix = "add a rule that permanently deletes noncurrent versions: S3 console > BUCKET > Management > Create lifecycle rule";
    match (found, effects.as_ref().map(|effects| effects.old_versions)) {
        (Err(error), _) => unanswered(&error, IamAction::GetBucketVersioning),
        (Ok(BucketVersions::Off), _) => RowFinding::good("the bucket has none: what prune deletes frees its space"),
        (Ok(BucketVersions::Suspended), _) => RowFinding::good(
            "suspended: what is written now frees its space when prune deletes it, old versions stay",
        ),
        (Ok(BucketVersions::On), Ok(Some(days))) => RowFinding::good(format!(
            "on: what prune deletes stays an old version, which a lifecycle rule deletes {days} days later"
        )),
        (Ok(BucketVersions::On), Ok(None)) => RowFinding::warning(
            "on, and no lifecycle rule deletes old versions: what prune deletes stays and is billed",
            fix,
        ),
        (Ok(BucketVersions::On), Err(_)) => RowFinding::unknown(
            "on, and the lifecycle rules are unknown: without a rule what prune deletes stays and is billed",
        )
        .fixed_by(fix),
    }
}

/// The row of lifecycle rules.
fn lifecycle(found: Result<LifecycleEffects>) -> RowFinding {
    let effects = match found {
        Ok(effects) => effects,
        Err(error) => return unanswered(&error, IamAction::GetLifecycleConfiguration),
    };
    let place = "S3 console > BUCKET > Management > Lifecycle rules";
    match (effects.deletes, effects.archives) {
        (Some(rule), _) => RowFinding::warning(
            format!(
                "the rule {rule:?} deletes objects of the repository: snapshots lose their data"
            ),
            format!(
                "limit the rule to other prefixes (ebsfs repository prune does the retention): {place}"
            ),
        ),
        (None, Some(rule)) => RowFinding::warning(
            format!(
                "the rule {rule:?} archives objects of the repository: they cannot be read at once"
            ),
            format!("limit the rule to other prefixes: {place}"),
        ),
        (None, None) => RowFinding::good("none deletes or archives objects of the repository"),
    }
}

/// The row of Object Lock.
fn lock(found: Result<ObjectLock>) -> RowFinding {
    match found {
        Err(error) => unanswered(&error, IamAction::GetObjectLockConfiguration),
        Ok(ObjectLock::Off) => RowFinding::good("the bucket has none"),
        Ok(ObjectLock::WithoutDefault) => {
            RowFinding::good("on, without a default retention: new objects are not locked")
        }
        Ok(ObjectLock::Default(mode, time)) => RowFinding::good(format!(
            "each new object is locked for {time} ({mode}): its space is free after that at the earliest, and prune skips what the \
             store refuses to delete"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::row::RowState;

    fn effects(days: Option<u32>) -> Result<LifecycleEffects> {
        Ok(LifecycleEffects {
            old_versions: days,
            ..LifecycleEffects::default()
        })
    }

    fn error(kind: Kind) -> Error {
        Error::new(kind, "AccessDenied")
    }

    #[test]
    fn versions_without_a_rule_warn_and_what_is_not_known_never_fails() {
        use BucketVersions::{Off, On, Suspended};
        for (found, rules, state, words) in [
            (Ok(Off), effects(None), RowState::Good, "frees its space"),
            (
                Ok(Suspended),
                effects(None),
                RowState::Good,
                "old versions stay",
            ),
            (
                Ok(On),
                effects(Some(30)),
                RowState::Good,
                "deletes 30 days later",
            ),
            (
                Ok(On),
                effects(None),
                RowState::Warning,
                "stays and is billed",
            ),
            (
                Ok(On),
                Err(error(Kind::Denied)),
                RowState::Unknown,
                "rules are unknown",
            ),
            (
                Err(error(Kind::Denied)),
                effects(None),
                RowState::Unknown,
                "AccessDenied",
            ),
            (
                Err(error(Kind::Unavailable)),
                effects(None),
                RowState::Unknown,
                "AccessDenied",
            ),
        ] {
            let row = versions(found, &rules);
            assert_eq!(row.state, state, "{row:?}");
            assert!(row.seen.contains(words), "{row:?}");
        }
    }

    #[test]
    fn a_rule_that_touches_objects_warns_and_a_retention_is_named() {
        let touching = |deletes: bool, archives: bool| LifecycleEffects {
            deletes: deletes.then(|| "clean".to_owned()),
            archives: archives.then(|| "cold".to_owned()),
            old_versions: None,
        };
        for (row, state, words) in [
            (
                lifecycle(Ok(touching(true, true))),
                RowState::Warning,
                "\"clean\" deletes",
            ),
            (
                lifecycle(Ok(touching(false, true))),
                RowState::Warning,
                "\"cold\" archives",
            ),
            (
                lifecycle(Ok(touching(false, false))),
                RowState::Good,
                "none deletes",
            ),
            (
                lifecycle(Err(error(Kind::Invalid))),
                RowState::Unknown,
                "AccessDenied",
            ),
            (lock(Ok(ObjectLock::Off)), RowState::Good, "has none"),
            (
                lock(Ok(ObjectLock::WithoutDefault)),
                RowState::Good,
                "without a default",
            ),
            (
                lock(Ok(ObjectLock::Default(
                    "COMPLIANCE".into(),
                    "30 days".into(),
                ))),
                RowState::Good,
                "locked for 30 days (COMPLIANCE)",
            ),
            (
                lock(Err(error(Kind::Denied))),
                RowState::Unknown,
                "AccessDenied",
            ),
        ] {
            assert_eq!(row.state, state, "{row:?}");
            assert!(row.seen.contains(words), "{row:?}");
        }
        let denied = lock(Err(error(Kind::Denied)));
        let fix = format!("{:?}", denied.fix);
        assert!(fix.contains("the verb works without it"), "{fix}");
        assert!(fix.contains("s3:GetBucketObjectLockConfiguration"), "{fix}");
    }
}
