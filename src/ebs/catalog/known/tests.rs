use super::*;
use std::sync::atomic::AtomicUsize;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use tokio::time::sleep;

/// EC2 that answers by a script: how long it takes, and what it says.
#[derive(Default)]
struct Scripted {
    calls: AtomicUsize,
    asked: Mutex<Vec<Vec<Selector>>>,
    answers: Mutex<HashMap<usize, ScriptedAnswer>>,
}

struct ScriptedAnswer {
    takes: Duration,
    /// What it waits for after half of the time.
    waiting: Option<Kind>,
    answer: Result<Vec<Snapshot>>,
}

impl Scripted {
    fn new(answers: Vec<ScriptedAnswer>) -> Arc<Self> {
        let answers = answers.into_iter().enumerate().collect();
        Arc::new(Self {
            answers: Mutex::new(answers),
            ..Self::default()
        })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

impl Descriptions for Scripted {
    fn describe<'a>(&'a self, select: &'a [Selector]) -> BoxFuture<'a, Result<Vec<Snapshot>>> {
        self.describe_reporting(select, &|_| {})
    }

    fn describe_reporting<'a>(
        &'a self,
        select: &'a [Selector],
        report: crate::snapshot::ListingReport<'a>,
    ) -> BoxFuture<'a, Result<Vec<Snapshot>>> {
        async move {
            let call = self.calls.fetch_add(1, Ordering::Relaxed);
            self.asked.lock().push(select.to_vec());
            let answer = self.answers.lock().remove(&call);
            let answer = answer.unwrap_or_else(|| panic!("call {call}: {select:?}"));
            sleep(answer.takes / 2).await;
            report(&ListingProgress {
                snapshots: answer.answer.as_ref().map_or(0, Vec::len),
                waiting: answer.waiting.map(|kind| Error::new(kind, "waiting")),
            });
            sleep(answer.takes / 2).await;
            answer.answer
        }
        .boxed()
    }

    fn encrypts_by_default(&self) -> BoxFuture<'_, Result<bool>> {
        unreachable!()
    }

    fn add_tags<'a>(
        &'a self,
        _: &'a SnapshotId,
        _: &'a [(String, String)],
    ) -> BoxFuture<'a, Result<()>> {
        unreachable!()
    }
}

fn id(text: &str) -> SnapshotId {
    text.parse().unwrap()
}

fn snapshot(text: &str, state: SnapshotState, progress: &str) -> Snapshot {
    Snapshot {
        state: Some(state),
        progress: Some(progress.into()),
        ..Snapshot::unknown(id(text))
    }
}

fn after(seconds: u64, answer: Result<Vec<Snapshot>>) -> ScriptedAnswer {
    ScriptedAnswer {
        takes: Duration::from_secs(seconds),
        waiting: None,
        answer,
    }
}

fn completed(text: &str) -> Snapshot {
    snapshot(text, SnapshotState::Completed, "100%")
}

fn failed(kind: Kind) -> Result<Vec<Snapshot>> {
    Err(Error::new(kind, "no"))
}

fn known(ec2: &Arc<Scripted>, select: &[&str]) -> KnownSnapshots {
    let select = select.iter().map(|text| text.parse().unwrap());
    KnownSnapshots::new(Some(Arc::clone(ec2) as _), select.collect())
}

