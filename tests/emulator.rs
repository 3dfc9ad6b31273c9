//! The emulator itself: its replies to the header, its faults, and who may use it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::*;

/// A reply as it came over the wire: the status line, header names as they were sent and in their order, the body.
#[derive(Debug)]
struct Raw {
    status: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Raw {
    fn names(&self) -> Vec<&str> {
        self.headers.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(found, _)| found == name);
        &found.unwrap_or_else(|| panic!("{name} in {self:?}")).1
    }
}

/// A signed request by curl, which this project did not write.
fn signed(emulator: &Emulator, service: &str, path: &str, more: &[&str]) -> Raw {
    let (id, secret) = emulator.keys();
    let shown = run(Command::new("curl")
        .args(["-sS", "-i", "--raw", "--user", &format!("{id}:{secret}")])
        .args(["--aws-sigv4", &format!("aws:amz:us-east-1:{service}")])
        .args(more)
        .arg(format!("{}{path}", emulator.url())));
    let (head, body) = shown.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().to_owned();
    let header = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_owned(), value.to_owned())
    };
    Raw {
        status,
        headers: lines.map(header).collect(),
        body: body.to_owned(),
    }
}

/// Without `Date`, whose place is checked, and numbers that differ from run to run.
const SERVICE: &str = ":http://internal.amazon.com/coral/com.amazon.zeppelindataservice/";
const VALIDATOR: &str = ":http://internal.amazon.com/coral/com.amazon.coral.validate/";

