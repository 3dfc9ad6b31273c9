//! The manifests of `scripts/packaging`: by the schemas of their engines, by the rules of this project, and run as they are.

mod fstab;
mod installed;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::replicate::{FIRST, SECOND, Site, VOLUMES, snapshot_of};
use crate::support::{EBSFS, ends, init_repository, run};

/// The oldest version of Kubernetes that the pages name, and a new one.
const KUBERNETES: [&str; 2] = ["1.29", "1.37"];

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("scripts/packaging")
        .join(name)
}

/// A program that scripts/test installs.
fn client(program: &str) -> PathBuf {
    let release = Path::new(EBSFS).parent().unwrap();
    let own = release.with_file_name("clients").join("bin").join(program);
    if own.exists() { own } else { program.into() }
}

/// The documents of a manifest. Tags of CloudFormation become objects: `!Ref X` is `{"Ref": "X"}`.
fn documents(name: &str) -> Vec<Value> {
    let script = "import json, sys, yaml\n\
        def tagged(loader, suffix, node):\n\
        \x20   return {suffix: loader.construct_scalar(node)}\n\
        yaml.SafeLoader.add_multi_constructor('!', tagged)\n\
        print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let mut python = Command::new(client("python3"));
    let text = run(python.args(["-c", script]).arg(packaging(name)));
    serde_json::from_str(&text).unwrap()
}

fn kubernetes_accepts(paths: &[PathBuf], version: &str) -> bool {
    let mut command = Command::new(client("kubernetes-validate"));
    let output = command
        .args(["--strict", "-k", version])
        .args(paths)
        .output();
    output.unwrap().status.success()
}

fn cloudformation_accepts(path: &Path) -> bool {
    let output = Command::new(client("cfn-lint")).arg(path).output();
    output.unwrap().status.success()
}

/// Texts of a list.
fn texts(list: &Value) -> Vec<&str> {
    let all = list.as_array().unwrap().iter();
    all.map(|one| one.as_str().unwrap()).collect()
}

/// A copy of a manifest with one text in place of another.
fn damaged(folder: &Path, name: &str, good: &str, bad: &str) -> PathBuf {
    let text = std::fs::read_to_string(packaging(name)).unwrap();
    assert_eq!(text.matches(good).count(), 1, "{name}: {good}");
    let path = folder.join("damaged.yaml");
    std::fs::write(&path, text.replace(good, bad)).unwrap();
    path
}

#[test]
fn manifests_of_kubernetes_pass_its_schemas_and_a_damaged_one_does_not() {
    let all = ["job", "cronjob", "deployment"];
    let all = all.map(|name| packaging(&format!("kubernetes/{name}.yaml")));
    for version in KUBERNETES {
        assert!(kubernetes_accepts(&all, version), "{version}");
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, good, bad) in [
        (
            "kubernetes/cronjob.yaml",
            "completions: 4",
            "completions: four",
        ),
        ("kubernetes/deployment.yaml", "strategy:", "strategies:"),
    ] {
        let damaged = damaged(folder.path(), name, good, bad);
        assert!(
            !kubernetes_accepts(&[damaged], KUBERNETES[0]),
            "{name}: {bad}"
        );
    }
}

#[test]
fn the_template_of_batch_passes_cfn_lint_and_a_damaged_one_does_not() {
    let name = "batch/replicate.yaml";
    assert!(cloudformation_accepts(&packaging(name)));
    let folder = tempfile::tempdir().unwrap();
    let damaged = damaged(folder.path(), name, "!Ref Shards", "!Ref Shard");
    assert!(!cloudformation_accepts(&damaged));
}

/// Asserts what every pod of ours keeps to.
fn assert_pod(pod: &Value) {
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() >= 60);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    assert_eq!(pod["automountServiceAccountToken"], false);
    let containers = pod["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1);
    let security = &containers[0]["securityContext"];
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(texts(&security["capabilities"]["drop"]), ["ALL"]);
    let limits = &containers[0]["resources"]["limits"];
    assert!(limits["cpu"].as_str().unwrap().parse::<u32>().unwrap() <= 2);
    let memory = limits["memory"]
        .as_str()
        .unwrap()
        .strip_suffix("Gi")
        .unwrap();
    assert!(memory.parse::<u32>().unwrap() <= 4);
    for volume in pod["volumes"].as_array().unwrap() {
        assert!(volume["hostPath"].is_null(), "{volume}");
    }
    // The place of the image is named, and no registry is.
    assert_eq!(containers[0]["image"], "REGISTRY/ebsfs:VERSION");
}

#[test]
fn pods_have_few_rights_and_little_room_and_one_service_runs_a_job() {
    let cron = documents("kubernetes/cronjob.yaml").remove(0);
    assert_pod(&cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]);
    assert_eq!(cron["spec"]["concurrencyPolicy"], "Forbid");
    let service = documents("kubernetes/deployment.yaml").remove(0);
    assert_pod(&service["spec"]["template"]["spec"]);
    assert_eq!(service["spec"]["replicas"], 1);
    assert_eq!(service["spec"]["strategy"]["type"], "Recreate");
}

