//! The metrics of a replication job: while a cycle is under way, after it, in a file, and what their alert rules make of them.

use std::path::PathBuf;
use std::process::Child;

use super::*;

/// A job that runs as a service, and where its metrics are.
struct Running {
    process: Child,
    at: SocketAddr,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a job of vol-0a into an image; `more` is at the top of its file.
fn start(emulator: &Emulator, folder: &Path, more: &str) -> Running {
    let job = folder.join("job.toml");
    let image = folder.join("vol-0a.raw").display().to_string();
    let text = format!(
        "name = 'web'\nvolumes = ['vol-0a']\nevery = '1h'\n{more}\n[[target]]\nto = '{image}'\n"
    );
    std::fs::write(&job, text).unwrap();
    let mut command = emulator.ebsfs(&["replicate"]);
    command
        .arg(&job)
        .args(SERVED)
        .arg("--state-dir")
        .arg(folder.join("job-state"));
    let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(process.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("metrics at") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it has ended");
    }
    // A full pipe would hold up the job.
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
    Running {
        process,
        at: address(&line),
    }
}

/// The text of a job's metrics after its first cycle, and the drill of that.
pub(super) fn served(emulator: &Emulator, folder: &Path) -> String {
    let running = start(emulator, folder, "drill = 'weekly'");
    let mut text = String::new();
    wait_for("the first cycle and the first drill", || {
        text = scrape(running.at);
        let found = values(&text);
        found["ebsfs_replicate_cycles_total{result=\"succeeded\"}"] == 1.0
            && found.contains_key("ebsfs_replicate_drill_timestamp_seconds")
    });
    // No filesystem is there.
    let failed = "ebsfs_replicate_drills{state=\"failed\"}";
    assert_eq!(values(&text)[failed], 1.0, "{text}");
    text
}

#[test]
fn a_job_serves_its_metrics_while_a_cycle_is_under_way_and_after_it() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..300);
    let folder = tempfile::tempdir().unwrap();
    emulator.set("latency_ms=300");
    let running = start(&emulator, folder.path(), "");
    let mut text = String::new();
    wait_for("some blocks", || {
        text = scrape(running.at);
        values(&text)["ebsfs_replicate_fetched_bytes_total"] > 0.0
    });
    check(&text);
    let found = values(&text);
    assert_eq!(found["ebsfs_replicate_volumes_under_way"], 1.0);
    assert_eq!(found["ebsfs_replicate_volumes"], 1.0);
    let missing = "ebsfs_replicate_recovery_points{state=\"missing\"}";
    let current = "ebsfs_replicate_recovery_points{state=\"current\"}";
    assert_eq!((found[missing], found[current]), (1.0, 0.0));
    assert!(!found.contains_key("ebsfs_replicate_recovery_point_timestamp_seconds"));
    assert!(found["ebsfs_replicate_next_run_timestamp_seconds"] > 1.7e9);
    let size = (300 * BLOCK) as f64;
    assert!(found["ebsfs_replicate_fetched_bytes_total"] < size);
    emulator.set("latency_ms=0");
    wait_for("the end of the cycle", || {
        text = scrape(running.at);
        values(&text)["ebsfs_replicate_cycles_total{result=\"succeeded\"}"] == 1.0
    });
    check(&text);
    let found = values(&text);
    assert_eq!((found[missing], found[current]), (0.0, 1.0));
    assert_eq!(found["ebsfs_replicate_volumes_under_way"], 0.0);
    assert_eq!(found["ebsfs_replicate_fetched_bytes_total"], size);
    assert_eq!(found["ebsfs_replicate_last_bytes"], size);
    assert_eq!(found["ebsfs_replicate_exit_code"], 0.0);
    let dollars = found["ebsfs_replicate_month_cost_dollars"];
    assert!((0.0009..0.002).contains(&dollars), "{dollars}");
    let get = "ebsfs_aws_requests_total{action=\"ebs:GetSnapshotBlock\"}";
    assert_eq!(found[get], emulator.gets() as f64);
    for id in ["vol-0a", "snap-", ".raw"] {
        assert!(!text.contains(id), "{id}: {text}");
    }
}