#[test]
fn replies_of_the_direct_apis_are_as_recorded_to_the_header() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0, 3]);
    let id = emulator.snapshot("vol-0a");
    let list = signed(&emulator, "ebs", &format!("/snapshots/{id}/blocks"), &[]);
    let plain = ["x-amzn-RequestId", "Content-Type", "Content-Length", "Date"];
    assert_eq!(list.status, "HTTP/1.1 200 OK");
    assert_eq!(list.names(), plain);
    let shape = list.body.split('"').step_by(2).collect::<String>();
    assert!(
        shape.starts_with("{:524288,:[{:0,:},{:3,:}],:1."),
        "{shape}"
    );
    assert!(shape.contains("E9,:null,:1}"), "{shape}");
    let token = list.body.split("BlockToken\":\"").nth(1).unwrap();
    let token = token.split('"').next().unwrap();
    assert!(token.len() == 95 && token.starts_with("AlMB"), "{token}");

    let path = format!("/snapshots/{id}/blocks/0?blockToken={token}");
    let get = signed(&emulator, "ebs", &path, &["--head", "--request", "GET"]);
    assert_eq!(
        get.names(),
        [
            "x-amzn-RequestId",
            "x-amz-Data-Length",
            "x-amz-Checksum",
            "x-amz-Checksum-Algorithm",
            "Content-Type",
            "Content-Length",
            "Date"
        ]
    );

    let changed = format!("/snapshots/{id}/changedblocks?firstSnapshotId={id}");
    let changed = signed(&emulator, "ebs", &changed, &[]);
    assert_eq!(changed.body, r#"{"ChangedBlocks":[]}"#);

    let refusal = [
        "x-amzn-RequestId",
        "x-amzn-ErrorType",
        "Content-Type",
        "Content-Length",
        "Date",
    ];
    let closing = [&refusal[..], &["Connection"]].concat();
    emulator.set("pending_ms=3600000");
    let pending = emulator.snapshot("vol-0a");
    for (path, status, names, kind, body) in [
        (
            format!("/snapshots/{pending}/blocks"),
            404,
            &refusal[..],
            format!("ResourceNotFoundException{SERVICE}"),
            format!(r#"{{"Message":"The snapshot '{pending}' does not exist.","Reason":"SNAPSHOT_NOT_FOUND"}}"#),
        ),
        (
            format!("/snapshots/{id}/blocks?pageToken=invalid"),
            400,
            &closing[..],
            format!("ValidationException{SERVICE}"),
            r#"{"Message":"The pagination token invalid is invalid.","Reason":"INVALID_PAGE_TOKEN"}"#.to_owned(),
        ),
        (
            format!("/snapshots/{id}/blocks/3?blockToken={token}"),
            400,
            &closing[..],
            format!("ValidationException{SERVICE}"),
            format!(r#"{{"Message":"The block token {token} is invalid.","Reason":"INVALID_BLOCK_TOKEN"}}"#),
        ),
        (
            format!("/snapshots/{id}/blocks?maxResults=99"),
            400,
            &closing[..],
            format!("ValidationException{VALIDATOR}"),
            "{\"message\":\"1 validation error detected: Value '99' at 'maxResults' failed to satisfy constraint: \
             Member must have value greater than or equal to 100\"}"
                .to_owned(),
        ),
        (
            format!("/snapshots/{id}/blocks/-1?blockToken={token}"),
            400,
            &closing[..],
            format!("ValidationException{VALIDATOR}"),
            "{\"message\":\"1 validation error detected: Value '-1' at 'blockIndex' failed to satisfy constraint: \
             Member must have value greater than or equal to 0\"}"
                .to_owned(),
        ),
    ] {
        let reply = signed(&emulator, "ebs", &path, &[]);
        assert!(reply.status.contains(&format!(" {status} ")), "{path}: {reply:?}");
        assert_eq!(reply.names(), names, "{path}");
        assert_eq!(reply.header("x-amzn-ErrorType"), kind, "{path}");
        assert_eq!(reply.body, body, "{path}");
    }
}

#[test]
fn replies_of_ec2_are_as_recorded_to_the_header() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0, 3]);
    let id = emulator.snapshot("vol-0a");
    let describe = |id: &str| {
        let form = format!("Action=DescribeSnapshots&Version=2016-11-15&SnapshotId.1={id}");
        signed(&emulator, "ec2", "/", &["--data", &form])
    };
    let reply = describe(&id);
    let begins = [
        "x-amzn-RequestId",
        "Cache-Control",
        "Strict-Transport-Security",
    ];
    let expected = [
        &begins[..],
        &["Content-Type", "Content-Length", "Date", "Server"],
    ]
    .concat();
    assert_eq!(reply.names(), expected);
    assert_eq!(reply.header("Server"), "AmazonEC2");
    let request = reply.header("x-amzn-RequestId");
    assert!(
        reply
            .body
            .contains(&format!("<requestId>{request}</requestId>"))
    );
    let order = [
        "snapshotId",
        "volumeId",
        "status",
        "startTime",
        "progress",
        "ownerId",
        "volumeSize",
        "description",
        "encrypted",
        "storageTier",
        "transferType",
        "completionTime",
        "fullSnapshotSizeInBytes",
    ];
    let places: Vec<usize> = order
        .iter()
        .map(|name| {
            reply
                .body
                .find(&format!("<{name}>"))
                .unwrap_or_else(|| panic!("{name} in {reply:?}"))
        })
        .collect();
    assert!(places.is_sorted(), "{}", reply.body);
    assert!(
        reply.body.contains("<fullSnapshotSizeInBytes>1048576<"),
        "{}",
        reply.body
    );

    for (id, code, message) in [
        (
            "snap-0123456789abcdef0",
            "InvalidSnapshotID.Malformed",
            "Invalid id: &quot;snap-0123456789abcdef0&quot;",
        ),
        (
            "snap-0400dc0055e85b9bf",
            "InvalidSnapshot.NotFound",
            "The snapshot 'snap-0400dc0055e85b9bf' does not exist.",
        ),
    ] {
        let reply = describe(id);
        assert!(reply.status.contains(" 400 "), "{reply:?}");
        let ends = [
            "Content-Type",
            "Transfer-Encoding",
            "Date",
            "Connection",
            "Server",
        ];
        assert_eq!(reply.names(), [&begins[..], &["vary"], &ends].concat());
        let request = reply.header("x-amzn-RequestId");
        assert!(
            reply
                .body
                .contains(&format!("<RequestID>{request}</RequestID>")),
            "{reply:?}"
        );
        assert!(
            reply
                .body
                .contains(&format!("<Code>{code}</Code><Message>{message}</Message>")),
            "{reply:?}"
        );
    }
}

fn address(emulator: &Emulator) -> SocketAddr {
    emulator
        .url()
        .strip_prefix("http://")
        .unwrap()
        .parse()
        .unwrap()
}

