//! Which URLs are called, and which are refused before any call.

use std::time::Duration;

use super::*;

/// A host that does not exist.
const NOWHERE: &str = "http://127.0.0.1:9";

fn person() -> Person {
    let person = Person::new();
    let profile = person.keys_profile("keys");
    person.write(
        ".aws/config",
        &profile.replace("[profile keys]", "[default]"),
    );
    person
}

/// `ebsfs ls` without any endpoint set.
fn ls(person: &Person, args: &[&str]) -> Command {
    let mut command = person.ebsfs(&["ls"]);
    command.args(args);
    for service in ["", "_EBS", "_EC2", "_STS", "_SSO"] {
        command.env_remove(format!("AWS_ENDPOINT_URL{service}"));
    }
    command
}

#[test]
fn options_variables_and_sections_name_the_url_of_a_service() {
    let person = person();
    let url = person.emulator.url();
    let (id, secret) = person.emulator.keys();
    let keys = format!("aws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
    person.write(
        ".aws/config",
        &format!(
            "[default]\n{keys}[profile whole]\n{keys}endpoint_url = {url}\n\
             [profile section]\n{keys}services = mine\nendpoint_url = {NOWHERE}\n\
             [services mine]\nec2 =\n  endpoint_url = {url}\n"
        ),
    );
    let with = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = ls(&person, args);
        command.envs(variables.iter().copied());
        // EC2 is asked again for 15 s where nothing answers.
        ends_within(Duration::from_secs(25), &mut command)
    };
    for (args, variables) in [
        (&["--endpoint-url", &*url][..], &[][..]),
        (&["--ec2-endpoint", &url, "--endpoint-url", NOWHERE], &[]),
        (
            &["--ec2-endpoint", &url],
            &[("AWS_ENDPOINT_URL_EC2", NOWHERE)],
        ),
        (
            &["--endpoint-url", &url],
            &[("AWS_ENDPOINT_URL_EC2", NOWHERE)],
        ),
        (
            &[],
            &[
                ("AWS_ENDPOINT_URL_EC2", &*url),
                ("AWS_ENDPOINT_URL", NOWHERE),
            ],
        ),
        (&[], &[("AWS_ENDPOINT_URL", &url)]),
        (
            &[],
            &[("AWS_ENDPOINT_URL", &url), ("AWS_ENDPOINT_URL_EC2", "")],
        ),
        (&["--profile", "whole"], &[]),
        (&["--profile", "whole"], &[("AWS_ENDPOINT_URL", "")]),
        (&["--profile", "section"], &[]),
        (
            &["--endpoint-url", &url],
            &[
                ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true"),
                ("AWS_ENDPOINT_URL", NOWHERE),
            ],
        ),
    ] {
        let (code, said) = with(args, variables);
        assert_eq!(code, 0, "{args:?} {variables:?}: {said}");
    }
    // AWS itself, through a proxy that does not exist: the host is named.
    let (code, said) = with(
        &["--profile", "section", "--region", "cn-north-1"],
        &[
            ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true"),
            ("HTTPS_PROXY", "http://127.0.0.1:9"),
        ],
    );
    assert_eq!(code, 7, "{said}");
    assert!(said.contains("127.0.0.1:9"), "{said}");
}

#[test]
fn a_wrong_url_is_refused_without_printing_its_password() {
    let person = person();
    for (url, words) in [
        ("http://user:hush@127.0.0.1:9", "user or password"),
        ("http://127.0.0.1:99999", "port"),
        ("nonsense", "must look like"),
        ("file:///etc", "must begin with"),
    ] {
        for (args, from) in [
            (["--endpoint-url", url], "--endpoint-url"),
            (["--ec2-endpoint", url], "--ec2-endpoint"),
        ] {
            let (code, said) = ends(&mut ls(&person, &args));
            assert_eq!(code, 2, "{url}: {said}");
            assert!(said.contains(words) && said.contains(from), "{url}: {said}");
            assert!(!said.contains("hush"), "{said}");
        }
        let (code, said) = ends(ls(&person, &[]).env("AWS_ENDPOINT_URL_EC2", url));
        assert_eq!(code, 2, "{url}: {said}");
        assert!(said.contains("AWS_ENDPOINT_URL_EC2"), "{said}");
    }
    let (code, said) = ends(&mut ls(&person, &["--use-fips", "--ec2-endpoint", NOWHERE]));
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("--use-fips") && said.contains("--ec2-endpoint"),
        "{said}"
    );
}

#[test]
fn an_empty_variable_is_unset_and_nothing_panics() {
    let person = person();
    for name in [
        "AWS_ENDPOINT_URL",
        "AWS_CA_BUNDLE",
        "AWS_PROFILE",
        "AWS_SESSION_TOKEN",
        "AWS_DEFAULT_REGION",
        "AWS_CONFIG_FILE",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        "AWS_USE_FIPS_ENDPOINT",
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
        "HTTPS_PROXY",
        "http_proxy",
        "NO_PROXY",
        "EBSFS_STATE_DIR",
    ] {
        let (code, said) = ends(person.ebsfs(&["ls"]).env(name, ""));
        assert_eq!(code, 0, "{name}=: {said}");
    }
}

#[test]
fn a_reply_cannot_command_the_terminal_and_a_redirect_is_not_followed() {
    let person = person();
    for (status, body, words) in [
        (
            403,
            "<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>a\u{1b}[31mb</Message></Error></Errors></Response>",
            "HTTP 403",
        ),
        (
            301,
            "<Response><Errors><Error><Code>PermanentRedirect</Code><Message>elsewhere</Message></Error></Errors></Response>",
            "301",
        ),
    ] {
        let server = Server::start(move |_| (status, body.to_owned()));
        let mut command = person.ebsfs(&["ls", "--ec2-endpoint", &server.url()]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        assert!(!said.contains('\u{1b}') && said.contains(words), "{said:?}");
    }
}

/// They are tried again for five minutes: what the log says of them meanwhile is enough.
#[test]
fn the_log_names_retries_and_cannot_command_the_terminal() {
    let person = person();
    let folder = tempfile::tempdir().unwrap();
    for (status, words) in [(429, "429"), (500, "500")] {
        let body = "<Response><Errors><Error><Code>a\u{1b}[31mb</Code></Error></Errors></Response>";
        let server = Server::start(move |_| (status, body.to_owned()));
        let log = folder.path().join(words);
        let mut child = person
            .ebsfs(&["ls", "-v", "--ec2-endpoint", &server.url()])
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let said = || std::fs::read_to_string(&log).unwrap();
        wait_for("the line about the answer", || said().contains(words));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!said().contains('\u{1b}'), "{:?}", said());
    }
}
