//! Repositories: a bucket that is missing or elsewhere, a role that only reads, Object Lock.

use super::*;
use crate::support::s3::{S3Reply, S3Server};

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
