use super::*;

fn at(text: &str) -> SystemTime {
    humantime::parse_rfc3339(text).unwrap()
}

fn cron(pattern: &str, zone: &str) -> Schedule {
    Schedule::cron(pattern, time_zone(zone).unwrap()).unwrap()
}

#[test]
fn an_interval_is_due_at_its_multiples_and_a_pattern_at_its_times() {
    let quarter = || Schedule::every(Duration::from_secs(900)).unwrap();
    for (schedule, now, last, next) in [
        (
            quarter(),
            "2026-06-30T12:07:00Z",
            "2026-06-30T12:00:00Z",
            "2026-06-30T12:15:00Z",
        ),
        (
            quarter(),
            "2026-06-30T12:15:00Z",
            "2026-06-30T12:15:00Z",
            "2026-06-30T12:30:00Z",
        ),
        (
            cron("30 3 * * *", "UTC"),
            "2026-06-30T12:07:00Z",
            "2026-06-30T03:30:00Z",
            "2026-07-01T03:30:00Z",
        ),
        (
            cron("30 3 * * *", "Europe/Berlin"),
            "2026-06-30T12:07:00Z",
            "2026-06-30T01:30:00Z",
            "2026-07-01T01:30:00Z",
        ),
        // The clock goes forward at 02:00: 02:30 does not come, and the cycle is not left out.
        (
            cron("30 2 * * *", "Europe/Berlin"),
            "2026-03-29T12:00:00Z",
            "2026-03-29T01:00:00Z",
            "2026-03-30T00:30:00Z",
        ),
        // The clock goes back at 03:00: 02:30 comes twice, and the cycle once.
        (
            cron("30 2 * * *", "Europe/Berlin"),
            "2026-10-25T12:00:00Z",
            "2026-10-25T00:30:00Z",
            "2026-10-26T01:30:00Z",
        ),
        (
            cron("0 4 * * SUN", "UTC"),
            "2026-06-30T00:00:00Z",
            "2026-06-28T04:00:00Z",
            "2026-07-05T04:00:00Z",
        ),
    ] {
        let now = at(now);
        assert_eq!(schedule.last_due(now), Some(at(last)), "{schedule} {now:?}");
        assert_eq!(schedule.next_due(now), Some(at(next)), "{schedule} {now:?}");
    }
}

#[test]
fn the_jitter_of_a_job_is_always_the_same_and_within_its_limit() {
    let most = Duration::from_secs(300);
    let of = |job: &str| {
        let plain = Schedule::every(Duration::from_secs(900)).unwrap();
        plain.with_jitter(most, job).unwrap()
    };
    let now = at("2026-06-30T12:07:00Z");
    let mut seen = std::collections::BTreeSet::new();
    for job in ["a", "b", "c", "web", "nightly"] {
        let schedule = of(job);
        assert_eq!(schedule.last_due(now), of(job).last_due(now));
        assert!(schedule.jitter <= most, "{job}");
        let last = schedule.last_due(now).unwrap();
        assert!(last <= now && schedule.next_due(now).unwrap() > now);
        assert_eq!(
            schedule.next_due(last),
            last.checked_add(Duration::from_secs(900))
        );
        seen.insert(schedule.jitter);
    }
    assert!(seen.len() > 2, "{seen:?}");
    let short = Schedule::every(Duration::from_secs(60)).unwrap();
    assert!(short.with_jitter(most, "a").is_err());
}

#[test]
fn what_is_no_schedule_is_refused() {
    for wrong in [
        "",
        "* * * *",
        "61 * * * *",
        "0 0 30 2 *",
        "0 0 0 * * *",
        "x",
    ] {
        assert!(Schedule::cron(wrong, Tz::UTC).is_err(), "{wrong:?}");
    }
    for wrong in [0, 400 * 24 * 3600] {
        assert!(Schedule::every(Duration::from_secs(wrong)).is_err());
    }
    assert!(time_zone("Europe/Nowhere").is_err());
}

#[test]
fn a_missed_interval_is_caught_up_once_and_what_was_not_ended_goes_first() {
    let every = Schedule::every(Duration::from_secs(900)).unwrap();
    let now = at("2026-06-30T12:07:00Z");
    let history = |under_way: Option<&str>, last: Option<&str>| CycleHistory {
        under_way: under_way.map(at),
        last: last.map(at),
    };
    let new = |time: &str| {
        Some(DueCycle {
            time: at(time),
            is_new: true,
        })
    };
    let again = |time: &str| {
        Some(DueCycle {
            time: at(time),
            is_new: false,
        })
    };
    let due = "2026-06-30T12:00:00Z";
    let (old, older) = ("2026-06-30T11:00:00Z", "2026-06-27T11:00:00Z");
    for (history, wanted, once) in [
        (history(None, None), new(due), new(due)),
        (history(None, Some(due)), None, new("2026-06-30T12:07:00Z")),
        // Four intervals were missed.
        (
            history(None, Some(old)),
            new(due),
            new("2026-06-30T12:07:00Z"),
        ),
        (history(Some(old), Some(old)), again(old), again(old)),
        // No snapshot can be made in its name any more.
        (
            history(Some(older), Some(older)),
            new(due),
            new("2026-06-30T12:07:00Z"),
        ),
        // The clock was wrong when it ran.
        (
            history(None, Some("2027-01-01T00:00:00Z")),
            new(due),
            new("2026-06-30T12:07:00Z"),
        ),
    ] {
        assert_eq!(due_cycle(&every, &history, now), wanted, "{history:?}");
        let found = Some(wanted_cycle(Some(&every), &history, now));
        assert_eq!(found, once, "{history:?}");
    }
    // Snapshots are made in the time of their cycle: a yearly one that was missed for months is made now.
    let yearly = cron("0 0 1 1 *", "UTC");
    let none = CycleHistory::default();
    let found = due_cycle(&yearly, &none, now).unwrap();
    assert_eq!(found.time, now);
    assert_eq!(wanted_cycle(None, &none, now).time, now);
}

#[test]
fn a_recovery_point_is_late_at_the_second_due_time_after_it() {
    let quarter = || Schedule::every(Duration::from_secs(900)).unwrap();
    let weekdays = || cron("0 2 * * MON-FRI", "UTC");
    for (schedule, point, late) in [
        (quarter(), "2026-06-30T12:00:04Z", "2026-06-30T12:30:00Z"),
        (quarter(), "2026-06-30T12:13:00Z", "2026-06-30T12:30:00Z"),
        // By a clock that is behind, of the cycle at 12:00.
        (quarter(), "2026-06-30T11:59:58Z", "2026-06-30T12:30:00Z"),
        (
            Schedule::every(Duration::from_secs(2)).unwrap(),
            "2026-06-30T12:00:00Z",
            "2026-06-30T12:00:04Z",
        ),
        // Of a Thursday: due on Friday and Monday. Of a Friday: not late at the weekend.
        (weekdays(), "2026-07-02T02:00:10Z", "2026-07-06T02:00:00Z"),
        (weekdays(), "2026-07-03T02:00:10Z", "2026-07-07T02:00:00Z"),
    ] {
        assert_eq!(
            schedule.late_at(at(point)),
            Some(at(late)),
            "{schedule} {point}"
        );
    }
}
