//! Quotas of the account, by a stand-in for Service Quotas.

use super::*;
use crate::aws::server::{Request, Server};

/// A reply to GetServiceQuota: the quota of this account is 5,000 for all snapshots, 1,000 for one.
fn reply(request: &Request) -> (u16, String) {
    let target = request.header("x-amz-target");
    assert_eq!(target, Some("ServiceQuotasV20190624.GetServiceQuota"));
    let signed = request.header("authorization").unwrap();
    assert!(
        signed.contains("/us-east-1/servicequotas/aws4_request"),
        "{signed}"
    );
    assert!(signed.contains("x-amz-target"), "{signed}");
    let asked: Value = serde_json::from_str(&request.body).unwrap();
    assert_eq!(asked["ServiceCode"], "ebs");
    let code = asked["QuotaCode"].as_str().unwrap();
    let value = if code == "L-C125AE42" { 5000.0 } else { 1000.0 };
    let quota = serde_json::json!({"Quota": {"QuotaCode": code, "Value": value}});
    (200, quota.to_string())
}

fn at(site: &DoctorSite, url: &str) -> Command {
    let mut command = site.ebsfs();
    command.env("AWS_ENDPOINT_URL_SERVICE_QUOTAS", url);
    command
}

#[test]
fn the_quotas_of_the_account_are_named() {
    let site = DoctorSite::new();
    let server = Server::start(reply);
    let found = examined(at(&site, &server.url()), &[], &site.mount());
    found.has_no_failed_row();
    let row = found.row("quota", "source");
    assert_eq!(
        (&row["state"], &row["seen"]),
        (
            &"good".into(),
            &"GetSnapshotBlock 5,000 a second, GetSnapshotBlock of one snapshot 1,000 a second"
                .into()
        )
    );
    assert_eq!(server.asked().len(), 2);
    // A target writes.
    let found = examined(
        at(&site, &server.url()),
        &[],
        &["sync", &site.snapshot, "ebs:"],
    );
    let row = found.row("quota", "source");
    assert!(
        row["seen"]
            .as_str()
            .unwrap()
            .contains("PutSnapshotBlock 1,000 a second"),
        "{row}"
    );
    assert_eq!(server.asked().len(), 5);
}

#[test]
fn without_an_answer_the_defaults_are_named_and_nothing_fails() {
    let site = DoctorSite::new();
    let message = "User: a is not authorized to perform: servicequotas:GetServiceQuota because no identity-based policy \
        allows the servicequotas:GetServiceQuota action";
    let denied = serde_json::json!({"__type": "AccessDeniedException", "Message": message});
    let denied = denied.to_string();
    let refusing = Server::start(move |_| (400, denied.clone()));
    let page = Server::start(|_| (200, "<html></html>".into()));
    for (url, words) in [
        (refusing.url(), "AccessDeniedException"),
        (page.url(), "has no value"),
        ("http://127.0.0.1:9".to_owned(), "127.0.0.1:9"),
        ("http://quotas.invalid".to_owned(), "quotas.invalid"),
    ] {
        let found = examined(at(&site, &url), &[], &site.mount());
        found.has_no_failed_row();
        let row = found.row("quota", "source");
        assert_eq!(row["state"], "unknown", "{row}");
        let seen = row["seen"].as_str().unwrap();
        assert!(seen.contains(words), "{words}: {row}");
        assert!(
            seen.contains("the defaults are GetSnapshotBlock 1,000 a second"),
            "{row}"
        );
        let fix = row["fix"].as_str().unwrap();
        assert!(
            fix.contains("--quota-code L-C125AE42 --region us-east-1"),
            "{row}"
        );
    }
    // AWS knows nothing about an EBS that is not its own.
    let mut elsewhere = site.ebsfs();
    elsewhere.env_remove("AWS_ENDPOINT_URL");
    for service in ["EBS", "EC2", "STS"] {
        elsewhere.env(format!("AWS_ENDPOINT_URL_{service}"), site.emulator.url());
    }
    let found = examined(elsewhere, &[], &site.mount());
    found.has_no_failed_row();
    let row = found.row("quota", "source");
    let seen = (&row["state"], &row["seen"]);
    let words = "EBS is 127.0.0.1, whose quotas AWS does not know";
    assert_eq!(seen, (&"unknown".into(), &words.into()));
}
