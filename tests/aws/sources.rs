//! Sources of credentials, each by AWS_PROFILE, --profile and --to-profile.

use super::*;

/// A profile, what else must be set, and what the stand-ins are asked for.
struct Source {
    profile: &'static str,
    variables: &'static [(&'static str, &'static str)],
    /// What is asked of the stand-ins, the last parts of roles and paths.
    asked: &'static [&'static str],
}

const fn source(profile: &'static str, asked: &'static [&'static str]) -> Source {
    Source {
        profile,
        variables: &[],
        asked,
    }
}

const INSTANCE: &[&str] = &[
    "/latest/api/token",
    "/latest/meta-data/iam/security-credentials/",
    "/latest/meta-data/iam/security-credentials/role",
];
const INSTANCE_ROLE: &[&str] = &[
    "/latest/api/token",
    "/latest/meta-data/iam/security-credentials/",
    "/latest/meta-data/iam/security-credentials/role",
    "AssumeRole r",
];

const SOURCES: &[Source] = &[
    source("keys", &[]),
    source("role", &["AssumeRole r"]),
    source("external", &["AssumeRole r"]),
    source("chained", &["AssumeRole r", "AssumeRole second"]),
    source("web", &["AssumeRoleWithWebIdentity r"]),
    source(
        "sso",
        &["/federation/credentials?role_name=reader&account_id=111122223333"],
    ),
    source(
        "old-sso",
        &["/federation/credentials?role_name=reader&account_id=111122223333"],
    ),
    source("program", &[]),
    source("role-of-program", &["AssumeRole r"]),
    source("empty", INSTANCE),
    source("of-instance", INSTANCE_ROLE),
    Source {
        profile: "of-container",
        variables: &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "STAND/container")],
        asked: &["/container", "AssumeRole r"],
    },
    Source {
        profile: "empty",
        variables: &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "STAND/container")],
        asked: &["/container"],
    },
    Source {
        profile: "of-environment",
        variables: &[
            ("AWS_ACCESS_KEY_ID", "KEY"),
            ("AWS_SECRET_ACCESS_KEY", "SECRET"),
        ],
        asked: &["AssumeRole r"],
    },
    Source {
        profile: "keys",
        variables: &[
            ("AWS_ACCESS_KEY_ID", ""),
            ("AWS_SECRET_ACCESS_KEY", ""),
            ("AWS_SESSION_TOKEN", ""),
        ],
        asked: &[],
    },
];

/// Writes the profiles of [`SOURCES`].
fn write_profiles(person: &Person) {
    let (id, secret) = person.emulator.keys();
    let home = person.home.path().display().to_string();
    person.write("token", "x.y.z\n");
    person.write(
        "program.json",
        &format!(
            r#"{{"Version":1,"AccessKeyId":"{id}","SecretAccessKey":"{secret}","SessionToken":"program","Expiration":"2090-01-01T00:00:00+00:00"}}"#
        ),
    );
    // A token's file has the SHA-1 of the session's name, in the old form of the URL.
    for name in ["corp", "https://start.example"] {
        let digest = sh(&format!("printf %s '{name}' | sha1sum | cut -d' ' -f1"));
        person.write(
            &format!(".aws/sso/cache/{}.json", digest.trim()),
            r#"{"accessToken":"signed-in","expiresAt":"2090-01-01T00:00:00Z","region":"us-east-1","startUrl":"https://start.example"}"#,
        );
    }
    let role = "role_arn = arn:aws:iam::111122223333:role/r";
    let config = format!(
        "{}\
         [profile role]\n{role}\nsource_profile = keys\n\
         [profile external]\n{role}\nsource_profile = keys\nexternal_id = right\n\
         [profile chained]\nrole_arn = arn:aws:iam::111122223333:role/second\nsource_profile = role\n\
         [profile web]\n{role}\nweb_identity_token_file = {home}/token\n\
         [profile sso]\nsso_session = corp\nsso_account_id = 111122223333\nsso_role_name = reader\n\
         [sso-session corp]\nsso_region = us-east-1\nsso_start_url = https://start.example\n\
         [profile old-sso]\nsso_region = us-east-1\nsso_start_url = https://start.example\n\
         sso_account_id = 111122223333\nsso_role_name = reader\n\
         [profile program]\ncredential_process = cat {home}/program.json\n\
         [profile role-of-program]\n{role}\nsource_profile = program\n\
         [profile empty]\noutput = json\n\
         [profile of-instance]\n{role}\ncredential_source = Ec2InstanceMetadata\n\
         [profile of-container]\n{role}\ncredential_source = EcsContainer\n\
         [profile of-environment]\n{role}\ncredential_source = Environment\n\
         [profile wrong-external]\n{role}\nsource_profile = keys\nexternal_id = wrong\n\
         [profile mfa]\n{role}\nsource_profile = keys\nmfa_serial = arn:aws:iam::1:mfa/x\n\
         [profile login]\nlogin_session = arn:aws:iam::1:user/x\n\
         [profile signed-out]\nsso_session = other\nsso_account_id = 1\nsso_role_name = r\n\
         [sso-session other]\nsso_region = us-east-1\nsso_start_url = https://other.example\n",
        person.keys_profile("keys")
    );
    person.write(".aws/config", &config);
}

