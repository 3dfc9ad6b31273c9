//! Configuration, credentials, permissions, the clock.

use super::*;
use crate::aws::server::Server;

#[test]
fn a_region_that_nothing_names_is_the_first_row() {
    let site = DoctorSite::new();
    let broken = || {
        let mut command = site.ebsfs();
        command.env_remove("AWS_REGION");
        command
    };
    let found = examined(broken(), &[], &site.mount());
    found.fails(
        "configuration",
        "source",
        "no AWS Region is set",
        "AWS_REGION",
    );
    assert_eq!(found.row("credentials", "source")["state"], "unknown");
    verb_says(broken(), &site.mount(), 2, "no AWS Region is set");
}

#[test]
fn missing_wrong_and_expired_credentials_are_distinguished() {
    let site = DoctorSite::new();
    let missing = || {
        let mut command = site.ebsfs();
        command.env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent");
        command
    };
    let found = examined(missing(), &[], &site.mount());
    found.fails("credentials", "source", "no AWS credentials", "AWS_PROFILE");
    assert_eq!(found.row("identity", "source")["state"], "unknown");
    verb_says(missing(), &site.mount(), 4, "no AWS credentials");

    let (id, secret) = site.emulator.keys();
    let wrong = || {
        let mut command = missing();
        command.env("AWS_ACCESS_KEY_ID", &id);
        command.env("AWS_SECRET_ACCESS_KEY", "wrong");
        command
    };
    let found = examined(wrong(), &[], &site.mount());
    found.fails(
        "identity",
        "source",
        "credentials were refused",
        "get-caller-identity",
    );
    let origin = found.row("credentials", "source")["seen"].clone();
    assert_eq!(
        origin,
        "keys of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    );
    verb_says(wrong(), &site.mount(), 4, "credentials were refused");

    site.emulator.set("expired_sessions=old");
    let expired = || {
        let mut command = wrong();
        command.env("AWS_SECRET_ACCESS_KEY", &secret);
        command.env("AWS_SESSION_TOKEN", "old");
        command
    };
    let found = examined(expired(), &[], &site.mount());
    found.fails("identity", "source", "expired", "renew them");
    assert!(!found.report.to_string().contains(&secret));
    verb_says(expired(), &site.mount(), 4, "have expired");
}

#[test]
fn a_denied_action_names_the_policy_that_denies_it() {
    let site = DoctorSite::new();
    for (deny, object) in [
        ("ebs:ListSnapshotBlocks", "ebs:ListSnapshotBlocks"),
        ("ebs:GetSnapshotBlock", "ebs:GetSnapshotBlock"),
    ] {
        site.emulator.set(&format!("deny={deny}"));
        let found = examined(site.ebsfs(), &[], &site.mount());
        found.fails(
            "permission",
            object,
            "AccessDenied",
            "denied by the identity-based policy: IAM console",
        );
    }
    site.emulator.set("deny=ebs:ListSnapshotBlocks");
    verb_says(
        site.ebsfs(),
        &site.mount(),
        4,
        "needs the permission ebs:ListSnapshotBlocks",
    );
    // A snapshot that is named is mounted without EC2, all of a volume are not.
    site.emulator.set("deny=ec2:DescribeSnapshots");
    let found = examined(site.ebsfs(), &[], &site.mount());
    found.has_no_failed_row();
    found.warns(
        "permission",
        "ec2:DescribeSnapshots",
        "UnauthorizedOperation",
        "IAM console",
    );
    let point = site.point.path().to_str().unwrap();
    let found = examined(site.ebsfs(), &[], &["mount", point, "vol-0a"]);
    found.fails(
        "permission",
        "ec2:DescribeSnapshots",
        "UnauthorizedOperation",
        "IAM console",
    );
    verb_says(
        site.ebsfs(),
        &["mount", point, "vol-0a"],
        4,
        "ec2:DescribeSnapshots",
    );
}

#[test]
fn a_key_of_kms_and_a_snapshot_of_another_region_are_named() {
    let site = DoctorSite::new();
    let post = |query: &str| {
        site.emulator
            .post(&format!("snapshots/{}?{query}", site.snapshot))
    };
    post("kms_denied=1");
    let found = examined(site.ebsfs(), &[], &site.mount());
    found.fails(
        "permission",
        "ebs:",
        "kms:Decrypt",
        "KMS console > Customer managed keys",
    );
    verb_says(site.ebsfs(), &site.mount(), 4, "kms:Decrypt");
    post("kms_denied=0");
    let elsewhere = [site.mount(), vec!["--region".into(), "eu-west-1".into()]].concat();
    let found = examined(site.ebsfs(), &[], &elsewhere);
    found.fails(
        "permission",
        "ebs:ListSnapshotBlocks",
        "SNAPSHOT_NOT_FOUND",
        "check the id, the Region and the account",
    );
    verb_says(site.ebsfs(), &elsewhere, 3, "SNAPSHOT_NOT_FOUND");
}

#[test]
fn the_policy_of_an_endpoint_is_named_and_a_denial_without_reason_lists_who_can_deny() {
    let site = DoctorSite::new();
    for (end, fix, said) in [
        (
            " because no VPC endpoint policy allows the ebs:ListSnapshotBlocks action",
            "VPC console > Endpoints > vpce-ID > Policy",
            "the policy of the VPC endpoint must allow ebs:ListSnapshotBlocks",
        ),
        (
            "",
            "denied, reason not given. Who can deny ebs:ListSnapshotBlocks: the identity policy",
            "needs the permission ebs:ListSnapshotBlocks",
        ),
    ] {
        let server = Server::start(move |_| {
            let message = format!(
                "User: arn:aws:iam::1:user/a is not authorized to perform: ebs:ListSnapshotBlocks{end}"
            );
            let body = serde_json::json!({"__type": "AccessDeniedException", "Message": message});
            (403, body.to_string())
        });
        let broken = || {
            let mut command = site.ebsfs();
            command.env("AWS_ENDPOINT_URL_EBS", server.url());
            command
        };
        let found = examined(broken(), &[], &site.mount());
        found.fails(
            "permission",
            "ebs:ListSnapshotBlocks",
            "AccessDeniedException",
            fix,
        );
        verb_says(broken(), &site.mount(), 4, said);
    }
}

#[test]
fn a_clock_ten_minutes_off_is_a_row_of_its_own() {
    let site = DoctorSite::new();
    site.emulator.post("clock?ahead_s=600");
    let found = examined(site.ebsfs(), &[], &site.mount());
    found.has_no_failed_row();
    let words = "s behind the service's: the first signature";
    found.warns("clock", "127.0.0.1", words, "timedatectl set-ntp true");
    // The verb follows the clock of the service.
    run(site.ebsfs().args(["blocks", &site.snapshot]));
    site.emulator.post("clock?ahead_s=90");
    let found = examined(site.ebsfs(), &[], &site.mount());
    found.has_no_failed_row();
    found.warns("clock", "127.0.0.1", "s behind", "set-ntp");
}

#[test]
fn a_job_asks_by_a_dry_run_whether_it_may_make_snapshots() {
    let site = DoctorSite::new();
    let image = site.emulator.folder.path().join("disk.raw");
    let image = image.to_str().unwrap();
    let job = ["replicate", "--volume", "vol-0a", "--to", image, "--once"];
    let before = site.emulator.made().len();
    let found = examined(site.ebsfs(), &[], &job);
    found.has_no_failed_row();
    let row = found.row("permission", "ec2:CreateSnapshot of");
    assert_eq!(
        row["seen"],
        "a dry run for vol-0a with the tags of the job is allowed"
    );
    assert_eq!(site.emulator.made().len(), before);
    site.emulator.set("deny=ec2:CreateSnapshot");
    let found = examined(site.ebsfs(), &[], &job);
    found.fails(
        "permission",
        "ec2:CreateSnapshot of",
        "UnauthorizedOperation",
        "denied by the identity-based policy",
    );
    verb_says(site.ebsfs(), &job, 4, "ec2:CreateSnapshot");
}

#[test]
fn a_policy_that_demands_tags_allows_the_dry_runs_of_a_job_that_has_them() {
    let site = DoctorSite::new();
    let instance = "i-0123456789abcdef0";
    site.emulator
        .post(&format!("volumes/vol-0a?instance={instance}"));
    let policy = |key: &str| {
        let demand = serde_json::json!({"Null": {format!("aws:RequestTag/{key}"): "true"}});
        let statements = serde_json::json!([
            {"Effect": "Allow", "Action": "*", "Resource": "*"},
            {"Effect": "Deny", "Action": "ec2:CreateTags", "Resource": "*", "Condition": demand},
        ]);
        let all = serde_json::json!({"users": {"default": {"Version": "2012-10-17", "Statement": statements}}});
        let url = format!("{}/_emulator/policies", site.emulator.url());
        let mut curl = Command::new("curl");
        run(curl.args([
            "-sSf",
            "-X",
            "POST",
            "--data-binary",
            &all.to_string(),
            &url,
        ]));
    };
    let file = site.emulator.folder.path().join("web.toml");
    let image = site.emulator.folder.path().join("{volume}.raw");
    let job = |selected: &str| {
        let text = format!(
            "name = 'web'\n{selected}\nsnapshot_tags = {{ team = 'a' }}\n[[target]]\nto = '{}'\n",
            image.display()
        );
        std::fs::write(&file, text).unwrap();
    };
    let before = site.emulator.made().len();
    let verb = ["replicate", "--once", file.to_str().unwrap()];
    for (selected, tried, of, other) in [
        (
            "volumes = ['vol-0a']",
            "ec2:CreateSnapshot of",
            "vol-0a",
            "ec2:CreateSnapshots of",
        ),
        (
            &*format!("instances = ['{instance}']"),
            "ec2:CreateSnapshots of",
            instance,
            "ec2:CreateSnapshot of",
        ),
    ] {
        job(selected);
        for (key, is_allowed) in [("team", true), ("ebsfs:cycle", true), ("owner", false)] {
            policy(key);
            let found = examined(site.ebsfs(), &[], &verb);
            match is_allowed {
                true => {
                    found.has_no_failed_row();
                    let row = found.row("permission", tried);
                    let seen = format!("a dry run for {of} with the tags of the job is allowed");
                    assert_eq!(row["seen"], seen);
                    assert_eq!(found.row("permission", other)["state"], "unknown");
                }
                false => found.fails(
                    "permission",
                    tried,
                    "ec2:CreateTags",
                    "Add permissions; allow ec2:CreateTags",
                ),
            }
        }
    }
    assert_eq!(site.emulator.made().len(), before);
}

#[test]
fn actions_that_need_a_new_snapshot_are_unknown_and_none_is_made() {
    let site = DoctorSite::new();
    let before = site.emulator.made().len();
    let found = examined(site.ebsfs(), &[], &["sync", &site.snapshot, "ebs:"]);
    found.has_no_failed_row();
    let row = found.row("permission", "ebs:StartSnapshot");
    assert_eq!(
        (&row["state"], &row["fix"]),
        (&"unknown".into(), &Value::Null)
    );
    assert_eq!(site.emulator.made().len(), before);
}
