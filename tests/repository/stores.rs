//! What S3 servers answer, and what becomes of it: a server in this process that says what a test wants, and moto's.

mod listings;
mod servers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use ebsfs::aws::ServiceConfig;
use ebsfs::error::{Error, Kind};
use ebsfs::repository::{Connection, Deleted, S3Options, Store};
use futures_util::TryStreamExt;

use super::*;
use crate::support::s3::{S3Reply, S3Request, S3Server, etag};

const TIMEOUT: Duration = Duration::from_secs(2);

fn store_at(url: &str, s3_options: S3Options) -> Store {
    let service = ServiceConfig::fixed(url, "us-east-1", KEY, SECRET).unwrap();
    let connection = Connection {
        s3: Some(service),
        s3_options,
        ..Connection::new(TIMEOUT)
    };
    Store::open(&"s3://bucket/p".parse().unwrap(), &connection).unwrap()
}

fn server() -> (S3Server, Store) {
    let server = S3Server::start();
    let store = store_at(&server.url, S3Options::default());
    (server, store)
}

/// The names of a folder's objects.
async fn list(store: &Store, folder: &str) -> Result<Vec<String>, Error> {
    let pages: Vec<_> = store.pages(folder).try_collect().await?;
    Ok(pages
        .into_iter()
        .flatten()
        .map(|object| object.name)
        .collect())
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.unwrap().block_on(work)
}

/// A failure that comes soon, its kind and text.
fn fails<T: std::fmt::Debug>(work: impl Future<Output = Result<T, Error>>) -> (Kind, String) {
    let begun = Instant::now();
    let error = wait(work).unwrap_err();
    assert!(begun.elapsed() < TIMEOUT * 3, "{error:?}");
    (error.kind(), error.chain())
}

#[test]
fn each_put_has_its_md5_and_the_options_and_no_other_checksum() {
    let server = S3Server::start();
    let options = S3Options {
        encryption: Some("aws:kms".into()),
        kms_key: Some("key-1".into()),
        storage_class: Some("STANDARD_IA".into()),
        is_list_version_1: false,
    };
    let store = store_at(&server.url, options);
    let pieces = [Bytes::from(vec![1; 100_000]), Bytes::from(vec![2; 200_000])];
    wait(store.put("packs/a", &pieces)).unwrap();
    wait(store.put("runs/a", &[])).unwrap();
    assert!(wait(store.put_new("snapshots/a", b"manifest", |_| false)).unwrap());
    assert_eq!(server.object("p/packs/a").unwrap(), pieces.concat());
    let seen = server.seen();
    let puts: Vec<_> = seen
        .iter()
        .filter(|request| request.method == "PUT")
        .collect();
    assert_eq!(puts.len(), 3);
    for put in puts {
        assert!(put.header("content-md5").is_some());
        for (name, value) in [
            ("x-amz-server-side-encryption", "aws:kms"),
            ("x-amz-server-side-encryption-aws-kms-key-id", "key-1"),
            ("x-amz-storage-class", "STANDARD_IA"),
        ] {
            assert_eq!(put.header(name), Some(value));
        }
        let names = put.headers.keys();
        let foreign: Vec<_> = names
            .filter(|name| {
                name.contains("checksum") || *name == "x-amz-trailer" || *name == "content-encoding"
            })
            .collect();
        assert!(foreign.is_empty(), "{foreign:?}");
        assert!(put.header("authorization").unwrap().contains("content-md5"));
    }
    // Nothing was read back: the ETag proves it.
    assert!(
        !seen
            .iter()
            .any(|request| request.method == "GET" && request.key == "p/packs/a")
    );
}

#[test]
fn a_name_is_taken_once_whatever_the_store_knows_of_conditions() {
    type Refuse = fn(&S3Request) -> Option<S3Reply>;
    let refuses: [Refuse; 5] = [
        |_| None,
        |_| {
            Some(S3Reply::error(
                501,
                "NotImplemented",
                "a header you provided implies functionality that is not implemented",
            ))
        },
        |_| {
            Some(S3Reply::error(
                400,
                "InvalidArgument",
                "Unsupported header If-None-Match",
            ))
        },
        |_| Some(S3Reply::error(400, "", "")),
        |_| {
            Some(S3Reply::error(
                409,
                "ConditionalRequestConflict",
                "another upload",
            ))
        },
    ];
    for (at, refuse) in refuses.into_iter().enumerate() {
        let (server, store) = server();
        let mut conflicts = 0;
        server.on(move |request| {
            request.header("if-none-match")?;
            conflicts += 1;
            // A conflict is over some time.
            if at == 4 && conflicts > 1 {
                None
            } else {
                refuse(request)
            }
        });
        assert!(
            wait(store.put_new("snapshots/a", b"first", |_| true)).unwrap(),
            "{at}"
        );
        assert!(
            !wait(store.put_new("snapshots/a", b"second", |_| true)).unwrap(),
            "{at}"
        );
        assert_eq!(server.object("p/snapshots/a").unwrap(), b"first");
        // What is damaged is replaced.
        assert!(
            wait(store.put_new("snapshots/a", b"third", |_| false)).unwrap(),
            "{at}"
        );
    }
    // Another writer between the look and the put.
    let (server, store) = server();
    server.on(|request| {
        let is_first = request.header("if-none-match").is_some();
        is_first.then(|| S3Reply::error(412, "PreconditionFailed", "it exists"))
    });
    let (kind, said) = fails(store.put_new("snapshots/a", b"mine", |_| true));
    assert!(
        kind == Kind::Corrupt && said.contains("it is not there"),
        "{said}"
    );
}