#[test]
fn every_source_of_credentials_works_by_variable_and_by_option() {
    let person = Person::new();
    write_profiles(&person);
    let image = person.write("disk.raw", &"x".repeat(1 << 20));
    let (id, secret) = person.emulator.keys();
    for source in SOURCES {
        let set = |mut command: Command| {
            for (name, value) in source.variables {
                let value = value.replace("STAND", &person.stand.url());
                let value = value.replace("KEY", &id).replace("SECRET", &secret);
                command.env(name, value);
            }
            command
        };
        person.stand.asked();
        let profile = source.profile;
        let image = image.to_str().unwrap();
        let mut by_variable = person.ebsfs(&["ls"]);
        by_variable.env("AWS_PROFILE", profile);
        let target = ["sync", image, "ebs:", "--to-profile", profile, "--dry-run"];
        let forms = [
            ("AWS_PROFILE", by_variable),
            ("--profile", person.ebsfs(&["ls", "--profile", profile])),
            ("--to-profile", person.ebsfs(&target)),
        ];
        for (form, command) in forms {
            // Keys in the environment win over AWS_PROFILE, as with the AWS CLI.
            if profile == "of-environment" && form == "AWS_PROFILE" {
                continue;
            }
            let (code, said) = ends(&mut set(command));
            assert_eq!(code, 0, "{profile} by {form}: {said}");
            // Each command asks once, however many clients it has.
            assert_eq!(person.stand.asked(), source.asked, "{profile} by {form}");
        }
    }
}

#[test]
fn keys_in_the_environment_lose_against_an_option() {
    let person = Person::new();
    write_profiles(&person);
    let mut command = person.ebsfs(&["ls", "--profile", "keys"]);
    command.env("AWS_ACCESS_KEY_ID", "AKIAWRONG");
    command.env("AWS_SECRET_ACCESS_KEY", "wrong");
    let (code, said) = ends(&mut command);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn unsupported_or_wrong_settings_are_named_with_a_remedy() {
    let person = Person::new();
    write_profiles(&person);
    let image = person.write("disk.raw", &"x".repeat(1 << 20));
    let image = image.to_str().unwrap();
    for (profile, words) in [
        (
            "nope",
            "the profile \"nope\" of --to-profile is in none of the profile files: give --to-profile",
        ),
        ("mfa", "aws configure export-credentials --profile mfa"),
        ("login", "aws configure export-credentials --profile login"),
        ("signed-out", "aws sso login --profile signed-out"),
        ("wrong-external", "AccessDenied"),
    ] {
        let args = ["sync", image, "ebs:", "--to-profile", profile, "--dry-run"];
        let (code, said) = ends(&mut person.ebsfs(&args));
        assert_eq!(code, 4, "{profile}: {said}");
        assert!(said.contains(words), "{profile}: {said}");
        assert_eq!(said.lines().count(), 1, "{profile}: {said}");
    }
}

#[test]
fn a_slow_program_runs_once_and_shows_what_it_says() {
    let person = Person::new();
    write_profiles(&person);
    let home = person.home.path().display();
    let program = format!(
        "echo run >> {home}/runs; echo touch the key >&2; sleep 9; cat {home}/program.json"
    );
    let script = person.write("program.sh", &program);
    let config = format!(
        "[profile slow]\ncredential_process = sh {}\n",
        script.display()
    );
    person.write(".aws/config", &config);
    let point = tempfile::tempdir().unwrap();
    let mut command = person.ebsfs(&["mount", "--profile", "slow"]);
    command
        .args(["--background"])
        .arg(point.path())
        .arg(&person.snapshot);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    run(person.ebsfs(&["umount"]).arg(point.path()));
    assert!(output.status.success(), "{said}");
    assert!(said.contains("touch the key"), "{said}");
    let runs = std::fs::read_to_string(person.home.path().join("runs")).unwrap();
    assert_eq!(runs, "run\n");
}
