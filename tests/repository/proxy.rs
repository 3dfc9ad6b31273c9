//! A proxy before an S3 server, or on the way to it, that refuses, lies, cuts and loses as a test wants it.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

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

/// What went through a proxy.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// Bytes of requests, and when they came.
    pub up: Vec<(Instant, usize)>,
    /// Bytes of answers.
    pub down: usize,
    /// Requests on their way, and the most of them at once.
    pub now: usize,
    pub most: usize,
}

impl Traffic {
    /// The most bytes of requests that came within a second.
    pub fn most_up_in_a_second(&self) -> usize {
        let within = |from: Instant| {
            let end = from + Duration::from_secs(1);
            let its = self.up.iter().filter(|(at, _)| (from..end).contains(at));
            its.map(|(_, bytes)| bytes).sum::<usize>()
        };
        self.up.iter().map(|(at, _)| within(*at)).max().unwrap_or(0)
    }
}

/// Serves until the test ends.
pub struct Proxy {
    /// HOST:PORT.
    pub address: String,
    rules: Arc<Rules>,
}

struct Rules {
    decide: Mutex<Decide>,
    traffic: Mutex<Traffic>,
    /// How long each request is held.
    pause: Mutex<Duration>,
}

/// A request that is counted until it is dropped.
struct Counted<'a>(&'a Rules);

impl<'a> Counted<'a> {
    fn new(rules: &'a Rules) -> Self {
        let mut traffic = rules.traffic.lock().unwrap();
        traffic.now += 1;
        traffic.most = traffic.most.max(traffic.now);
        Self(rules)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.traffic.lock().unwrap().now -= 1;
    }
}

impl Proxy {
    pub fn before(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let rules = Arc::new(Rules {
            decide: Mutex::new(Box::new(|_| Fate::Pass)),
            traffic: Mutex::default(),
            pause: Mutex::default(),
        });
        let proxy = Self {
            address,
            rules: Arc::clone(&rules),
        };
        let server = server.to_owned();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (server, rules) = (server.clone(), Arc::clone(&rules));
                // Clients come and go as they please.
                std::thread::spawn(move || {
                    client.and_then(|client| serve(client, &server, &rules))
                });
            }
        });
        proxy
    }

    /// How long each request is held from now on, so that several meet.
    pub fn hold(&self, pause: Duration) {
        *self.rules.pause.lock().unwrap() = pause;
    }

    /// What went through since the last call.
    pub fn traffic(&self) -> Traffic {
        std::mem::take(&mut *self.rules.traffic.lock().unwrap())
    }

    /// What becomes of requests from now on, by their first lines.
    pub fn set(&self, decide: impl FnMut(&str) -> Fate + Send + 'static) {
        *self.rules.decide.lock().unwrap() = Box::new(decide);
    }
}

/// One request, and its connection is closed: so the answer ends where the server ends it.
fn serve(mut client: TcpStream, server: &str, rules: &Rules) -> io::Result<()> {
    let mut request = Vec::new();
    let came = |bytes: usize| {
        rules
            .traffic
            .lock()
            .unwrap()
            .up
            .push((Instant::now(), bytes));
    };
    let head = loop {
        let mut byte = [0; 4096];
        let got = client.read(&mut byte)?;
        came(got);
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
    let counted = Counted::new(rules);
    let mut piece = [0; 16 << 10];
    while request.len() < whole {
        let got = client.read(&mut piece)?;
        if got == 0 {
            return Ok(());
        }
        came(got);
        request.extend_from_slice(&piece[..got]);
    }
    let pause = *rules.pause.lock().unwrap();
    std::thread::sleep(pause);
    let fate = rules.decide.lock().unwrap()(text.lines().next().unwrap());
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
    rules.traffic.lock().unwrap().down += answer.len();
    // The client may ask again as soon as it has the answer.
    drop(counted);
    client.write_all(&answer)
}
