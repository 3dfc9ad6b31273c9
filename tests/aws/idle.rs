//! A firewall that forgets connections: what was idle is silent from then on.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;

/// A relay to a server; its connections can be silenced.
struct Relay {
    port: u16,
    /// Set for each connection that passes nothing any more.
    muted: Arc<Mutex<Vec<Arc<AtomicBool>>>>,
    accepted: Arc<AtomicUsize>,
}

impl Relay {
    fn before(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let muted: Arc<Mutex<Vec<Arc<AtomicBool>>>> = Arc::default();
        let accepted: Arc<AtomicUsize> = Arc::default();
        let (all, count) = (Arc::clone(&muted), Arc::clone(&accepted));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::Relaxed);
                let is_muted = Arc::new(AtomicBool::new(false));
                all.lock().unwrap().push(Arc::clone(&is_muted));
                let server = TcpStream::connect(&server).unwrap();
                for (from, to) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server, client),
                ] {
                    let is_muted = Arc::clone(&is_muted);
                    std::thread::spawn(move || pump(from, to, &is_muted));
                }
            }
        });
        Self {
            port,
            muted,
            accepted,
        }
    }

    /// Silences all connections that there are.
    fn mute(&self) -> usize {
        let muted = self.muted.lock().unwrap();
        muted
            .iter()
            .for_each(|flag| flag.store(true, Ordering::Relaxed));
        muted.len()
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, is_muted: &AtomicBool) {
    let mut bytes = [0; 8192];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        while is_muted.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_secs(1));
        }
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

#[test]
fn one_silent_connection_condemns_the_idle_ones() {
    let person = Person::new();
    person.write(".aws/config", &person.keys_profile("keys"));
    person.emulator.make_volume("vol-0b", 256, 0..200);
    let snapshot = person.emulator.snapshot("vol-0b");
    person.emulator.set("latency_ms=30");
    let relay = Relay::before(person.emulator.url().replace("http://", ""));
    let mut command = person.ebsfs(&["mount", "--profile", "keys", "--timeout", "60s"]);
    command.env(
        "AWS_ENDPOINT_URL_EBS",
        format!("http://127.0.0.1:{}", relay.port),
    );
    let mount = Mount::start(command, &[&snapshot]);
    let disk = mount.disk(&snapshot);
    // Many readers at once, so that many connections are idle afterwards.
    std::thread::scope(|scope| {
        for reader in 0..24 {
            let disk = &disk;
            scope.spawn(move || read_at(disk, reader * 4 * BLOCK, 4096));
        }
    });
    let idle = relay.mute();
    assert!(idle >= 8, "{idle} connections");
    let since = Instant::now();
    let bytes = read_at(&disk, 150 * BLOCK, 4096);
    let took = since.elapsed();
    assert_eq!(bytes, content("vol-0b", 150)[..4096]);
    // One time-out of 12 s and not one for each idle connection.
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(relay.accepted.load(Ordering::Relaxed) > idle);
}
