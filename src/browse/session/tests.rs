//! A thread plays a hostile parser.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream as StdStream;

use super::*;
use crate::block::{Block, BlockIndex, Extent, Geometry};
use crate::source::BlockSource;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

pub(super) const SIZE: u64 = 1000;

/// Reads an answer of one number.
fn number(reader: &mut FrameReader<'_>) -> std::result::Result<u32, BrokenFrame> {
    reader.u32()
}

/// A disk whose bytes are 7, or cannot be read.
pub(super) struct SevenDisk {
    pub(super) fails: bool,
}

impl BlockSource for SevenDisk {
    fn geometry(&self) -> Geometry {
        Geometry::new(SIZE).unwrap()
    }

    fn read_block(&self, _index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        let bytes = Bytes::from(vec![7; 1000]);
        let read = match self.fails {
            false => Ok(Block::Data(bytes, [0; 32])),
            true => Err(Error::new(Kind::Unavailable, "no answer")),
        };
        std::future::ready(read).boxed()
    }

    fn next_extent(&self, _from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
        std::future::ready(Ok(None)).boxed()
    }

    fn is_known_zero(&self, _index: BlockIndex) -> bool {
        false
    }

    fn prefetch(&self, _blocks: &[BlockIndex]) -> usize {
        0
    }
}

pub(super) fn limits() -> SessionLimits {
    SessionLimits {
        processor: Duration::from_secs(5),
        silence: Duration::from_millis(100),
    }
}

/// A session with a thread that does this after each request.
fn session(play: impl Fn(&mut StdStream) + Send + 'static) -> ParserSession {
    session_over(SevenDisk { fails: false }, play)
}

fn session_over(disk: SevenDisk, play: impl Fn(&mut StdStream) + Send + 'static) -> ParserSession {
    let (ours, mut theirs) = StdStream::pair().unwrap();
    std::thread::spawn(move || {
        loop {
            let mut head = [0; 4];
            if theirs.read_exact(&mut head).is_err() {
                return;
            }
            let mut body = vec![0; u32::from_le_bytes(head) as usize];
            theirs.read_exact(&mut body).unwrap();
            play(&mut theirs);
        }
    });
    let image = Arc::new(ImageBytes::new(Arc::new(disk)));
    ParserSession::over(ours, None, image, limits()).unwrap()
}

pub(super) fn send(line: &mut StdStream, frame: FrameWriter) {
    let _ = line.write_all(&frame.finish());
}

fn request() -> FrameWriter {
    let mut request = FrameWriter::new(to_parser::LIST);
    request.u64(1);
    request
}

#[tokio::test]
async fn an_answer_is_read_and_the_image_is_given() {
    let mut session = session(|line| {
        let mut frame = FrameWriter::new(from_parser::READ);
        frame.u64(990);
        frame.u32(10);
        send(line, frame);
        let mut reply = [0; 15];
        line.read_exact(&mut reply).unwrap();
        let mut frame = FrameWriter::new(from_parser::ANSWER);
        frame.bytes(&reply[5..]);
        send(line, frame);
    });
    for _ in 0..2 {
        let found = session
            .ask(request(), |reader| Ok(reader.bytes(100)?.to_vec()))
            .await;
        assert_eq!(found.unwrap(), [7; 10]);
    }
}

#[tokio::test]
async fn a_failed_read_of_the_image_is_the_error_whatever_the_parser_answers() {
    for kind in [
        None,
        Some(FailureKind::Damaged),
        Some(FailureKind::NotFound),
    ] {
        let mut session = session_over(SevenDisk { fails: true }, move |line| {
            let mut frame = FrameWriter::new(from_parser::READ);
            frame.u64(0);
            frame.u32(10);
            send(line, frame);
            let mut reply = [0; 5];
            line.read_exact(&mut reply).unwrap();
            assert_eq!(reply[4], to_parser::UNREADABLE);
            let frame = match kind {
                None => FrameWriter::new(from_parser::ANSWER),
                Some(kind) => {
                    let mut frame = FrameWriter::new(from_parser::FAILED);
                    frame.u8(kind.code());
                    frame.text("the folder is damaged");
                    frame
                }
            };
            send(line, frame);
        });
        for _ in 0..2 {
            let error = session.ask(request(), |_| Ok(())).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable, "{kind:?}");
            assert!(session.is_alive());
        }
    }
}

