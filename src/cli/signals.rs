//! Signals of verbs that take long.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::error::{Error, Kind, Result};
use crate::target::Stop;

/// The error of a verb that keeps no checkpoint: there is nothing to resume when it is stopped.
pub(super) fn only_read(error: Error) -> Error {
    match error.kind() {
        Kind::Stopped => Error::new(Kind::Stopped, "stopped: nothing was changed"),
        _ => error,
    }
}

/// The first SIGINT or SIGTERM stops the verb (a sync at a checkpoint); the second ends the program.
pub(super) fn listen() -> Result<Stop> {
    let (stop, stopped) = watch::channel(false);
    let failed = |error| Error::with_source(Kind::Io, "cannot take signals", error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    // Asked how far it is before that can be shown: no reason to end.
    let asked = signal(SignalKind::user_defined1()).map_err(failed)?;
    tokio::spawn(async move {
        let _asked = asked;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.send_replace(true) {
                std::process::exit(Kind::Stopped.exit_code().into());
            }
            tracing::info!("stopping; a second signal ends the program at once");
        }
    });
    Ok(Stop::new(stopped))
}
