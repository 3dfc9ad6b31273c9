//! An action that a policy does not allow is refused with the message of AWS, and our message names the policy that must allow it.

use serde_json::{Value, json};

use super::{INSTANCE, KEY, LIMIT, PolicySite, encrypt, printed};
use crate::support::*;

const USER: &str = "arn:aws:iam::111122223333:user";

/// The policy without one action.
fn without(policy: &Value, action: &str) -> Value {
    let mut policy = policy.clone();
    for statement in policy["Statement"].as_array_mut().unwrap() {
        if let Value::Array(actions) = &mut statement["Action"] {
            actions.retain(|one| *one != action);
        }
    }
    policy
}

#[test]
fn each_user_has_its_own_key_and_policies() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policies.json");
    let users = json!({"users": {"reader": printed(&["mount"]), "lister": printed(&["ls"])}});
    std::fs::write(&file, users.to_string()).unwrap();
    let emulator = Emulator::with(&["--policy", file.to_str().unwrap()]);
    emulator.make_volume("vol-0a", 8, [0, 3]);
    let id = emulator.snapshot("vol-0a");
    let as_user = |user: &str, args: &[&str]| {
        let mut command = emulator.ebsfs(args);
        ends_within(LIMIT, command.env("AWS_PROFILE", user))
    };
    for user in ["default", "reader", "lister"] {
        assert_eq!(as_user(user, &["ls"]).0, 0, "{user}");
    }
    // A user without a policy may do everything.
    for user in ["default", "reader"] {
        assert_eq!(as_user(user, &["digest", &id]).0, 0, "{user}");
    }
    let (code, said) = as_user("lister", &["digest", &id]);
    let refused = format!(
        "User: {USER}/lister is not authorized to perform: ebs:ListSnapshotBlocks on resource: \
         arn:aws:ec2:us-east-1::snapshot/{id} because no identity-based policy allows the ebs:ListSnapshotBlocks action; \
         the caller needs the permission ebs:ListSnapshotBlocks on arn:aws:ec2:*::snapshot/*"
    );
    assert!(code == 4 && said.contains(&refused), "{said}");
    let (code, said) = as_user("reader", &["snapshot", "--instance", INSTANCE]);
    let refused = "is not authorized to perform: ec2:DescribeVolumes because no identity-based policy allows the \
                   ec2:DescribeVolumes action";
    assert!(code == 4 && said.contains(refused), "{said}");
    // The other keys are unchanged.
    let keys = |name: &str| {
        let text = std::fs::read_to_string(emulator.folder.path().join("credentials")).unwrap();
        text.lines()
            .filter(|line| *line == format!("[{name}]"))
            .count()
    };
    assert_eq!(["default", "reader", "lister"].map(keys), [1, 1, 1]);
}

#[test]
fn the_policy_of_an_endpoint_refuses_what_a_user_may_do() {
    let site = PolicySite::new();
    site.emulator.make_volume("vol-0a", 8, [0, 3]);
    let id = site.emulator.snapshot("vol-0a");
    let endpoints = printed(&["digest", "--endpoint", "--account", "111122223333"]);
    site.enforce(&json!({"endpoint": endpoints}));
    site.ok(&["digest", &id]);
    for (account, action, service) in [
        ("111122223333", "ebs:GetSnapshotBlock", "ebs"),
        ("444455556666", "ebs:ListSnapshotBlocks", "ebs"),
    ] {
        let mut endpoints = printed(&["digest", "--endpoint", "--account", account]);
        if account == "111122223333" {
            endpoints[service] = without(&endpoints[service], action);
        }
        site.enforce(&json!({"endpoint": endpoints}));
        let (code, said) = ends_within(LIMIT, &mut site.ebsfs(&["digest", &id]));
        let refused = format!("because no VPC endpoint policy allows the {action} action");
        let needed = format!(
            "the policy of the VPC endpoint must allow {action} on arn:aws:ec2:*::snapshot/*"
        );
        assert!(
            code == 4 && said.contains(&refused) && said.contains(&needed),
            "{said}"
        );
    }
}