#[test]
fn the_cron_job_as_it_is_replicates_every_volume_once() {
    let site = Site::new(fastrand::u64(..));
    site.emulator.post("volumes/vol-0d?tag=Backup%3Dyes");
    let repository = format!("file://{}", site.at("repository").display());
    init_repository(&repository);
    let job = &documents("kubernetes/job.yaml")[0]["data"]["web.toml"];
    let job = job.as_str().unwrap();
    assert!(job.contains(FIRST) && job.contains(SECOND), "{job}");
    assert_eq!(job.matches("s3://dr-bucket/replicas").count(), 1);
    let path = site.job(&job.replace("s3://dr-bucket/replicas", &repository));
    let cron = documents("kubernetes/cronjob.yaml").remove(0);
    let spec = &cron["spec"]["jobTemplate"]["spec"];
    assert_eq!(spec["completionMode"], "Indexed");
    let count = spec["completions"].as_u64().unwrap();
    assert_eq!(spec["parallelism"], count);
    let container = &spec["template"]["spec"]["containers"][0];
    assert_eq!(texts(&container["command"]), ["ebsfs"]);
    let mut taken = Vec::new();
    for index in 0..count {
        let state = site.at("state").display().to_string();
        let args = texts(&container["args"]).into_iter().map(|arg| match arg {
            "/var/lib/ebsfs" => state.clone(),
            "/etc/ebsfs/web.toml" => path.display().to_string(),
            arg => arg.to_owned(),
        });
        let mut command = site.emulator.ebsfs(&[]);
        command.args(args).arg("--json");
        // What Kubernetes sets, and what the manifest does.
        command.env("JOB_COMPLETION_INDEX", index.to_string());
        for one in container["env"].as_array().unwrap() {
            command.env(
                one["name"].as_str().unwrap(),
                one["value"].as_str().unwrap(),
            );
        }
        let report: Value = serde_json::from_str(&run(&mut command)).unwrap();
        for volume in report["volumes"].as_array().unwrap() {
            let volume = volume["volume"].as_str().unwrap();
            assert_eq!(snapshot_of(&report, volume).len(), "snap-".len() + 17);
            taken.push(volume.to_owned());
        }
    }
    taken.sort_unstable();
    assert_eq!(taken, VOLUMES);
    // The service has the same job.
    let service = documents("kubernetes/deployment.yaml").remove(0);
    let container = &service["spec"]["template"]["spec"]["containers"][0];
    let args = texts(&container["args"]);
    assert_eq!(
        args,
        [
            "replicate",
            "--state-dir",
            "/var/lib/ebsfs",
            "/etc/ebsfs/web.toml"
        ]
    );
}

#[test]
fn the_array_job_of_batch_has_few_rights_and_the_policy_of_the_pages() {
    let template = documents("batch/replicate.yaml").remove(0);
    let resources = &template["Resources"];
    let container = &resources["Job"]["Properties"]["ContainerProperties"];
    assert_eq!(container["ReadonlyRootFilesystem"], true);
    assert!(!container["User"].as_str().unwrap().starts_with('0'));
    assert!(container["Privileged"].is_null());
    for (kind, most) in [("VCPU", 2), ("MEMORY", 4096)] {
        let all = container["ResourceRequirements"].as_array().unwrap();
        let one = all.iter().find(|one| one["Type"] == kind).unwrap();
        assert!(
            one["Value"].as_str().unwrap().parse::<u32>().unwrap() <= most,
            "{one}"
        );
    }
    // The rights of the source are those of the page, word by word.
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/replicate.md");
    let page = std::fs::read_to_string(page).unwrap();
    let policy = page
        .split("```json\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let policy: Value = serde_json::from_str(policy).unwrap();
    let actions = |statement: &Value| -> Vec<String> {
        match &statement["Action"] {
            Value::String(one) => vec![one.clone()],
            all => texts(all).into_iter().map(str::to_owned).collect(),
        }
    };
    let policies = &resources["TaskRole"]["Properties"]["Policies"];
    let given = policies[0]["PolicyDocument"]["Statement"]
        .as_array()
        .unwrap();
    let conditions = |statement: &Value| -> Vec<String> {
        let all = statement["Condition"].as_object().into_iter().flatten();
        all.flat_map(|(operator, of)| {
            let keys = of.as_object().unwrap().keys();
            keys.map(move |key| format!("{operator} {key}"))
        })
        .collect()
    };
    let rights = |statement: &Value| (actions(statement), conditions(statement));
    let given: Vec<_> = given.iter().map(rights).collect();
    let named = policy["Statement"].as_array().unwrap();
    let named: Vec<_> = named.iter().map(rights).collect();
    assert_eq!(given[..named.len()], named);
    // The command is one that the program takes: only the job is missing here.
    let command = container["Command"].as_array().unwrap();
    let words: Vec<&str> = command.iter().filter_map(Value::as_str).collect();
    assert_eq!(words[0], "ebsfs");
    let mut program = Command::new(EBSFS);
    program.args(&words[1..]).arg("/nonexistent/web.toml");
    program
        .env("AWS_BATCH_JOB_ARRAY_INDEX", "0")
        .env("AWS_BATCH_JOB_ARRAY_SIZE", "4");
    let (code, said) = ends(&mut program);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("/nonexistent/web.toml"), "{said}");
}