#[test]
fn a_run_of_a_job_leaves_its_metrics_in_a_file() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..3);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let file = at("web.prom");
    let once = || {
        let image = at("vol-0a.raw").display().to_string();
        let mut command = emulator.ebsfs(&["replicate", "--once", "--volume", "vol-0a"]);
        command.args(["--name", "web", "--to", &image]);
        command.arg("--metrics-file").arg(&file);
        command.arg("--state-dir").arg(at("state"));
        command
    };
    let read = || {
        let text = std::fs::read_to_string(&file).unwrap();
        check(&text);
        text
    };
    run(&mut once());
    let first = read();
    let of = |text: &str, name: &str| values(text)[&*format!("{name}{{name=\"web\"}}")];
    let current = "ebsfs_replicate_recovery_points{name=\"web\",state=\"current\"}";
    let failed = "ebsfs_replicate_recovery_points{name=\"web\",state=\"failed\"}";
    assert_eq!(
        (values(&first)[current], values(&first)[failed]),
        (1.0, 0.0)
    );
    assert_eq!(of(&first, "ebsfs_replicate_exit_code"), 0.0);
    let success = of(&first, "ebsfs_replicate_last_success_timestamp_seconds");
    let point = of(&first, "ebsfs_replicate_recovery_point_timestamp_seconds");
    assert!(point > 1.7e9 && point <= success, "{point} {success}");
    // A cycle that fails keeps both times.
    emulator.set("deny=ebs:ListChangedBlocks,ebs:ListSnapshotBlocks");
    assert_eq!(ends(&mut once()).0, 4);
    let second = read();
    assert_eq!(
        (values(&second)[current], values(&second)[failed]),
        (0.0, 1.0)
    );
    assert_eq!(of(&second, "ebsfs_replicate_exit_code"), 4.0);
    let kept = |name: &str| of(&second, name);
    assert_eq!(
        kept("ebsfs_replicate_last_success_timestamp_seconds"),
        success
    );
    assert_eq!(
        kept("ebsfs_replicate_recovery_point_timestamp_seconds"),
        point
    );
    // So does one that cannot begin.
    let mut command = once();
    command.env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent");
    let (code, said) = ends(&mut command);
    assert_eq!(code, 4, "{said}");
    let third = read();
    assert_eq!(of(&third, "ebsfs_replicate_exit_code"), 4.0);
    assert_eq!(
        of(&third, "ebsfs_replicate_recovery_point_timestamp_seconds"),
        point
    );
    for (args, code) in [
        (["--metrics-file", "web.txt"], 2),
        (["--metrics", "192.0.2.1:0"], 1),
    ] {
        let mut command = emulator.ebsfs(&["replicate", "--once", "--volume", "vol-0a"]);
        command
            .args(["--name", "new", "--to", "/nonexistent/a.raw"])
            .args(args);
        command.arg("--state-dir").arg(at("state"));
        let (ended, said) = ends(&mut command);
        assert_eq!(ended, code, "{said}");
    }
    assert!(!at("state/job-new.json").exists(), "no cycle was started");
    // A shard writes its own, not those of the whole job.
    emulator.set("deny=");
    let job = at("web.toml");
    let text = format!(
        "name = 'web'\nvolumes = ['vol-0a']\n[[target]]\nto = '{}/{{volume}}-shard.raw'",
        folder.path().display()
    );
    std::fs::write(&job, text).unwrap();
    let mut counts = Vec::new();
    for shard in ["0/2", "1/2"] {
        let mut command = emulator.ebsfs(&["replicate", "--once", "--shard", shard]);
        command.arg(&job).arg("--metrics-file").arg(&file);
        command.arg("--state-dir").arg(at("state"));
        run(&mut command);
        counts.push(values(&read())[current]);
    }
    counts.sort_by(f64::total_cmp);
    assert_eq!(counts, [0.0, 1.0]);
}

#[test]
fn the_alert_rules_of_a_job_fire_when_they_should() {
    let rules: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/alerts.yml");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.yml");
    let text = format!(
        r#"
rule_files: ["{}"]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'ebsfs_replicate_recovery_points{{instance="proxy",state="current"}}'
        values: '4x60'
      - series: 'ebsfs_replicate_recovery_points{{instance="proxy",state="late"}}'
        values: '0x9 1x50'
      - series: 'ebsfs_replicate_recovery_points{{instance="proxy",state="unusable"}}'
        values: '1x5 0x54'
      - series: 'ebsfs_replicate_recovery_points{{instance="proxy",state="undecided"}}'
        values: '0x29 2x30'
      - series: 'ebsfs_replicate_drills{{instance="proxy",state="failed"}}'
        values: '0x39 2x20'
      - series: 'ebsfs_replicate_drills_overdue{{instance="proxy"}}'
        values: '0x9 3x90'
      - series: 'ebsfs_replicate_next_run_timestamp_seconds{{instance="proxy"}}'
        values: '900x300'
    alert_rule_test:
      - eval_time: 19m
        alertname: EbsfsReplicateLate
      - eval_time: 21m
        alertname: EbsfsReplicateLate
        exp_alerts:
          - exp_labels: {{severity: critical, instance: proxy}}
            exp_annotations: {{summary: 1 recovery points of proxy are late or not usable}}
      - eval_time: 29m
        alertname: EbsfsReplicateUndecided
      - eval_time: 30m
        alertname: EbsfsReplicateUndecided
        exp_alerts:
          - exp_labels: {{severity: critical, instance: proxy, state: undecided}}
            exp_annotations: {{summary: "2 targets of proxy wait for a decision: ebsfs status names them"}}
      - eval_time: 39m
        alertname: EbsfsDrillFailed
      - eval_time: 40m
        alertname: EbsfsDrillFailed
        exp_alerts:
          - exp_labels: {{severity: critical, instance: proxy, state: failed}}
            exp_annotations: {{summary: "2 drills of proxy failed: ebsfs status names them"}}
      - eval_time: 69m
        alertname: EbsfsDrillOverdue
      - eval_time: 70m
        alertname: EbsfsDrillOverdue
        exp_alerts:
          - exp_labels: {{severity: warning, instance: proxy}}
            exp_annotations: {{summary: 3 drills of proxy are overdue}}
      - eval_time: 134m
        alertname: EbsfsReplicateNotRun
      - eval_time: 136m
        alertname: EbsfsReplicateNotRun
        exp_alerts:
          - exp_labels: {{severity: critical, instance: proxy}}
            exp_annotations: {{summary: A cycle of proxy was due 2h 1m 0s ago and has not ended}}
"#,
        rules.display()
    );
    std::fs::write(&file, text).unwrap();
    run(Command::new("promtool").args(["test", "rules"]).arg(&file));
}
