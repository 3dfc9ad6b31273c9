//! Repositories: a bucket that is missing or elsewhere, a role that only reads, Object Lock.

use super::*;
use crate::support::s3::{S3Reply, S3Request, S3Server};

/// A repository in a server of the test, and a sync to it.
struct Bucket {
    site: DoctorSite,
    server: S3Server,
}

impl Bucket {
    fn new() -> Self {
        let (site, server) = (DoctorSite::new(), S3Server::start());
        let bucket = Self { site, server };
        run(bucket.ebsfs().args(["repository", "init", "s3://bucket/p"]));
        bucket
    }

    fn ebsfs(&self) -> Command {
        let mut command = self.site.ebsfs();
        command.env("AWS_ENDPOINT_URL_S3", &self.server.url);
        command
    }

    fn sync(&self) -> Vec<&str> {
        vec![
            "sync",
            &self.site.snapshot,
            "s3://bucket/p",
            "--timeout",
            "2s",
            "--progress",
            "none",
        ]
    }

    /// Requests with this method are refused.
    fn refuse(&self, method: &'static str, status: u16, code: &'static str, message: &'static str) {
        self.server.on(move |request| {
            (request.method == method).then(|| S3Reply::error(status, code, message))
        });
    }
}

#[test]
fn writes_to_a_store_are_tried_only_when_allowed_and_leave_nothing() {
    let bucket = Bucket::new();
    bucket.server.seen();
    let found = examined(bucket.ebsfs(), &[], &bucket.sync());
    found.has_no_failed_row();
    let row = found.row("store", "write to s3://bucket/p");
    let unknown = [&row["state"], &row["fix"]];
    assert_eq!(unknown[0], "unknown");
    assert!(unknown[1].as_str().unwrap().starts_with("--write "));
    let is_write = |method: &str| method == "PUT" || method == "DELETE" || method == "POST";
    // The unsigned POST that fills packets is no operation of S3.
    let written = |seen: Vec<crate::support::s3::S3Request>| {
        seen.into_iter()
            .filter(|one| is_write(&one.method) && !one.key.is_empty())
            .count()
    };
    assert_eq!(written(bucket.server.seen()), 0);
    let found = examined(bucket.ebsfs(), &["--write"], &bucket.sync());
    found.has_no_failed_row();
    for object in [
        "write to",
        "read of a part",
        "creation in",
        "upload to",
        "delete in",
    ] {
        let row = found.row("store", object);
        assert!(row["state"] == "good" || row["state"] == "warning", "{row}");
    }
    let seen = bucket.server.seen();
    let named = seen.iter().filter(|one| one.key.contains("/doctor/"));
    let keys: std::collections::BTreeSet<&str> = named.map(|one| one.key.as_str()).collect();
    assert_eq!(keys.len(), 2);
    for key in keys {
        assert!(bucket.server.object(key).is_none(), "{key}");
    }
}

#[test]
fn a_bucket_that_is_missing_elsewhere_or_denied_says_what_to_set() {
    let bucket = Bucket::new();
    for (status, code, seen, fix, exit) in [
        (404, "NoSuchBucket", "NoSuchBucket", "", 3),
        (301, "PermanentRedirect", "another Region", "AWS_REGION", 2),
        (
            403,
            "AccessDenied",
            "AccessDenied",
            "Who can deny s3:GetObject",
            4,
        ),
    ] {
        bucket.refuse("GET", status, code, "no");
        let found = examined(bucket.ebsfs(), &[], &bucket.sync());
        found.fails("store", "read of s3://bucket/p", seen, fix);
        verb_says(bucket.ebsfs(), &bucket.sync(), exit, seen);
    }
    bucket.server.on(|_| None);
    let elsewhere = ["sync", &bucket.site.snapshot, "s3://bucket/other"];
    let found = examined(bucket.ebsfs(), &[], &elsewhere);
    found.fails(
        "store",
        "read of s3://bucket/other",
        "is no repository",
        "ebsfs repository init s3://bucket/other",
    );
    verb_says(
        bucket.ebsfs(),
        &elsewhere,
        3,
        "ebsfs repository init s3://bucket/other",
    );
}

