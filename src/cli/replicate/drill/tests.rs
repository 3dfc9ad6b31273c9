use super::*;
use crate::replicate::{AssignedTarget, JobDrill, JobTarget, Schedule};

const REPORT: &str = r#"{"version": 1, "instance": null, "boot": null, "disks": [
    {"disk": "a", "partitions": [{"filesystem": "ext4", "result": "clean"}, {"filesystem": "xfs", "result": "replayed"}]},
    {"disk": "b", "partitions": [{"filesystem": "ext4", "result": "clean"}]}
]}"#;

fn ended(status: i32, report: &str, last_line: &str) -> DrillEnd {
    DrillEnd {
        status: ExitStatus::from_raw(status),
        silence: None,
        report: report.as_bytes().to_vec(),
        last_line: last_line.to_owned(),
    }
}

/// The status of a process that has ended with this exit code.
fn code(code: i32) -> i32 {
    code << 8
}

#[test]
fn the_exit_code_and_the_report_of_a_drill_make_its_result() {
    let line = "ebsfs: cannot rely on it";
    let cut = REPORT.get(..40).unwrap();
    let other = REPORT.replace("\"version\": 1", "\"version\": 2");
    let booted = REPORT.replace("\"boot\": null", "\"boot\": {\"booted\": false}");
    for (end, expected) in [
        (ended(code(0), REPORT, ""), "passed"),
        (
            ended(code(8), REPORT, line),
            "8 cannot confirm S: cannot rely on it",
        ),
        (
            ended(code(11), &booted, line),
            "11 cannot confirm S: cannot rely on it",
        ),
        // Errors of the drill itself are no result, whatever their code.
        (
            ended(code(8), "", line),
            "no result: 8 cannot drill S: cannot rely on it",
        ),
        (ended(code(11), "", line), "no result: 11 cannot drill S"),
        (ended(code(3), "", line), "no result: 3 cannot drill S"),
        (ended(code(1), "", ""), "no result: 1 cannot drill S"),
        (ended(code(2), REPORT, line), "no result: 2 cannot drill S"),
        // A report that cannot be read proves nothing.
        (
            ended(code(0), "", ""),
            "no result: 1 cannot drill S: it has left no report",
        ),
        (ended(code(0), cut, ""), "no result: 1"),
        (ended(code(0), &other, ""), "no result: 1"),
        // A signal, a stop that is not this process's, a panic.
        (
            ended(9, REPORT, ""),
            "no result: 1 cannot drill S: its process was ended by signal 9",
        ),
        (
            ended(code(130), REPORT, line),
            "no result: 1 cannot drill S: it ended with exit code 130",
        ),
        (
            ended(code(101), "", line),
            "no result: 1 cannot drill S: it ended with exit code 101",
        ),
        (
            DrillEnd {
                silence: Some(Duration::from_secs(90)),
                ..ended(15, "", "")
            },
            "no result: 1 cannot drill S: it gave no sign of work for 1m 30s",
        ),
    ] {
        let said = |error: &Error| format!("{} {}", error.kind().exit_code(), error.chain());
        let found = match findings("S", &end) {
            Ok(found) => {
                assert_eq!(found.partitions.get("clean"), Some(&2));
                assert_eq!(found.partitions.get("replayed"), Some(&1));
                found.failure.as_ref().map_or("passed".to_owned(), said)
            }
            Err(error) => format!("no result: {}", said(&error)),
        };
        assert!(found.starts_with(expected), "{expected}: {found}");
    }
    let found = findings("S", &ended(code(11), &booted, line)).unwrap();
    assert_eq!(found.booted, Some(false));
}

#[test]
fn a_job_says_how_its_recovery_points_are_drilled() {
    let mut drill = JobDrill {
        schedule: Schedule::every(Duration::from_secs(3600)).unwrap(),
        target: None,
        boot: None,
        scratch: None,
        overlay_limit: None,
        replays_xfs: false,
    };
    let mut unit = DrillUnit {
        id: "i-1".into(),
        target: AssignedTarget {
            number: 0,
            name: "file:///r".into(),
        },
        source: "file:///r#i-1".into(),
        point: "x".into(),
        time: None,
        volumes: ["vol-0a".into()].into(),
        is_machine: true,
        is_fixed: true,
    };
    let target = JobTarget::new("file:///r");
    let line = |drill: &JobDrill, unit: &DrillUnit, rate: Option<u64>| {
        let request = DrillRequest {
            unit,
            target: &target,
            drill,
            rate,
        };
        let words = drill_words(&request);
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        words.join(" ")
    };
    assert_eq!(line(&drill, &unit, None), "--json -- file:///r#i-1");
    drill.boot = Some(DrillBoot {
        wait_for: Some("--up--".into()),
        timeout: Some(Duration::from_secs(90)),
        memory: Some(2 << 30),
    });
    (drill.scratch, drill.overlay_limit) = (Some("/s".into()), Some(7));
    drill.replays_xfs = true;
    assert_eq!(
        line(&drill, &unit, Some(1 << 20)),
        "--json --scratch=/s --overlay-limit=7 --bandwidth=1048576 --wait-for=--up-- --boot-timeout=1m 30s --memory=2147483648 --boot \
         --replay-xfs -- file:///r#i-1"
    );
    // One of several disks does not boot, and no rate is for files of this machine.
    (unit.is_machine, unit.is_fixed) = (false, false);
    assert_eq!(
        line(&drill, &unit, Some(1)),
        "--json --scratch=/s --overlay-limit=7 --replay-xfs -- file:///r#i-1"
    );
}

#[tokio::test]
async fn a_process_that_does_nothing_is_silent_and_one_that_works_is_not() {
    let (limit, look) = (Duration::from_millis(300), Duration::from_millis(50));
    let mut idle = Command::new("sleep")
        .arg("60")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    silent(idle.id(), limit, look).await;
    idle.kill().await.unwrap();
    // This process reads files all the time.
    let own = std::process::id();
    let works = async {
        loop {
            std::hint::black_box(work_of(own));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = silent(Some(own), limit, look) => panic!("it works"),
        _ = timeout(3 * limit, works) => {}
    }
}

#[tokio::test]
async fn a_report_of_any_length_takes_a_bounded_place_and_a_log_is_read_to_its_last_line() {
    let start = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]).kill_on_drop(true);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let mut child = start("head -c 40000000 /dev/zero");
    assert_eq!(read_report(child.stdout.take()).await, [0; 0]);
    let mut child = start("printf x; printf y");
    assert_eq!(read_report(child.stdout.take()).await, b"xy");
    let mut child =
        start("head -c 100000 /dev/zero >&2; printf '\\none\\n\\nebsfs: \\033[31mwhy\\n\\n' >&2");
    let last = follow_log(child.stderr.take(), "S".into()).await;
    assert_eq!(last, "ebsfs: ?[31mwhy");
}
