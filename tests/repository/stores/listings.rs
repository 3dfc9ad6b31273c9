//! Listings that are whole, and replies that are none.

use super::*;
use crate::support::s3::{entry, list_reply, page};

fn names(count: usize) -> Vec<(String, usize)> {
    (0..count)
        .map(|at| (format!("p/packs/{at:04}"), at))
        .collect()
}

fn listed(store: &Store) -> Vec<String> {
    wait(list(store, "packs")).unwrap()
}

#[test]
fn a_listing_continues_by_token_or_by_marker() {
    let all = names(25);
    let expected: Vec<_> = all.iter().map(|(key, _)| key[2..].to_owned()).collect();
    let (server, store) = server();
    let objects = all.clone();
    server.on(move |request| Some(page(&objects, request, 10)));
    assert_eq!(listed(&store), expected);
    assert!(
        server
            .seen()
            .iter()
            .all(|request| request.query["list-type"] == "2")
    );
    // A server that answers version 1 of the call: there is no token to go on with.
    let objects = all.clone();
    server.on(move |request| {
        let mut request = request.clone();
        request.query.remove("list-type");
        Some(page(&objects, &request, 10))
    });
    assert_eq!(listed(&store), expected);
    let seen = server.seen();
    assert_eq!(seen[1].query["marker"], "p/packs/0009");
    // From now on it is asked for that.
    assert_eq!(listed(&store), expected);
    assert!(
        server
            .seen()
            .iter()
            .all(|request| !request.query.contains_key("list-type"))
    );
}

#[test]
fn list_version_1_is_used_from_the_first_request_when_chosen() {
    let server = S3Server::start();
    let options = S3Options {
        is_list_version_1: true,
        ..S3Options::default()
    };
    let store = store_at(&server.url, options);
    let all = names(12);
    server.on(
        move |request| match request.query.contains_key("list-type") {
            true => Some(S3Reply::error(501, "NotImplemented", "no version 2 here")),
            false => Some(page(&all, request, 5)),
        },
    );
    assert_eq!(listed(&store).len(), 12);
}

#[test]
fn pages_are_requested_one_by_one() {
    let (server, store) = server();
    let all = names(25);
    server.on(move |request| Some(page(&all, request, 10)));
    let sizes: Vec<usize> =
        wait(store.pages("packs").map_ok(|page| page.len()).try_collect()).unwrap();
    assert_eq!(sizes, [10, 10, 5]);
}

#[test]
fn whatever_is_no_listing_is_an_error_and_never_an_empty_listing() {
    let (server, store) = server();
    let whole = "<IsTruncated>false</IsTruncated>";
    let more = "<IsTruncated>true</IsTruncated>";
    let token = "<NextContinuationToken>t</NextContinuationToken>";
    let a = entry("p/packs/a", 1);
    let b = entry("p/packs/b", 1);
    let html = "<!DOCTYPE html><html><body>Welcome</body></html>";
    let error = "<?xml version=\"1.0\"?><Error><Code>InternalError</Code></Error>";
    let cases = [
        (
            "a page that repeats",
            list_reply(&format!("{a}{more}{token}")),
        ),
        ("unsorted", list_reply(&format!("{b}{a}{whole}"))),
        ("twice", list_reply(&format!("{a}{a}{whole}"))),
        (
            "another prefix",
            list_reply(&format!("{}{whole}", entry("q/packs/a", 1))),
        ),
        (
            "another folder",
            list_reply(&format!("{}{whole}", entry("p/packs", 1))),
        ),
        ("no way on", list_reply(more)),
        (
            "an empty token",
            list_reply(&format!(
                "{more}<NextContinuationToken></NextContinuationToken>"
            )),
        ),
        ("not said whether it is whole", list_reply(&a)),
        ("nothing said", list_reply("")),
        (
            "no size",
            list_reply(&format!("{}{whole}", a.replace("<Size>1</Size>", ""))),
        ),
        (
            "no time",
            list_reply(&format!("{}{whole}", a.replace("LastModified", "Other"))),
        ),
        (
            "no key",
            list_reply(&format!("{}{whole}", a.replace("Key>", "Other>"))),
        ),
        (
            "a negative size",
            list_reply(&format!(
                "{}{whole}",
                entry("p/packs/a", 1).replace(">1<", ">-1<")
            )),
        ),
        (
            "HTML",
            S3Reply::new(200, html).with("Content-Type", "text/html"),
        ),
        (
            "an error",
            S3Reply::new(200, error).with("Content-Type", "application/xml"),
        ),
        ("empty", S3Reply::new(200, "")),
        ("JSON", S3Reply::new(200, "{}")),
        ("204", S3Reply::new(204, "")),
        (
            "no end",
            S3Reply::new(200, format!("<ListBucketResult>{whole}")),
        ),
        (
            "another root",
            S3Reply::new(
                200,
                format!("<ListAllMyBucketsResult>{whole}</ListAllMyBucketsResult>"),
            ),
        ),
    ];
    for (what, reply) in cases {
        server.on(move |request| request.is_list().then(|| reply.clone()));
        let (kind, said) = fails(list(&store, "packs"));
        assert_eq!(kind, Kind::Corrupt, "{what}: {said}");
        assert!(said.contains("is not a listing"), "{what}: {said}");
        assert!(
            said.contains("s3://bucket/p/packs/ at http://127"),
            "{what}: {said}"
        );
    }
    // Characters that XML does not have.
    for key in ["p/packs/\u{1}", "p/packs/&#x1;", "p/packs/&#xffff;&bad;"] {
        let reply = list_reply(&format!("{}{whole}", entry(key, 1)));
        server.on(move |request| request.is_list().then(|| reply.clone()));
        match wait(list(&store, "packs")) {
            Ok(objects) => assert_eq!(objects.len(), 1, "{key:?}"),
            Err(error) => assert_eq!(error.kind(), Kind::Corrupt, "{error:?}"),
        }
    }
}

#[test]
fn a_reply_without_end_is_an_error() {
    let (server, store) = server();
    let endless = |status, what: String| {
        let mut reply = S3Reply::new(status, what);
        reply.is_endless = true;
        reply
    };
    let reply = endless(200, entry("p/packs/a", 1).repeat(1000));
    server.on(move |_| Some(reply.clone()));
    let (kind, said) = fails(list(&store, "packs"));
    assert!(
        kind == Kind::Corrupt && said.contains("does not end"),
        "{said}"
    );
    let reply = endless(400, "x".repeat(10_000));
    server.on(move |_| Some(reply.clone()));
    let (kind, said) = fails(store.get("packs/a"));
    assert!(
        kind == Kind::Corrupt && said.contains("does not end"),
        "{said}"
    );
    let reply = endless(200, "x".repeat(1 << 20));
    server.on(move |_| Some(reply.clone()));
    let (kind, said) = fails(store.get("packs/a"));
    assert!(
        kind == Kind::Corrupt && said.contains("does not end"),
        "{said}"
    );
}