/// The status of a request without a signature.
fn asked(emulator: &Emulator, method: &str, path: &str, headers: &[&str]) -> u16 {
    let mut stream = TcpStream::connect(address(emulator)).unwrap();
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!(
        "{method} /_emulator/{path} HTTP/1.1\r\n{headers}connection: close\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    let reply = String::from_utf8_lossy(&reply);
    reply.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn the_control_endpoint_answers_programs_of_this_machine_and_no_web_page() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0]);
    let id = emulator.snapshot("vol-0a");
    let here = "host: 127.0.0.1:4566";
    for (method, path, headers, status) in [
        ("GET", "", &[here][..], 200),
        ("GET", "counters", &["host: localhost"], 200),
        ("GET", "counters", &["host: rebound.example:4566"], 403),
        (
            "POST",
            "switches?silent=1",
            &[here, "origin: https://example.org"],
            403,
        ),
        ("POST", "switches?deny=ListChangedBlocks", &[here], 400),
        ("POST", "clock?ahead_s=18446744073709551615", &[here], 400),
        (
            "POST",
            "switches?token_life_s=18446744073709551615",
            &[here],
            400,
        ),
        ("POST", "volumes/vol-xyz/snapshot", &[here], 400),
        ("GET", &format!("blocks/{id}/0"), &[here], 403),
        ("GET", "counters", &[here], 200),
    ] {
        let got = asked(&emulator, method, path, headers);
        assert_eq!(got, status, "{method} {path} {headers:?}");
    }
    let path = format!("/_emulator/blocks/{id}/0");
    let block = signed(&emulator, "ebs", &path, &["--head", "--request", "GET"]);
    assert_eq!(block.status, "HTTP/1.1 200 OK");
    let open = Emulator::with(&["--unsigned-blocks", "--synthetic", "snap-0a:1:1000000"]);
    assert_eq!(asked(&open, "GET", "blocks/snap-0a/0", &[here]), 200);
    assert_eq!(
        asked(&open, "GET", "blocks/snap-0a/0", &["host: rebound.example"]),
        403
    );
}

