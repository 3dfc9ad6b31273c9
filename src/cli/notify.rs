//! The state of a service for systemd (`Type=notify`): datagrams to the socket of `NOTIFY_SOCKET`, sd_notify(3).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::interval;
use tracing::debug;

/// The socket of the service manager, if there is one.
#[derive(Debug)]
pub(super) struct Notifier(Option<(UnixDatagram, SocketAddr)>);

impl Notifier {
    /// The socket that the environment names.
    pub(super) fn from_environment() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self(None);
        };
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&name),
        };
        let socket = address.and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            // A manager that does not read must not hold up the job.
            socket.set_nonblocking(true)?;
            Ok((socket, address))
        });
        if let Err(error) = &socket {
            debug!("cannot use NOTIFY_SOCKET: {error}");
        }
        Self(socket.ok())
    }

    fn send(&self, lines: &str) {
        let Some((socket, address)) = &self.0 else {
            return;
        };
        if let Err(error) = socket.send_to_addr(lines.as_bytes(), address) {
            debug!("cannot notify the service manager: {error}");
        }
    }

    /// The service is up.
    pub(super) fn ready(&self) {
        self.send("READY=1");
    }

    /// The service ends.
    pub(super) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// What the service does, as `systemctl status` shows it.
    pub(super) fn status(&self, what: &str) {
        self.send(&format!("STATUS={}", what.replace('\n', " ")));
    }

    /// Reports that the program is alive, twice in the time that the service manager gives it; for ever.
    pub(super) async fn keep_alive(&self) {
        let micros = std::env::var("WATCHDOG_USEC").ok();
        let micros = micros.and_then(|text| text.parse::<u64>().ok());
        let is_ours = match std::env::var("WATCHDOG_PID") {
            Ok(pid) => pid == std::process::id().to_string(),
            Err(_) => true,
        };
        let Some(micros) = micros.filter(|micros| *micros > 1 && is_ours) else {
            return std::future::pending().await;
        };
        let mut ticks = interval(Duration::from_micros(micros / 2));
        loop {
            ticks.tick().await;
            self.send("WATCHDOG=1");
        }
    }
}
