//! Metrics: their numbers are those of the requests, their text is one that Prometheus reads, and no client of theirs hurts a mount.

mod hostile;
#[cfg(feature = "ec2")]
mod replicate;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::readme::page;
use crate::support::*;

/// The options that serve metrics at a free port.
const SERVED: [&str; 2] = ["--metrics", "127.0.0.1:0"];

/// The address that a log names.
fn address(log: &str) -> SocketAddr {
    let (_, rest) = log.split_once("metrics at http://").unwrap();
    rest.split_once("/metrics").unwrap().0.parse().unwrap()
}

/// Status line, headers and body of what a server replies to some bytes, until it closes the connection.
fn ask(address: SocketAddr, request: &[u8]) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

/// The text of the metrics.
fn scrape(address: SocketAddr) -> String {
    let (head, body) = ask(address, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(head.starts_with("http/1.1 200 ok\r\n"), "{head}");
    assert!(head.contains("content-type: text/plain; version=0.0.4"));
    body
}

/// The values by name and labels, as they are written.
fn values(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name, value.parse().unwrap())
        })
        .collect()
}

/// What Prometheus's own tool says of the text.
fn check(text: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = promtool.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let said = promtool.wait_with_output().unwrap();
    let words = [said.stdout, said.stderr].concat();
    let words = String::from_utf8_lossy(&words);
    assert!(said.status.success() && words.is_empty(), "{words}\n{text}");
}

/// The names of metrics in a text, without what belongs to a histogram.
fn names(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect()
}

/// Asserts that what was sent to AWS is what AWS has counted, action by action.
fn assert_requests(
    emulator: &Emulator,
    values: &BTreeMap<&str, f64>,
    name: &str,
    actions: &[&str],
) {
    for action in actions {
        let (_, call) = action.split_once(':').unwrap();
        let key = format!("ebsfs_aws_requests_total{{{name}action=\"{action}\"}}");
        let counted = emulator.count(call);
        assert!(counted > 0, "{action}");
        assert_eq!(values.get(&*key), Some(&(counted as f64)), "{action}");
    }
}

#[test]
fn a_mount_serves_the_numbers_of_its_requests_and_reads() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..40);
    let snapshot = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("cache");
    let disk = ["--cache-dir", disk.to_str().unwrap()];
    let mount = emulator.mount(&[&SERVED[..], &disk, &[&snapshot]].concat());
    let at = address(&mount.log());
    let before = scrape(at);
    assert_eq!(values(&before)["ebsfs_mount_read_bytes_total"], 0.0);
    // Failures that are waited out count too.
    emulator.set("error_5xx=0.2");
    let image = mount.disk(&snapshot);
    let dd = |of: &str| {
        let image = image.display();
        format!("dd if={image} of={of} bs=512k count=64 iflag=direct status=none")
    };
    let copy = folder.path().join("copy");
    sh(&dd(copy.to_str().unwrap()));
    sh(&dd("/dev/null"));
    for index in 0..40 {
        let found = read_at(&copy, index * BLOCK, BLOCK as usize);
        assert!(found == content("vol-0a", index), "block {index}");
    }
    emulator.set("error_5xx=0");
    let missing = mount.disk("snap-0fffffff");
    assert!(std::fs::metadata(missing).is_err());
    let text = scrape(at);
    let found = values(&text);
    let mut actions = vec!["ebs:GetSnapshotBlock", "ebs:ListSnapshotBlocks"];
    if cfg!(feature = "ec2") {
        actions.push("ec2:DescribeSnapshots");
    }
    assert_requests(&emulator, &found, "", &actions);
    let of = |name: &str| found[name];
    let get = "{action=\"ebs:GetSnapshotBlock\"}";
    let requests = of(&format!("ebsfs_aws_requests_total{get}"));
    let retries = of(&format!("ebsfs_aws_retries_total{get}"));
    let answers = of(&format!("ebsfs_aws_request_duration_seconds_count{get}"));
    assert_eq!((requests - retries, answers), (40.0, 40.0));
    // Holes are no requests.
    assert!(of("ebsfs_cache_fetches_total") >= 40.0);
    assert!(of("ebsfs_cache_hits_total{tier=\"memory\"}") >= 40.0);
    assert_eq!(of("ebsfs_cache_hits_total{tier=\"disk\"}"), 0.0);
    let size = (64 * BLOCK) as f64;
    assert_eq!(of("ebsfs_mount_read_bytes_total"), 2.0 * size);
    assert!(of("ebsfs_mount_read_duration_seconds_count") >= 128.0);
    assert_eq!(of("ebsfs_mount_open_files"), 0.0);
    check(&text);
}

