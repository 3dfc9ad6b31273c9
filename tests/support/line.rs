//! A slow, long and faulty line to the emulator: a relay that limits bytes a second, delays them, and cuts some connections.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What a line does to the bytes on it.
#[derive(Clone, Copy, Debug)]
pub struct LineFaults {
    /// Bytes a second of all connections together, in each direction.
    pub bytes_per_second: u32,
    /// From one end to the other; a round trip takes twice that.
    pub delay: Duration,
    /// One connection in so many is cut, somewhere in its first mebibyte; 0: none.
    pub cut_one_in: u32,
}

/// The near end of a line. It works until the test's process ends.
pub struct Line {
    pub address: SocketAddr,
}

/// When the next byte may enter each direction of the line.
type Pace = Arc<Mutex<Instant>>;

impl Line {
    /// A line to this address.
    pub fn to(far: SocketAddr, faults: LineFaults, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (up, down): (Pace, Pace) = (
            Arc::new(Mutex::new(Instant::now())),
            Arc::new(Mutex::new(Instant::now())),
        );
        let mut random = fastrand::Rng::with_seed(seed);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(far) else {
                    continue;
                };
                let is_cut = faults.cut_one_in > 0 && random.u32(..faults.cut_one_in) == 0;
                let cut = is_cut.then(|| random.usize(..1 << 20));
                let clone = |stream: &TcpStream| stream.try_clone().unwrap();
                carry(clone(&near), clone(&far), faults, Arc::clone(&up), None);
                carry(far, near, faults, Arc::clone(&down), cut);
            }
        });
        Self { address }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Carries bytes one way; after `cut` of them both ways end.
fn carry(
    mut from: TcpStream,
    mut to: TcpStream,
    faults: LineFaults,
    pace: Pace,
    cut: Option<usize>,
) {
    let (sender, arrivals) = channel::<(Instant, Vec<u8>)>();
    let ends = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || {
        let mut carried = 0;
        let mut bytes = vec![0; 8192];
        while let Ok(count) = from.read(&mut bytes) {
            carried += count;
            if cut.is_some_and(|cut| carried > cut) {
                let _ = (
                    ends.0.shutdown(Shutdown::Both),
                    ends.1.shutdown(Shutdown::Both),
                );
                return;
            }
            let sent = {
                let mut next = pace.lock().unwrap();
                let seconds = count as f64 / f64::from(faults.bytes_per_second);
                *next = (*next).max(Instant::now()) + Duration::from_secs_f64(seconds);
                *next
            };
            thread::sleep(sent.saturating_duration_since(Instant::now()));
            if sender
                .send((sent + faults.delay, bytes[..count].to_vec()))
                .is_err()
                || count == 0
            {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, bytes) in arrivals {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if bytes.is_empty() || to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}