/// Answers of a bucket to requests about its settings, by the name in the query.
fn settings(request: &S3Request, answers: &[(&str, S3Reply)]) -> Option<S3Reply> {
    let mut answers = answers.iter();
    let found =
        answers.find(|(name, _)| request.key.is_empty() && request.query.contains_key(*name));
    found.map(|(_, reply)| reply.clone())
}

#[test]
fn what_a_bucket_keeps_is_read_without_a_write_and_never_fails() {
    let bucket = Bucket::new();
    let xml = |text: &str| S3Reply::new(200, text).with("Content-Type", "application/xml");
    let on = || xml("<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>");
    let rule = |inner: &str| {
        xml(&format!(
            "<LifecycleConfiguration><Rule><ID>clean</ID><Filter><Prefix>p/</Prefix></Filter><Status>Enabled</Status>{inner}</Rule>\
             </LifecycleConfiguration>"
        ))
    };
    let old = "<NoncurrentVersionExpiration><NoncurrentDays>30</NoncurrentDays></NoncurrentVersionExpiration>";
    let lock = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>\
        <Mode>COMPLIANCE</Mode><Days>14</Days></DefaultRetention></Rule></ObjectLockConfiguration>";
    let denied = || S3Reply::error(403, "AccessDenied", "Access Denied");
    let no_rules = || S3Reply::error(404, "NoSuchLifecycleConfiguration", "none");
    let no_lock = || S3Reply::error(404, "ObjectLockConfigurationNotFoundError", "none");
    let page = || S3Reply::new(200, "<html></html>");
    for (answers, versions, lifecycle, object_lock) in [
        (
            vec![],
            ("unknown", "NotImplemented"),
            ("unknown", "NotImplemented"),
            ("unknown", "NotImplemented"),
        ),
        (
            vec![
                ("versioning", denied()),
                ("lifecycle", denied()),
                ("object-lock", denied()),
            ],
            ("unknown", "AccessDenied"),
            ("unknown", "AccessDenied"),
            ("unknown", "AccessDenied"),
        ),
        (
            vec![
                ("versioning", xml("<VersioningConfiguration/>")),
                ("lifecycle", no_rules()),
                ("object-lock", no_lock()),
            ],
            ("good", "has none"),
            ("good", "none deletes"),
            ("good", "has none"),
        ),
        (
            vec![
                ("versioning", on()),
                ("lifecycle", no_rules()),
                ("object-lock", xml(lock)),
            ],
            ("warning", "stays and is billed"),
            ("good", "none deletes"),
            ("good", "locked for 14 days (COMPLIANCE)"),
        ),
        (
            vec![
                ("versioning", on()),
                ("lifecycle", rule(old)),
                ("object-lock", page()),
            ],
            ("good", "deletes 30 days later"),
            ("good", "none deletes"),
            ("unknown", "broken reply"),
        ),
        (
            vec![("lifecycle", rule("<Expiration><Days>9</Days></Expiration>"))],
            ("unknown", "NotImplemented"),
            ("warning", "\"clean\" deletes objects"),
            ("unknown", "NotImplemented"),
        ),
    ] {
        bucket.server.on(move |request| settings(request, &answers));
        bucket.server.seen();
        let found = examined(bucket.ebsfs(), &[], &bucket.sync());
        found.has_no_failed_row();
        for (object, (state, words)) in [
            ("versions of s3://bucket/p", versions),
            ("lifecycle rules of s3://bucket/p", lifecycle),
            ("Object Lock of s3://bucket/p", object_lock),
        ] {
            let row = found.row("store", object);
            assert_eq!(row["state"], state, "{row}");
            assert!(row["seen"].as_str().unwrap().contains(words), "{row}");
        }
        let seen = bucket.server.seen();
        let asked = seen.iter().filter(|one| one.asks_for_settings());
        assert_eq!(asked.count(), 3);
    }
    // A source is only read: what its bucket keeps is the business of the writer.
    let source = ["sync", "s3://bucket/p#latest", "/dev/null"];
    let found = examined(bucket.ebsfs(), &[], &source);
    let rows = found.rows().iter();
    assert_eq!(
        rows.filter(|row| row["object"].as_str().unwrap().contains("versions of"))
            .count(),
        0
    );
}

