//! Signals of long-running verbs. A signal that was ignored when the program started (`nohup`, `trap '' INT`) stays ignored.

use std::sync::OnceLock;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::log;
use crate::error::{Error, Kind, Result};
use crate::target::Stop;

/// The error of a verb that keeps no checkpoint: there is nothing to resume when it is stopped.
pub(super) fn only_read(error: Error) -> Error {
    match error.kind() {
        Kind::Stopped => Error::new(Kind::Stopped, "stopped: nothing was changed"),
        _ => error,
    }
}

/// The first SIGINT, SIGTERM or SIGHUP stops the verb (a sync at a checkpoint); the second ends the program.
pub(super) fn listen() -> Result<Stop> {
    listen_with(take(SignalKind::hangup())?)
}

/// The same for a verb that runs for weeks: SIGHUP does not stop it and is the second value.
pub(super) fn listen_for_reloads() -> Result<(Stop, TakenSignal)> {
    let stop = listen_with(TakenSignal(None))?;
    Ok((stop, take(SignalKind::hangup())?))
}

fn listen_with(mut hang_up: TakenSignal) -> Result<Stop> {
    let (stop, stopped) = watch::channel(false);
    let mut interrupt = take(SignalKind::interrupt())?;
    let mut terminate = take(SignalKind::terminate())?;
    // A request for progress before there is any must not end the program.
    let asked = take(SignalKind::user_defined1())?;
    tokio::spawn(async move {
        let _asked = asked;
        loop {
            tokio::select! {
                () = interrupt.received() => {}
                () = terminate.received() => {}
                () = hang_up.received() => {}
            }
            if stop.send_replace(true) {
                log::flush();
                std::process::exit(Kind::Stopped.exit_code().into());
            }
            tracing::info!("stopping; a second signal ends the program at once");
        }
    });
    Ok(Stop::new(stopped))
}

/// A signal that the program handles, unless it was started to ignore it.
#[derive(Debug)]
pub(super) struct TakenSignal(Option<Signal>);

impl TakenSignal {
    /// Waits for the next one; for ever if it is ignored.
    pub(super) async fn received(&mut self) {
        match &mut self.0 {
            // The stream ends with the runtime.
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
}

/// Handles a signal from now on, unless the program was started to ignore it.
///
/// # Errors
/// `Io` when the system refuses it.
pub(super) fn take(kind: SignalKind) -> Result<TakenSignal> {
    // Read once, before the first handler replaces what was inherited.
    static IGNORED: OnceLock<u64> = OnceLock::new();
    let ignored = *IGNORED.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status");
        status.map_or(0, |status| ignored_signals(&status))
    });
    if is_ignored(ignored, kind.as_raw_value()) {
        return Ok(TakenSignal(None));
    }
    let taken =
        signal(kind).map_err(|error| Error::with_source(Kind::Io, "cannot take signals", error))?;
    Ok(TakenSignal(Some(taken)))
}

/// The mask of ignored signals in the text of `/proc/PID/status`; 0 without that line.
fn ignored_signals(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// Bit 0 of the mask is signal 1.
fn is_ignored(mask: u64, signal: i32) -> bool {
    let bit = u32::try_from(signal).ok().and_then(|n| n.checked_sub(1));
    bit.and_then(|bit| mask.checked_shr(bit))
        .is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status_of_the_process() {
        let (hang_up, interrupt, pipe) = (1, 2, 13);
        for (status, ignored) in [
            ("", &[][..]),
            ("Name:\tebsfs\nSigIgn:\t0000000000000000\n", &[]),
            (
                "SigBlk:\t0000000000000003\nSigIgn:\t0000000000001000\n",
                &[pipe],
            ),
            ("SigIgn:\t0000000000001001\n", &[hang_up, pipe]),
            (
                "SigIgn:\t0000000000001003\nSigCgt:\t0000000000000000\n",
                &[hang_up, interrupt, pipe],
            ),
            ("SigIgn:\tnonsense\n", &[]),
        ] {
            let mask = ignored_signals(status);
            for signal in 1..=64 {
                let expected = ignored.contains(&signal);
                assert_eq!(is_ignored(mask, signal), expected, "{status:?} {signal}");
            }
        }
        assert!(!is_ignored(u64::MAX, 0) && !is_ignored(u64::MAX, 65));
    }
}
