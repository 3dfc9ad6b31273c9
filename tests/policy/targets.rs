//! Jobs that keep snapshots at an `ebs:` target: the policy of the target deletes those of the job, and no snapshot of a volume.

use super::*;

/// A call to EC2, signed by curl with the key of the user `default`: its reply.
fn ec2(site: &PolicySite, form: &str) -> String {
    let (id, secret) = site.emulator.keys();
    run(Command::new("curl")
        .args(["-sS", "--user", &format!("{id}:{secret}")])
        .args(["--aws-sigv4", "aws:amz:us-east-1:ec2", "--data", form])
        .arg(site.emulator.url()))
}

/// The snapshots that are at the target.
fn replicas(site: &PolicySite) -> Vec<String> {
    let text = run(&mut site.ebsfs(&["ls", "--json"]));
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    let is_replica = |one: &&Value| one["volume_id"] == "vol-ffffffff";
    let all = all.iter().filter(is_replica);
    all.map(|one| one["id"].as_str().unwrap().to_owned())
        .collect()
}

/// Writes another block of a volume.
fn change(site: &PolicySite, volume: &str, index: u64) {
    site.emulator.make_volume(volume, 2048, [0, index]);
}

#[test]
fn keep_at_an_ebs_target_needs_exactly_the_policy_of_its_job() {
    let site = PolicySite::new();
    site.emulator.make_volume("vol-0a", 2048, [0, 3]);
    let job = |file: &str, of: &str, target: &str| {
        let text = format!("name = \"web\"\n{of}\nallow_plaintext = true\n[[target]]\n{target}\n");
        std::fs::write(site.at(file), text).unwrap();
        site.path(file)
    };
    let instances = format!("instances = [\"{INSTANCE}\"]");
    let to_image = format!("to = \"{}\"", site.path("{volume}.raw"));
    let set = job("set.toml", &instances, &to_image);
    let to_ebs = "to = \"ebs:us-east-1\"\nkeep = { last = 1 }";
    let one = job("one.toml", "volumes = [\"vol-0a\"]", to_ebs);
    let once = ["replicate", "--once", &one];
    let verbs = ["replicate", "upload", "--job"];
    site.check(&[&verbs[..], &["web"]].concat(), |site| {
        site.ok(&["replicate", "--once", &set]);
        for index in 4..7 {
            change(site, "vol-0a", index);
            site.ok(&once);
            assert_eq!(replicas(site).len(), 1, "{index}");
        }
    });
    // The policy of another job, and one without the action.
    for policy in [
        printed(&[&verbs[..], &["other"]].concat()),
        printed(&[&verbs[..], &["web", "--minimal"]].concat()),
    ] {
        site.enforce(&json!({"users": {"default": policy}}));
        change(&site, "vol-0a", 9);
        let before = replicas(&site).len();
        let (code, said) = ends_within(LIMIT, &mut site.ebsfs(&once));
        assert_eq!(code, 0, "{said}");
        assert_eq!(replicas(&site).len(), before + 1, "{said}");
    }

    // The tag of the job on a snapshot of a volume, which the policy cannot prevent, does not make it deletable.
    let policy = printed(&["upload", "--job", "web"]);
    site.enforce(&json!({"users": {"default": policy}}));
    let victim = site.emulator.snapshot("vol-0a");
    let tag =
        format!("Action=CreateTags&ResourceId.1={victim}&Tag.1.Key=ebsfs:job&Tag.1.Value=web");
    let tagged = ec2(&site, &tag);
    assert!(tagged.contains("<return>true</return>"), "{tagged}");
    for (id, expected) in [
        (
            &victim,
            "no identity-based policy allows the ec2:DeleteSnapshot action",
        ),
        (&replicas(&site)[0], "<return>true</return>"),
    ] {
        let said = ec2(&site, &format!("Action=DeleteSnapshot&SnapshotId={id}"));
        assert!(said.contains(expected), "{id}: {said}");
    }
}

#[test]
fn keep_at_the_ebs_target_of_a_gateway_needs_exactly_the_policy_of_its_job() {
    let site = PolicySite::new();
    site.emulator.make_volume("vol-0a", 2048, [0, 3]);
    site.ok(&["repository", "init", REPOSITORY]);
    let text = format!(
        "name = \"standby\"\nfrom = \"{REPOSITORY}\"\nallow_plaintext = true\n\
         [[target]]\nto = \"ebs:us-east-1\"\nkeep = {{ last = 1 }}\n"
    );
    let job = site.at("standby.toml");
    std::fs::write(&job, text).unwrap();
    let fill = |index| {
        change(&site, "vol-0a", index);
        site.ok(&["sync", &site.emulator.snapshot("vol-0a"), REPOSITORY]);
    };
    let once = ["replicate", "--once", job.to_str().unwrap()];
    fill(4);
    let verbs = [
        "gateway",
        "upload",
        "--bucket",
        "bucket/replicas",
        "--job",
        "standby",
    ];
    // A second snapshot, that a second cycle copies under the policy.
    site.ok(&once);
    fill(5);
    site.check(&verbs, |site| drop(site.ok(&once)));
    assert_eq!(replicas(&site).len(), 1);
}
