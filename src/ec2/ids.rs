//! Named snapshots: EC2 refuses a whole call for one id that it does not know.

use futures_util::future::BoxFuture;

use crate::error::Result;
use crate::snapshot::{Snapshot, SnapshotId};

use super::call::CallRefusal;

/// Ids a call. The limit is not documented; filters take 200 values.
pub(super) const IDS_PER_CALL: usize = 200;

/// The snapshots of `ids`, without those that EC2 does not know. `describe` makes one call; it must know all of its ids.
///
/// # Errors
/// Why EC2 cannot be asked.
pub(super) async fn describe_known<'a>(
    ids: &[SnapshotId],
    describe: impl Fn(Vec<SnapshotId>) -> BoxFuture<'a, std::result::Result<Vec<Snapshot>, CallRefusal>>,
) -> Result<Vec<Snapshot>> {
    let mut found = Vec::new();
    let mut rest: Vec<Vec<SnapshotId>> = ids.chunks(IDS_PER_CALL).map(<[_]>::to_vec).collect();
    rest.reverse();
    while let Some(ids) = rest.pop() {
        match describe(ids.clone()).await {
            Ok(snapshots) => found.extend(snapshots),
            Err(refused) if refuses_an_id(&refused.code) => {
                rest.extend(without_refused(&ids, &refused.message));
            }
            Err(refused) => return Err(refused.into()),
        }
    }
    Ok(found)
}

/// Whether this is EC2's answer for an unknown id. Many ids that look right and do not exist are Malformed to it.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>
fn refuses_an_id(code: &str) -> bool {
    matches!(
        code,
        "InvalidSnapshot.NotFound" | "InvalidSnapshotID.Malformed" | "InvalidSnapshotID.NotFound"
    )
}

/// The calls to make after one that was refused with `message`: without the ids that it names, or, when it names none, in
/// halves. Together they are fewer ids, or each is fewer.
fn without_refused(ids: &[SnapshotId], message: &str) -> Vec<Vec<SnapshotId>> {
    if ids.len() <= 1 {
        return Vec::new();
    }
    let named: Vec<&str> = message
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .collect();
    let rest = ids.iter().filter(|id| !named.contains(&id.as_str()));
    let rest: Vec<SnapshotId> = rest.cloned().collect();
    if rest.is_empty() {
        Vec::new()
    } else if rest.len() < ids.len() {
        vec![rest]
    } else {
        let (first, second) = ids.split_at(ids.len() / 2);
        vec![first.to_vec(), second.to_vec()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind};
    use std::cell::Cell;
    use std::collections::BTreeSet;
    use std::future::ready;

    use futures_util::FutureExt;

    fn ids(numbers: impl IntoIterator<Item = u32>) -> Vec<SnapshotId> {
        let id = |number| format!("snap-{number:017x}").parse().unwrap();
        numbers.into_iter().map(id).collect()
    }

    fn refused(code: &str, message: String) -> CallRefusal {
        CallRefusal {
            code: code.into(),
            message,
            error: Error::new(Kind::Invalid, "refused"),
        }
    }

    #[test]
    fn ids_that_a_refusal_names_are_left_out_and_else_the_call_is_halved() {
        let all = ids(0..4);
        let text = |n: usize| all[n].to_string();
        for (message, expected) in [
            (
                format!("The snapshot '{}' does not exist.", text(1)),
                vec![ids([0, 2, 3])],
            ),
            (format!("Invalid id: \"{}\"", text(3)), vec![ids([0, 1, 2])]),
            (
                format!("The snapshots '{}, {}' do not exist", text(0), text(2)),
                vec![ids([1, 3])],
            ),
            ("no".into(), vec![ids([0, 1]), ids([2, 3])]),
            ("snap-99".into(), vec![ids([0, 1]), ids([2, 3])]),
            (all.iter().map(|id| format!("{id} ")).collect(), vec![]),
        ] {
            assert_eq!(without_refused(&all, &message), expected, "{message}");
        }
        assert!(without_refused(&all[..1], "no").is_empty());
    }

    /// The known ids of a service that knows some; how many calls that takes.
    async fn ask(all: u32, unknown: &BTreeSet<u32>, names: bool) -> (Vec<SnapshotId>, usize) {
        let calls = Cell::new(0);
        let unknown = ids(unknown.iter().copied());
        let describe = |asked: Vec<SnapshotId>| {
            calls.set(calls.get() + 1);
            assert!((1..=IDS_PER_CALL).contains(&asked.len()));
            let answer = match asked.iter().find(|id| unknown.contains(id)) {
                Some(id) if names => Err(refused("InvalidSnapshot.NotFound", format!("'{id}'"))),
                Some(_) => Err(refused("InvalidSnapshotID.Malformed", String::new())),
                None => Ok(asked.iter().cloned().map(Snapshot::unknown).collect()),
            };
            ready(answer).boxed()
        };
        let found = describe_known(&ids(0..all), describe).await.unwrap();
        let mut found: Vec<_> = found.into_iter().map(|snapshot| snapshot.id).collect();
        found.sort();
        (found, calls.get())
    }

    #[tokio::test]
    async fn unknown_ids_do_not_hide_the_others() {
        assert_eq!(ask(300, &BTreeSet::new(), true).await.1, 2);
        assert_eq!(ask(1, &[0].into(), true).await, (Vec::new(), 1));
        assert_eq!(ask(2, &[1].into(), true).await, (ids([0]), 2));
        for (seed, names) in (0..40).flat_map(|seed| [(seed, true), (seed, false)]) {
            println!("seed {seed}");
            let mut random = fastrand::Rng::with_seed(seed);
            let all = random.u32(1..500);
            let count = random.u32(0..12);
            let unknown: BTreeSet<u32> = (0..count).map(|_| random.u32(0..all)).collect();
            let known = ids((0..all).filter(|n| !unknown.contains(n)));
            let (found, calls) = ask(all, &unknown, names).await;
            assert_eq!(found, known);
            let each = if names { 1 } else { 2 * 9 };
            assert!(calls <= 3 + each * unknown.len(), "{calls} calls");
        }
    }

    #[tokio::test]
    async fn another_failure_is_no_unknown_id() {
        let describe = |_| ready(Err(refused("UnauthorizedOperation", String::new()))).boxed();
        assert!(describe_known(&ids([1, 2]), describe).await.is_err());
    }
}
