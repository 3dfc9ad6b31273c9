//! EC2 as it can be: slow, throttled, hostile, unknowing. A stand-in answers DescribeSnapshots; blocks come from the emulator.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::*;

/// One answer of the stand-in.
struct Answer {
    after: Duration,
    status: u16,
    body: String,
    /// So many bytes more than the body, of nothing.
    padding: u64,
}

/// A page of EC2 with these snapshots and token.
fn page(ids: impl IntoIterator<Item = String>, next: Option<String>) -> Answer {
    let item = |id: String| {
        format!(
            "<item><snapshotId>{id}</snapshotId><volumeId>vol-0c</volumeId><status>completed</status>\
             <startTime>2026-01-01T00:00:00Z</startTime><ownerId>111122223333</ownerId><volumeSize>1</volumeSize>\
             <encrypted>false</encrypted></item>"
        )
    };
    let items: String = ids.into_iter().map(item).collect();
    let next = next.map(|token| format!("<nextToken>{token}</nextToken>"));
    answer(
        200,
        format!(
            "<DescribeSnapshotsResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>x</requestId>\
             <snapshotSet>{items}</snapshotSet>{}</DescribeSnapshotsResponse>",
            next.unwrap_or_default()
        ),
    )
}

fn refusal(status: u16, code: &str, message: &str) -> Answer {
    answer(
        status,
        format!(
            "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>\
             <RequestID>x</RequestID></Response>"
        ),
    )
}

fn answer(status: u16, body: String) -> Answer {
    Answer {
        after: Duration::ZERO,
        status,
        body,
        padding: 0,
    }
}

/// The form of a call: `SnapshotId.1`, `NextToken` and so on.
type Form = Vec<(String, String)>;

fn value<'a>(form: &'a Form, name: &str) -> Option<&'a str> {
    let found = form.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.as_str())
}

/// An EC2 that answers each call by a function of its number and form.
struct StandIn {
    url: String,
    calls: Arc<Mutex<Vec<Form>>>,
}

impl StandIn {
    fn start(answer: impl Fn(usize, &Form) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let calls: Arc<Mutex<Vec<Form>>> = Arc::default();
        let (kept, answer) = (Arc::clone(&calls), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (kept, answer) = (Arc::clone(&kept), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream.unwrap(), &kept, &*answer));
            }
        });
        Self { url, calls }
    }

    fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// `ebsfs` that asks the emulator for blocks and this for descriptions.
    fn ebsfs(&self, emulator: &Emulator, args: &[&str]) -> Command {
        let mut command = emulator.ebsfs(args);
        command.env("AWS_ENDPOINT_URL_EC2", &self.url);
        command
    }
}

fn serve(
    stream: TcpStream,
    calls: &Mutex<Vec<Form>>,
    answer: &(dyn Fn(usize, &Form) -> Answer + Send + Sync),
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut writer = stream;
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(text) = line.strip_prefix("content-length: ") {
                length = text.parse().ok()?;
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let form: Form = form_urlencoded::parse(&body).into_owned().collect();
        let number = {
            let mut calls = calls.lock().unwrap();
            calls.push(form.clone());
            calls.len() - 1
        };
        let answer = answer(number, &form);
        std::thread::sleep(answer.after);
        write!(
            writer,
            "HTTP/1.1 {} X\r\ncontent-type: text/xml\r\ncontent-length: {}\r\n\r\n{}",
            answer.status,
            answer.body.len() as u64 + answer.padding,
            answer.body
        )
        .ok()?;
        let spaces = [b' '; 1 << 16];
        let mut left = answer.padding;
        while left > 0 {
            let now = left.min(spaces.len() as u64);
            writer.write_all(&spaces[..now as usize]).ok()?;
            left -= now;
        }
    }
}

fn id(number: u64) -> String {
    format!("snap-{number:017x}")
}

/// Names in a folder, or the errno.
fn names(folder: &std::path::Path) -> Result<usize, i32> {
    let listed = std::fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let errno = |error: std::io::Error| error.raw_os_error().unwrap();
    listed.map(|names| names.len()).map_err(errno)
}

#[test]
fn a_listing_continues_after_its_reader_is_dropped_and_the_next_one_joins_it() {
    const PAGES: u64 = 20;
    let emulator = Emulator::start();
    let ec2 = StandIn::start(|_, form| {
        let at: u64 = value(form, "NextToken").map_or(0, |token| token.parse().unwrap());
        let next = (at + 1 < PAGES).then(|| (at + 1).to_string());
        Answer {
            after: Duration::from_millis(400),
            ..page((at * 10..(at + 1) * 10).map(id), next)
        }
    });
    let mount = Mount::start(ec2.ebsfs(&emulator, &["mount"]), &["--timeout", "2s"]);
    let folder = mount.point.path().join("snapshots");
    let mut refused = 0;
    let start = Instant::now();
    let listed = loop {
        match names(&folder) {
            Err(libc::EAGAIN) => refused += 1,
            listed => break listed,
        }
        assert!(start.elapsed() < Duration::from_secs(40));
    };
    assert_eq!(listed, Ok(200));
    assert!(refused >= 1, "the listing takes 8 s, a reader 3");
    assert_eq!(ec2.count() as u64, PAGES, "no page twice");
    assert_eq!(names(&folder), Ok(200));
    assert_eq!(ec2.count() as u64, PAGES, "it is shown for a minute");
}

