//! An HTTP relay in front of the emulator: it passes requests on as they are and damages replies as a plan says.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::damage::{Fate, Plan};

/// How long an endless body goes on at most, should its reader never leave.
const ENDLESS: Duration = Duration::from_secs(60);

pub struct Relay {
    address: SocketAddr,
    plan: Arc<Mutex<Option<Plan>>>,
}

impl Relay {
    /// A relay to this URL; it runs as long as the process.
    pub fn start(url: &str) -> Self {
        let behind = url.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let plan = Arc::new(Mutex::new(None));
        let shared = Arc::clone(&plan);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                let (behind, plan) = (behind.clone(), Arc::clone(&shared));
                std::thread::spawn(move || {
                    // The end of either side is the end of both.
                    let _ = serve(stream, &behind, &plan);
                });
            }
        });
        Self { address, plan }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, plan: Option<Plan>) {
        // The plan before may set switches back when it is dropped: without the lock.
        let before = std::mem::replace(&mut *self.plan.lock().unwrap(), plan);
        drop(before);
    }
}

/// A message: its lines up to the empty one, and its body.
struct Message {
    head: Vec<String>,
    body: Vec<u8>,
}

impl Message {
    /// Reads one; `None`: the other side is done.
    fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if from.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            head.push(line);
        }
        let mut message = Self {
            head,
            body: Vec::new(),
        };
        if let Some(length) = message.header("content-length") {
            let length = length.parse().map_err(io::Error::other)?;
            message.body.resize(length, 0);
            from.read_exact(&mut message.body)?;
        } else if message.header("transfer-encoding") == Some("chunked") {
            loop {
                let mut line = String::new();
                from.read_line(&mut line)?;
                let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
                let start = message.body.len();
                message.body.resize(start + size, 0);
                from.read_exact(&mut message.body[start..])?;
                from.read_line(&mut line)?;
                if size == 0 {
                    break;
                }
            }
        }
        Ok(Some(message))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.iter().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// Writes it with the length of its body, whatever length it came with.
    fn write(&self, to: &mut impl Write, body: &[u8], length: Option<usize>) -> io::Result<()> {
        let mut text = String::new();
        for line in &self.head {
            let lower = line.to_ascii_lowercase();
            if !lower.starts_with("content-length:") && !lower.starts_with("transfer-encoding:") {
                text.push_str(line);
                text.push_str("\r\n");
            }
        }
        if let Some(length) = length {
            text.push_str(&format!("content-length: {length}\r\n"));
        }
        text.push_str("\r\n");
        to.write_all(text.as_bytes())?;
        to.write_all(body)?;
        to.flush()
    }
}

fn serve(client: TcpStream, behind: &str, plan: &Mutex<Option<Plan>>) -> io::Result<()> {
    client.set_nodelay(true)?;
    let server = TcpStream::connect(behind)?;
    server.set_nodelay(true)?;
    let (mut to_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let (mut client, mut server) = (BufReader::new(client), BufReader::new(server));
    while let Some(request) = Message::read(&mut client)? {
        let length = request.header("content-length").is_some();
        let sent = length.then_some(request.body.len());
        request.write(&mut to_server, &request.body, sent)?;
        let Some(mut reply) = Message::read(&mut server)? else {
            return Ok(());
        };
        let fate = {
            let mut plan = plan.lock().unwrap();
            match (&mut *plan, list_of(&request)) {
                (Some(plan), Some((listing, query, ec2))) => {
                    plan.fate(&listing, &query, ec2, &reply.body)
                }
                _ => Fate::As,
            }
        };
        let closes = reply.header("connection") == Some("close");
        match fate {
            Fate::As => reply.write(&mut to_client, &reply.body, Some(reply.body.len()))?,
            Fate::Replaced(status, body) => {
                reply.head[0] = format!("HTTP/1.1 {status} x");
                let length = (status != 204).then_some(body.len());
                reply.write(&mut to_client, &body, length)?;
            }
            Fate::Cut => {
                let half = &reply.body[..reply.body.len() / 2];
                reply.write(&mut to_client, half, Some(reply.body.len()))?;
                return Ok(());
            }
            Fate::Endless => {
                // Without a length it ends with the connection, and that does not end.
                reply.head.push("connection: close".into());
                reply.write(&mut to_client, &reply.body[..reply.body.len() / 2], None)?;
                let end = std::time::Instant::now() + ENDLESS;
                while std::time::Instant::now() < end {
                    to_client.write_all(&[b' '; 16 << 10])?;
                    std::thread::sleep(Duration::from_millis(1));
                }
                return Ok(());
            }
        }
        if closes {
            return Ok(());
        }
    }
    Ok(())
}

/// The listing that a request is part of, its query, and whether it is EC2's; `None`: it lists nothing.
fn list_of(request: &Message) -> Option<(String, String, bool)> {
    let mut words = request.head.first()?.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    match method {
        "GET" if path.ends_with("/blocks") || path.ends_with("/changedblocks") => {
            Some((path.to_owned(), query.to_owned(), false))
        }
        "POST" if path == "/" => {
            let body = String::from_utf8_lossy(&request.body).into_owned();
            body.contains("Action=DescribeSnapshots")
                .then(|| ("DescribeSnapshots".to_owned(), String::new(), true))
        }
        _ => None,
    }
}
