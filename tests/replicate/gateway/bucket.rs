//! A gateway whose policy allows it to read the bucket, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::support::s3::{S3Reply, S3Server};

#[test]
fn a_gateway_that_may_only_read_works_and_a_cycle_without_news_is_two_requests() {
    let mut site = Site::new(fastrand::u64(..));
    let server = S3Server::start();
    let is_read_only = Arc::new(AtomicBool::new(false));
    let denies = Arc::clone(&is_read_only);
    server.on(move |request| {
        let is_read = matches!(&*request.method, "GET" | "HEAD");
        (denies.load(Ordering::Relaxed) && !is_read)
            .then(|| S3Reply::error(403, "AccessDenied", "not by this policy"))
    });
    let at_store = |mut command: Command| {
        command.env("AWS_ENDPOINT_URL_S3", &server.url);
        command
    };
    let repository = "s3://bucket/dr";
    run(&mut at_store(site.emulator.ebsfs(&[
        "repository",
        "init",
        repository,
    ])));
    let proxy = site.job(&format!(
        "name = 'web'\nvolumes = ['vol-0a']\n[[target]]\nto = '{repository}'\nkeep = {{ last = 2 }}"
    ));
    let gateway = site.at("gateway.toml");
    let text = format!(
        "name = 'standby'\nfrom = '{repository}'\n[source]\nendpoint_url = '{}'\nregion = 'us-east-1'\n[[target]]\nto = '{}/{{volume}}.raw'",
        server.url,
        site.folder.path().display()
    );
    std::fs::write(&gateway, text).unwrap();
    let aws = UnaskedEndpoint::new();
    let (key, secret) = site.emulator.keys();
    let apply = |site: &Site| {
        is_read_only.store(true, Ordering::Relaxed);
        server.seen();
        let mut command = Command::new(EBSFS);
        command
            .args(["replicate", "--once", "--json", "--state-dir"])
            .args([site.at("gateway"), gateway.clone()])
            .env_clear()
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ENDPOINT_URL", aws.url())
            .env("AWS_ACCESS_KEY_ID", &key)
            .env("AWS_SECRET_ACCESS_KEY", &secret);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        aws.assert_unasked();
        is_read_only.store(false, Ordering::Relaxed);
        (report, said, server.seen())
    };
    server.put("dr/snapshots/.DS_Store", b"of a file manager");
    for round in 0..2 {
        site.write();
        run(&mut at_store(site.once(&proxy, "proxy")));
        let (report, said, _) = apply(&site);
        assert!(said.contains("ignoring 1 objects"), "{said}");
        assert!(said.contains("reading without a lease"), "{said}");
        assert_eq!(report["failures"].as_array().unwrap().len(), 0);
        assert_same(&site.at("vol-0a.raw"), &site.emulator.volume("vol-0a"));
        let (report, said, seen) = apply(&site);
        assert_eq!(said, "", "a look is not reported");
        assert_eq!(report["volumes"].as_array().unwrap().len(), 0);
        let asked: Vec<_> = seen
            .iter()
            .map(|request| format!("{} {}", request.method, request.key))
            .collect();
        assert_eq!(asked, ["GET dr/ebsfs-repository.json", "GET "], "{round}");
    }
}
