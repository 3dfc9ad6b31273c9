//! What scripts/bench needs beside an object store.
//!
//! `store delay TARGET MILLISECONDS` listens on loopback, says where, and passes connections on to TARGET, half of the time
//! later in each direction. `store get HOST CONNECTIONS` gets the paths of its standard input over so many connections, and
//! throws them away; it prints seconds and bytes as JSON.

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Pieces on their way in one direction of a connection: 16 MiB.
const PIECES: usize = 256;
const PIECE: usize = 64 << 10;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["delay", target, milliseconds] => {
            let half = Duration::from_micros(milliseconds.parse::<u64>()? * 500);
            runtime.block_on(delay((*target).to_owned(), half))
        }
        ["get", host, connections] => {
            runtime.block_on(get((*host).to_owned(), connections.parse()?))
        }
        // `cargo test` and `cargo bench` run it without arguments.
        _ => Ok(()),
    }
}

async fn delay(target: String, half: Duration) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (near, _) = listener.accept().await?;
        let far = TcpStream::connect(&target).await?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        tokio::spawn(pass(near_in, far_out, half));
        tokio::spawn(pass(far_in, near_out, half));
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, late: Duration) {
    let (pieces, mut came) = mpsc::channel::<(tokio::time::Instant, Vec<u8>)>(PIECES);
    tokio::spawn(async move {
        while let Some((due, piece)) = came.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    });
    loop {
        let mut piece = vec![0; PIECE];
        let Ok(len @ 1..) = from.read(&mut piece).await else {
            return;
        };
        piece.truncate(len);
        let due = tokio::time::Instant::now() + late;
        if pieces.send((due, piece)).await.is_err() {
            return;
        }
    }
}

async fn get(host: String, connections: usize) -> Result<(), Failure> {
    let paths: Vec<String> = std::io::stdin().lock().lines().collect::<Result<_, _>>()?;
    let work = Arc::new((host, paths, AtomicUsize::new(0), AtomicU64::new(0)));
    let start = Instant::now();
    let tasks = (0..connections).map(|_| {
        let work = Arc::clone(&work);
        tokio::spawn(async move {
            let (host, paths, next, bytes) = &*work;
            let stream = TcpStream::connect(host).await?;
            stream.set_nodelay(true)?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                let request = Request::get(path)
                    .header("host", host)
                    .body(Empty::<Bytes>::new())?;
                let reply = sender.send_request(request).await?;
                if !reply.status().is_success() {
                    return Err(format!("{path}: {}", reply.status()).into());
                }
                let mut body = reply.into_body();
                while let Some(frame) = body.frame().await {
                    let len = frame?.data_ref().map_or(0, Bytes::len);
                    bytes.fetch_add(len as u64, Ordering::Relaxed);
                }
            }
            Ok::<(), Failure>(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    println!(
        "{{\"seconds\": {:.3}, \"bytes\": {}}}",
        start.elapsed().as_secs_f64(),
        work.3.load(Ordering::Relaxed)
    );
    Ok(())
}
