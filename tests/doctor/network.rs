//! Names, routes, silent lines, proxies, narrow lines.

use std::process::{Child, Stdio};

use super::*;
use crate::support::namespaces::NamespacePair;

/// A namespace whose only neighbour is another one, where EBS is.
struct Line {
    pair: NamespacePair,
    server: Option<Child>,
}

const FAR: &str = "10.231.9.2";

impl Line {
    fn new() -> Self {
        Self {
            pair: NamespacePair::new("doc", "10.231.9"),
            server: None,
        }
    }

    /// `ebsfs` here, with the environment of a site and EBS at this URL.
    fn ebsfs(&self, site: &DoctorSite, url: &str) -> Command {
        let mut command = NamespacePair::within(&self.pair.near, EBSFS);
        let given = site.ebsfs();
        let given = given
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?)));
        command.envs(given);
        command.env("AWS_ENDPOINT_URL", url);
        command
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

#[test]
fn a_port_that_refuses_and_a_name_without_address_are_the_first_rows() {
    let site = DoctorSite::new();
    let with = |url: &'static str| {
        let site = &site;
        move || {
            let mut command = site.ebsfs();
            command.env("AWS_ENDPOINT_URL_EBS", url);
            command
        }
    };
    let refused = with("http://127.0.0.1:9");
    let found = examined(refused(), &[], &site.mount());
    found.fails(
        "connection",
        "127.0.0.1:9 (EBS)",
        "refuses connections at port 9",
        "correct the URL of AWS_ENDPOINT_URL_EBS",
    );
    // EC2 is at its own place, and well.
    assert_eq!(found.row("answer", "EC2")["state"], "good");
    verb_says(refused(), &site.mount(), 7, "cannot connect to 127.0.0.1:9");
    let nameless = with("http://ebs.invalid:8080");
    let found = examined(nameless(), &[], &site.mount());
    found.fails(
        "name",
        "ebs.invalid:8080 (EBS)",
        "asked ",
        "check the name in AWS_ENDPOINT_URL_EBS",
    );
    assert_eq!(
        found.row("permission", "ebs:ListSnapshotBlocks")["state"],
        "unknown"
    );
    verb_says(
        nameless(),
        &site.mount(),
        7,
        "the name ebs.invalid cannot be resolved",
    );
}

#[test]
fn a_url_for_a_store_that_redirects_ebs_is_named() {
    let site = DoctorSite::new();
    let mut command = site.ebsfs();
    command.env("AWS_ENDPOINT_URL", "http://minio.invalid:9000");
    let found = examined(command, &[], &site.mount());
    found.warns(
        "endpoint",
        "EBS",
        "minio.invalid is no host of AWS",
        "AWS_ENDPOINT_URL_S3=http://minio.invalid:9000",
    );
}

#[test]
fn a_proxy_that_refuses_is_a_row_of_its_own() {
    let site = DoctorSite::new();
    let proxy = crate::aws::server::Server::start(|request| match request.path.contains("deny") {
        true => (403, String::new()),
        false => (407, String::new()),
    });
    for (host, seen, fix) in [
        ("ebs.example", "HTTP 407", "USER:PASSWORD@HOST:PORT"),
        ("deny.example", "HTTP 403", "allow deny.example:443"),
    ] {
        let broken = || {
            let mut command = site.ebsfs();
            command.env("AWS_ENDPOINT_URL_EBS", format!("https://{host}"));
            command.env(
                "HTTPS_PROXY",
                format!("http://u:hush@127.0.0.1:{}", proxy.port),
            );
            command
        };
        let found = examined(broken(), &[], &site.mount());
        found.fails("proxy", &format!("{host}:443 (EBS)"), seen, fix);
        assert!(!found.report.to_string().contains("hush"));
        let near = found.row("connection", &format!("proxy of {host}:443"));
        assert_eq!(near["state"], "good", "{near}");
        verb_says(broken(), &site.mount(), 4, seen);
    }
}

