//! A small HTTP server for stand-ins, and the stand-in for STS, SSO, IMDSv2 and a container's credentials endpoint.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A request as a stand-in sees it.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub path: String,
    pub head: String,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// A field of a form, still escaped.
    pub fn field(&self, name: &str) -> Option<&str> {
        let fields = self.body.split('&');
        fields
            .filter_map(|field| field.split_once('='))
            .find_map(|(found, value)| (found == name).then_some(value))
    }
}

type Handle = dyn Fn(&Request) -> (u16, String) + Send + Sync;

/// Serves until the test ends; each connection has one request.
pub struct Server {
    pub port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(handle: impl Fn(&Request) -> (u16, String) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (handle, log): (Arc<Handle>, _) = (Arc::new(handle), Arc::clone(&seen));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (handle, log) = (Arc::clone(&handle), Arc::clone(&log));
                std::thread::spawn(move || serve(stream, &*handle, &log));
            }
        });
        Self { port, seen }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What was asked since the last call.
    pub fn asked(&self) -> Vec<Request> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

fn serve(mut stream: TcpStream, handle: &Handle, log: &Mutex<Vec<Request>>) {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            break end;
        }
        match stream.read(&mut part) {
            Ok(count @ 1..) => bytes.extend_from_slice(&part[..count]),
            _ => return,
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let mut words = text.split(' ');
    let mut request = Request {
        method: words.next().unwrap().to_owned(),
        path: words.next().unwrap().to_owned(),
        head: text.clone(),
        body: String::new(),
    };
    let length: usize = request
        .header("content-length")
        .unwrap_or("0")
        .parse()
        .unwrap();
    let mut body = bytes.split_off(head + 4);
    while body.len() < length {
        match stream.read(&mut part) {
            Ok(count @ 1..) => body.extend_from_slice(&part[..count]),
            _ => return,
        }
    }
    request.body = String::from_utf8_lossy(&body).into_owned();
    log.lock().unwrap().push(request.clone());
    let (status, body) = handle(&request);
    let kind = if body.starts_with('<') {
        "text/xml"
    } else {
        "application/json"
    };
    let reply = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nx-aws-ec2-metadata-token-ttl-seconds: 21600\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(reply.as_bytes());
}

/// STS, SSO, IMDSv2 and a container's endpoint, all giving the emulator's keys; the session token names who gave them.
pub struct Stand {
    server: Server,
}

impl Stand {
    pub fn new((id, secret): (String, String)) -> Self {
        let server = Server::start(move |request| answer(request, &id, &secret));
        Self { server }
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    /// What was asked since the last call, in short: the STS action and role, or the path.
    pub fn asked(&self) -> Vec<String> {
        let asked = self.server.asked().into_iter();
        asked
            .map(|request| match request.field("Action") {
                Some(action) => {
                    let role = request.field("RoleArn").unwrap_or("?");
                    let role = role.rsplit("%2F").next().unwrap();
                    format!("{action} {role}")
                }
                None => request.path,
            })
            .collect()
    }
}

fn answer(request: &Request, id: &str, secret: &str) -> (u16, String) {
    let path = request.path.split('?').next().unwrap();
    let host = |token: &str| {
        format!(
            r#"{{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"{id}","SecretAccessKey":"{secret}","Token":"{token}","Expiration":"2090-01-01T00:00:00Z","LastUpdated":"2026-01-01T00:00:00Z"}}"#
        )
    };
    let has_token = request.header("x-aws-ec2-metadata-token") == Some("imds");
    match (request.method.as_str(), path) {
        ("POST", "/") => {
            let action = request.field("Action").unwrap();
            let external = request.field("ExternalId").is_none_or(|id| id == "right");
            if !external
                || request
                    .field("WebIdentityToken")
                    .is_some_and(|token| token != "x.y.z")
            {
                let error = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>";
                return (403, error.into());
            }
            let reply = format!(
                "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result><Credentials>\
                 <AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>\
                 <SessionToken>sts</SessionToken><Expiration>2090-01-01T00:00:00Z</Expiration></Credentials>\
                 </{action}Result></{action}Response>"
            );
            (200, reply)
        }
        ("PUT", "/latest/api/token") => (200, "imds".into()),
        ("GET", "/latest/meta-data/placement/region") if has_token => (200, "us-east-1".into()),
        ("GET", "/latest/meta-data/iam/security-credentials/") if has_token => (200, "role".into()),
        ("GET", "/latest/meta-data/iam/security-credentials/role") if has_token => {
            (200, host("instance"))
        }
        ("GET", "/container") => (200, host("container")),
        ("GET", "/federation/credentials") => {
            if request.header("x-amz-sso_bearer_token") != Some("signed-in") {
                return (401, r#"{"message":"no session"}"#.into());
            }
            let reply = format!(
                r#"{{"roleCredentials":{{"accessKeyId":"{id}","secretAccessKey":"{secret}","sessionToken":"sso","expiration":3786912000000}}}}"#
            );
            (200, reply)
        }
        _ => (404, String::new()),
    }
}
