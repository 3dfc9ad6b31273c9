use std::time::SystemTime;

use super::super::parse;
use super::*;
use crate::replicate::job::ReplicateJob;

/// A job of a volume with these lines at its top level, and with this target.
fn with(lines: &str, to: &str) -> String {
    format!("name = 'web'\nvolumes = ['vol-0a']\n{lines}\n[[target]]\nto = '{to}'\n")
}

fn drill_of(lines: &str) -> JobDrill {
    let job: ReplicateJob = parse(&with(lines, "file:///r")).unwrap();
    job.drill.unwrap()
}

#[test]
fn a_drill_is_a_time_or_a_table() {
    for (lines, schedule) in [
        ("drill = 'daily'", "every 1day"),
        ("drill = 'weekly'", "every 7days"),
        ("drill = 'monthly'", "0 0 1 * * (UTC)"),
        ("drill = '10days'", "every 10days"),
        ("drill = '1h 30m'", "every 1h 30m"),
        ("drill = '0 3 * * 0'", "0 3 * * 0 (UTC)"),
        (
            "drill = '0 3 * * 0'\ntime_zone = 'Asia/Tokyo'",
            "0 3 * * 0 (Asia/Tokyo)",
        ),
        (
            "drill = 'monthly'\ntime_zone = 'Asia/Tokyo'",
            "0 0 1 * * (Asia/Tokyo)",
        ),
        ("drill = { every = 'weekly' }", "every 7days"),
        ("drill = { cron = '0 3 * * *' }", "0 3 * * * (UTC)"),
        ("[drill]\nevery = '2days'", "every 2days"),
    ] {
        assert_eq!(drill_of(lines).schedule.to_string(), schedule, "{lines}");
    }
    let plain = drill_of("drill = 'weekly'");
    assert!(plain.boot.is_none() && plain.scratch.is_none() && plain.target.is_none());
    assert!(parse(&with("", "file:///r")).unwrap().drill.is_none());
    let whole = drill_of(
        "[drill]\nevery = 'weekly'\ntarget = 'file:///r'\nboot = true\nwait_for = 'up'\nboot_timeout = '20m'\n\
         memory = '2GiB'\nscratch = '/var/tmp'\noverlay_limit = '4GiB'\nreplay_xfs = true",
    );
    let boot = whole.boot.unwrap();
    assert_eq!(boot.wait_for.as_deref(), Some("up"));
    assert_eq!(boot.timeout, Some(Duration::from_secs(1200)));
    assert_eq!(boot.memory, Some(2 << 30));
    assert_eq!(whole.target.as_deref(), Some("file:///r"));
    assert_eq!(whole.scratch, Some("/var/tmp".into()));
    assert_eq!(whole.overlay_limit, Some(4 << 30));
    assert!(whole.replays_xfs);
}

#[test]
fn drills_of_jobs_with_other_names_are_due_at_other_times() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_782_820_800);
    let due = |name: &str| {
        let text = with("drill = 'weekly'", "file:///r").replace("'web'", &format!("'{name}'"));
        let schedule = parse(&text).unwrap().drill.unwrap().schedule;
        schedule.next_due(now).unwrap()
    };
    assert_ne!(due("web"), due("db"));
    assert_eq!(due("web"), due("web"));
}

#[test]
fn a_drill_that_cannot_be_is_refused_in_one_line() {
    for (lines, to, words) in [
        (
            "drill = 'soon'",
            "/a",
            "line 3: \"soon\" is no time such as daily",
        ),
        ("drill = 7", "/a", "line 3: invalid type"),
        (
            "drill = { evry = '1day' }",
            "/a",
            "line 3: unknown field `evry`",
        ),
        (
            "drill = { every = 'soon' }",
            "/a",
            "line 3: \"soon\" is no time",
        ),
        ("drill = {}", "/a", "drill needs every or cron"),
        (
            "drill = { every = 'daily', cron = '* * * * *' }",
            "/a",
            "exclude each other",
        ),
        ("drill = '0s'", "/a", "drill: an interval must be from 1s"),
        (
            "drill = '0 0 30 2 *'",
            "/a",
            "drill: \"0 0 30 2 *\" names a time that never comes",
        ),
        (
            "drill = { cron = 'x' }",
            "/a",
            "drill: \"x\" is no cron pattern",
        ),
        (
            "drill = 'weekly'\ntime_zone = 'UTC'",
            "/a",
            "time_zone is for",
        ),
        (
            "drill = 'weekly'",
            "ebs:eu-west-2",
            "only repositories, images and devices",
        ),
        (
            "drill = { every = 'daily', target = '/b' }",
            "/a",
            "has no target of this name",
        ),
        (
            "drill = { every = 'daily', target = 'ebs:' }",
            "ebs:",
            "only repositories",
        ),
        (
            "drill = { every = 'daily', wait_for = 'a' }",
            "/a",
            "wait_for of drill is for boot",
        ),
        (
            "drill = { every = 'daily', memory = '1GiB' }",
            "/a",
            "memory of drill is for boot",
        ),
        (
            "drill = { every = 'daily', boot_timeout = '1h' }",
            "/a",
            "boot_timeout of drill is for boot",
        ),
        (
            "drill = { every = 'daily', boot = true, boot_timeout = '0s' }",
            "/a",
            "boot_timeout of drill must be longer than 0s",
        ),
        (
            "drill = { every = 'daily', boot = true, memory = '1MiB' }",
            "/a",
            "at least 16MiB",
        ),
        (
            "drill = { every = 'daily', boot = true, wait_for = '' }",
            "/a",
            "1 to 1,024 bytes",
        ),
        (
            "drill = { every = 'daily', scratch = 'tmp' }",
            "/a",
            "no absolute path",
        ),
        (
            "instances = ['i-0a']\ndrill = { every = 'daily', boot = true }",
            "/{volume}",
            "boots from its set",
        ),
        (
            "instances = ['i-0a']\ninventory = false\ndrill = { every = 'daily', boot = true }",
            "file:///r",
            "boots from its set",
        ),
    ] {
        let said = parse(&with(lines, to)).unwrap_err().chain();
        assert!(said.contains(words), "{words}: {said}");
        assert!(!said.contains('\n'), "{said}");
    }
    let whole = "instances = ['i-0a']\ndrill = { every = 'daily', boot = true }";
    assert!(parse(&with(whole, "file:///r")).is_ok());
}
