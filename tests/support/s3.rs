//! An S3 server in the process of the test: objects in memory, and replies that a test replaces.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use md5::{Digest as _, Md5};

/// A request as the server got it.
#[derive(Clone, Debug)]
pub struct S3Request {
    pub method: String,
    /// Behind the bucket.
    pub key: String,
    pub query: BTreeMap<String, String>,
    /// By names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl S3Request {
    pub fn is_list(&self) -> bool {
        self.method == "GET" && self.key.is_empty() && !self.asks_for_settings()
    }

    /// Whether it asks for settings of the bucket.
    pub fn asks_for_settings(&self) -> bool {
        let settings = ["versioning", "lifecycle", "object-lock"];
        self.key.is_empty() && settings.iter().any(|name| self.query.contains_key(*name))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What the server says.
#[derive(Clone, Debug)]
pub struct S3Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body is sent again and again.
    pub is_endless: bool,
    /// Nothing is said, for this time.
    pub silence: Duration,
}

impl S3Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: vec![("x-amz-request-id".into(), "REQ0123".into())],
            body: body.into(),
            is_endless: false,
            silence: Duration::ZERO,
        }
    }

    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
        Self::new(status, body)
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

type Hook = Box<dyn FnMut(&S3Request) -> Option<S3Reply> + Send>;
type Objects = BTreeMap<String, Vec<u8>>;

/// Serves until the test ends.
pub struct S3Server {
    pub url: String,
    shared: Arc<Shared>,
}

struct Shared {
    objects: Mutex<Objects>,
    hook: Mutex<Hook>,
    seen: Mutex<Vec<S3Request>>,
    /// Bytes of a body that are read in a second; 0 is all at once.
    rate: Mutex<u64>,
}

impl S3Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            objects: Mutex::default(),
            hook: Mutex::new(Box::new(|_| None)),
            seen: Mutex::default(),
            rate: Mutex::new(0),
        });
        let served = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let served = Arc::clone(&served);
                // Clients come and go as they please.
                std::thread::spawn(move || client.and_then(|client| served.serve(client)));
            }
        });
        Self { url, shared }
    }

    /// Replies of the test from now on; none leaves the request to the server.
    pub fn on(&self, hook: impl FnMut(&S3Request) -> Option<S3Reply> + Send + 'static) {
        *self.shared.hook.lock().unwrap() = Box::new(hook);
    }

    pub fn slow(&self, bytes_a_second: u64) {
        *self.shared.rate.lock().unwrap() = bytes_a_second;
    }

    pub fn put(&self, key: &str, bytes: &[u8]) {
        let mut objects = self.shared.objects.lock().unwrap();
        objects.insert(key.to_owned(), bytes.to_vec());
    }

    pub fn object(&self, key: &str) -> Option<Vec<u8>> {
        self.shared.objects.lock().unwrap().get(key).cloned()
    }

    /// The requests since the last call.
    pub fn seen(&self) -> Vec<S3Request> {
        std::mem::take(&mut *self.shared.seen.lock().unwrap())
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        let Some(request) = self.read(&mut client)? else {
            return Ok(());
        };
        self.seen.lock().unwrap().push(request.clone());
        let reply = (*self.hook.lock().unwrap())(&request);
        let reply = reply.unwrap_or_else(|| answer(&mut self.objects.lock().unwrap(), &request));
        std::thread::sleep(reply.silence);
        let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let is_sized = reply
            .headers
            .iter()
            .any(|(name, _)| name == "Content-Length");
        if !reply.is_endless && !is_sized {
            head += &format!("Content-Length: {}\r\n", reply.body.len());
        }
        client.write_all(format!("{head}\r\n").as_bytes())?;
        if request.method == "HEAD" {
            return Ok(());
        }
        client.write_all(&reply.body)?;
        if reply.is_endless {
            loop {
                client.write_all(&reply.body)?;
            }
        }
        Ok(())
    }

    fn read(&self, client: &mut TcpStream) -> io::Result<Option<S3Request>> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 16 << 10];
        let end = loop {
            let got = client.read(&mut buffer)?;
            if got == 0 {
                return Ok(None);
            }
            bytes.extend_from_slice(&buffer[..got]);
            if let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
                break end;
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.lines();
        let mut first = lines.next().unwrap().split(' ');
        let (method, target) = (first.next().unwrap(), first.next().unwrap());
        let headers: BTreeMap<String, String> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let length = headers.get("content-length");
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        let mut body = bytes.split_off(end + 4);
        let rate = *self.rate.lock().unwrap();
        while body.len() < length {
            let got = client.read(&mut buffer)?;
            if got == 0 {
                return Ok(None);
            }
            body.extend_from_slice(&buffer[..got]);
            if let Some(micros) = (got as u64 * 1_000_000).checked_div(rate) {
                std::thread::sleep(Duration::from_micros(micros));
            }
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = path.strip_prefix("/bucket").unwrap_or(path);
        Ok(Some(S3Request {
            method: method.to_owned(),
            key: path.trim_start_matches('/').to_owned(),
            query: form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
            headers,
            body,
        }))
    }
}