#[tokio::test]
async fn a_failure_is_an_answer_and_the_next_request_is_answered() {
    let mut session = session(|line| {
        let mut frame = FrameWriter::new(from_parser::FAILED);
        frame.u8(FailureKind::NotFound.code());
        frame.text("no such\x1b[31m file");
        send(line, frame);
    });
    for _ in 0..2 {
        let error = session.ask(request(), |_| Ok(())).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.chain().as_str()),
            (Kind::NotFound, "no such?[31m file")
        );
        assert!(session.is_alive());
    }
}

#[tokio::test]
async fn a_parser_that_breaks_a_rule_is_ended() {
    fn put(line: &mut StdStream, bytes: &[u8]) {
        let _ = line.write_all(bytes);
    }
    fn read(line: &mut StdStream, offset: u64, len: u32) {
        let mut frame = FrameWriter::new(from_parser::READ);
        frame.u64(offset);
        frame.u32(len);
        send(line, frame);
    }
    type Play = fn(&mut StdStream);
    let cases: [(&str, Play); 11] = [
        ("beyond the image", |line| read(line, SIZE, 1)),
        ("over its end", |line| read(line, SIZE - 1, 2)),
        ("at an impossible place", |line| read(line, u64::MAX, 2)),
        ("nothing", |line| read(line, 0, 0)),
        ("too much", |line| read(line, 0, u32::MAX)),
        ("a long frame", |line| put(line, &[0xff; 4])),
        ("an unknown frame", |line| put(line, &[1, 0, 0, 0, 99])),
        ("an empty frame", |line| put(line, &[0; 4])),
        ("a short answer", |line| put(line, &[1, 0, 0, 0, 2])),
        ("too long an answer", |line| {
            put(line, &[6, 0, 0, 0, 2, 0, 0, 0, 0, 1]);
        }),
        ("silence", |_| ()),
    ];
    for (what, play) in cases {
        let mut session = session(play);
        let asked = session.ask(request(), number);
        let error = asked.await.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{what}");
        assert!(!session.is_alive(), "{what}");
        let again = session.ask(request(), number).await.unwrap_err();
        assert_eq!(again.chain(), error.chain(), "{what}");
    }
}

#[tokio::test]
async fn a_parser_that_ends_is_an_error_and_warnings_have_a_limit() {
    let mut ended = session(|line| line.shutdown(std::net::Shutdown::Both).unwrap());
    let error = ended.ask(request(), |_| Ok(())).await.unwrap_err();
    assert!(error.chain().contains("its parser ended"), "{error:?}");
    let mut chatter = session(|line| {
        for _ in 0..=MOST_WARNINGS {
            let mut frame = FrameWriter::new(from_parser::WARNING);
            frame.text("x");
            send(line, frame);
        }
    });
    assert!(chatter.ask(request(), |_| Ok(())).await.is_err());
    assert!(!chatter.is_alive());
}

#[tokio::test]
async fn a_request_that_is_dropped_ends_the_session() {
    let mut session = session(|_| ());
    let asked = session.ask(request(), |_| Ok(()));
    assert!(asked.now_or_never().is_none());
    assert!(!session.is_alive());
}

#[tokio::test]
async fn a_process_that_computes_for_too_long_is_ended() {
    let (ours, theirs) = StdStream::pair().unwrap();
    let child = Command::new("/bin/sh")
        .args(["-c", "while :; do :; done"])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .unwrap();
    let process = ParserProcess {
        child,
        last_words: Arc::default(),
    };
    let image = Arc::new(ImageBytes::new(Arc::new(SevenDisk { fails: false })));
    let limits = SessionLimits {
        processor: Duration::from_millis(200),
        silence: Duration::from_secs(60),
    };
    let mut session = ParserSession::over(ours, Some(process), image, limits).unwrap();
    let error = session.ask(request(), |_| Ok(())).await.unwrap_err();
    assert!(
        error.chain().contains("of work for one answer"),
        "{error:?}"
    );
    let process = session.process.as_mut().unwrap();
    assert!(process.child.try_wait().unwrap().is_some());
}

#[test]
fn processor_time_is_read_behind_the_name_of_the_program() {
    let stat = "12 (a) b (c) R 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20";
    assert_eq!(processor_ticks(stat), Some(42));
    assert_eq!(processor_ticks("12 (x) R 1"), None);
    assert_eq!(processor_ticks(""), None);
}
