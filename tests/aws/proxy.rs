//! A CONNECT proxy with user and password: every service goes through it, metadata services never.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;

/// What a proxy does with a CONNECT.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Connects,
    Refuses(u16),
}

/// A proxy that connects to whatever is asked for.
struct ConnectProxy {
    port: u16,
    /// The first lines of all requests.
    seen: Arc<Mutex<Vec<String>>>,
}

impl ConnectProxy {
    fn start(manner: Manner, auth: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&seen);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let log = Arc::clone(&log);
                std::thread::spawn(move || through(client, manner, auth, &log));
            }
        });
        Self { port, seen }
    }

    fn seen(&self) -> Vec<String> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

fn through(
    mut client: TcpStream,
    manner: Manner,
    auth: Option<&str>,
    log: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let line = head.lines().next()?.to_owned();
    log.lock().unwrap().push(line.clone());
    let is_known = auth.is_none_or(|auth| {
        head.lines()
            .any(|line| line == format!("Proxy-Authorization: {auth}"))
    });
    let status = match manner {
        Manner::Refuses(status) => status,
        Manner::Connects if !is_known => 407,
        Manner::Connects => 200,
    };
    if status != 200 {
        let reply = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n");
        return client.write_all(reply.as_bytes()).ok();
    }
    let target = line.split(' ').nth(1)?;
    let mut server = TcpStream::connect(target.replace("localhost", "127.0.0.1")).ok()?;
    client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").ok()?;
    let (mut from, mut to) = (client.try_clone().ok()?, server.try_clone().ok()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        to.shutdown(std::net::Shutdown::Write)
    });
    let _ = std::io::copy(&mut server, &mut client);
    client.shutdown(std::net::Shutdown::Write).ok()
}

/// An emulator with TLS, and a command for it that knows the proxy.
fn secure(proxy: &str) -> (crate::tls::Secure, Vec<(String, String)>) {
    let secure = crate::tls::Secure::start();
    let url = secure.url();
    let port = url.rsplit(':').next().unwrap();
    let more = vec![
        (
            "AWS_ENDPOINT_URL".to_owned(),
            format!("https://localhost:{port}"),
        ),
        ("https_proxy".to_owned(), proxy.to_owned()),
        ("NO_PROXY".to_owned(), "10.0.0.0/8,.internal".to_owned()),
    ];
    (secure, more)
}

#[test]
fn a_bundle_and_a_proxy_with_a_password_work_together() {
    // u@x and p w.
    let proxy = ConnectProxy::start(Manner::Connects, Some("Basic dUB4OnAgdw=="));
    let address = format!("http://u%40x:p%20w@127.0.0.1:{}", proxy.port);
    let (secure, more) = secure(&address);
    let (code, said) = ends(secure.ebsfs_without("").args(["ls"]).envs(more.clone()));
    assert_eq!(code, 0, "{said}");
    assert!(
        proxy
            .seen()
            .iter()
            .any(|line| line.starts_with("CONNECT localhost:"))
    );
    let mut command = secure.ebsfs_without("");
    command.envs(more).arg("mount");
    let mount = Mount::start(command, &["snap-0a"]);
    assert_eq!(read_at(&mount.disk("snap-0a"), 0, 512).len(), 512);
    assert!(
        !proxy.seen().is_empty(),
        "a mount goes through the proxy too"
    );
}

#[test]
fn a_proxy_that_refuses_is_named_at_once() {
    for (manner, address, words) in [
        (Manner::Connects, "http://127.0.0.1", "HTTP 407"),
        (Manner::Connects, "http://u:hush@127.0.0.1", "HTTP 407"),
        (Manner::Refuses(403), "http://127.0.0.1", "HTTP 403"),
    ] {
        let proxy = ConnectProxy::start(manner, Some("Basic dUB4OnAgdw=="));
        let (secure, more) = secure(&format!("{address}:{}", proxy.port));
        let point = tempfile::tempdir().unwrap();
        for args in [
            vec!["ls"],
            vec![
                "mount",
                point.path().to_str().unwrap(),
                "snap-0a",
                "--timeout",
                "1h",
            ],
        ] {
            let (code, said) = ends(secure.ebsfs_without("").args(args).envs(more.clone()));
            assert_eq!(code, 4, "{said}");
            let named = format!("the proxy 127.0.0.1:{}", proxy.port);
            assert!(said.contains(words) && said.contains(&named), "{said}");
            assert!(!said.contains("hush"), "{said}");
            // A mount asks EC2 and EBS.
            assert!(proxy.seen().len() <= 2, "asked once");
        }
    }
}

#[test]
fn metadata_services_are_not_proxied_and_exceptions_hold() {
    let person = Person::new();
    person.write(".aws/config", "[profile empty]\noutput = json\n");
    let port = person.emulator.url();
    let port = port.rsplit(':').next().unwrap();
    let url = format!("http://localhost:{port}");
    let with = |exceptions: &str| {
        let mut command = person.ebsfs(&["ls", "--profile", "empty", "--endpoint-url", &url]);
        // Nothing listens there; the metadata service is at 127.0.0.1, which is no exception.
        command.env("HTTP_PROXY", "http://127.0.0.1:9");
        command.env("no_proxy", exceptions);
        // EC2 is asked again for 15 s where nothing answers.
        ends_within(Duration::from_secs(25), &mut command)
    };
    let (code, said) = with("localhost");
    assert_eq!(code, 0, "{said}");
    assert!(
        person.stand.asked().len() >= 3,
        "the instance's role was asked for"
    );
    let (code, said) = with("elsewhere.example");
    assert_eq!(code, 7, "{said}");
    assert!(said.contains("127.0.0.1:9"), "{said}");
}

#[test]
fn plain_http_goes_to_the_proxy_with_its_whole_url() {
    let person = Person::new();
    let profile = person.keys_profile("keys");
    person.write(".aws/config", &profile);
    let server = Server::start(|request| {
        let is_whole = request.path.starts_with("http://ec2.example/");
        let auth = request.header("proxy-authorization") == Some("Basic dTpw");
        let reply = "<DescribeSnapshotsResponse><snapshotSet/></DescribeSnapshotsResponse>";
        if is_whole && auth {
            (200, reply.into())
        } else {
            (407, String::new())
        }
    });
    let mut command = person.ebsfs(&["ls", "--profile", "keys"]);
    command.env("AWS_ENDPOINT_URL_EC2", "http://ec2.example");
    command.env(
        "HTTP_PROXY",
        format!("http://u:p@127.0.0.1:{}", server.port),
    );
    let (code, said) = ends(&mut command);
    assert_eq!(code, 0, "{said}");
}