#[test]
fn a_refusal_names_its_meaning_the_object_and_the_request_id() {
    let (server, store) = server();
    let cases = [
        (
            301,
            "PermanentRedirect",
            "",
            Kind::Invalid,
            "another Region",
        ),
        (
            307,
            "TemporaryRedirect",
            "",
            Kind::Invalid,
            "another Region",
        ),
        (
            403,
            "InvalidObjectState",
            "the storage class",
            Kind::Denied,
            "archived",
        ),
        (
            403,
            "AccessDenied",
            "no",
            Kind::Denied,
            "lack the permission",
        ),
        (403, "ExpiredToken", "no", Kind::Denied, "have expired"),
        (404, "NoSuchKey", "no", Kind::NotFound, "NoSuchKey"),
        (
            404,
            "NoSuchBucket",
            "no",
            Kind::NotFound,
            "make the bucket first",
        ),
        (
            400,
            "InvalidRequest",
            "so \u{1b}[31mred\r\n",
            Kind::Invalid,
            "so \\u{1b}[31mred",
        ),
        (503, "SlowDown", "slower", Kind::Unavailable, "gave up"),
    ];
    for (status, code, message, kind, words) in cases {
        server.on(move |_| Some(S3Reply::error(status, code, message)));
        for (verb, (got, said)) in [
            ("get", fails(store.get("packs/a"))),
            ("list", fails(list(&store, "packs"))),
            (
                "put",
                fails(store.put("packs/a", &[Bytes::from_static(b"x")])),
            ),
        ] {
            assert_eq!(got, kind, "{said}");
            for needed in [
                words,
                &format!("cannot {verb} s3://bucket/p/packs/"),
                &server.url,
                "REQ0123",
                code,
            ] {
                assert!(said.contains(needed), "{needed}: {said}");
            }
            assert!(!said.contains(SECRET) && said.is_ascii(), "{said}");
        }
    }
    let region =
        S3Reply::error(301, "PermanentRedirect", "").with("x-amz-bucket-region", "eu-central-1");
    server.on(move |_| Some(region.clone()));
    assert!(fails(store.get("packs/a")).1.contains("eu-central-1"));
}

#[test]
fn a_refusal_of_head_is_judged_by_its_status() {
    let (server, store) = server();
    for (status, kind) in [
        (301, Kind::Invalid),
        (400, Kind::Denied),
        (401, Kind::Denied),
        (403, Kind::Denied),
        (404, Kind::NotFound),
        (503, Kind::Unavailable),
    ] {
        server.on(move |_| Some(S3Reply::new(status, "")));
        let (got, said) = fails(store.head("runs/a"));
        assert_eq!(got, kind, "{status}: {said}");
        assert!(said.contains(&format!("HTTP {status}")), "{said}");
    }
}

#[test]
fn a_redirect_is_not_followed() {
    let (server, store) = server();
    let elsewhere = S3Server::start();
    for status in [301, 302, 303, 307, 308] {
        let url = format!("{}/bucket/p/packs/a", elsewhere.url);
        server.on(move |_| Some(S3Reply::new(status, "").with("Location", url.clone())));
        assert_eq!(fails(store.get("packs/a")).0, Kind::Invalid);
        assert_eq!(fails(store.head("packs/a")).0, Kind::Invalid);
        assert_eq!(fails(store.put("packs/a", &[])).0, Kind::Invalid);
    }
    assert!(elsewhere.seen().is_empty());
}