#[tokio::test(start_paused = true)]
async fn one_listing_serves_all_waiters_and_continues_when_they_are_dropped() {
    let two = vec![completed("snap-a"), completed("snap-b")];
    let ec2 = Scripted::new(vec![after(430, Ok(two)), after(1, Ok(vec![]))]);
    let known = known(&ec2, &[]);
    let start = Instant::now();
    // Waiters of 90 s each, one after the other, and three at once.
    for _ in 0..4 {
        let waited = timeout(Duration::from_secs(90), known.list()).await;
        assert!(waited.is_err());
    }
    let listed = join_all((0..3).map(|_| known.list())).await;
    assert_eq!(start.elapsed(), Duration::from_secs(430));
    assert!(
        listed
            .iter()
            .all(|listed| listed.as_ref().unwrap().len() == 2)
    );
    assert_eq!(ec2.calls(), 1);
    // The next one lists again: a taken listing is not kept.
    assert!(known.list().await.unwrap().is_empty());
    assert_eq!(ec2.calls(), 2);
    assert!(known.get(&id("snap-a")).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_mount_waits_for_the_first_reply_and_not_for_the_whole_listing() {
    let limit = Duration::from_secs(15);
    let throttled = |kind| ScriptedAnswer {
        takes: Duration::from_secs(20),
        waiting: Some(kind),
        answer: Ok(Vec::new()),
    };
    let one = || Ok(vec![completed("snap-a")]);
    for (answer, expected, takes) in [
        (after(6, one()), None, 6),
        (after(6, failed(Kind::Denied)), Some(Kind::Denied), 6),
        (after(20, one()), None, 15),
        (after(40, one()), Some(Kind::Unavailable), 15),
        (throttled(Kind::Throttled), None, 15),
        (throttled(Kind::Unavailable), Some(Kind::Unavailable), 15),
    ] {
        let ec2 = Scripted::new(vec![answer]);
        let known = known(&ec2, &["vol-1"]);
        let start = Instant::now();
        let failed = known.begin(limit).await.err().map(|error| error.kind());
        assert_eq!(failed, expected);
        assert_eq!(start.elapsed(), Duration::from_secs(takes));
        // Its first reader gets it, and the next one another.
        if expected.is_none() {
            known.list().await.unwrap();
            assert_eq!(ec2.calls(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_failure_that_the_next_call_repeats_stops_questions_to_ec2() {
    for (kind, silences) in [
        (Kind::Denied, true),
        (Kind::Throttled, true),
        (Kind::Unavailable, true),
        (Kind::NotFound, false),
        (Kind::Invalid, false),
    ] {
        let ec2 = Scripted::new(vec![
            after(0, failed(kind)),
            after(0, Ok(vec![completed("snap-b")])),
        ]);
        let known = known(&ec2, &[]);
        known.describe(&id("snap-a")).await;
        let next = known.describe(&id("snap-b")).await;
        assert_eq!(
            matches!(next, Description::NotAsked(_)),
            silences,
            "{kind:?}"
        );
        // A minute later it is asked again.
        sleep(ASK_AGAIN).await;
        let next = known.describe(&id("snap-b")).await;
        assert!(matches!(next, Description::Known(_)), "{kind:?}");
        assert_eq!(ec2.calls(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_description_that_was_missing_is_asked_for_when_ec2_may_be_asked_again() {
    let (a, b) = (id("snap-a"), id("snap-b"));
    let ec2 = Scripted::new(vec![
        after(30, Ok(vec![])),
        after(1, Ok(vec![completed("snap-a")])),
    ]);
    let known = known(&ec2, &[]);
    for id in [&a, &b] {
        let described = known.describe(id).await;
        assert!(matches!(described, Description::NotAsked(_)));
        known.miss(id);
    }
    // It is silent: nothing is asked, however often a reader looks.
    for _ in 0..5 {
        known.remind();
        sleep(Duration::from_secs(10)).await;
    }
    assert_eq!((ec2.calls(), known.get(&a)), (1, None));
    sleep(Duration::from_secs(15)).await;
    // One call for both, and none for the one that EC2 does not know.
    for _ in 0..5 {
        known.remind();
        sleep(Duration::from_secs(2)).await;
    }
    assert_eq!(known.get(&a).unwrap().state, Some(SnapshotState::Completed));
    assert_eq!(known.get(&b), None);
    assert_eq!(ec2.calls(), 2);
    assert_eq!(ec2.asked.lock()[1].len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_newer_description_is_never_replaced_by_an_older_one() {
    let pending = |progress| snapshot("snap-a", SnapshotState::Pending, progress);
    let ec2 = Scripted::new(vec![
        // A long listing, asked for first and answered last.
        after(100, Ok(vec![pending("10%"), completed("snap-b")])),
        after(1, Ok(vec![completed("snap-a")])),
    ]);
    let known = known(&ec2, &[]);
    let (listed, described) = tokio::join!(known.list(), async {
        sleep(Duration::from_secs(10)).await;
        known.describe(&id("snap-a")).await
    });
    assert!(matches!(described, Description::Known(_)));
    let listed = listed.unwrap();
    assert_eq!(listed.len(), 2);
    for snapshot in [known.get(&id("snap-a")).unwrap(), Arc::clone(&listed[0])] {
        assert_eq!(snapshot.state, Some(SnapshotState::Completed));
    }
}

#[tokio::test(start_paused = true)]
async fn named_snapshots_are_listed_without_ec2_and_soon() {
    let late = vec![completed("snap-a")];
    let ec2 = Scripted::new(vec![after(30, Ok(late))]);
    let known = known(&ec2, &["snap-a", "snap-b"]);
    let start = Instant::now();
    let listed = known.list().await.unwrap();
    assert_eq!(start.elapsed(), DESCRIBE_TIMEOUT);
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|snapshot| snapshot.state.is_none()));
    // The call continues, and its answer is kept.
    sleep(Duration::from_secs(30)).await;
    let listed = known.list().await.unwrap();
    assert_eq!(listed[0].state, Some(SnapshotState::Completed));
    assert_eq!(ec2.calls(), 1);
}

#[test]
fn only_a_missing_permission_is_named_as_the_reason() {
    let missing = "ec2:DescribeSnapshots snap-1: UnauthorizedOperation (HTTP 403); \
                   the caller needs the permission ec2:DescribeSnapshots";
    let expired = "ec2:DescribeSnapshots snap-1: RequestExpired (HTTP 400); the credentials have expired: renew them";
    let none = "no AWS credentials: the program failed";
    for (kind, what, expected) in [
        (Kind::Denied, missing, "needs ec2:DescribeSnapshots"),
        (Kind::Denied, expired, expired),
        (Kind::Denied, none, none),
        (Kind::Throttled, "slow down", "it is throttled"),
        (Kind::Unavailable, "no answer", "it does not answer"),
        (Kind::Invalid, "no URL", "no URL"),
    ] {
        let said = reason(&Error::new(kind, what));
        assert_eq!(said, format!("EC2 could not be asked: {expected}"));
    }
}