#[test]
fn the_kind_of_etag_and_the_version_of_a_listing_are_named() {
    let bucket = Bucket::new();
    let found = examined(bucket.ebsfs(), &["--write"], &bucket.sync());
    let seen = |found: &Examined, object: &str| {
        let row = found.row("store", object);
        assert_eq!(row["state"], "good", "{row}");
        row["seen"].as_str().unwrap().to_owned()
    };
    assert!(seen(&found, "write to").contains("by the ETag, an MD5"));
    assert!(seen(&found, "listing of").ends_with("by version 2 of ListObjects"));
    let version_1 = [&bucket.sync()[..], &["--list-version", "1"]].concat();
    let found = examined(bucket.ebsfs(), &[], &version_1);
    assert!(seen(&found, "listing of").ends_with("by version 1 of ListObjects"));
    // With SSE-KMS an ETag is no MD5: another object of the same size.
    bucket.server.on(|request| {
        let size = (64 << 10).to_string();
        let is_small = request.key.contains("/doctor/") && !request.key.ends_with(".large");
        (request.method == "HEAD" && is_small).then(|| {
            S3Reply::new(200, "")
                .with("Content-Length", size)
                .with("ETag", "\"0a1b-1\"")
                .with("Last-Modified", "Tue, 30 Jun 2026 12:00:00 GMT")
        })
    });
    let found = examined(bucket.ebsfs(), &["--write"], &bucket.sync());
    assert!(seen(&found, "write to").contains("by reading it"));
}

#[test]
fn objects_of_the_check_that_stay_are_named() {
    let bucket = Bucket::new();
    bucket.refuse("DELETE", 403, "AccessDenied", "Access Denied");
    let found = examined(bucket.ebsfs(), &["--write"], &bucket.sync());
    found.has_no_failed_row();
    found.warns("store", "delete in", "AccessDenied", "s3:DeleteObject");
    let row = found.row("store", "delete in");
    let left = row["seen"]
        .as_str()
        .unwrap()
        .split("left there: ")
        .nth(1)
        .unwrap();
    let names: Vec<&str> = left.split(", ").collect();
    assert_eq!(names.len(), 2, "{row}");
    for name in names {
        assert!(
            bucket.server.object(&format!("p/{name}")).is_some(),
            "{name}"
        );
    }
}

#[test]
fn a_role_that_only_reads_and_object_lock_are_seen_with_writes_alone() {
    let bucket = Bucket::new();
    bucket.refuse("PUT", 403, "AccessDenied", "User is not authorized to perform: s3:PutObject because no identity-based policy allows the s3:PutObject action");
    examined(bucket.ebsfs(), &[], &bucket.sync()).has_no_failed_row();
    let found = examined(bucket.ebsfs(), &["--write"], &bucket.sync());
    found.fails(
        "store",
        "write to s3://bucket/p",
        "s3:PutObject",
        "denied by the identity-based policy",
    );
    verb_says(bucket.ebsfs(), &bucket.sync(), 4, "s3:PutObject");
    bucket.refuse(
        "DELETE",
        403,
        "AccessDenied",
        "Access Denied because object protected by object lock.",
    );
    let found = examined(bucket.ebsfs(), &["--write"], &bucket.sync());
    found.has_no_failed_row();
    found.warns(
        "store",
        "delete in s3://bucket/p",
        "object lock",
        "prune frees space only after the retention",
    );
}
