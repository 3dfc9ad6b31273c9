use super::*;

const WHOLE: &str = r#"
name = "web"
instances = ["i-0a"]
volumes = ["vol-0b"]
tags = { Backup = "yes" }
exclude = ["vol-0c"]
exclude_boot = true
cron = "*/15 * * * *"
time_zone = "Europe/Berlin"
jitter = "2m"
keep = 2
rate = "100MiB"
bandwidth = [{ from = "08:00", to = "18:00", rate = "50M" }]
volumes_at_once = 8
verify = true
stage = "/var/lib/ebsfs/stage"
allow_plaintext = true
overwrite = ["/srv/old.raw"]
reserve = "20GiB"
inventory = false
snapshot_tags = { Job = "web" }
look_again = "30s"
snapshot_timeout = "1day"

[hooks]
before = "a"
after = "b"
on_failure = "c"
freeze = "d"
thaw = "e"
timeout = "10s"

[[target]]
to = "s3://bucket/dr"
keep = { last = 4, daily = 14, within = "2days" }
dedup = true
profile = "dr"

[[target]]
to = "/srv/{volume}.raw"
in_place = true

[[target]]
to = "/dev/disk/by-id/nvme-1"
volumes = ["vol-0b"]
shared = true

[[target]]
to = "ebs:eu-west-2"
kms_key = "arn:aws:kms:eu-west-2:111122223333:key/0a"
keep = { daily = 7 }
"#;

#[test]
fn every_key_has_its_value() {
    let job = parse(WHOLE).unwrap();
    assert_eq!((&*job.name, job.targets.len()), ("web", 4));
    let JobSource::Ec2(volumes) = &job.source else {
        panic!("{:?}", job.source)
    };
    assert_eq!((volumes.select.len(), volumes.without.len()), (3, 1));
    assert!(volumes.without_boot && job.verify && job.allow_plaintext);
    assert_eq!((job.keep, job.at_once, job.reserve), (2, 8, 20 << 30));
    assert!(!job.keeps_machines());
    assert_eq!(job.rates.usual, Some(100 << 20));
    assert_eq!(job.rates.windows.first().unwrap().rate, 50_000_000);
    assert_eq!(job.hooks.timeout, Duration::from_secs(10));
    assert_eq!(
        job.schedule.unwrap().to_string(),
        "*/15 * * * * (Europe/Berlin)"
    );
    let keep = |number: usize| job.targets.get(number).unwrap().keep.clone();
    assert_eq!(keep(0).unwrap().last, Some(4));
    // The newest one stays, whatever the rules.
    assert_eq!(keep(3).unwrap().last, Some(1));
    let least = "name='a'\nvolumes=['vol-0a']\n[[target]]\nto='/srv/a.raw'";
    let job = parse(least).unwrap();
    assert_eq!((job.keep, job.at_once), (1, 4));
    assert!(job.schedule.is_none());
}

#[test]
fn what_is_wrong_is_one_line_with_its_line_number() {
    let with = |line: &str| {
        format!("name = 'a'\nvolumes = ['vol-0a']\n{line}\n[[target]]\nto = '/srv/a.raw'\n")
    };
    for (text, words) in [
        (with("evry = '15m'"), "line 3: unknown field `evry`"),
        (with("every = 'soon'"), "line 3: \"soon\" is no time"),
        (with("every = 15"), "line 3: invalid type"),
        (with("keep = -1"), "line 3: invalid value"),
        (
            with("time_zone = 'Mars'"),
            "line 3: \"Mars\" is no time zone",
        ),
        (
            with("instances = ['vol-0a']"),
            "line 3: \"vol-0a\" is not an instance id",
        ),
        (with("rate = 'fast'"), "line 3: \"fast\" is no size"),
        (
            with("bandwidth = [{ from = '8', to = '18:00', rate = '1M' }]"),
            "line 3: \"8\" is no time of day",
        ),
        (
            with("bandwidth = [{ from = '08:00', to = '08:00', rate = '1M' }]"),
            "ends when it begins",
        ),
        (
            with("every = '15m'\ncron = '* * * * *'"),
            "exclude each other",
        ),
        (with("jitter = '1m'"), "jitter is for"),
        (with("time_zone = 'UTC'"), "time_zone is for"),
        (with("keep = 0"), "keep must be 1 or more"),
        (with("rate = '1KiB'"), "at least 512KiB"),
        (with("volumes_at_once = 0"), "from 1 to"),
        (
            with("inventory = true"),
            "inventory is for jobs with instances",
        ),
        (with("["), "line 3"),
        (
            with("") + "keep = { last = 1 }",
            "cannot use keep with the target /srv/a.raw",
        ),
        (with("") + "keep = {}", "has no rule"),
        (with("") + "dedup = true", "cannot use dedup"),
        (
            with("") + "[[target]]\nto = 'a.raw'",
            "neither an absolute path",
        ),
        (
            "name = 'a/b'\nvolumes = ['vol-0a']\n[[target]]\nto = '/a'".into(),
            "as the name of a job",
        ),
        (
            "name = 'a'\n[[target]]\nto = '/a'".into(),
            "selects no volume",
        ),
        ("name = 'a'\nvolumes = ['vol-0a']".into(), "has no target"),
        ("volumes = ['vol-0a']".into(), "missing field `name`"),
    ] {
        let said = parse(&text).unwrap_err().chain();
        assert!(said.contains(words), "{words}: {said}");
        assert!(!said.contains('\n'), "{said}");
    }
}

