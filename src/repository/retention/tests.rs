//! Retention: a table of policies over one series of snapshots, and random ones against a simple model.

use std::time::SystemTime;

use proptest::prelude::*;

use super::*;

fn candidate(volume: &str, time: &str, id: &str) -> RetentionCandidate {
    let time = humantime::parse_rfc3339(&format!("{time}:00Z")).unwrap();
    of(volume, time, id)
}

fn of(volume: &str, time: SystemTime, id: &str) -> RetentionCandidate {
    RetentionCandidate {
        name: ManifestName {
            time,
            volume: volume.parse().unwrap(),
            snapshot: format!("snap-{id}").parse().unwrap(),
        },
        tags: BTreeMap::new(),
        is_pinned: false,
    }
}

/// One volume, the ids from the newest to the oldest.
fn series() -> Vec<RetentionCandidate> {
    [
        ("2026-06-30T12:50", "01"),
        ("2026-06-30T12:10", "02"),
        ("2026-06-30T11:00", "03"),
        ("2026-06-29T23:00", "04"), // Monday, the week of 01
        ("2026-06-28T23:00", "05"), // Sunday, the week before
        ("2026-06-28T01:00", "06"),
        ("2026-05-31T00:00", "07"),
        ("2026-05-01T00:00", "08"),
        ("2025-12-31T00:00", "09"), // 2026-W01
        ("2024-01-01T00:00", "0a"),
    ]
    .map(|(time, id)| candidate("vol-0a", time, id))
    .to_vec()
}

fn kept(retention: &Retention, candidates: &[RetentionCandidate]) -> Vec<String> {
    let decisions = retention.decide(candidates);
    let kept = decisions.snapshots.iter().filter(|one| one.is_kept());
    kept.map(|one| one.name.snapshot.as_str()[5..].to_owned())
        .collect()
}

fn periodic(period: Period, n: usize) -> Retention {
    Retention {
        periods: [(period, n)].into(),
        ..Retention::default()
    }
}

fn last(n: usize) -> Retention {
    Retention {
        last: Some(n),
        ..Retention::default()
    }
}

#[test]
fn each_rule_keeps_the_newest_of_its_periods() {
    let within = |text: &str| Retention {
        within: Some(humantime::parse_duration(text).unwrap()),
        ..Retention::default()
    };
    for (retention, ids) in [
        (last(1), "01"),
        (last(3), "01 02 03"),
        (periodic(Period::Hour, 3), "01 03 04"),
        (periodic(Period::Day, 2), "01 04"),
        (periodic(Period::Day, 4), "01 04 05 07"),
        (periodic(Period::Week, 3), "01 05 07"),
        (periodic(Period::Week, 9), "01 05 07 08 09 0a"),
        (periodic(Period::Month, 3), "01 07 09"),
        (periodic(Period::Year, 2), "01 09"),
        (periodic(Period::Year, 9), "01 09 0a"),
        (within("40m"), "01 02"),
        (within("39m"), "01"),
        (within("0s"), "01"),
        (within("36h"), "01 02 03 04"),
        (periodic(Period::Month, usize::MAX), "01 07 09 0a"),
    ] {
        assert_eq!(kept(&retention, &series()).join(" "), ids, "{retention:?}");
    }
    // Several rules can keep one snapshot, and each gives its reason.
    let both = Retention {
        last: Some(1),
        periods: [(Period::Day, 1), (Period::Year, 2)].into(),
        ..Retention::default()
    };
    let decisions = both.decide(&series());
    let why = |at: usize| -> Vec<String> {
        let reasons = decisions.snapshots[at].reasons.iter();
        reasons.map(ToString::to_string).collect()
    };
    assert_eq!(why(0), ["last", "daily 2026-06-30", "yearly 2026"]);
    assert_eq!(why(8), ["yearly 2025"]);
    assert!(why(1).is_empty());
    assert_eq!(decisions.removed().count(), 8);
    assert_eq!(
        decisions.removed().next().unwrap().snapshot.as_str(),
        "snap-0a"
    );
}

