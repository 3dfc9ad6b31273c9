//! A private network: AWS, with TLS under a private authority, is reachable only through a CONNECT proxy.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use super::*;
use crate::support::namespaces::NamespacePair;

const FAR: &str = "10.231.7.2";

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A CONNECT proxy with user and password that prints each request's first line.
const PROXY: &str = r#"
# print() writes a line and its end apart, and threads come between.
import base64, socket, sys, threading
want = b"proxy-authorization: basic " + base64.b64encode(b"user:pass word").lower()
def pump(a, b):
    try:
        while data := a.recv(65536): b.sendall(data)
    except OSError: pass
    for s in (a, b):
        try: s.shutdown(socket.SHUT_RDWR)
        except OSError: pass
def serve(client):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        if not byte: return
        head += byte
    line = head.split(b"\r\n")[0].decode()
    if want not in head.lower():
        sys.stdout.write("refused " + line + "\n"); sys.stdout.flush()
        client.sendall(b"HTTP/1.1 407 Who\r\ncontent-length: 0\r\n\r\n"); client.close(); return
    sys.stdout.write(line + "\n"); sys.stdout.flush()
    host, port = line.split(" ")[1].rsplit(":", 1)
    server = socket.create_connection(("127.0.0.1", int(port)))
    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    threading.Thread(target=pump, args=(client, server), daemon=True).start()
    pump(server, client)
listener = socket.create_server(("0.0.0.0", 3128), backlog=256)
sys.stdout.write("ready" + "\n"); sys.stdout.flush()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;

#[test]
fn mount_changes_and_sync_reach_aws_through_a_proxy_alone() {
    // AWS is on the loopback of the far namespace.
    let network = NamespacePair::new("aws", "10.231.7");
    let folder = tempfile::tempdir().unwrap();
    let volumes = folder.path().join("volumes");
    std::fs::create_dir(&volumes).unwrap();
    let volume = std::fs::File::create(volumes.join("vol-0a.raw")).unwrap();
    volume.set_len(1 << 30).unwrap();
    let fill = |index: u64| {
        use std::os::unix::fs::FileExt;
        volume
            .write_all_at(&content("vol-0a", index), index * BLOCK)
            .unwrap();
    };
    (0..4).for_each(fill);
    let mut emulator = NamespacePair::within(&network.far, EBSFS);
    let mut emulator = emulator
        .arg("emulator")
        .arg(folder.path())
        .args(["--listen", "127.0.0.1:7443", "--tls"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(emulator.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let _emulator = Running(emulator);
    let snapshot = || {
        let url = "https://localhost:7443/_emulator/volumes/vol-0a/snapshot";
        let made =
            run(NamespacePair::within(&network.far, "curl").args(["-sfk", "-X", "POST", url]));
        let made: serde_json::Value = serde_json::from_str(&made).unwrap();
        made["snapshot_id"].as_str().unwrap().to_owned()
    };
    let base = snapshot();
    fill(9);
    let head = snapshot();
    let proxy = NamespacePair::within(&network.far, "python3")
        .args(["-c", PROXY])
        .stdout(Stdio::piped())
        .spawn();
    let mut proxy = proxy.unwrap();
    let mut lines = BufReader::new(proxy.stdout.take().unwrap()).lines();
    let _proxy = Running(proxy);
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let log = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&log);
    std::thread::spawn(move || {
        lines
            .map_while(Result::ok)
            .for_each(|line| seen.lock().unwrap().push(line));
    });
    let taken = || std::mem::take(&mut *log.lock().unwrap());

    let ebsfs = |with_proxy: bool| {
        let mut command = NamespacePair::within(&network.near, EBSFS);
        command
            .env("AWS_ENDPOINT_URL", "https://localhost:7443")
            .env("AWS_REGION", "us-east-1")
            .env(
                "AWS_SHARED_CREDENTIALS_FILE",
                folder.path().join("credentials"),
            )
            .env("AWS_CONFIG_FILE", "/nonexistent")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_CA_BUNDLE", folder.path().join("ca.pem"))
            .env("EBSFS_STATE_DIR", folder.path().join("state"));
        if with_proxy {
            let proxy = format!("http://user:pass%20word@{FAR}:3128");
            command.env("HTTPS_PROXY", proxy);
        }
        command
    };
    let output = ebsfs(false).arg("ls").output().unwrap();
    assert_eq!(output.status.code(), Some(7), "there is no other way");

    let listed = run(ebsfs(true).args(["changes", &base, &head]));
    assert!(listed.contains('1'), "{listed}");
    assert!(!taken().is_empty(), "changes");

    let mut command = ebsfs(true);
    command.arg("mount");
    let mount = Mount::start(command, &[&head]);
    let disk = mount.disk(&head);
    for index in [0, 3, 9] {
        let bytes = read_at(&disk, index * BLOCK, BLOCK as usize);
        assert_eq!(bytes, content("vol-0a", index));
    }
    drop(mount);
    assert!(!taken().is_empty(), "mount");

    let image = folder.path().join("image.raw");
    let to_file = ["sync", &head, image.to_str().unwrap(), "--progress", "none"];
    run(ebsfs(true).args(to_file));
    run(ebsfs(true).args([
        "sync",
        image.to_str().unwrap(),
        "ebs:",
        "--progress",
        "none",
    ]));
    let seen = taken();
    assert!(seen.len() >= 2, "{seen:?}");
    assert!(
        seen.iter()
            .all(|line| line == "CONNECT localhost:7443 HTTP/1.1"),
        "{seen:?}"
    );
}
