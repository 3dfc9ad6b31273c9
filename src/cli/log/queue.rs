//! [`LineQueue`]: a bounded queue of lines and the thread that writes them. A line that does not fit is dropped and counted.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// About a second of `-vv` at 1,000 requests a second, some four lines each: a disk or a terminal may pause that long.
const MAX_LINES: usize = 4096;
/// The most memory of lines that wait: [`MAX_LINES`] of a usual 256 bytes.
const MAX_BYTES: usize = 1 << 20;
/// Pause before the next attempt at a full output that never blocks (O_NONBLOCK).
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// An output of lines.
pub(super) trait LineWriter: Send + 'static {
    /// Writes some of the bytes; it may block.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Opens the output again, by its name.
    fn reopen(&mut self);
}

/// Lines that wait to be written, in order.
#[derive(Debug, Default)]
pub(super) struct LineQueue {
    state: Mutex<QueueState>,
    /// There is something for the thread to do.
    work: Condvar,
    /// The thread has finished something.
    done: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    items: VecDeque<Item>,
    /// Bytes of all lines in `items`.
    bytes: usize,
    /// Lines dropped since the last item.
    dropped: u64,
    reopen: bool,
    is_writing: bool,
    /// Items that the thread has taken: a stuck thread takes none.
    taken: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Item {
    Line(Vec<u8>),
    /// The number of lines that are missing here.
    Gap(u64),
    Reopen,
}

impl QueueState {
    fn has_room(&self, len: usize, part: usize) -> bool {
        self.items.len() < MAX_LINES / part && self.bytes + len <= MAX_BYTES / part
    }

    fn append(&mut self, line: Vec<u8>) {
        if self.dropped > 0 {
            self.items.push_back(Item::Gap(self.dropped));
            self.dropped = 0;
        }
        self.bytes += line.len();
        self.items.push_back(Item::Line(line));
    }

    fn take(&mut self) -> Option<Item> {
        if std::mem::take(&mut self.reopen) {
            return Some(Item::Reopen);
        }
        let item = self.items.pop_front();
        if let Some(Item::Line(line)) = &item {
            self.bytes -= line.len();
        }
        item.or_else(|| match std::mem::take(&mut self.dropped) {
            0 => None,
            dropped => Some(Item::Gap(dropped)),
        })
    }

    fn is_idle(&self) -> bool {
        !self.is_writing && !self.reopen && self.items.is_empty() && self.dropped == 0
    }
}

impl LineQueue {
    /// Appends a line, or drops it if there is no room. It never waits.
    pub(super) fn push(&self, line: Vec<u8>) {
        let mut state = self.state.lock();
        // After a gap lines are taken again once half of the queue is written: one notice for many lines.
        let part = if state.dropped > 0 { 2 } else { 1 };
        if state.has_room(line.len(), part) {
            state.append(line);
            self.work.notify_one();
        } else {
            state.dropped += 1;
        }
    }

    /// Appends a line even if the queue is full.
    pub(super) fn push_always(&self, line: Vec<u8>) {
        self.state.lock().append(line);
        self.work.notify_one();
    }

    /// Drops and counts all lines that wait.
    pub(super) fn drop_all(&self) {
        let mut state = self.state.lock();
        let gaps = std::mem::take(&mut state.items).into_iter();
        let missing = gaps.map(|item| match item {
            Item::Gap(dropped) => dropped,
            Item::Line(_) => 1,
            Item::Reopen => 0,
        });
        state.dropped += missing.sum::<u64>();
        state.bytes = 0;
    }

    /// Opens the output again before the next line.
    pub(super) fn reopen(&self) {
        self.state.lock().reopen = true;
        self.work.notify_one();
    }

    /// Waits until all is written. `false`: the thread took nothing for `stalled`, or not everything within `most`.
    pub(super) fn flush(&self, stalled: Duration, most: Duration) -> bool {
        let end = Instant::now() + most;
        let mut state = self.state.lock();
        let (mut taken, mut since) = (state.taken, Instant::now());
        while !state.is_idle() {
            self.done.wait_until(&mut state, end.min(since + stalled));
            let now = Instant::now();
            if state.taken != taken {
                (taken, since) = (state.taken, now);
            } else if now >= since + stalled {
                return state.is_idle();
            }
            if now >= end {
                return state.is_idle();
            }
        }
        true
    }

    /// Writes lines for ever; `notice` is the line for a gap. A line that fails is dropped and counted.
    pub(super) fn write_to(&self, mut to: impl LineWriter, notice: impl Fn(u64) -> String) {
        let mut lost = 0;
        let mut is_torn = false;
        loop {
            match self.next() {
                Item::Reopen => to.reopen(),
                Item::Gap(dropped) => {
                    lost += dropped;
                    if write_whole(&mut to, notice(lost).as_bytes(), &mut is_torn).is_ok() {
                        lost = 0;
                    }
                }
                Item::Line(line) => {
                    let before = match lost {
                        0 => Ok(()),
                        lost => write_whole(&mut to, notice(lost).as_bytes(), &mut is_torn),
                    };
                    if before.is_ok() {
                        lost = 0;
                    }
                    let written = before.and_then(|()| write_whole(&mut to, &line, &mut is_torn));
                    lost += u64::from(written.is_err());
                }
            }
        }
    }

    /// Waits for the next thing to do.
    fn next(&self) -> Item {
        let mut state = self.state.lock();
        state.is_writing = false;
        loop {
            if let Some(item) = state.take() {
                state.is_writing = true;
                state.taken += 1;
                self.done.notify_all();
                return item;
            }
            self.done.notify_all();
            self.work.wait(&mut state);
        }
    }
}

/// Writes a whole line; it first ends a line that was cut off.
fn write_whole(to: &mut impl LineWriter, line: &[u8], is_torn: &mut bool) -> io::Result<()> {
    if *is_torn {
        write_all(to, b"\n").map_err(|(_, error)| error)?;
        *is_torn = false;
    }
    write_all(to, line).map_err(|(written, error)| {
        *is_torn = written > 0;
        error
    })
}

/// Writes all bytes; an error has the number of bytes written before it.
fn write_all(
    to: &mut impl LineWriter,
    bytes: &[u8],
) -> std::result::Result<(), (usize, io::Error)> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match to.write(rest) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(FULL_PAUSE);
            }
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