#[test]
fn no_route_split_dns_vanishing_packets_and_a_narrow_line_are_distinguished() {
    let site = DoctorSite::new();
    let line = Line::new();
    let verb = site.mount();
    // No route leads to the documentation network.
    let found = examined(line.ebsfs(&site, "http://192.0.2.9:8080"), &[], &verb);
    found.fails(
        "connection",
        "192.0.2.9:8080",
        "no route to 192.0.2.9",
        "connect the VPN or Direct Connect",
    );
    verb_says(
        line.ebsfs(&site, "http://192.0.2.9:8080"),
        &verb,
        7,
        "cannot connect to 192.0.2.9:8080",
    );

    // systemd-resolved is asked, and knows no server for the name.
    let resolver = site.emulator.folder.path().join("resolv.conf");
    std::fs::write(&resolver, "nameserver 127.0.0.53\n").unwrap();
    let split = || {
        let mut command = line.ebsfs(&site, "http://ebs.corp.example:8080");
        let mut inner = NamespacePair::within(&line.pair.near, "unshare");
        let script = format!(
            "mount --bind {} /etc/resolv.conf && exec {EBSFS} \"$@\"",
            resolver.display()
        );
        inner.args(["--mount", "bash", "-euc", &script, "bash"]);
        let given = command
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        inner.envs(given.collect::<Vec<_>>());
        command = inner;
        command
    };
    let found = examined(split(), &[], &verb);
    found.fails(
        "name",
        "ebs.corp.example",
        "127.0.0.53 (systemd-resolved",
        "resolvectl domain LINK '~corp.example'",
    );

    // A neighbour that is there and takes no packet; and one whose line takes small packets only.
    sh(&format!(
        "ip -n {near} neigh add 10.231.9.77 lladdr 02:00:00:00:00:77 dev {near_link}
         ip -n {near} link set {near_link} gso_max_segs 1 gso_max_size 1500
         ip -n {far} link set {far_link} mtu 1000
         ip -n {far} route change 10.231.9.0/24 dev {far_link} src {FAR} advmss 1460",
        near = line.pair.near,
        far = line.pair.far,
        near_link = line.pair.near_link,
        far_link = line.pair.far_link,
    ));
    // The emulator listens on loopback alone: a server in its namespace.
    let server = NamespacePair::within(&line.pair.far, "python3")
        .args(["-c", SERVER])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = line;
    let mut first = String::new();
    let mut server = server;
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(server.stdout.take().unwrap()),
        &mut first,
    )
    .unwrap();
    line.server = Some(server);
    let (line, site, verb) = (&line, &site, &verb);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let found = examined(line.ebsfs(site, "http://10.231.9.77:443"), &[], verb);
            found.fails(
                "connection",
                "10.231.9.77:443",
                "packets vanish",
                "security group of the VPC endpoint",
            );
        });
        scope.spawn(move || {
            verb_says(
                line.ebsfs(site, "http://10.231.9.77:443"),
                verb,
                7,
                "10.231.9.77:443",
            );
        });
        scope.spawn(move || {
            let found = examined(line.ebsfs(site, &format!("http://{FAR}:8080")), &[], verb);
            found.fails(
                "packets",
                &format!("{FAR}:8080"),
                "MTU black hole",
                "mtu 1300",
            );
            assert_eq!(found.row("answer", FAR)["state"], "good");
        });
    });
}

/// Answers every request with 403 once it has come whole.
const SERVER: &str = r#"
import socket, sys, threading
def serve(client):
    data = b""
    while True:
        part = client.recv(65536)
        if not part: return
        data += part
        head, found, body = data.partition(b"\r\n\r\n")
        if not found: continue
        size = [int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        if len(body) >= (size[0] if size else 0):
            client.sendall(b"HTTP/1.1 403 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"); client.close(); return
listener = socket.create_server(("0.0.0.0", 8080))
sys.stdout.write("ready\n"); sys.stdout.flush()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;