/// The ETag of bytes.
pub fn etag(bytes: &[u8]) -> String {
    let hex: String = Md5::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("\"{hex}\"")
}

/// What a sound server answers.
fn answer(objects: &mut Objects, request: &S3Request) -> S3Reply {
    let now = httpdate::fmt_http_date(SystemTime::now());
    let known = objects.get(&request.key).cloned();
    match (&*request.method, known) {
        ("GET", _) if request.asks_for_settings() => {
            S3Reply::error(501, "NotImplemented", "no such call")
        }
        ("GET", _) if request.is_list() => listing(objects, request, 1000),
        ("GET" | "HEAD", Some(bytes)) => {
            let reply = |status, bytes: &[u8]| {
                let reply = S3Reply::new(status, bytes).with("Last-Modified", now.clone());
                let length = bytes.len().to_string();
                reply
                    .with("ETag", etag(bytes))
                    .with("Content-Length", length)
            };
            let Some(range) = request.header("range") else {
                return reply(200, &bytes);
            };
            let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
            let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
            let part = &bytes[from..=to.min(bytes.len() - 1)];
            let range = format!("bytes {from}-{to}/{}", bytes.len());
            reply(206, part).with("Content-Range", range)
        }
        ("GET" | "HEAD", None) => S3Reply::error(404, "NoSuchKey", "no such key"),
        ("PUT", known) => {
            let md5 = BASE64_STANDARD.encode(Md5::digest(&request.body));
            if request
                .header("content-md5")
                .is_some_and(|sent| sent != md5)
            {
                return S3Reply::error(400, "BadDigest", "the MD5 is another");
            }
            if known.is_some() && request.header("if-none-match") == Some("*") {
                return S3Reply::error(412, "PreconditionFailed", "it exists");
            }
            objects.insert(request.key.clone(), request.body.clone());
            S3Reply::new(200, "").with("ETag", etag(&request.body))
        }
        ("DELETE", _) => {
            objects.remove(&request.key);
            S3Reply::new(204, "")
        }
        _ => S3Reply::error(501, "NotImplemented", "no such call"),
    }
}

/// One entry of a listing.
pub fn entry(key: &str, size: usize) -> String {
    format!(
        "<Contents><Key>{key}</Key><LastModified>2026-06-30T12:00:00.000Z</LastModified><Size>{size}</Size></Contents>"
    )
}

/// A listing's reply around what stands in it.
pub fn list_reply(inner: &str) -> S3Reply {
    let body = format!(
        "<?xml version=\"1.0\"?><ListBucketResult><Name>bucket</Name>{inner}</ListBucketResult>"
    );
    S3Reply::new(200, body).with("Content-Type", "application/xml")
}

/// A page of at most `most` keys, of either version of the call; its token is the last key.
pub fn page(objects: &[(String, usize)], request: &S3Request, most: usize) -> S3Reply {
    let is_2 = request
        .query
        .get("list-type")
        .is_some_and(|version| version == "2");
    let from = request
        .query
        .get(if is_2 { "continuation-token" } else { "marker" });
    let prefix = request.query.get("prefix").cloned().unwrap_or_default();
    let rest: Vec<_> = objects
        .iter()
        .filter(|(key, _)| key.starts_with(&prefix) && from.is_none_or(|from| key > from))
        .collect();
    let shown = &rest[..rest.len().min(most)];
    let mut inner: String = shown.iter().map(|(key, size)| entry(key, *size)).collect();
    let is_truncated = rest.len() > shown.len();
    inner += &format!("<IsTruncated>{is_truncated}</IsTruncated>");
    if is_2 {
        inner += &format!("<KeyCount>{}</KeyCount>", shown.len());
    }
    if let (true, true, Some((last, _))) = (is_truncated, is_2, shown.last()) {
        inner += &format!("<NextContinuationToken>{last}</NextContinuationToken>");
    }
    list_reply(&inner)
}

fn listing(objects: &Objects, request: &S3Request, most: usize) -> S3Reply {
    let objects: Vec<_> = objects
        .iter()
        .map(|(key, bytes)| (key.clone(), bytes.len()))
        .collect();
    page(&objects, request, most)
}
