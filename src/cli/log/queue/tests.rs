use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(20);

/// A place that blocks while its gate is shut and fails while it is full.
#[derive(Clone, Default)]
struct GatedWriter {
    text: Arc<Mutex<String>>,
    is_shut: Arc<(Mutex<bool>, Condvar)>,
    is_full: Arc<AtomicBool>,
}

impl GatedWriter {
    fn shut(&self, shut: bool) {
        *self.is_shut.0.lock() = shut;
        self.is_shut.1.notify_all();
    }

    fn lines(&self) -> Vec<String> {
        self.text.lock().lines().map(str::to_owned).collect()
    }

    /// A queue whose thread writes here.
    fn queue(&self) -> Arc<LineQueue> {
        let queue = Arc::new(LineQueue::default());
        let (thread, place) = (Arc::clone(&queue), self.clone());
        std::thread::spawn(move || {
            thread.write_to(place, |dropped| format!("{dropped} dropped\n"));
        });
        queue
    }
}

impl LineWriter for GatedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut shut = self.is_shut.0.lock();
        while *shut {
            self.is_shut.1.wait(&mut shut);
        }
        if self.is_full.load(Ordering::SeqCst) {
            // A disk takes a part of what does not fit.
            if bytes.len() > 3 && !self.text.lock().ends_with("lin") {
                self.text
                    .lock()
                    .push_str(std::str::from_utf8(&bytes[..3]).unwrap());
                return Ok(3);
            }
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.text
            .lock()
            .push_str(std::str::from_utf8(bytes).unwrap());
        Ok(bytes.len())
    }

    fn reopen(&mut self) {
        self.text.lock().push_str("reopened\n");
    }
}

fn line(number: usize) -> Vec<u8> {
    format!("line {number}\n").into_bytes()
}

#[test]
fn lines_that_do_not_fit_are_counted_once_and_the_order_stays() {
    let place = GatedWriter::default();
    place.shut(true);
    let queue = place.queue();
    let all = MAX_LINES * 3;
    for number in 0..all {
        queue.push(line(number));
    }
    assert!(!queue.flush(SHORT, LONG), "the place takes nothing");
    place.shut(false);
    assert!(queue.flush(LONG, LONG));
    queue.push(b"after\n".to_vec());
    assert!(queue.flush(LONG, LONG));
    let lines = place.lines();
    let written = lines.iter().filter(|line| line.starts_with("line")).count();
    // The thread holds one line outside the queue, if it was quick.
    assert!((MAX_LINES..=MAX_LINES + 1).contains(&written), "{written}");
    let expected: Vec<String> = (0..written).map(|n| format!("line {n}")).collect();
    assert_eq!(lines[..written], expected);
    let rest = [format!("{} dropped", all - written), "after".to_owned()];
    assert_eq!(lines[written..], rest);
}

#[test]
fn a_notice_stands_where_its_lines_are_missing() {
    let place = GatedWriter::default();
    place.shut(true);
    let queue = place.queue();
    for number in 0..MAX_LINES + 100 {
        queue.push(line(number));
    }
    queue.push_always(b"last\n".to_vec());
    place.shut(false);
    assert!(queue.flush(LONG, LONG));
    let lines = place.lines();
    let end = &lines[lines.len() - 2..];
    assert!(end[0].ends_with(" dropped"), "{end:?}");
    assert_eq!(end[1], "last");
}

#[test]
fn long_lines_are_bounded_by_bytes() {
    let queue = LineQueue::default();
    for _ in 0..100 {
        queue.push(vec![b'x'; MAX_BYTES / 10]);
    }
    let state = queue.state.lock();
    assert!(state.bytes <= MAX_BYTES, "{}", state.bytes);
    assert_eq!((state.items.len(), state.dropped), (10, 90));
}

#[test]
fn lines_are_taken_again_when_half_of_the_queue_is_written() {
    let queue = LineQueue::default();
    for number in 0..=MAX_LINES {
        queue.push(line(number));
    }
    queue.next();
    queue.push(line(0));
    assert_eq!(
        queue.state.lock().dropped,
        2,
        "one free place is too little"
    );
    for _ in 0..MAX_LINES / 2 {
        queue.next();
    }
    queue.push(line(1));
    let state = queue.state.lock();
    assert_eq!(state.dropped, 0);
    let end: Vec<_> = state.items.iter().rev().take(2).collect();
    assert_eq!(end, [&Item::Line(line(1)), &Item::Gap(2)]);
}

#[test]
fn a_full_disk_costs_lines_and_no_more() {
    let place = GatedWriter::default();
    let queue = place.queue();
    place.is_full.store(true, Ordering::SeqCst);
    for number in 0..3 {
        queue.push(line(number));
    }
    assert!(queue.flush(LONG, LONG));
    place.is_full.store(false, Ordering::SeqCst);
    queue.push(b"room\n".to_vec());
    assert!(queue.flush(LONG, LONG));
    assert_eq!(place.lines(), ["lin", "3 dropped", "room"]);
}

#[test]
fn the_last_line_takes_the_room_of_those_that_wait() {
    let place = GatedWriter::default();
    place.shut(true);
    let queue = place.queue();
    for number in 0..10 {
        queue.push(line(number));
    }
    assert!(!queue.flush(SHORT, LONG));
    queue.drop_all();
    queue.push_always(b"last\n".to_vec());
    place.shut(false);
    assert!(queue.flush(LONG, LONG));
    assert_eq!(place.lines(), ["line 0", "9 dropped", "last"]);
}

#[test]
fn a_place_is_opened_again_once() {
    let place = GatedWriter::default();
    place.shut(true);
    let queue = place.queue();
    queue.push(line(0));
    assert!(!queue.flush(SHORT, LONG));
    queue.reopen();
    queue.reopen();
    queue.push(line(1));
    place.shut(false);
    assert!(queue.flush(LONG, LONG));
    assert_eq!(place.lines(), ["line 0", "reopened", "line 1"]);
}