#[test]
fn a_throttled_listing_is_waited_out() {
    let emulator = Emulator::start();
    let throttled_until = Mutex::new(None);
    let ec2 = StandIn::start(move |number, _| {
        if number == 0 {
            return page([id(0)], Some("next".into()));
        }
        let mut until = throttled_until.lock().unwrap();
        let until = until.get_or_insert_with(|| Instant::now() + Duration::from_secs(6));
        if Instant::now() < *until {
            return refusal(503, "RequestLimitExceeded", "Request limit exceeded.");
        }
        page([id(1)], None)
    });
    let listed = run(&mut ec2.ebsfs(&emulator, &["ls", "--json"]));
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    let calls = ec2.count();
    assert!((4..20).contains(&calls), "{calls} calls in 6 s");
}

#[test]
fn page_tokens_that_alternate_end_a_listing() {
    let emulator = Emulator::start();
    let ec2 =
        StandIn::start(|number, _| page([id(number as u64)], Some(["a", "b"][number % 2].into())));
    let (code, said) = ends(&mut ec2.ebsfs(&emulator, &["ls"]));
    assert_eq!(code, 7, "{said}");
    assert!(said.contains("repeats a page token"), "{said}");
    assert_eq!(ec2.count(), 3);
}

#[test]
fn a_reply_without_end_takes_no_memory() {
    let emulator = Emulator::start();
    let ec2 = StandIn::start(|_, _| Answer {
        padding: 1 << 40,
        ..page([], None)
    });
    // It must not take 512 MiB of address space more than it needs at start.
    let mut command = emulator.command("bash");
    command.env("AWS_ENDPOINT_URL_EC2", &ec2.url);
    let line = format!("ulimit -v 2000000; exec {EBSFS} ls");
    let output = command.args(["-c", &line]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("ec2:DescribeSnapshots"), "{said}");
}

#[test]
fn named_snapshots_are_described_by_their_ids_without_those_that_ec2_refuses() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0]);
    let known: Vec<String> = (0..2).map(|_| emulator.snapshot("vol-0a")).collect();
    let absent = id(99);
    let refused = absent.clone();
    let ec2 = StandIn::start(move |_, form| {
        let named = form
            .iter()
            .filter(|(key, _)| key.starts_with("SnapshotId."));
        let ids: Vec<String> = named.map(|(_, id)| id.clone()).collect();
        if ids.contains(&refused) {
            return refusal(
                400,
                "InvalidSnapshotID.Malformed",
                &format!("Invalid id: \"{refused}\""),
            );
        }
        page(ids, None)
    });
    let mut args = vec!["ls", "--json"];
    args.extend(known.iter().map(String::as_str));
    let listed = run(&mut ec2.ebsfs(&emulator, &args));
    assert_eq!(listed.matches("vol-0c").count(), 2);
    let calls = ec2.calls.lock().unwrap().clone();
    assert_eq!(calls.len(), 1, "one call for both");
    let keys = |form: &Form| {
        form.iter()
            .any(|(key, _)| key.starts_with("Filter") || key.starts_with("Owner"))
    };
    assert!(!calls.iter().any(keys), "{calls:?}");
    // One that EC2 does not know: the others are described nevertheless, and it is no reason to leave EC2 alone.
    args.push(&absent);
    let (code, said) = ends(&mut ec2.ebsfs(&emulator, &args));
    assert_eq!(code, 3, "{said}");
    assert!(said.contains(&format!("there is no {absent}")), "{said}");
    let mount = Mount::start(ec2.ebsfs(&emulator, &["mount"]), &["--lazy"]);
    let at = |snapshot: &str| mount.point.path().join("snapshots").join(snapshot);
    assert!(std::fs::metadata(at(&absent)).is_err());
    let json = std::fs::read_to_string(at(&known[0]).join("snapshot.json")).unwrap();
    assert!(json.contains("vol-0c"), "{json}\n{}", mount.log());
}

#[test]
fn an_absent_snapshot_may_be_pending_where_ec2_may_not_be_asked() {
    let emulator = Emulator::start();
    let point = tempfile::tempdir().unwrap();
    let mount = || emulator.ebsfs(&["mount", point.path().to_str().unwrap(), "snap-0123"]);
    // EC2 says that it does not exist: then it is not pending.
    let (code, said) = ends(&mut mount());
    assert_eq!(code, 3, "{said}");
    assert!(!said.contains("pending"), "{said}");
    emulator.set("deny=ec2:DescribeSnapshots");
    let (code, said) = ends(&mut mount());
    assert_eq!(code, 3, "{said}");
    let words =
        "does not exist, or is still pending (EC2 could not be asked: needs ec2:DescribeSnapshots)";
    assert!(said.contains(words), "{said}");
}

#[test]
fn a_first_listing_of_6_seconds_does_not_fail_a_mount() {
    let emulator = Emulator::start();
    let ec2 = StandIn::start(|number, _| Answer {
        // The first answer comes after the first attempt is given up.
        after: Duration::from_millis(if number == 0 { 12_000 } else { 6_500 }),
        ..page([id(1)], None)
    });
    let mount = Mount::start(ec2.ebsfs(&emulator, &["mount"]), &["vol-0c"]);
    assert_eq!(names(&mount.point.path().join("snapshots")), Ok(1));
    assert_eq!(ec2.count(), 2);
}

#[test]
fn a_mount_does_not_wait_for_all_pages_of_a_large_account() {
    let emulator = Emulator::start();
    let ec2 = StandIn::start(|number, _| Answer {
        after: Duration::from_secs(2),
        ..page(
            [id(number as u64)],
            (number < 11).then(|| number.to_string()),
        )
    });
    let start = Instant::now();
    let mount = Mount::start(ec2.ebsfs(&emulator, &["mount"]), &["vol-0c"]);
    assert!(start.elapsed() < Duration::from_secs(20));
    assert!(
        mount.log().contains("still being listed"),
        "{}",
        mount.log()
    );
    assert_eq!(names(&mount.point.path().join("snapshots")), Ok(12));
    assert_eq!(ec2.count(), 12, "one listing");
}