#[test]
fn a_tag_and_a_job_limit_which_snapshots_are_read_and_deleted() {
    let site = PolicySite::new();
    site.emulator.make_volume("vol-0a", 8, [0, 3]);
    let [tagged, other] = [(); 2].map(|()| site.emulator.snapshot("vol-0a"));
    site.emulator
        .post(&format!("snapshots/{tagged}?tag=team%3Dstorage"));
    let policy = printed(&["digest", "--tag", "team=storage"]);
    site.enforce(&json!({"users": {"default": policy}}));
    site.ok(&["digest", &tagged]);
    let (code, said) = ends_within(LIMIT, &mut site.ebsfs(&["digest", &other]));
    assert!(
        code == 4 && said.contains("no identity-based policy allows"),
        "{said}"
    );
    // A comparison needs both.
    let policy = printed(&["changes", "--tag", "team=storage"]);
    site.enforce(&json!({"users": {"default": policy}}));
    let (code, said) = ends_within(LIMIT, &mut site.ebsfs(&["changes", &tagged, &other]));
    assert!(
        code == 4 && said.contains("ebs:ListChangedBlocks"),
        "{said}"
    );
    site.emulator
        .post(&format!("snapshots/{other}?tag=team%3Dstorage"));
    site.ok(&["changes", &tagged, &other]);

    let job = site.at("web.toml");
    let to = site.path("{volume}.raw");
    let text = format!("name = \"web\"\nvolumes = [\"vol-0a\"]\n[[target]]\nto = \"{to}\"\n");
    std::fs::write(&job, text).unwrap();
    let once = ["replicate", "--once", job.to_str().unwrap()];
    let policy = printed(&["replicate", "--job", "other"]);
    site.enforce(&json!({"users": {"default": policy}}));
    let said = [(); 2].map(|()| ends_within(LIMIT, &mut site.ebsfs(&once)).1);
    assert!(said[1].contains("ec2:DeleteSnapshot"), "{said:?}");
}

#[test]
fn a_kms_key_is_refused_by_its_own_policy_and_by_that_of_the_user() {
    let site = PolicySite::new();
    let volume = site.emulator.make_volume("vol-0a", 2048, [0, 3]);
    let id = site.emulator.snapshot("vol-0a");
    encrypt(&site, &id);
    let plain = printed(&["digest", "upload"]);
    let with_key = printed(&["digest", "upload", "--kms", KEY]);
    let granting = |who: &str| {
        printed(&[
            "digest",
            "upload",
            "--kms",
            KEY,
            "--key-policy",
            "--principal",
            who,
        ])
    };
    let own = granting(&format!("{USER}/emulator"));
    let others = granting(&format!("{USER}/other"));
    let root = granting("arn:aws:iam::111122223333:root");
    // A run that resumes starts no snapshot.
    let image = volume.to_str().unwrap();
    let upload = ["sync", image, "ebs:", "--kms-key", KEY, "--restart"];
    for (user, key, is_allowed) in [
        (&with_key, None, true),
        (&plain, None, false),
        (&plain, Some(&own), true),
        (&with_key, Some(&others), false),
        (&plain, Some(&root), false),
        (&with_key, Some(&root), true),
    ] {
        let keys = key.map_or(json!({}), |policy| json!({KEY: policy}));
        site.enforce(&json!({"users": {"default": user}, "kms_keys": keys}));
        let (code, said) = ends_within(LIMIT, &mut site.ebsfs(&["digest", &id]));
        let refused = "the caller needs kms:DescribeKey and kms:Decrypt on the snapshot's KMS key";
        match is_allowed {
            true => assert_eq!(code, 0, "{said}"),
            false => assert!(
                code == 4
                    && said.contains("DEPENDENCY_RESOURCE_NOT_FOUND")
                    && said.contains(refused),
                "{code} {said}"
            ),
        }
        // An encrypted copy puts all blocks of a GiB: the deny ends it after the calls that this test is about.
        site.emulator.set("deny=ebs:PutSnapshotBlock");
        let (code, said) = ends_within(LIMIT, &mut site.ebsfs(&upload));
        site.emulator.set("deny=");
        let reason = match is_allowed {
            true => "is not authorized to perform: ebs:PutSnapshotBlock",
            false => "INVALID_DEPENDENCY_REQUEST",
        };
        assert!(code == 4 && said.contains(reason), "{code} {said}");
    }
}

#[test]
fn a_file_with_something_unknown_is_refused_at_the_start_and_at_run_time() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policies.json");
    let unknown = r#"{"users": {"web": {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "*",
        "Resource": "*", "Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}}}}}"#;
    std::fs::write(&file, unknown).unwrap();
    let mut start = std::process::Command::new(EBSFS);
    start.arg("emulator").arg(folder.path().join("emulator"));
    start
        .args(["--listen", "127.0.0.1:0", "--policy"])
        .arg(&file);
    let (code, said) = ends_within(LIMIT, &mut start);
    let why = "users: web: statement 1: the emulator does not know the operator IpAddress";
    assert!(
        code == 2 && said.contains(why) && said.contains("policies.json"),
        "{said}"
    );
    let site = PolicySite::new();
    site.emulator.make_volume("vol-0a", 8, [0]);
    let id = site.emulator.snapshot("vol-0a");
    site.enforce(&json!({"users": {"default": printed(&["ls"])}}));
    let url = format!("{}/_emulator/policies", site.emulator.url());
    let mut post = std::process::Command::new("curl");
    let said = run(post.args(["-sS", "--data-binary", unknown, &url]));
    assert!(said.contains(why), "{said}");
    // The policies in force stay.
    assert_eq!(ends_within(LIMIT, &mut site.ebsfs(&["digest", &id])).0, 4);
}
