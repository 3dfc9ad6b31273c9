//! Whole runs, ended at any moment.

use tokio::time::{Instant, timeout};

use super::account::{Account, Fate, foreign, per_volume, starts};
use super::*;

fn ones(volumes: &[&str]) -> BTreeMap<String, usize> {
    volumes.iter().map(|id| ((*id).to_owned(), 1)).collect()
}

fn is_tagged(account: &Account) -> bool {
    let made = account.made();
    made.iter()
        .all(|made| made.tags.get(SELF_TAG).map(String::as_str) == Some(made.id.as_str()))
}

async fn run(account: &Account, job: &CaptureJob) -> CaptureReport {
    capture(account, job, &Stop::never()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_one_call_and_one_instant() {
    let mut account = Account::new(1);
    account.pends = Duration::from_secs(5 * 3600);
    let job = job(&[of_instance("i-01"), of_tag("Backup", "yes")]);
    let began = Instant::now();
    let report = run(&account, &job).await;
    assert!(report.failures.is_empty() && report.warnings.is_empty());
    assert!(began.elapsed() >= account.pends);
    assert!(report.snapshots.iter().all(|made| {
        made.is_tagged && !made.is_adopted && made.snapshot.state == Some(SnapshotState::Completed)
    }));
    let all = ["vol-0a", "vol-0b", "vol-0c", "vol-0d", "vol-0e"];
    assert_eq!(per_volume(&account, &job.cycle.to_string()), ones(&all));
    assert_eq!(starts(&account, &all[..2]).len(), 1);
    assert_eq!(starts(&account, &all[2..4]).len(), 1);
    assert_eq!(account.count("create"), 3);
    assert!(is_tagged(&account));
    // An hour is not asked for each quarter of a second.
    assert!(
        account.count("describe") < 700,
        "{}",
        account.count("describe")
    );
    let a = account
        .made()
        .into_iter()
        .find(|made| made.volume_id.as_deref() == Some("vol-0a"));
    assert_eq!(a.unwrap().tags["Name"], "a");
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_never_makes_a_second_snapshot() {
    for seed in 0..40 {
        let mut account = Account::new(seed);
        account.shows_within = Duration::from_secs(100);
        *account.fates.lock() = [Fate::AnswerLost, Fate::Answered].into();
        let job = job(&[of_instance("i-01")]);
        let report = run(&account, &job).await;
        assert!(
            report.failures.is_empty(),
            "seed {seed}: {:?}",
            report.failures
        );
        assert!(
            report
                .snapshots
                .iter()
                .all(|made| made.is_adopted && made.is_tagged)
        );
        let counts = per_volume(&account, &job.cycle.to_string());
        assert_eq!(counts, ones(&["vol-0a", "vol-0b"]), "seed {seed}");
        assert_eq!(account.count("create"), 1, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_request_is_made_again_after_a_look_of_two_minutes() {
    let account = Account::new(1);
    *account.fates.lock() = [Fate::RequestLost].into();
    let job = job(&[of_volume("vol-0a")]);
    let began = Instant::now();
    let report = run(&account, &job).await;
    assert!(report.failures.is_empty());
    assert!(
        began.elapsed() >= Duration::from_secs(120),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        per_volume(&account, &job.cycle.to_string()),
        ones(&["vol-0a"])
    );
    *account.fates.lock() = [Fate::RequestLost; 3].into();
    let report = run(&account, &super::job(&[of_volume("vol-0b")])).await;
    let error = report.failure().unwrap();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(matches!(error.remedy(), Some(Remedy::AdoptCycle(_))));
}

#[tokio::test(start_paused = true)]
async fn limits_are_waited_out_and_a_refusal_is_final() {
    let account = Account::new(1);
    *account.fates.lock() = [Fate::Limited; 20].into();
    let report = run(&account, &job(&[of_volume("vol-0a")])).await;
    assert!(report.failures.is_empty());
    assert_eq!(account.count("create"), 21);
    *account.fates.lock() = [Fate::Refused].into();
    let report = run(&account, &job(&[of_volume("vol-0b")])).await;
    assert_eq!(report.failure().unwrap().kind(), Kind::Denied);
    assert_eq!(account.count("create"), 22);
    *account.fates.lock() = [Fate::Limited; 5000].into();
    let mut hurried = job(&[of_volume("vol-0b")]);
    hurried.timeout = Duration::from_secs(3600);
    let report = run(&account, &hurried).await;
    assert_eq!(report.failure().unwrap().kind(), Kind::Throttled);
}

#[tokio::test(start_paused = true)]
async fn an_error_state_ends_with_its_message_and_is_not_adopted() {
    let mut account = Account::new(1);
    account.error = Some("the key is disabled");
    account.pends = Duration::from_secs(60);
    let mut job = job(&[of_instance("i-01")]);
    job.is_new_cycle = false;
    let report = run(&account, &job).await;
    assert_eq!(report.failures.len(), 2);
    let error = report.failure().unwrap();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.chain().contains("the key is disabled"), "{error:?}");
    let before = account.count("create");
    run(&account, &job).await;
    assert_eq!(account.count("create"), before + 1);
}

#[tokio::test(start_paused = true)]
async fn snapshots_with_copied_tags_are_not_adopted() {
    let account = Account::new(1);
    let mut job = job(&[of_volume("vol-0a")]);
    job.is_new_cycle = false;
    let cycle = job.cycle.to_string();
    for number in 0..200 {
        let of = if number % 2 == 0 {
            "vol-0a"
        } else {
            "vol-ffffffff"
        };
        let tags = [(CYCLE_TAG, &*cycle), (SELF_TAG, "snap-0a")];
        account.add(foreign(number, of, &tags));
    }
    let before = account.made();
    let report = run(&account, &job).await;
    assert!(report.failures.is_empty());
    assert!(!report.snapshots[0].is_adopted);
    assert_eq!(account.made()[..200], before);
    assert_eq!(account.made().len(), 201);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_joined_the_instance_after_a_crash_gets_its_own_snapshot() {
    let mut account = Account::new(1);
    let mut job = job(&[of_instance("i-01")]);
    run(&account, &job).await;
    account.volumes.push(volume("vol-0f", &["i-01"], &[]));
    job.is_new_cycle = false;
    let report = run(&account, &job).await;
    assert!(report.failures.is_empty());
    assert!(
        report.warnings[0].contains("vol-0f"),
        "{:?}",
        report.warnings
    );
    let all = ["vol-0a", "vol-0b", "vol-0f"];
    assert_eq!(per_volume(&account, &job.cycle.to_string()), ones(&all));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_killed_at_any_moment_never_leaves_two_snapshots_of_a_cycle() {
    for seed in 0..300 {
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut account = Account::new(seed);
        account.shows_within = Duration::from_secs(random.u64(0..110));
        account.pends = Duration::from_secs(random.u64(0..300));
        let fates = [
            Fate::Answered,
            Fate::AnswerLost,
            Fate::RequestLost,
            Fate::Limited,
        ];
        *account.fates.lock() = (0..random.usize(0..4))
            .map(|_| fates[random.usize(0..fates.len())])
            .collect();
        let mut job = job(&[of_instance("i-01"), of_tag("Backup", "yes")]);
        for _ in 0..random.usize(1..4) {
            // Most runs are killed around their first calls, some while they look or wait.
            let life = match random.bool() {
                true => Duration::from_millis(random.u64(0..600)),
                false => Duration::from_secs(random.u64(0..200)),
            };
            let _ = timeout(life, capture(&account, &job, &Stop::never())).await;
            // Another run cannot know that nothing was made.
            job.is_new_cycle = false;
        }
        let report = run(&account, &job).await;
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        let all = ["vol-0a", "vol-0b", "vol-0c", "vol-0d", "vol-0e"];
        assert_eq!(per_volume(&account, &job.cycle.to_string()), ones(&all));
        assert_eq!(starts(&account, &all[..2]).len(), 1);
        assert_eq!(starts(&account, &all[2..4]).len(), 1);
        assert!(is_tagged(&account));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cycle_older_than_a_day_makes_nothing() {
    let account = Account::new(1);
    let mut job = job(&[of_volume("vol-0a")]);
    job.cycle = "nightly/2020-06-30T12:00:00Z".parse().unwrap();
    let report = run(&account, &job).await;
    assert_eq!(report.failure().unwrap().kind(), Kind::Invalid);
    assert!(account.made().is_empty());
}
