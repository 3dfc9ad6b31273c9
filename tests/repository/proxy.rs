//! A proxy before an S3 server, or on the way to it, that refuses, lies, cuts and loses as a test wants it.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    /// The server answers it.
    Pass,
    /// An answer of S3 that the server has nothing to do with: status and code.
    Say(u16, &'static str),
    /// 200, and nothing is kept.
    Lie,
    /// Something else is kept than was sent, of the same length.
    Spoil,
    /// Half of the server's answer.
    Cut,
    /// No answer.
    Drop,
}

/// Of a request's first line: verb, path, version.
type Decide = Box<dyn FnMut(&str) -> Fate + Send>;

/// Serves until the test ends.
pub struct Proxy {
    /// HOST:PORT.
    pub address: String,
    decide: Arc<Mutex<Decide>>,
}

impl Proxy {
    pub fn before(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let decide: Arc<Mutex<Decide>> = Arc::new(Mutex::new(Box::new(|_| Fate::Pass)));
        let (server, rules) = (server.to_owned(), Arc::clone(&decide));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (server, rules) = (server.clone(), Arc::clone(&rules));
                // Clients come and go as they please.
                std::thread::spawn(move || {
                    client.and_then(|client| serve(client, &server, &rules))
                });
            }
        });
        Self { address, decide }
    }

    /// What becomes of requests from now on, by their first lines.
    pub fn set(&self, decide: impl FnMut(&str) -> Fate + Send + 'static) {
        *self.decide.lock().unwrap() = Box::new(decide);
    }
}

/// One request, and its connection is closed: so the answer ends where the server ends it.
fn serve(mut client: TcpStream, server: &str, decide: &Mutex<Decide>) -> io::Result<()> {
    let mut request = Vec::new();
    let head = loop {
        let mut byte = [0; 4096];
        let got = client.read(&mut byte)?;
        request.extend_from_slice(&byte[..got]);
        if let Some(end) = request.windows(4).position(|end| end == b"\r\n\r\n") {
            break end;
        }
        if got == 0 {
            return Ok(());
        }
    };
    let text = String::from_utf8_lossy(&request[..head]).into_owned();
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.eq_ignore_ascii_case("content-length")).then(|| value.trim().parse().ok())?
    });
    let whole = head + 4 + length.unwrap_or(0usize);
    let mut body = vec![0; whole - request.len()];
    client.read_exact(&mut body)?;
    request.append(&mut body);
    let fate = decide.lock().unwrap()(text.lines().next().unwrap());
    match fate {
        Fate::Drop => return Ok(()),
        Fate::Lie => {
            return client.write_all(
                b"HTTP/1.1 200 OK\r\nETag: \"0\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
        Fate::Say(status, code) => {
            let body = format!("<Error><Code>{code}</Code><Message>so it is</Message></Error>");
            let head = format!(
                "HTTP/1.1 {status} Said\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let body = if text.starts_with("HEAD ") { "" } else { &body };
            return client.write_all(format!("{head}{body}").as_bytes());
        }
        Fate::Spoil => request[head + 4..].iter_mut().for_each(|byte| *byte ^= 1),
        Fate::Pass | Fate::Cut => {}
    }
    let mut upstream = TcpStream::connect(server)?;
    // To a proxy a whole URL is said, to a server its path.
    let (verb, rest) = text.split_once(' ').unwrap();
    let rest = match rest.strip_prefix("http://") {
        Some(url) => &url[url.find('/').unwrap()..],
        None => rest,
    };
    upstream.write_all(format!("{verb} {rest}").as_bytes())?;
    upstream.write_all(b"\r\nConnection: close")?;
    upstream.write_all(&request[head..])?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    if matches!(fate, Fate::Cut) {
        answer.truncate(answer.len() / 2);
    }
    client.write_all(&answer)
}