#[test]
fn a_clock_that_is_off_is_corrected_once() {
    for hours in [-1i64, 1] {
        let (server, store) = server();
        server.put("p/packs/a", b"bytes");
        let theirs = move || {
            let off = Duration::from_secs(3600);
            match hours {
                1 => SystemTime::now() + off,
                _ => SystemTime::now() - off,
            }
        };
        server.on(move |request| {
            let signed = request.header("x-amz-date").unwrap();
            let hour = humantime_of(theirs());
            let is_right = signed.starts_with(&hour)
                || signed.starts_with(&humantime_of(theirs() - Duration::from_secs(60)));
            let date = httpdate::fmt_http_date(theirs());
            (!is_right)
                .then(|| S3Reply::error(403, "RequestTimeTooSkewed", "too far").with("Date", date))
        });
        assert_eq!(wait(store.get("packs/a")).unwrap(), "bytes");
        assert_eq!(wait(store.get("packs/a")).unwrap(), "bytes");
        assert_eq!(server.seen().len(), 3);
        // A server that says so of a right clock too is not asked for ever.
        server.on(|_| Some(S3Reply::error(403, "RequestTimeTooSkewed", "too far")));
        let (kind, said) = fails(store.get("packs/a"));
        assert!(
            kind == Kind::Denied && said.contains("the clock is wrong"),
            "{said}"
        );
    }
}

/// Date and minute as in `x-amz-date`.
fn humantime_of(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text[..16].replace(['-', ':'], "")
}

#[test]
fn deletion_skips_locked_objects_and_stops_at_a_missing_permission() {
    let (server, store) = server();
    for (status, code, message) in [
        (
            403,
            "AccessDenied",
            "Access Denied because object protected by object lock.",
        ),
        (
            400,
            "InvalidRequest",
            "Object is WORM protected and cannot be overwritten",
        ),
        (403, "ObjectLocked", "retained"),
        (
            409,
            "FileImmutable",
            "the file is immutable, subject to a retention policy",
        ),
    ] {
        server.on(move |_| Some(S3Reply::error(status, code, message)));
        let deleted = wait(store.delete("packs/a")).unwrap();
        let Deleted::Locked(said) = deleted else {
            panic!("{code}: {deleted:?}");
        };
        assert!(said.contains(code), "{said}");
    }
    server.seen();
    server.on(|_| Some(S3Reply::error(403, "AccessDenied", "Access Denied")));
    assert_eq!(fails(store.delete("packs/a")).0, Kind::Denied);
    let seen = server.seen();
    assert!(seen.len() == 1 && seen[0].method == "DELETE", "{seen:?}");
    server.on(|_| Some(S3Reply::error(404, "NoSuchKey", "")));
    assert_eq!(wait(store.delete("packs/a")).unwrap(), Deleted::Done);
    server.on(|_| None);
    assert_eq!(wait(store.delete("packs/a")).unwrap(), Deleted::Done);
}

#[test]
fn an_object_is_proven_by_etag_or_checksum_before_it_is_read_back() {
    let bytes = Bytes::from_static(b"123456789");
    let head = |tag: String, checksum: Option<&'static str>| {
        let reply = S3Reply::new(200, "")
            .with("ETag", tag)
            .with("Content-Length", "9");
        match checksum {
            Some(sum) => reply
                .with("x-amz-checksum-crc64nvme", sum)
                .with("x-amz-checksum-type", "FULL_OBJECT"),
            None => reply,
        }
    };
    let right = etag(&bytes);
    let foreign = "\"0123456789abcdef0123456789abcdef\"".to_owned();
    for (what, reply, reads, is_kept) in [
        ("its MD5", head(right.clone(), None), false, true),
        (
            "in capitals",
            head(right.to_ascii_uppercase(), None),
            false,
            true,
        ),
        (
            "without quotes",
            head(right.trim_matches('"').to_owned(), None),
            false,
            true,
        ),
        (
            "SSE-KMS",
            head(foreign.clone(), Some("rosUhgp5mIg=")),
            false,
            true,
        ),
        (
            "a wrong checksum",
            head(foreign.clone(), Some("AAAAAAAAAAA=")),
            false,
            false,
        ),
        ("no checksum", head(foreign.clone(), None), true, true),
        (
            "a multipart upload",
            head(format!("{right}-2"), None),
            true,
            true,
        ),
    ] {
        let (server, store) = server();
        let had_mode = Arc::new(AtomicBool::new(false));
        let mode = Arc::clone(&had_mode);
        server.on(move |request| {
            let asks = request.header("x-amz-checksum-mode") == Some("ENABLED");
            mode.fetch_or(asks, Ordering::Relaxed);
            let mut reply = reply.clone();
            reply
                .headers
                .retain(|(name, _)| asks || !name.starts_with("x-amz-checksum"));
            (request.method == "HEAD").then_some(reply)
        });
        let put = wait(store.put("packs/a", std::slice::from_ref(&bytes)));
        assert_eq!(put.is_ok(), is_kept, "{what}: {put:?}");
        let seen = server.seen();
        assert_eq!(
            seen.iter().any(|request| request.method == "GET"),
            reads,
            "{what}"
        );
        let is_md5 = ["its MD5", "in capitals", "without quotes"].contains(&what);
        assert_eq!(had_mode.load(Ordering::Relaxed), !is_md5, "{what}");
    }
}

