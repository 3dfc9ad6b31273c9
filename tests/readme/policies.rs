//! docs/policies: valid policies of IAM, quoted by pages as they are, and what `ebsfs policy` prints. That they are enough, and
//! not too much, is tested in tests/policy.rs.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use super::{all_pages, fenced, page, root};
use crate::support::*;

/// The policies, by the names of their files.
fn policies() -> BTreeMap<String, Value> {
    let entries = std::fs::read_dir(root().join("docs/policies")).unwrap();
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let text = std::fs::read_to_string(entry.path()).unwrap();
        let policy = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, policy)
    };
    entries.map(read).collect()
}

/// One string or several, as policies write them.
fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::String(one) => vec![one],
        Value::Array(all) => all.iter().map(|one| one.as_str().unwrap()).collect(),
        other => panic!("{other} is no string"),
    }
}

fn statements(policy: &Value) -> &Vec<Value> {
    policy["Statement"].as_array().unwrap()
}

fn actions(policy: &Value) -> BTreeSet<&str> {
    let all = statements(policy).iter();
    all.flat_map(|statement| strings(&statement["Action"]))
        .collect()
}

/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html>
fn check_grammar(name: &str, policy: &Value) {
    let keys = |value: &Value| -> Vec<String> {
        let object = value.as_object().unwrap_or_else(|| panic!("{name}"));
        object.keys().cloned().collect()
    };
    assert_eq!(keys(policy), ["Statement", "Version"], "{name}");
    assert_eq!(policy["Version"], "2012-10-17", "{name}");
    assert!(!statements(policy).is_empty(), "{name}");
    for statement in statements(policy) {
        for key in keys(statement) {
            let known = ["Action", "Condition", "Effect", "Resource"];
            assert!(known.contains(&key.as_str()), "{name}: {key}");
        }
        assert_eq!(statement["Effect"], "Allow", "{name}");
        for action in strings(&statement["Action"]) {
            let (service, call) = action.split_once(':').unwrap();
            assert!(["ebs", "ec2", "kms", "s3"].contains(&service), "{action}");
            let is_call = call.ends_with('*') || call.bytes().all(|b| b.is_ascii_alphanumeric());
            assert!(is_call && call.len() > 5, "{name}: {action}");
        }
        for resource in strings(&statement["Resource"]) {
            let parts: Vec<&str> = resource.splitn(6, ':').collect();
            assert!(
                resource == "*" || (parts.len() == 6 && parts[0] == "arn" && !parts[5].is_empty()),
                "{name}: {resource}"
            );
            // The account of a snapshot is empty: with one nothing matches.
            if parts.len() == 6 && parts[5].starts_with("snapshot/") {
                assert_eq!(parts[4], "", "{name}: {resource}");
            }
        }
        let condition = statement.get("Condition").and_then(Value::as_object);
        for (operator, of) in condition.into_iter().flatten() {
            let is_known = operator.starts_with("String")
                || ["Null", "ArnLikeIfExists"].contains(&&**operator);
            assert!(is_known, "{name}: {operator}");
            assert!(of.as_object().is_some_and(|of| !of.is_empty()), "{name}");
        }
    }
}

#[test]
fn policies_are_valid_and_pages_quote_them_as_they_are() {
    let policies = policies();
    assert!(policies.len() >= 9);
    let permissions = page("docs/permissions.md");
    for (name, policy) in &policies {
        check_grammar(name, policy);
        assert!(
            permissions.contains(&format!("(policies/{name})")),
            "docs/permissions.md does not link {name}"
        );
    }
    let mut quoted = 0;
    for name in all_pages() {
        let text = page(&name);
        for block in fenced(&text, "json") {
            let value: Value =
                serde_json::from_str(block).unwrap_or_else(|e| panic!("{name}: {e}"));
            if block.contains("\"Effect\"") {
                let is_file = policies.values().any(|policy| *policy == value);
                assert!(is_file, "{name} quotes no file of docs/policies: {block}");
                quoted += 1;
            }
        }
    }
    assert!(quoted > 5, "{quoted}");
}

/// The command that prints each file, as docs/permissions.md names it.
const COMMANDS: &[(&str, &str)] = &[
    (
        "read.json",
        "ebsfs policy mount --kms arn:aws:kms:REGION:ACCOUNT:key/KEY",
    ),
    (
        "new-snapshots.json",
        "ebsfs policy upload --kms arn:aws:kms:REGION:ACCOUNT:key/KEY",
    ),
    ("job-target.json", "ebsfs policy upload --job web"),
    ("snapshot.json", "ebsfs policy snapshot"),
    ("inventory.json", "ebsfs policy inventory"),
    ("replicate.json", "ebsfs policy replicate --job web"),
    (
        "gateway.json",
        "ebsfs policy gateway --bucket dr-bucket/replicas",
    ),
    (
        "repository-read.json",
        "ebsfs policy repository-read --minimal --bucket dr-bucket/replicas",
    ),
    (
        "repository-write.json",
        "ebsfs policy repository-write --minimal --bucket dr-bucket/replicas",
    ),
    (
        "repository-prune.json",
        "ebsfs policy repository --bucket dr-bucket/replicas",
    ),
];

#[test]
fn each_file_is_what_its_command_prints() {
    let policies = policies();
    let permissions = page("docs/permissions.md");
    assert_eq!(policies.len(), COMMANDS.len());
    for (name, command) in COMMANDS {
        let words = command.split(' ').skip(1);
        let printed: Value = serde_json::from_str(&run(Command::new(EBSFS).args(words))).unwrap();
        assert_eq!(policies[*name], printed, "{name}: {command}");
        assert!(permissions.contains(&format!("`{command}`")), "{command}");
    }
}

/// The role of the Batch template may do what the verbs need, and use its file system.
#[test]
fn the_batch_template_grants_what_is_printed() {
    let text = page("scripts/packaging/batch/replicate.yaml");
    let role = text.split("\n  TaskRole:\n").nth(1).unwrap();
    let role = role.split("\n\n").next().unwrap();
    let (_, policy) = role.split_once("PolicyDocument:").unwrap();
    let words = policy.split('"').skip(1).step_by(2);
    let granted: BTreeSet<&str> = words
        .filter(|word| {
            ["ebs:", "ec2:", "s3:"]
                .iter()
                .any(|start| word.starts_with(start))
        })
        .collect();
    let mut command = Command::new(EBSFS);
    command.args(["policy", "replicate", "repository", "--bucket", "b"]);
    let printed: Value = serde_json::from_str(&run(&mut command)).unwrap();
    assert_eq!(granted, actions(&printed));
}