/// A process that ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_printed_environment_wins_over_keys_and_endpoints_that_were_there() {
    let folder = tempfile::tempdir().unwrap();
    let process = Command::new(EBSFS)
        .arg("emulator")
        .arg(folder.path())
        .args(["--listen", "127.0.0.1:0", "--synthetic", "snap-0a:1:1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut process = Killed(process);
    let mut lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
    let lines = [
        lines.next().unwrap().unwrap(),
        lines.next().unwrap().unwrap(),
    ];
    std::fs::write(folder.path().join("env"), lines.join("\n")).unwrap();
    let shown = sh(&format!(
        "export AWS_ACCESS_KEY_ID=AKIAOTHER AWS_SECRET_ACCESS_KEY=other AWS_SESSION_TOKEN=other \
         AWS_ENDPOINT_URL_EC2=http://127.0.0.1:1 AWS_CONFIG_FILE=/nonexistent AWS_EC2_METADATA_DISABLED=true; \
         . {}/env; {EBSFS} ls",
        folder.path().display()
    ));
    assert!(shown.contains("snap-0a"), "{shown}");
}

/// A connection to the control endpoint that stays open.
fn lasting(emulator: &Emulator) -> TcpStream {
    let mut stream = TcpStream::connect(address(emulator)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    write!(
        stream,
        "GET /_emulator/counters HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    )
    .unwrap();
    let mut some = [0; 4096];
    assert!(stream.read(&mut some).unwrap() > 0);
    stream
}

#[test]
fn idle_connections_are_closed_when_asked_and_on_a_schedule() {
    let emulator = Emulator::start();
    let mut some = [0; 64];
    let mut first = lasting(&emulator);
    emulator.post("connections/close");
    assert_eq!(first.read(&mut some).unwrap(), 0, "closed");
    let mut second = lasting(&emulator);
    emulator.set("close_idle_s=1");
    let start = Instant::now();
    assert_eq!(second.read(&mut some).unwrap(), 0, "closed");
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_frozen_connection_is_silent_and_a_new_one_is_not() {
    let emulator = Emulator::start();
    let mut frozen = lasting(&emulator);
    emulator.post("connections/freeze");
    write!(
        frozen,
        "GET /_emulator/counters HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    )
    .unwrap();
    frozen
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    assert!(frozen.read(&mut [0; 64]).is_err(), "nothing comes");
    drop(lasting(&emulator));
}

#[test]
fn a_session_expires_so_many_seconds_after_its_first_request() {
    let emulator = Emulator::with(&["--set", "session_life_s=60"]);
    emulator.make_volume("vol-0a", 2048, [0]);
    let id = emulator.snapshot("vol-0a");
    let (key, secret) = emulator.keys();
    let try_as = |session: &str| {
        let mut ebsfs = emulator.ebsfs(&["blocks", &id]);
        ebsfs
            .env("AWS_ACCESS_KEY_ID", &key)
            .env("AWS_SECRET_ACCESS_KEY", &secret)
            .env("AWS_SESSION_TOKEN", session);
        ends(&mut ebsfs)
    };
    assert_eq!(try_as("one").0, 0);
    // Less than the 5 minutes after which signatures are refused.
    emulator.post("clock?ahead_s=61");
    let (code, said) = try_as("one");
    assert!(code == 4 && said.contains("expired"), "{code} {said}");
    assert_eq!(try_as("two").0, 0);
}

#[test]
fn an_account_of_two_hundred_thousand_snapshots_is_listed_in_pages() {
    let emulator = Emulator::with(&["--set", "account_snapshots=200000"]);
    let page = |token: &str| {
        let form = format!(
            "Action=DescribeSnapshots&Version=2016-11-15&Owner.1=self&MaxResults=1000{token}"
        );
        signed(&emulator, "ec2", "/", &["--data", &form]).body
    };
    let mut next = String::new();
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let body = page(&next);
        let found = body
            .split("<snapshotId>")
            .skip(1)
            .map(|rest| rest.split('<').next().unwrap().to_owned());
        ids.extend(found);
        let token = body
            .split("<nextToken>")
            .nth(1)
            .unwrap()
            .split('<')
            .next()
            .unwrap();
        next = format!(
            "&NextToken={}",
            token.replace('=', "%3D").replace('+', "%2B")
        );
    }
    assert_eq!(ids.len(), 3000);
}

#[test]
fn a_synthetic_volume_changes_from_one_snapshot_to_the_next_as_its_totals_say() {
    let emulator = Emulator::start();
    let volume = "synthetic?id=vol-0a&gib=1&density=200000&seed=7&changed=50000";
    emulator.post(volume);
    let totals = || {
        let url = format!("{}/_emulator/synthetic", emulator.url());
        let shown = run(Command::new("curl").args(["-sSf", &url]));
        let totals: serde_json::Value = serde_json::from_str(&shown).unwrap();
        ["volumes", "snapshots", "written", "freed"].map(|name| totals[name].as_u64().unwrap())
    };
    assert_eq!(totals(), [1, 0, 0, 0]);
    let first = emulator.snapshot("vol-0a");
    let [_, _, held, _] = totals();
    assert!((300..500).contains(&held), "{held} of 2048 blocks");
    let second = emulator.snapshot("vol-0a");
    let [volumes, snapshots, written, freed] = totals();
    assert_eq!((volumes, snapshots), (1, 2));
    // Blocks of a listing, and what reading them all takes.
    let image = emulator.folder.path().join("image.raw");
    let sync = |args: &[&str]| {
        emulator.reset();
        let mut command = emulator.ebsfs(&["sync", "--progress", "none"]);
        run(command.args(args).arg(&image));
        emulator.gets()
    };
    assert_eq!(sync(&[&first]), held);
    assert_eq!(sync(&[&second, "--base", "auto"]), written - held);
    assert!(
        freed > 0 && written > held,
        "{written} written, {freed} freed"
    );
    let mount = emulator.mount(&[&second]);
    assert_same(&image, &mount.disk(&second));
    let again = format!("{}/_emulator/{volume}", emulator.url());
    let refused = run(Command::new("curl").args(["-sS", "-X", "POST", &again]));
    assert!(refused.contains("cannot make vol-0a"), "{refused}");
}
