//! `ebsfs policy`: the printed policy has exactly the actions that the calls of each verb need. The emulator enforces the policy
//! and counts the actions.

mod buckets;
mod documented;
mod refused;
mod roles;
mod targets;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::s3::{S3Reply, S3Request, S3Server};
use crate::support::*;
use buckets::actions_of;

const INSTANCE: &str = "i-0123456789abcdef0";
const KEY: &str = "arn:aws:kms:us-east-1:111122223333:key/0a1b";
const REPOSITORY: &str = "s3://bucket/replicas";
/// The longest that a command of these tests may take.
const LIMIT: Duration = Duration::from_secs(120);

/// An emulator, a bucket, and a folder for what the commands write.
struct PolicySite {
    emulator: Emulator,
    bucket: S3Server,
    /// The KMS key of the objects of the bucket.
    bucket_key: Option<&'static str>,
    folder: TempDir,
}

impl PolicySite {
    fn new() -> Self {
        Self {
            emulator: Emulator::start(),
            bucket: S3Server::start(),
            bucket_key: None,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn path(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    fn ebsfs(&self, args: &[&str]) -> Command {
        let mut command = self.emulator.ebsfs(args);
        command
            .env("AWS_ENDPOINT_URL_S3", &self.bucket.url)
            .env("EBSFS_STATE_DIR", self.at("state"));
        command
    }

    /// The standard output of a command that must succeed, without a warning about a missing permission.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.ebsfs(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
        for words in ["permission", "left out", "not allowed", "not on record"] {
            assert!(!said.contains(words), "{args:?}: {said}");
        }
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Puts policies in force.
    fn enforce(&self, policies: &Value) {
        let url = format!("{}/_emulator/policies", self.emulator.url());
        let body = policies.to_string();
        run(Command::new("curl").args(["-sSf", "-X", "POST", "--data-binary", &body, &url]));
    }

    /// Puts a policy in force, for the emulator and for the bucket.
    fn enforce_for_all(&self, policy: &Value) {
        self.enforce(&json!({"users": {"default": policy}}));
        self.emulator.reset();
        let (pairs, key) = (pairs(policy), self.bucket_key);
        let refuses = move |request: &S3Request| {
            let allows = |(action, arn): &Grant| {
                let mut all = pairs.iter();
                all.any(|pair| pair.0 == *action && is_below(&pair.1, arn))
            };
            let is_allowed = actions_of(request, key).iter().all(allows);
            let refusal = || S3Reply::error(403, "AccessDenied", "Access Denied");
            (!is_allowed).then(refusal)
        };
        self.bucket.on(refuses);
        self.bucket.seen();
    }

    /// The actions that calls needed since the last reset, each with its resources.
    fn asked(&self) -> BTreeSet<(String, String)> {
        let url = format!("{}/_emulator/actions", self.emulator.url());
        let text = run(Command::new("curl").args(["-sSf", &url]));
        let by_user: Value = serde_json::from_str(&text).unwrap();
        let of_bucket = self.bucket.seen().into_iter();
        let mut asked: BTreeSet<Grant> = of_bucket
            .flat_map(|request| actions_of(&request, self.bucket_key))
            .collect();
        let by_action = by_user["default"].as_object().into_iter().flatten();
        for (action, on) in by_action.filter(|(action, _)| *action != "sts:GetCallerIdentity") {
            let resources = on.as_object().unwrap().keys();
            asked.extend(resources.map(|resource| (action.clone(), resource.clone())));
        }
        asked
    }

    /// Runs commands under the printed policy of a verb, and compares the policy with the actions that they needed.
    fn check(&self, verb: &[&str], commands: impl FnOnce(&Self)) {
        let policy = printed(verb);
        self.enforce_for_all(&policy);
        commands(self);
        let asked = self.asked();
        let (missing, idle) = differences(&policy, &asked);
        assert!(
            missing.is_empty() && idle.is_empty(),
            "{verb:?}: lacks {missing:?}, and has too much: {idle:?}"
        );
        // On all resources, each action that can be limited is too much.
        let mut wide = policy.clone();
        for statement in wide["Statement"].as_array_mut().unwrap() {
            statement["Resource"] = json!("*");
        }
        let is_found = !differences(&wide, &asked).1.is_empty();
        assert_eq!(is_found, wide != policy, "{verb:?}: {wide}");
        // The setup of the next verb needs other actions.
        self.enforce(&json!({}));
        self.bucket.on(|_| None);
    }

    /// Runs a command without the actions that its verb can do without.
    fn check_minimal(&self, verb: &[&str], command: &[&str]) {
        let minimal = printed(&[verb, &["--minimal"]].concat());
        self.enforce_for_all(&minimal);
        let (code, said) = ends_within(LIMIT, &mut self.ebsfs(command));
        assert_eq!(code, 0, "{verb:?} {command:?}: {said}");
        self.enforce(&json!({}));
        self.bucket.on(|_| None);
    }
}

/// What `ebsfs policy` prints.
fn printed(args: &[&str]) -> Value {
    let text = run(Command::new(EBSFS).arg("policy").args(args));
    serde_json::from_str(&text).unwrap()
}

/// One string or several.
fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(all) => all.iter().map(|one| one.as_str().unwrap()).collect(),
        one => vec![one.as_str().unwrap()],
    }
}

/// Each action of a policy with each resource that it is granted on.
fn pairs(policy: &Value) -> BTreeSet<(String, String)> {
    let mut pairs = BTreeSet::new();
    for statement in policy["Statement"].as_array().unwrap() {
        for action in strings(&statement["Action"]) {
            for resource in strings(&statement["Resource"]) {
                pairs.insert((action.to_owned(), resource.to_owned()));
            }
        }
    }
    pairs
}

/// An action and a resource.
type Grant = (String, String);

/// What calls needed and a policy does not grant, and what it grants and no call needed.
fn differences(policy: &Value, asked: &BTreeSet<Grant>) -> (Vec<Grant>, Vec<Grant>) {
    let granted = pairs(policy);
    let is_pair =
        |pair: &Grant, of: &Grant| is_named(&pair.0, &of.0) && is_exactly_on(&pair.1, &of.1);
    let missing = asked.iter();
    let missing = missing.filter(|of| !granted.iter().any(|pair| is_pair(pair, of)));
    // One statement has both calls that make snapshots. This one is never on an instance.
    let is_harmless =
        |pair: &(String, String)| pair.0 == "ec2:CreateSnapshot" && pair.1.ends_with(":instance/*");
    let idle = granted.iter();
    let idle = idle.filter(|pair| !is_harmless(pair) && !asked.iter().any(|of| is_pair(pair, of)));
    (missing.cloned().collect(), idle.cloned().collect())
}

/// Whether a granted ARN is that of a resource, part by part. `*` is granted only for an action that no resource limits.
fn is_exactly_on(granted: &str, resource: &str) -> bool {
    let (mut parts, mut of) = (granted.splitn(6, ':'), resource.splitn(6, ':'));
    match granted == "*" || resource == "*" {
        true => granted == resource,
        false => (0..6).all(|_| is_below(parts.next().unwrap(), of.next().unwrap())),
    }
}

/// Whether an action has this name, which can end with a `*`.
fn is_named(name: &str, action: &str) -> bool {
    match name.strip_suffix('*') {
        Some(start) => action.starts_with(start),
        None => action == name,
    }
}

/// Whether a resource is that of an ARN, or is below one that ends with `/*`.
fn is_below(arn: &str, resource: &str) -> bool {
    match arn.strip_suffix('*') {
        Some(start) => resource.starts_with(start),
        None => resource == arn,
    }
}

/// A volume with a filesystem of 4 MiB, and two encrypted snapshots of it that differ.
fn two_of_a_filesystem(site: &PolicySite) -> [String; 2] {
    let volume = site.emulator.make_volume("vol-0a", 8, []);
    std::fs::create_dir_all(site.at("content")).unwrap();
    std::fs::write(site.at("content/hello.txt"), "hello").unwrap();
    let (volume, content) = (volume.to_str().unwrap(), site.path("content"));
    sh(&format!("mkfs.ext4 -q -F -d {content} {volume}"));
    let first = site.emulator.snapshot("vol-0a");
    std::fs::copy(volume, site.at("first.raw")).unwrap();
    sh(&format!("debugfs -w -R 'mkdir new' {volume} 2> /dev/null"));
    let both = [first, site.emulator.snapshot("vol-0a")];
    both.iter().for_each(|id| encrypt(site, id));
    both
}

/// Encrypts a snapshot with the key.
fn encrypt(site: &PolicySite, id: &str) {
    let key = KEY.replace(':', "%3A").replace('/', "%2F");
    site.emulator.post(&format!("snapshots/{id}?kms_key={key}"));
}

#[test]
fn calls_name_their_actions_by_the_table() {
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut wrong = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                folders.extend((!["emulator", "tests"].contains(&&*name)).then_some(path));
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
            let looks_like_one = |word: &str| {
                let call = word
                    .split_once(':')
                    .filter(|(service, _)| ["ebs", "ec2", "s3", "sts"].contains(service));
                call.is_some_and(|(_, call)| {
                    call.starts_with(|c: char| c.is_ascii_uppercase())
                        && call.bytes().all(|b| b.is_ascii_alphanumeric())
                        && call.bytes().any(|b| b.is_ascii_lowercase())
                })
            };
            // Condition keys look like actions.
            let keys = ["ec2:CreateAction", "ec2:ParentVolume"];
            let is_action = |word: &str| !keys.contains(&word) && looks_like_one(word);
            let named = code.split('"').filter(|word| is_action(word));
            let named: Vec<&str> = named.collect();
            if !named.is_empty() && !["actions", "tests"].contains(&&*name) {
                wrong.push(format!("{}: {named:?}", path.display()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "take the names from IamAction: {wrong:#?}"
    );
}

#[test]
fn each_verb_that_reads_snapshots_needs_exactly_its_policy() {
    let site = PolicySite::new();
    let [first, later] = two_of_a_filesystem(&site);
    site.emulator.make_volume("vol-0b", 8, [1]);
    let other = site.emulator.snapshot("vol-0b");
    let (image, cache) = (site.path("image.raw"), site.path("cache"));
    let with_key = |verb: &'static str| [verb, "--kms", KEY];
    site.check(&with_key("mount"), |site| {
        let mount = site.emulator.mount(&["-v"]);
        let bytes = std::fs::read(site.at("first.raw")).unwrap();
        assert!(read_at(&mount.disk(&first), 0, bytes.len()) == bytes);
        let changes = mount.pair(&first, &later).join("changes.json");
        assert!(!std::fs::read(changes).unwrap().is_empty());
        assert!(site.emulator.count("ListChangedBlocks") > 0);
    });
    site.check(&with_key("sync"), |site| {
        site.ok(&["sync", &first, &image]);
        site.ok(&["sync", &later, &image, "--base", &first]);
    });
    let warm = ["warm", &first, "--cache-dir", &cache, "--cache-encrypted"];
    let digest = ["digest", &first];
    let blocks = ["blocks", &first];
    let files = ["files", "ls", &first];
    let changes = ["changes", &first, &later];
    site.check(&with_key("warm"), |site| drop(site.ok(&warm)));
    site.check(&with_key("digest"), |site| drop(site.ok(&digest)));
    site.check(&with_key("blocks"), |site| drop(site.ok(&blocks)));
    site.check(&with_key("files"), |site| {
        site.ok(&files);
        let changed = site.ok(&["files", "changes", &first, &later]);
        assert!(changed.contains("new"), "{changed}");
    });
    site.check(&with_key("changes"), |site| {
        site.ok(&changes);
        site.ok(&["changes", &first, &later, "--exact"]);
        site.ok(&["changes", &first, &other, "--unrelated", "compare"]);
    });
    site.check(&with_key("verify"), |site| {
        site.ok(&["verify", &image, &later, "--fetch"]);
    });
    site.check(&with_key("evidence"), |site| {
        site.ok(&["evidence", &first, "--output", &site.path("evidence")]);
    });
    site.check(&["ls"], |site| drop(site.ok(&["ls"])));
    for (verb, command) in [
        ("digest", &digest[..]),
        ("blocks", &blocks),
        ("files", &files),
        ("changes", &changes),
        ("sync", &["sync", &first, &site.path("other.raw")]),
    ] {
        site.check_minimal(&with_key(verb), command);
    }
}

#[test]
fn each_verb_runs_under_its_policy_for_a_tag_and_cannot_tag_other_snapshots() {
    let site = PolicySite::new();
    let [first, later] = two_of_a_filesystem(&site);
    for id in [&first, &later] {
        site.emulator
            .post(&format!("snapshots/{id}?tag=team%3Dstorage"));
    }
    let with_tag = |verbs: &[&'static str]| [verbs, &["--tag", "team=storage"]].concat();
    let image = site.path("image.raw");
    site.check(&with_tag(&["sync", "--kms", KEY]), |site| {
        site.ok(&["sync", &first, &image]);
        site.ok(&["sync", &later, &image, "--base", &first]);
    });
    for volume in ["vol-0c", "vol-0d"] {
        site.emulator.make_volume(volume, 2048, [0, 3]);
        site.emulator.post(&format!(
            "volumes/{volume}?instance=i-0c&tag=team%3Dstorage"
        ));
    }
    let to = site.path("{volume}.raw");
    let job = |file: &str, of: &str| {
        let text = format!("name = \"web\"\n{of}\n[[target]]\nto = \"{to}\"\n");
        std::fs::write(site.at(file), text).unwrap();
        site.path(file)
    };
    let set = job("set.toml", "instances = [\"i-0c\"]");
    let one = job("one.toml", "volumes = [\"vol-0d\"]");
    site.check(&with_tag(&["replicate", "--job", "web"]), |site| {
        site.ok(&["replicate", "--once", &set]);
        site.ok(&["replicate", "--once", &one]);
        site.ok(&["replicate", "--once", &one]);
    });
    // A new snapshot gets its own tags, but not the one that makes snapshots readable.
    let source = site.emulator.volume("vol-0c");
    let upload = ["sync", source.to_str().unwrap(), "ebs:", "--restart"];
    let policy = printed(&with_tag(&["digest", "upload"]));
    site.enforce(&json!({"users": {"default": policy}}));
    site.ok(&upload);
    let tagged = [&upload[..], &["--tag", "team=storage"]].concat();
    let (code, said) = ends_within(LIMIT, &mut site.ebsfs(&tagged));
    let refused = "no identity-based policy allows the ec2:CreateTags action";
    assert!(code == 4 && said.contains(refused), "{code} {said}");
}

#[test]
fn attach_and_drill_need_exactly_their_policies() {
    let _turn = crate::attach::ATTACHMENTS
        .read()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let site = PolicySite::new();
    let [first, _] = two_of_a_filesystem(&site);
    // A drill copies all mounts into a mount namespace. On a shared mount, an unmount reaches that namespace too.
    let shared = site.path("shared");
    sh(&format!(
        "mkdir {shared}; mount --bind {shared} {shared}; mount --make-shared {shared}; mkdir {shared}/files {shared}/scratch"
    ));
    let files = format!("{shared}/files");
    let scratch = format!("{shared}/scratch");
    let attach = [
        "attach",
        "--background",
        &first,
        &files,
        "--scratch",
        &scratch,
    ];
    site.check(&["attach", "--kms", KEY], |site| {
        site.ok(&attach);
        let hello = std::fs::read_to_string(format!("{files}/hello.txt"));
        site.ok(&["detach", &files]);
        assert_eq!(hello.unwrap(), "hello");
    });
    sh(&format!("umount {shared}"));
    site.check(&["drill", "--kms", KEY], |site| {
        site.ok(&["drill", &first, "--scratch", &site.path("")]);
    });
}

#[test]
fn each_verb_that_makes_snapshots_needs_exactly_its_policy() {
    let site = PolicySite::new();
    for volume in ["vol-0a", "vol-0b"] {
        site.emulator.make_volume(volume, 2048, [0, 3]);
    }
    let image = site.path("image.raw");
    std::fs::copy(site.emulator.volume("vol-0a"), &image).unwrap();
    let upload = ["sync", &image, "ebs:"];
    let parent = site.emulator.snapshot("vol-0a");
    encrypt(&site, &parent);
    site.check(&["upload", "--kms", KEY], |site| {
        site.ok(&upload);
        // An encrypted copy puts all blocks of a GiB: the deny ends it after the calls that this test is about.
        site.emulator.set("deny=ebs:PutSnapshotBlock");
        for option in [["--kms-key", KEY], ["--parent", &parent]] {
            let command = [&upload[..], &option].concat();
            let (code, said) = ends_within(LIMIT, &mut site.ebsfs(&command));
            assert!(
                code == 4 && said.contains("ebs:PutSnapshotBlock"),
                "{option:?}: {said}"
            );
        }
        site.emulator.set("deny=");
    });
    site.check(&["snapshot"], |site| {
        site.ok(&["snapshot", "--instance", INSTANCE]);
        site.ok(&["snapshot", "--volume", "vol-0a"]);
    });
    site.check(&["inventory"], |site| {
        site.ok(&["inventory", INSTANCE]);
    });
    let job = |file: &str, of: &str| {
        let to = site.path("{volume}.raw");
        let text = format!("name = \"web\"\n{of}\n[[target]]\nto = \"{to}\"\n");
        std::fs::write(site.at(file), text).unwrap();
        site.path(file)
    };
    let set = job("set.toml", &format!("instances = [\"{INSTANCE}\"]"));
    let one = job("one.toml", "volumes = [\"vol-0b\"]");
    let once = ["replicate", "--once", &one];
    site.check(&["replicate", "--job", "web"], |site| {
        site.ok(&["replicate", "--once", &set]);
        // A second cycle has an old snapshot to delete.
        site.ok(&once);
        site.ok(&once);
    });
    assert!(site.emulator.count("DeleteSnapshot") > 0);
    site.check_minimal(&["replicate", "--job", "web"], &once);
    // Without ec2:GetEbsEncryptionByDefault all blocks are put.
    site.check_minimal(&["upload"], &[&upload[..], &["--dry-run"]].concat());
    site.check_minimal(&["snapshot"], &["snapshot", "--volume", "vol-0b"]);
    site.check_minimal(&["inventory"], &["inventory", INSTANCE]);
}

#[test]
fn each_verb_of_a_repository_needs_exactly_its_policy() {
    let site = PolicySite::new();
    site.emulator.make_volume("vol-0a", 8, [0, 3]);
    site.emulator.make_volume("vol-0b", 8, [1]);
    let made = site.ok(&["snapshot", "--instance", INSTANCE]);
    let ids: Vec<&str> = made
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    site.ok(&["repository", "init", REPOSITORY]);
    let bucket = ["--bucket", "bucket/replicas"];
    let of = |verb: &'static str| [&[verb][..], &bucket].concat();
    // The source is read by another policy.
    let local = site.path("local.raw");
    std::fs::copy(site.emulator.volume("vol-0a"), &local).unwrap();
    let write = ["sync", &local, REPOSITORY, "--volume", "local"];
    site.check(&of("repository-write"), |site| drop(site.ok(&write)));
    for id in &ids {
        site.ok(&["sync", id, REPOSITORY]);
    }
    std::fs::write(site.at("instance.json"), site.ok(&["inventory", INSTANCE])).unwrap();
    let instance = site.path("instance.json");
    site.ok(&["repository", "instances", REPOSITORY, "--add", &instance]);
    let copy = format!("{REPOSITORY}#{}", ids[0]);
    let set = format!("{REPOSITORY}#{INSTANCE}");
    let read = ["sync", &copy, &site.path("copy.raw")];
    let once = [
        "replicate",
        "--once",
        "--from",
        REPOSITORY,
        "--volume",
        "vol-0a",
        "--to",
    ];
    site.check(&of("repository-read"), |site| drop(site.ok(&read)));
    site.check(&of("gateway"), |site| {
        site.ok(&[&once[..], &[&*site.path("gateway.raw")]].concat());
    });
    site.check(&of("restore"), |site| {
        site.ok(&["restore", &set, "--to", &site.path("restored")]);
    });
    for (verb, command) in [
        (
            "repository-read",
            &["sync", &copy, &site.path("other.raw")][..],
        ),
        (
            "gateway",
            &[&once[..], &[&*site.path("standby.raw")]].concat(),
        ),
        ("restore", &["restore", &set, "--to", &site.path("again")]),
        (
            "repository-write",
            &["sync", &local, REPOSITORY, "--volume", "more"],
        ),
    ] {
        site.check_minimal(&of(verb), command);
    }
    // The copy of a snapshot: read there, written here.
    site.check(&of("sync"), |site| {
        let [old, new] = [(); 2].map(|()| site.emulator.snapshot("vol-0b"));
        site.ok(&["sync", &old, REPOSITORY]);
        site.ok(&["sync", &new, REPOSITORY, "--base", "auto"]);
    });
    site.check(&of("repository"), |site| {
        site.ok(&["repository", "ls", REPOSITORY]);
        site.ok(&["repository", "check", REPOSITORY]);
        site.ok(&["repository", "rm", &copy]);
        site.ok(&[
            "repository",
            "prune",
            REPOSITORY,
            "--keep-last",
            "1",
            "--grace",
            "0s",
        ]);
    });
}
