//! Clients of the metrics that are silent, slow, endless or wrong.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::{SERVED, address, ask, scrape};
use crate::support::*;

/// Blocks of the volume with bytes in them.
const BLOCKS: u64 = 20;

/// Asserts that the blocks of an image can be read.
fn assert_read(mount: &Mount, snapshot: &str) {
    for index in 0..BLOCKS {
        let found = read_at(&mount.disk(snapshot), index * BLOCK, BLOCK as usize);
        assert!(found == content("vol-0a", index), "block {index}");
    }
}

/// How many file descriptors a process has.
fn descriptors(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd"))
        .unwrap()
        .count()
}

/// A client that has sent so much, and waits for at most a minute.
fn client(address: SocketAddr, sent: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let limit = Some(Duration::from_secs(60));
    stream.set_read_timeout(limit).unwrap();
    stream.write_all(sent).unwrap();
    stream
}

/// Whether the server ends the connection, with or without a reply.
fn is_ended(mut stream: TcpStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn clients_that_hold_connections_open_keep_neither_readers_nor_a_scrape_out() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..BLOCKS);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&SERVED[..], &[&snapshot]].concat());
    let at = address(&mount.log());
    scrape(at);
    let before = descriptors(mount.process.id());
    let half = b"GET /metrics HTTP/1.1\r\nhost: ";
    let held: Vec<TcpStream> = (0..300)
        .map(|number| client(at, if number % 2 == 0 { b"" } else { half }))
        .collect();
    scrape(at);
    let open = descriptors(mount.process.id());
    assert!(open <= before + 34, "{open} descriptors, {before} before");
    assert_read(&mount, &snapshot);
    // The server ends them all by itself: it does not wait for them.
    assert!(held.into_iter().all(is_ended));
    assert_eq!(emulator.gets(), BLOCKS);
}

#[test]
fn what_is_no_request_for_metrics_is_answered_shortly() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..BLOCKS);
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&SERVED[..], &[&snapshot]].concat());
    let at = address(&mount.log());
    for (request, status) in [
        (&b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..], "404 not found"),
        (
            b"GET /metrics/../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n",
            "404 not found",
        ),
        (
            b"POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n",
            "405 method not allowed",
        ),
        (
            b"DELETE /metrics HTTP/1.1\r\nhost: x\r\n\r\n",
            "405 method not allowed",
        ),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            "400 bad request",
        ),
        (
            b"GET /metrics HTTP/1.1\r\nhost x\r\n\r\n",
            "400 bad request",
        ),
    ] {
        let (head, _) = ask(at, request);
        let words = String::from_utf8_lossy(request);
        assert!(
            head.starts_with(&format!("http/1.1 {status}")),
            "{words}: {head}"
        );
    }
    let (head, body) = ask(at, b"HEAD /metrics HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(
        head.starts_with("http/1.1 200 ok") && body.is_empty(),
        "{head}"
    );
    // A head without end: refused when it is too long.
    let mut endless = client(at, b"GET /metrics HTTP/1.1\r\n");
    let line = b"x-header: nothing that anyone wants to know of\r\n";
    let mut sent = 0;
    while sent < 16 << 20 && endless.write_all(line).is_ok() {
        sent += line.len();
    }
    assert!(sent < 16 << 20 && is_ended(endless));
    scrape(at);
    assert_read(&mount, &snapshot);
}

#[test]
fn an_end_of_the_mount_does_not_wait_for_clients() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, 0..BLOCKS);
    let snapshot = emulator.snapshot("vol-0a");
    let mut mount = emulator.mount(&[&SERVED[..], &[&snapshot]].concat());
    let held = client(address(&mount.log()), b"GET");
    mount.signal("TERM");
    assert_eq!(mount.wait(Duration::from_secs(60)), Some(0));
    assert!(is_ended(held));
}
