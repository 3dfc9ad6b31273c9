//! A thread plays a parser that ends at some requests.

use std::io::Read;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::super::tests::{SIZE, SevenDisk, limits, send};
use super::super::{ImageBytes, from_parser};
use super::*;
use crate::browse::{NodeKind, NodeTimes};

const LIMIT: RestartLimit = RestartLimit {
    count: 3,
    within: Duration::from_secs(60),
};
/// What a request about these files does to the parser.
const CRASHES: u64 = 100;
const HANGS: u64 = 101;

fn root(id: u64) -> FsNode {
    FsNode {
        id,
        kind: NodeKind::Folder,
        mode: 0o755,
        uid: 0,
        gid: 0,
        links: 1,
        streams: 0,
        size: 0,
        device: (0, 0),
        times: NodeTimes::default(),
        target: Vec::new(),
    }
}

/// Parsers, and what they were asked.
#[derive(Clone, Default)]
struct Played {
    /// (verb, id) of each request, in order.
    asked: Arc<Mutex<Vec<(u8, u64)>>>,
    parsers: Arc<AtomicUsize>,
    /// The root folder that is found from now on; 0: that of the first time.
    root: Arc<AtomicU64>,
}

impl Played {
    fn count(&self, verb: u8, id: u64) -> usize {
        let asked = self.asked.lock();
        asked.iter().filter(|found| **found == (verb, id)).count()
    }

    fn parsers(&self) -> usize {
        self.parsers.load(Ordering::Relaxed)
    }

    fn answer(&self, line: &mut StdStream, body: &[u8]) -> bool {
        let mut reader = FrameReader::new(body);
        let (verb, id) = (reader.u8().unwrap(), reader.u64().unwrap());
        self.asked.lock().push((verb, id));
        let mut frame = FrameWriter::new(from_parser::ANSWER);
        match (verb, id) {
            (to_parser::OPEN, _) => {
                frame.text("ext4");
                frame.remarks(&FsRemarks::default());
                frame.node(&root(2 + self.root.load(Ordering::Relaxed)));
            }
            (_, CRASHES) => return false,
            (_, HANGS) => return true,
            _ => frame.u64(id),
        }
        send(line, frame);
        true
    }

    fn session(&self) -> LastingSession {
        let played = self.clone();
        let start: SessionStart = Box::new(move || {
            played.parsers.fetch_add(1, Ordering::Relaxed);
            let (ours, mut theirs) = StdStream::pair().unwrap();
            let played = played.clone();
            std::thread::spawn(move || {
                loop {
                    let mut head = [0; 4];
                    if theirs.read_exact(&mut head).is_err() {
                        return;
                    }
                    let mut body = vec![0; u32::from_le_bytes(head) as usize];
                    theirs.read_exact(&mut body).unwrap();
                    if !played.answer(&mut theirs, &body) {
                        return;
                    }
                }
            });
            let image = Arc::new(ImageBytes::new(Arc::new(SevenDisk { fails: false })));
            Ok(ParserSession::over(ours, None, image, limits()).unwrap())
        });
        LastingSession::start(start).unwrap()
    }
}

fn request(id: u64, name: &[u8], at: u64) -> FsRequest {
    FsRequest::new(to_parser::SPANS, id, name).at(at)
}

/// Reads an answer of one number.
fn number(reader: &mut FrameReader<'_>) -> std::result::Result<u64, BrokenFrame> {
    reader.u64()
}

async fn ask(session: &mut LastingSession, request: FsRequest) -> Result<u64> {
    session.ask(request, number).await
}

