//! docs/policies: valid policies of IAM, quoted by pages as they are, and enough for what docs/permissions.md says.

use std::collections::{BTreeMap, BTreeSet};

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
            assert!(operator.starts_with("String"), "{name}: {operator}");
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

/// Denies all actions of EBS and EC2 but those of these policies.
fn allow_only(emulator: &Emulator, allowed: &[&Value]) {
    let policies = policies();
    let allowed: BTreeSet<&str> = allowed.iter().flat_map(|policy| actions(policy)).collect();
    let denied: Vec<&str> = policies
        .values()
        .flat_map(actions)
        .filter(|action| action.starts_with("ebs:") || action.starts_with("ec2:"))
        .filter(|action| !allowed.contains(action))
        .collect();
    assert!(denied.len() > 5, "{denied:?}");
    emulator.set(&format!("deny={}", denied.join(",")));
}

#[test]
fn each_policy_is_enough_for_its_commands() {
    const INSTANCE: &str = "i-0123456789abcdef0";
    let policies = policies();
    let policy = |name: &str| &policies[&format!("{name}.json")];
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 8, [0, 3]);
    let snapshot = emulator.snapshot("vol-0a");
    let later = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let job = at("web.toml");
    let text = format!(
        "name = \"web\"\ninstances = [\"{INSTANCE}\"]\n[[target]]\nto = \"{}\"\n",
        at("{volume}.raw")
    );
    std::fs::write(&job, text).unwrap();
    let image = at("image.raw");
    let (read, made) = (policy("read"), policy("new-snapshots"));
    let commands: &[(&[&Value], &[&str])] = &[
        (&[read], &["ls"]),
        (&[read], &["digest", &snapshot]),
        (&[read], &["changes", &snapshot, &later]),
        (&[read], &["sync", &snapshot, &image]),
        (&[read, made], &["sync", &snapshot, "ebs:"]),
        (&[read, made], &["sync", &later, "ebs:", "--base", "auto"]),
        (&[policy("snapshot")], &["snapshot", "--instance", INSTANCE]),
        (&[policy("snapshot")], &["snapshot", "--volume", "vol-0a"]),
        (&[policy("inventory")], &["inventory", INSTANCE]),
        (&[policy("replicate")], &["replicate", "--once", &job]),
        // A second one has an old snapshot to delete.
        (&[policy("replicate")], &["replicate", "--once", &job]),
    ];
    for (allowed, args) in commands {
        allow_only(&emulator, allowed);
        let mut command = emulator.ebsfs(args);
        let (code, said) = ends(command.env("EBSFS_STATE_DIR", at("state")));
        assert_eq!(code, 0, "{args:?}: {said}");
        for words in ["permission", "left out", "not allowed"] {
            assert!(!said.contains(words), "{args:?}: {said}");
        }
    }
    assert!(emulator.count("DeleteSnapshot") > 0);
    // Each action for blocks is needed.
    for (denied, args) in [
        ("ebs:GetSnapshotBlock", &["digest", &snapshot][..]),
        ("ebs:ListSnapshotBlocks", &["digest", &snapshot]),
        ("ebs:ListChangedBlocks", &["changes", &snapshot, &later]),
    ] {
        emulator.set(&format!("deny={denied}"));
        let (code, said) = ends(&mut emulator.ebsfs(args));
        assert!(code == 4 && said.contains(denied), "{denied}: {said}");
    }
}