#[test]
fn pinned_unknown_and_uncovered_snapshots_stay_and_are_counted() {
    let mut candidates = series();
    candidates[9].is_pinned = true;
    candidates.push(candidate("unknown", "2026-06-30T00:00", "10"));
    candidates.push(candidate("unknown", "2026-06-29T00:00", "11"));
    let mut web = [
        candidate("web", "2026-06-30T00:00", "20"),
        candidate("web", "2026-06-29T00:00", "21"),
        candidate("web", "2026-06-28T00:00", "22"),
    ];
    for tagged in &mut web[..2] {
        tagged.tags = [("env".to_owned(), "test".to_owned())].into();
    }
    candidates.extend(web);
    // In any order.
    candidates.reverse();
    assert_eq!(kept(&last(1), &candidates).join(" "), "10 11 01 0a 20");
    let decisions = last(1).decide(&candidates);
    assert_eq!(decisions.unknown, 2);
    assert_eq!(decisions.pinned, 1);
    let only_web = Retention {
        volumes: ["web".parse().unwrap()].into(),
        ..last(1)
    };
    let decisions = only_web.decide(&candidates);
    assert_eq!(decisions.not_covered, 10);
    assert_eq!(decisions.removed().count(), 2);
    // The newest of those that are covered.
    let tagged = Retention {
        tags: [("env".to_owned(), "test".to_owned())].into(),
        ..last(1)
    };
    let decisions = tagged.decide(&candidates);
    let removed: Vec<_> = decisions.removed().collect();
    assert_eq!(removed.len(), 1);
    assert_eq!(removed[0].snapshot.as_str(), "snap-21");
    // No rule: all stay.
    assert_eq!(
        Retention::default().decide(&candidates).removed().count(),
        0
    );
}

#[test]
fn a_retention_that_removes_a_whole_volume_needs_permission() {
    let mut candidates = series();
    candidates.push(candidate("unknown", "2026-06-30T00:00", "10"));
    let none = last(0);
    let decisions = none.decide(&candidates);
    assert_eq!(decisions.emptied, ["vol-0a".parse().unwrap()]);
    let error = decisions.check(&none).unwrap_err();
    assert_eq!(
        (error.kind(), error.remedy()),
        (Kind::Undecided, Some(&Remedy::RemoveAll))
    );
    let allowed = Retention {
        remove_all: true,
        ..none.clone()
    };
    assert!(decisions.check(&allowed).is_ok());
    assert_eq!(decisions.removed().count(), 10);
    // One that stays for another reason is one that stays.
    candidates[3].is_pinned = true;
    let decisions = none.decide(&candidates);
    assert!(decisions.emptied.is_empty() && decisions.check(&none).is_ok());
}

proptest! {
    #[test]
    fn rules_keep_what_a_simple_model_keeps(
        hours in prop::collection::btree_set(0u64..50_000, 1..60),
        keep in 0usize..12,
        n in 0usize..12,
        which in 0usize..5,
        days in 0u64..100,
    ) {
        let period = [Period::Hour, Period::Day, Period::Week, Period::Month, Period::Year][which];
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let time = |hour: u64| start + Duration::from_secs(hour * 3600);
        let candidates: Vec<RetentionCandidate> = hours
            .iter()
            .map(|hour| of("vol-0a", time(*hour), &format!("{hour:08x}")))
            .collect();
        let within = Duration::from_secs(days * 86_400);
        let retention = Retention {
            last: Some(keep),
            periods: [(period, n)].into(),
            within: (days > 0).then_some(within),
            ..Retention::default()
        };
        let decisions = retention.decide(&candidates);
        let newest: Vec<SystemTime> = hours.iter().rev().map(|hour| time(*hour)).collect();
        let mut periods: Vec<String> = newest.iter().map(|time| period.name_of(*time)).collect();
        let names = periods.clone();
        periods.dedup();
        for (at, decision) in decisions.snapshots.iter().enumerate() {
            prop_assert_eq!(decision.name.time, newest[at]);
            let is_first = at == 0 || names[at - 1] != names[at];
            let is_of_the_newest = periods.iter().take(n).any(|name| *name == names[at]);
            let is_near = days > 0 && newest[0].duration_since(newest[at]).unwrap() <= within;
            let expected = at < keep || (is_first && is_of_the_newest) || is_near;
            prop_assert_eq!(decision.is_kept(), expected);
        }
        prop_assert_eq!(decisions.emptied.is_empty(), decisions.snapshots.iter().any(RetentionDecision::is_kept));
        // A second prune by the same rules removes nothing more.
        let left: Vec<RetentionCandidate> = candidates
            .iter()
            .filter(|one| !decisions.removed().any(|name| *name == one.name))
            .cloned()
            .collect();
        prop_assert_eq!(retention.decide(&left).removed().count(), 0);
    }
}
