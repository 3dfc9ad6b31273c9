//! Connections that are open: closed while idle, or frozen, as firewalls and balancers do to pools.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::Emulator;

/// How often the switch is read while it sets no schedule.
const LOOK: Duration = Duration::from_millis(200);

/// All connections of the emulator.
#[derive(Debug)]
pub(super) struct Connections {
    next: AtomicU64,
    /// Connections of smaller numbers are never answered again.
    frozen_below: AtomicU64,
    /// Changes each time that idle connections are to close.
    closing: watch::Sender<u64>,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(1),
            frozen_below: AtomicU64::new(0),
            closing: watch::Sender::new(0),
        }
    }
}

impl Connections {
    /// The number of a new connection, and the signal to close it once it is idle.
    pub(super) fn open(&self) -> (u64, watch::Receiver<u64>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number, self.closing.subscribe())
    }

    /// Closes every connection that serves no request now; the others after their reply.
    pub(super) fn close_idle(&self) {
        self.closing.send_modify(|times| *times += 1);
    }

    /// Never answers again on any connection that is open now.
    pub(super) fn freeze(&self) {
        let next = self.next.load(Ordering::Relaxed);
        self.frozen_below.store(next, Ordering::Relaxed);
    }

    pub(super) fn is_frozen(&self, number: u64) -> bool {
        number < self.frozen_below.load(Ordering::Relaxed)
    }
}

/// Closes idle connections on the schedule that a switch sets, for as long as the emulator runs.
pub(super) async fn keep_schedule(emulator: &Emulator) {
    let mut waited = Duration::ZERO;
    loop {
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
        match emulator.switches().close_idle_s {
            0 => waited = Duration::ZERO,
            every if waited >= Duration::from_secs(every) => {
                waited = Duration::ZERO;
                emulator.connections.close_idle();
            }
            _ => {}
        }
    }
}