#[test]
fn a_mount_counts_the_errors_that_readers_get_by_their_kind() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..4);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&SERVED[..], &[&snapshot]].concat());
    let at = address(&mount.log());
    // A series that began at 1 would show no growth.
    let name = "ebsfs_mount_failures_total{error=\"denied\"}";
    assert_eq!(values(&scrape(at))[name], 0.0);
    emulator.set("deny=ebs:GetSnapshotBlock");
    let file = open(&mount.disk(&snapshot));
    assert!((&file).read(&mut [0; 512]).is_err());
    let text = scrape(at);
    let found = values(&text);
    assert!(found[name] >= 1.0);
    assert_eq!(found["ebsfs_mount_open_files"], 1.0);
    check(&text);
}

#[test]
fn an_address_in_use_ends_the_command_before_anything_is_asked() {
    let emulator = Emulator::start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let point = folder.path().to_str().unwrap();
    let image = folder.path().join("image.raw");
    let image = image.to_str().unwrap();
    emulator.reset();
    let wrong = format!("cannot serve metrics at {taken}: Address already in use");
    for (address, code, words) in [
        (&*taken, 1, &*wrong),
        ("192.0.2.1:0", 1, "cannot serve metrics at 192.0.2.1:0"),
        ("localhost", 2, "invalid socket address"),
    ] {
        for args in [
            ["mount", point, "snap-0a", "--metrics", address],
            ["sync", "snap-0a", image, "--metrics", address],
        ] {
            let (ended, said) = ends(&mut emulator.ebsfs(&args));
            assert_eq!(ended, code, "{args:?}: {said}");
            assert!(said.contains(words), "{args:?}: {said}");
            assert!(code == 2 || said.lines().count() == 1, "{said}");
        }
    }
    assert_eq!(emulator.lists() + emulator.count("DescribeSnapshots"), 0);
    assert!(!Path::new(image).exists());
}

#[cfg(feature = "ec2")]
#[test]
fn a_sync_leaves_its_numbers_and_its_result_in_a_file() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..40);
    let snapshot = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (image, file, repository) = (at("image.raw"), at("db.prom"), at("repository"));
    let repository = format!("file://{repository}");
    init_repository(&repository);
    let sync = |args: &[&str]| {
        let mut command = emulator.ebsfs(&["sync", &snapshot]);
        command
            .args(args)
            .args(["--metrics-file", &file, "--state-dir", &at("state")]);
        command
    };
    emulator.reset();
    emulator.set("error_5xx=0.1");
    run(&mut sync(&[
        &image,
        "ebs:",
        &repository,
        "--allow-plaintext",
    ]));
    emulator.set("error_5xx=0");
    let first = std::fs::read_to_string(&file).unwrap();
    check(&first);
    let found = values(&first);
    let actions = [
        "ebs:GetSnapshotBlock",
        "ebs:ListSnapshotBlocks",
        "ebs:StartSnapshot",
        "ebs:PutSnapshotBlock",
        "ebs:CompleteSnapshot",
    ];
    assert_requests(&emulator, &found, "name=\"db\",", &actions);
    let of = |name: &str| found[&*format!("{name}{{name=\"db\"}}")];
    assert_eq!(of("ebsfs_sync_fetched_bytes_total"), (40 * BLOCK) as f64);
    assert_eq!(of("ebsfs_sync_written_blocks_total"), 40.0);
    assert_eq!(of("ebsfs_sync_exit_code"), 0.0);
    // 40 blocks that do not compress, and what tells of them.
    assert!(of("ebsfs_store_written_bytes_total") > (40 * BLOCK) as f64);
    assert_eq!(
        found["ebsfs_sync_targets{name=\"db\",result=\"copied\"}"],
        3.0
    );
    let success = of("ebsfs_sync_last_success_timestamp_seconds");
    assert_eq!(success, of("ebsfs_sync_end_timestamp_seconds"));
    assert!(of("ebsfs_sync_start_timestamp_seconds") <= success);
    let point = of("ebsfs_sync_recovery_point_timestamp_seconds");
    assert!(point > 1.7e9 && point <= success, "{point} {success}");
    // A later run that fails.
    emulator.set("deny=ebs:ListSnapshotBlocks,ebs:GetSnapshotBlock");
    let (code, said) = ends(&mut sync(&[&at("other.raw")]));
    assert_eq!(code, 4, "{said}");
    let second = std::fs::read_to_string(&file).unwrap();
    check(&second);
    let found = values(&second);
    let of = |name: &str| found[&*format!("{name}{{name=\"db\"}}")];
    assert_eq!(of("ebsfs_sync_exit_code"), 4.0);
    assert_eq!(of("ebsfs_sync_last_success_timestamp_seconds"), success);
    assert_eq!(of("ebsfs_sync_recovery_point_timestamp_seconds"), point);
    assert!(of("ebsfs_sync_end_timestamp_seconds") > success);
    // A file that cannot be read by node_exporter, or not be written, is refused before anything is copied.
    for (name, code) in [("db.txt", 2), ("absent/db.prom", 1)] {
        let mut command = emulator.ebsfs(&["sync", &snapshot, &at("third.raw")]);
        let (ended, said) = ends(command.args(["--metrics-file", &at(name)]));
        assert_eq!(ended, code, "{said}");
        assert!(!Path::new(&at("third.raw")).exists());
    }
}

