//! Stores that this project did not write: moto's S3, a folder.

use std::io::{Read, Write};
use std::process::Child;

use super::*;

/// moto's server.
struct MotoServer(Child, String);

impl MotoServer {
    fn start() -> Self {
        let own = rclone().with_file_name("moto_server");
        let program = if own.exists() {
            own
        } else {
            "moto_server".into()
        };
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr();
        let port = port.unwrap().port();
        let process = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        wait_for("moto", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self(process.unwrap(), format!("http://127.0.0.1:{port}"))
    }
}

impl Drop for MotoServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a repository does with a store.
async fn serves(store: &Store, count: usize) {
    let pack = [Bytes::from(vec![1; 1 << 20]), Bytes::from(vec![2; 3000])];
    store.put("packs/0a/x", &pack).await.unwrap();
    assert_eq!(store.get("packs/0a/x").await.unwrap(), pack.concat());
    let part = store.get_range("packs/0a/x", (1 << 20) - 1..(1 << 20) + 1);
    assert_eq!(part.await.unwrap(), &[1u8, 2][..]);
    assert!(
        store
            .put_new("snapshots/a", b"manifest", |_| true)
            .await
            .unwrap()
    );
    assert!(
        !store
            .put_new("snapshots/a", b"another", |_| true)
            .await
            .unwrap()
    );
    assert_eq!(store.head("snapshots/a").await.unwrap().size, 8);
    for at in 0..count {
        store.put(&format!("runs/{at:04}"), &[]).await.unwrap();
    }
    let listed = list(store, "runs").await.unwrap();
    assert_eq!(listed.len(), count);
    assert!(listed.is_sorted());
    assert_eq!(store.delete("runs/0000").await.unwrap(), Deleted::Done);
    assert_eq!(store.delete("runs/0000").await.unwrap(), Deleted::Done);
    assert_eq!(list(store, "runs").await.unwrap().len(), count - 1);
    assert!(list(store, "nothing").await.unwrap().is_empty());
    let absent = store.get("runs/0000").await.unwrap_err();
    assert_eq!(absent.kind(), Kind::NotFound);
}

#[test]
fn motos_s3_serves_a_repository_by_either_version_of_list_objects() {
    let moto = MotoServer::start();
    let address = moto.1.trim_start_matches("http://");
    let mut make = std::net::TcpStream::connect(address).unwrap();
    make.write_all(
        b"PUT /bucket HTTP/1.1\r\nHost: s3\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    )
    .unwrap();
    let mut made = String::new();
    make.read_to_string(&mut made).unwrap();
    assert!(made.starts_with("HTTP/1.1 200"), "{made}");
    for is_list_version_1 in [false, true] {
        let options = S3Options {
            encryption: Some("AES256".into()),
            storage_class: Some("STANDARD_IA".into()),
            is_list_version_1,
            kms_key: None,
        };
        let store = store_at(&moto.1, options);
        wait(async {
            serves(&store, 30).await;
            for folder in ["snapshots", "runs"] {
                for object in list(&store, folder).await.unwrap() {
                    store.delete(&object).await.unwrap();
                }
            }
        });
    }
    #[cfg(feature = "ec2")]
    doctor_reads_the_settings_of_a_bucket(&moto.1);
}

/// A lifecycle rule and Object Lock as moto keeps them. Its answer about versions has the name of another element than AWS's.
#[cfg(feature = "ec2")]
fn doctor_reads_the_settings_of_a_bucket(url: &str) {
    let site = crate::doctor::DoctorSite::new();
    let ebsfs = || {
        let mut command = site.ebsfs();
        command.env("AWS_ENDPOINT_URL_S3", url);
        command
    };
    let rows = |bucket: &str, expected: [(&str, &str, &str); 2]| {
        let address = format!("s3://{bucket}/p");
        run(ebsfs().args(["repository", "init", &address]));
        let verb = ["sync", &site.snapshot, &address];
        let found = crate::doctor::examined(ebsfs(), &[], &verb);
        found.has_no_failed_row();
        for (object, state, words) in expected {
            let row = found.row("store", object);
            assert_eq!(row["state"], state, "{row}");
            assert!(row["seen"].as_str().unwrap().contains(words), "{row}");
        }
    };
    rows(
        "bucket",
        [
            ("lifecycle rules of", "good", "none deletes"),
            ("Object Lock of", "good", "has none"),
        ],
    );
    // moto takes a default retention of an empty bucket with versions alone.
    for (setting, body) in [
        ("", ""),
        (
            "?lifecycle",
            "<LifecycleConfiguration><Rule><ID>a</ID><Filter><Prefix>p/</Prefix></Filter><Status>Enabled</Status>\
             <Expiration><Days>5</Days></Expiration></Rule></LifecycleConfiguration>",
        ),
        (
            "?versioning",
            "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>",
        ),
        (
            "?object-lock",
            "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>\
             <Mode>GOVERNANCE</Mode><Days>7</Days></DefaultRetention></Rule></ObjectLockConfiguration>",
        ),
    ] {
        let url = format!("{url}/locked{setting}");
        let put = ["-sSf", "-X", "PUT", "-H", "Content-Type: application/xml"];
        let mut curl = Command::new("curl");
        run(curl.args(put).args(["--data-binary", body, &url]));
    }
    rows(
        "locked",
        [
            ("lifecycle rules of", "warning", "\"a\" deletes objects"),
            ("Object Lock of", "good", "locked for 7 days (GOVERNANCE)"),
        ],
    );
}

#[test]
fn a_folder_serves_a_repository() {
    let folder = tempfile::tempdir().unwrap();
    let address = format!("file://{}", folder.path().display());
    let store = Store::open(&address.parse().unwrap(), &Connection::new(TIMEOUT)).unwrap();
    wait(serves(&store, 1100));
}