#[test]
fn a_job_can_have_a_repository_as_its_source() {
    let text = r#"
name = "standby"
from = "s3://bucket/dr/"
volumes = ["vol-0a", "vol-0b"]
exclude = ["vol-0c"]
every = "1m"

[source]
profile = "dr"
region = "eu-west-2"
endpoint_url = "https://s3.example"
ca_bundle = "/etc/ca.pem"

[[target]]
to = "/srv/{volume}.raw"
"#;
    let job = parse(text).unwrap();
    let JobSource::Repository(from) = &job.source else {
        panic!("{:?}", job.source)
    };
    assert_eq!(from.address.to_string(), "s3://bucket/dr");
    assert_eq!(from.volumes, ["vol-0a".into(), "vol-0b".into()].into());
    assert_eq!(from.without, ["vol-0c".into()].into());
    assert_eq!(from.access.profile.as_deref(), Some("dr"));
    assert_eq!(from.access.region.as_deref(), Some("eu-west-2"));
    assert!(from.access.endpoint_url.is_some() && from.access.ca_bundle.is_some());
    // All volumes, any store.
    let least = "name = 'a'\nfrom = 'file:///r'\n[[target]]\nto = '/srv/{volume}.raw'";
    assert!(parse(least).is_ok());
    let with = |lines: &str, to: &str| {
        format!("name = 'a'\nfrom = 'file:///r'\n{lines}\n[[target]]\nto = '{to}'\n")
    };
    for key in [
        "instances = ['i-0a']",
        "tags = { a = 'b' }",
        "exclude_boot = true",
        "keep = 2",
        "snapshot_tags = { a = 'b' }",
        "look_again = '1m'",
        "snapshot_timeout = '1m'",
        "hooks.freeze = 'true'",
        "hooks.thaw = 'true'",
    ] {
        let said = parse(&with(key, "/a")).unwrap_err().chain();
        let name = key.split(' ').next().unwrap();
        assert!(
            said.contains(&format!("cannot use {name} with from")),
            "{said}"
        );
    }
    for (lines, to, words) in [
        ("", "/srv/{instance}/x", "does not say which instance"),
        ("", "file:///r/", "it is the source"),
        (
            "source.profile = 'a'",
            "/a",
            "cannot use profile with the source",
        ),
        (
            "source.ca_bundle = '/a'",
            "/a",
            "cannot use ca_bundle with the source",
        ),
        ("source.kms_key = 'a'", "/a", "unknown field"),
    ] {
        let said = parse(&with(lines, to)).unwrap_err().chain();
        assert!(said.contains(words), "{words}: {said}");
    }
    for (line, words) in [
        ("from = 'file:///r#latest'", "leave out #latest"),
        ("from = '/srv/r'", "line 2: \"/srv/r\""),
        (
            "volumes = ['vol-0a']\nsource.region = 'a'",
            "[source] is for",
        ),
    ] {
        let text = format!("name = 'a'\n{line}\n[[target]]\nto = '/a'");
        let said = parse(&text).unwrap_err().chain();
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.toml");
    let spaces = vec![b' '; usize::try_from(LARGEST_FILE).unwrap() + 1];
    std::fs::write(&path, spaces).unwrap();
    let said = read(&path).unwrap_err().chain();
    assert!(said.contains("larger than"), "{said}");
    std::fs::write(&path, [0xff]).unwrap();
    assert!(read(&path).unwrap_err().chain().contains("not UTF-8"));
}

/// The keys that the parser of a table knows: it lists them when it sees another one.
fn known_keys(text: &str) -> BTreeSet<String> {
    let said = parse(text).unwrap_err().chain();
    assert!(said.contains("unknown field `zzz`"), "{said}");
    let (_, expected) = said.split_once("expected ").unwrap();
    let quoted = expected.split('`').skip(1).step_by(2);
    quoted.map(str::to_owned).collect()
}

#[test]
fn the_manual_describes_every_key_of_the_job_file_and_no_other() {
    let manual = include_str!("../../../../docs/man/ebsfs-job.5");
    let with = |lines: &str| format!("name = 'a'\nvolumes = ['vol-0a']\n{lines}");
    for (table, text) in [
        ("", "zzz = 1".to_owned()),
        (" source", with("[source]\nzzz = 1")),
        (" bandwidth", with("bandwidth = [{ zzz = 1 }]")),
        (" hooks", with("[hooks]\nzzz = 1")),
        (" target", with("[[target]]\nzzz = 1")),
        (" keep", with("[[target]]\nto = '/a'\nkeep = { zzz = 1 }")),
        (" drill", with("[drill]\nzzz = 1")),
    ] {
        let marker = format!("\n.\\\" keys:{table}\n");
        let (_, section) = manual.split_once(&marker).unwrap();
        let section = section.split("\n.S").next().unwrap();
        let keys = section
            .lines()
            .filter_map(|line| line.strip_prefix(".It Ic "));
        let described: Vec<String> = keys.map(str::to_owned).collect();
        let distinct: BTreeSet<String> = described.iter().cloned().collect();
        assert_eq!(described.len(), distinct.len(), "{table}");
        assert_eq!(distinct, known_keys(&text), "{table}");
    }
}

#[test]
fn the_job_of_the_manual_is_a_job() {
    let manual = include_str!("../../../../docs/man/ebsfs-job.5");
    let (_, example) = manual.split_once(".Bd -literal\n").unwrap();
    let job = parse(example.split("\n.Ed").next().unwrap()).unwrap();
    assert_eq!((&*job.name, job.targets.len()), ("web", 2));
}