#[test]
fn a_sync_serves_metrics_while_it_runs() {
    let emulator = Emulator::with(&["--set", "pending_ms=3600000"]);
    emulator.make_volume("vol-0a", 2048, 0..4);
    let snapshot = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    // It waits for the snapshot, which stays pending.
    let mut command = emulator.ebsfs(&["sync", &snapshot, image.to_str().unwrap(), "--wait"]);
    let mut running = command.args(SERVED).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(running.stderr.take().unwrap()).lines();
    let line = lines.find(|line| line.as_ref().unwrap().contains("metrics at"));
    let text = scrape(address(&line.unwrap().unwrap()));
    running.kill().unwrap();
    running.wait().unwrap();
    check(&text);
    assert_eq!(values(&text)["ebsfs_sync_phase_ratio"], 0.0);
    assert_eq!(values(&text)["ebsfs_sync_written_blocks_total"], 0.0);
}

/// The names of what only a build with EC2 has.
#[cfg(not(feature = "ec2"))]
fn of_replicate(names: &BTreeSet<String>) -> BTreeSet<String> {
    let names = names.iter().cloned();
    names
        .filter(|name| name.starts_with("ebsfs_replicate_"))
        .collect()
}

#[test]
fn the_page_and_the_alert_rules_name_the_metrics_that_exist() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..4);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&SERVED[..], &[&snapshot]].concat());
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (image, file) = (at("image.raw"), at("db.prom"));
    run(&mut emulator.ebsfs(&["sync", &snapshot, &image, "--metrics-file", &file]));
    let mut exist = names(&scrape(address(&mount.log())));
    exist.extend(names(&std::fs::read_to_string(&file).unwrap()));
    let text = page("docs/metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let explained: BTreeSet<String> = rows
        .map(|row| row.split('`').next().unwrap().to_owned())
        .collect();
    #[cfg(feature = "ec2")]
    exist.extend(names(&replicate::served(&emulator, folder.path())));
    #[cfg(not(feature = "ec2"))]
    exist.extend(of_replicate(&explained));
    assert_eq!(explained, exist);
    let rules = page("docs/alerts.yml");
    run(Command::new("promtool").args(["check", "rules", "docs/alerts.yml"]));
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    for name in words.filter(|word| word.starts_with("ebsfs_")) {
        let stem = name.strip_suffix("_bucket").unwrap_or(name);
        assert!(exist.contains(stem), "{name}");
    }
}
