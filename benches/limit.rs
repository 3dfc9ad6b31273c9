//! The bare limit: what plain hyper reaches against the emulator, without AWS's SDK, signatures, retries or a filesystem.
//!
//! `limit URL SNAPSHOT BLOCKS CONNECTIONS` gets blocks 0 to BLOCKS over so many connections, checks their SHA-256 and
//! throws them away; it prints seconds, bytes and CPU seconds as JSON. `scripts/bench` runs it beside the mount.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;

type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Work {
    host: String,
    snapshot: String,
    blocks: u32,
    next: AtomicU32,
    bytes: AtomicU64,
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [url, snapshot, blocks, connections] = &args[..] else {
        // `cargo test` and `cargo bench` run it without arguments.
        return Ok(());
    };
    let work = Arc::new(Work {
        host: url.trim_start_matches("http://").to_owned(),
        snapshot: snapshot.clone(),
        blocks: blocks.parse()?,
        next: AtomicU32::new(0),
        bytes: AtomicU64::new(0),
    });
    let connections: u32 = connections.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let start = Instant::now();
    runtime.block_on(async {
        let tasks: Vec<_> = (0..connections)
            .map(|_| tokio::spawn(connection(Arc::clone(&work))))
            .collect();
        for task in tasks {
            task.await??;
        }
        Ok::<(), Failure>(())
    })?;
    println!(
        "{{\"seconds\": {:.3}, \"bytes\": {}}}",
        start.elapsed().as_secs_f64(),
        work.bytes.load(Ordering::Relaxed)
    );
    Ok(())
}

async fn connection(work: Arc<Work>) -> Result<(), Failure> {
    let stream = TcpStream::connect(&work.host).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    loop {
        let index = work.next.fetch_add(1, Ordering::Relaxed);
        if index >= work.blocks {
            return Ok(());
        }
        let request = Request::get(format!("/_emulator/blocks/{}/{index}", work.snapshot))
            .header("host", &work.host)
            .body(Empty::<Bytes>::new())?;
        let reply = sender.send_request(request).await?;
        let checksum = reply.headers().get("x-amz-checksum").cloned();
        let found = reply.status().is_success();
        let mut body = reply.into_body();
        let mut hasher = Sha256::new();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            if let Ok(chunk) = frame?.into_data() {
                hasher.update(&chunk);
                bytes += chunk.len() as u64;
            }
        }
        if !found {
            continue;
        }
        let digest = STANDARD.encode(hasher.finalize());
        if checksum.is_none_or(|checksum| checksum.as_bytes() != digest.as_bytes()) {
            return Err(format!("block {index} is wrong").into());
        }
        work.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