#[tokio::test]
async fn a_request_that_ends_the_parser_is_sent_once_and_all_others_are_answered() {
    for (hostile, why) in [
        (CRASHES, "its parser ended"),
        (HANGS, "its parser was ended: it was silent"),
    ] {
        let played = Played::default();
        let mut session = played.session();
        session.restart_within(LIMIT);
        session.open(0, 1000).await.unwrap();
        assert_eq!(ask(&mut session, request(7, b"", 0)).await.unwrap(), 7);
        let error = ask(&mut session, request(hostile, b"", 0)).await;
        let error = error.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.chain().contains(why), "{error:?}");
        for at in [0, 4096] {
            let error = ask(&mut session, request(hostile, b"", at)).await;
            let error = error.unwrap_err();
            assert!(error.chain().contains("not sent again"), "{error:?}");
        }
        assert_eq!(ask(&mut session, request(7, b"", 0)).await.unwrap(), 7);
        assert_eq!(played.count(to_parser::SPANS, hostile), 1);
        assert_eq!(played.count(to_parser::OPEN, SIZE), 2);
        assert_eq!(played.parsers(), 2);
    }
}

#[tokio::test]
async fn a_request_for_another_name_in_a_hostile_folder_is_sent() {
    let played = Played::default();
    let mut session = played.session();
    session.restart_within(LIMIT);
    session.open(0, 1000).await.unwrap();
    for name in [&b"a"[..], b"b", b"a"] {
        assert!(ask(&mut session, request(CRASHES, name, 0)).await.is_err());
    }
    assert_eq!(played.count(to_parser::SPANS, CRASHES), 2);
}

#[tokio::test]
async fn after_too_many_restarts_within_the_period_every_request_fails() {
    let played = Played::default();
    let mut session = played.session();
    session.restart_within(LIMIT);
    session.open(0, 1000).await.unwrap();
    for name in 0..=LIMIT.count {
        let name = name.to_string();
        let error = ask(&mut session, request(CRASHES, name.as_bytes(), 0)).await;
        assert!(error.unwrap_err().chain().contains("its parser ended"));
    }
    for _ in 0..3 {
        let error = ask(&mut session, request(7, b"", 0)).await.unwrap_err();
        let what = "cannot read the filesystem any more: its parser ended 4 times within 60 s";
        assert_eq!(error.chain(), what);
    }
    assert_eq!(played.parsers(), 1 + LIMIT.count);
}

#[tokio::test]
async fn a_restarted_parser_refuses_another_filesystem() {
    let played = Played::default();
    let mut session = played.session();
    session.restart_within(LIMIT);
    session.open(0, 1000).await.unwrap();
    assert!(ask(&mut session, request(CRASHES, b"", 0)).await.is_err());
    played.root.store(1, Ordering::Relaxed);
    let error = ask(&mut session, request(7, b"", 0)).await.unwrap_err();
    assert!(error.chain().contains("another one"), "{error:?}");
    assert_eq!(played.count(to_parser::SPANS, 7), 0);
    played.root.store(0, Ordering::Relaxed);
    assert_eq!(ask(&mut session, request(7, b"", 0)).await.unwrap(), 7);
    assert_eq!(played.parsers(), 2);
}

#[test]
fn the_restart_limit_holds_in_every_period() {
    let begin = Instant::now();
    let mut budget = RestartBudget::default();
    for (second, expected) in [
        (0, true),
        (10, true),
        (20, true),
        (30, false),
        (59, false),
        (60, true),
        (61, false),
        (70, true),
        (200, true),
        (200, true),
        (200, true),
        (200, false),
    ] {
        let now = begin + Duration::from_secs(second);
        assert_eq!(budget.take(LIMIT, now), expected, "{second}");
    }
}

#[tokio::test]
async fn a_folder_in_which_every_name_ends_the_parser_is_refused_after_some_names() {
    let played = Played::default();
    let mut session = played.session();
    let limit = RestartLimit { count: 4, ..LIMIT };
    session.restart_within(limit);
    session.open(0, 1000).await.unwrap();
    for name in 0..20u8 {
        let request = FsRequest::new(to_parser::FIND, CRASHES, &[b'a' + name]);
        assert!(ask(&mut session, request).await.is_err());
    }
    assert_eq!(played.count(to_parser::FIND, CRASHES), 3);
    assert_eq!(ask(&mut session, request(7, b"", 0)).await.unwrap(), 7);
}