#[test]
fn part_of_an_object_is_had_from_servers_that_misread_ranges() {
    let (server, store) = server();
    let bytes: Vec<u8> = (0..200).collect();
    server.put("p/packs/a", &bytes);
    let part = || wait(store.get_range("packs/a", 10..20)).unwrap();
    assert_eq!(part(), bytes[10..20]);
    let whole = S3Reply::new(200, bytes.clone());
    server.on(move |_| Some(whole.clone()));
    assert_eq!(part(), bytes[10..20]);
    let mislabelled = S3Reply::new(200, &bytes[10..20]).with("Content-Range", "bytes 10-19/200");
    server.on(move |_| Some(mislabelled.clone()));
    assert_eq!(part(), bytes[10..20]);
    let short = S3Reply::new(206, &bytes[10..15]).with("Content-Range", "bytes 10-14/15");
    server.on(move |_| Some(short.clone()));
    assert_eq!(fails(store.get_range("packs/a", 10..20)).0, Kind::Corrupt);
}

#[test]
fn a_slow_upload_takes_longer_than_the_time_out() {
    let (server, store) = server();
    // More than socket buffers hold, in some three times the time-out.
    server.slow(3 << 20);
    let bytes = Bytes::from(vec![7; 16 << 20]);
    let begun = Instant::now();
    wait(store.put("packs/a", &[bytes])).unwrap();
    assert!(begun.elapsed() > TIMEOUT, "{:?}", begun.elapsed());
    let rate = store.line().upload_rate.unwrap();
    assert!((1 << 20..8 << 20).contains(&rate), "{rate}");
    assert_eq!(
        server
            .seen()
            .iter()
            .filter(|request| request.method == "PUT")
            .count(),
        1
    );
}

#[test]
fn a_silent_server_is_given_up() {
    let (server, store) = server();
    server.on(|_| {
        let mut reply = S3Reply::new(200, "");
        reply.silence = TIMEOUT * 5;
        Some(reply)
    });
    let (kind, said) = fails(store.get("packs/a"));
    assert_eq!(kind, Kind::Unavailable);
    assert!(said.contains("no byte moved"), "{said}");
}

#[test]
fn an_address_is_no_host_of_a_bucket() {
    let server = S3Server::start();
    let port = server.url.rsplit(':').next().unwrap().to_owned();
    server.put("p/packs/a", b"bytes");
    let read = |url: &str, bucket: &str| {
        let connection = Connection {
            s3: Some(ServiceConfig::fixed(url, "us-east-1", KEY, SECRET).unwrap()),
            style: Some(ebsfs::repository::BucketStyle::Host),
            ..Connection::new(TIMEOUT)
        };
        let store = Store::open(&format!("s3://{bucket}/p").parse().unwrap(), &connection);
        wait(store.unwrap().get("packs/a"))
    };
    assert_eq!(
        read(&format!("http://127.0.0.1:{port}"), "bucket").unwrap(),
        "bytes"
    );
    // Nothing answers there; it is asked all the same.
    let refused = read(&format!("http://[::1]:{port}"), "bucket").unwrap_err();
    assert!(
        refused.chain().contains(&format!("[::1]:{port}")),
        "{refused:?}"
    );
    // A wildcard certificate does not cover a bucket with dots.
    let dotted = read("https://localhost:1", "my.bucket")
        .unwrap_err()
        .chain();
    assert!(
        dotted.contains("localhost:1") && !dotted.contains("my.bucket.localhost"),
        "{dotted}"
    );
}

#[test]
fn a_store_without_tls_needs_no_certificates_and_options_of_s3_are_for_s3() {
    let objects = Objects::s3();
    let emulator = Emulator::start();
    let mut look = objects.look(&emulator, &["ls"]);
    look.env("SSL_CERT_FILE", "/dev/null")
        .env("SSL_CERT_DIR", "/nonexistent");
    let (code, said) = ends(&mut look);
    assert!(code == 3 && said.contains("NoSuchKey"), "{said}");
    let folder = Objects::folder();
    for option in [
        ["--sse", "AES256"],
        ["--storage-class", "STANDARD_IA"],
        ["--list-version", "1"],
    ] {
        let (code, said) = ends(folder.look(&emulator, &["prune"]).args(option));
        assert!(code == 2 && said.contains(option[0]), "{said}");
        let (code, said) = ends(objects.look(&emulator, &["prune"]).args(option));
        assert!(code == 3, "{said}");
    }
}
