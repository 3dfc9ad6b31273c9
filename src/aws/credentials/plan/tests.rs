use super::*;

const PROFILES: &str = "\
[default]
region = eu-west-1
[profile keys]
aws_access_key_id = FILE
aws_secret_access_key = s
aws_session_token = t
[profile empty]
region = eu-west-1
aws_access_key_id =
[profile role]
role_arn = R1
source_profile = keys
external_id = x
role_session_name = n
duration_seconds = 1800
[profile chained]
role_arn = R2
source_profile = role
[profile self]
role_arn = R3
source_profile = self
aws_access_key_id = SELF
aws_secret_access_key = s
[profile of-environment]
role_arn = R4
credential_source = Environment
[profile of-instance]
role_arn = R4
credential_source = Ec2InstanceMetadata
[profile of-container]
role_arn = R4
credential_source = EcsContainer
[profile web]
role_arn = R5
web_identity_token_file = /token
[profile role-of-web]
role_arn = R6
source_profile = web
[profile program]
credential_process = prog --secret hush
[profile role-of-program]
role_arn = R7
source_profile = program
[profile sso]
sso_session = s
sso_account_id = 1
sso_role_name = r
[sso-session s]
sso_region = us-east-1
sso_start_url = https://start
[profile old-sso]
sso_region = us-east-1
sso_start_url = https://start
sso_account_id = 1
sso_role_name = r
[profile half]
aws_access_key_id = HALF
[profile loop]
role_arn = R
source_profile = pool
[profile pool]
role_arn = R
source_profile = loop
[profile mfa]
role_arn = R
source_profile = keys
mfa_serial = arn:aws:iam::1:mfa/x
[profile login]
login_session = arn:aws:iam::1:user/x
[profile no-source]
role_arn = R
[profile two-sources]
role_arn = R
source_profile = keys
credential_source = Environment
[profile lost-source]
role_arn = R
source_profile = nope
[profile empty-source]
role_arn = R
source_profile = empty
[profile half-sso]
sso_session = s
sso_account_id = 1
";

/// A plan in short: its origin, then the roles.
async fn short(profile: Option<&str>, is_option: bool, variables: &[(&str, &str)]) -> String {
    let pairs = variables.iter();
    let pairs = pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let environment = Environment::of_pairs(pairs);
    let profiles = Profiles::of_text(PROFILES).await;
    let given = profile.map(|name| Given::new(name.to_owned(), "--to-profile"));
    match plan(&environment, &profiles, given.as_ref(), is_option) {
        Err(error) => format!("{:?}: {}", error.kind(), error.chain()),
        Ok(plan) => {
            let shown = format!("{plan:?}");
            assert!(!shown.contains("hush"), "{shown}");
            let origin = match plan.origin {
                Origin::Keys(keys) => keys.id,
                Origin::Program { profile, .. } => format!("program of {profile}"),
                Origin::WebIdentity { role, token_file } => format!("{token_file} {}", role.arn),
                Origin::Sso(sso) => format!("sso {:?}", sso.session),
                Origin::Container => "container".into(),
                Origin::Instance => "instance".into(),
            };
            let roles = plan.roles.into_iter().map(|role| format!(" {}", role.arn));
            origin + &roles.collect::<String>()
        }
    }
}

#[tokio::test]
async fn each_kind_of_profile_has_one_plan_for_credentials() {
    for (profile, expected) in [
        ("keys", "FILE"),
        ("empty", "instance"),
        ("role", "FILE R1"),
        ("chained", "FILE R1 R2"),
        ("self", "SELF R3"),
        ("of-instance", "instance R4"),
        ("of-container", "container R4"),
        ("web", "/token R5"),
        ("role-of-web", "/token R5 R6"),
        ("program", "program of program"),
        ("role-of-program", "program of program R7"),
        ("sso", "sso Some(\"s\")"),
        ("old-sso", "sso None"),
    ] {
        for is_option in [true, false] {
            assert_eq!(
                short(Some(profile), is_option, &[]).await,
                expected,
                "{profile}"
            );
        }
    }
}

#[tokio::test]
async fn a_profile_that_cannot_be_used_says_why() {
    for (profile, expected) in [
        (
            "nope",
            "Denied: no AWS credentials: the profile \"nope\" of --to-profile is in none",
        ),
        (
            "half",
            "Invalid: cannot use the profile \"half\": it has aws_access_key_id without",
        ),
        ("loop", "leads back to \"loop\""),
        (
            "mfa",
            "Denied: cannot use the profile \"mfa\": it asks for an MFA code",
        ),
        ("login", "`aws login`"),
        ("no-source", "role_arn without source_profile"),
        ("two-sources", "both source_profile and credential_source"),
        ("lost-source", "\"nope\" does not exist"),
        (
            "empty-source",
            "\"empty\", from which its role is assumed, has no credentials",
        ),
        ("half-sso", "no sso_role_name"),
        ("of-environment", "AWS_ACCESS_KEY_ID is not set"),
    ] {
        let said = short(Some(profile), true, &[]).await;
        assert!(said.contains(expected), "{profile}: {said}");
    }
}

#[tokio::test]
async fn the_environment_counts_unless_an_option_names_a_profile() {
    let keys = [("AWS_ACCESS_KEY_ID", "ENV"), ("AWS_SECRET_ACCESS_KEY", "s")];
    let web = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/pod"),
        ("AWS_ROLE_ARN", "R"),
    ];
    let container = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1/x")];
    let empty = [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")];
    for (profile, is_option, variables, expected) in [
        (None, false, &keys[..], "ENV"),
        (Some("keys"), false, &keys, "ENV"),
        (Some("keys"), true, &keys, "FILE"),
        (Some("empty"), true, &keys, "instance"),
        (Some("of-environment"), true, &keys, "ENV R4"),
        (None, false, &web, "/pod R"),
        (Some("keys"), false, &web, "FILE"),
        (Some("empty"), true, &web, "instance"),
        (None, false, &container, "container"),
        (Some("empty"), true, &container, "container"),
        (None, false, &empty, "instance"),
        (
            None,
            false,
            &keys[..1],
            "Denied: no AWS credentials: AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not",
        ),
    ] {
        let said = short(profile, is_option, variables).await;
        assert_eq!(said, expected, "{profile:?} {is_option} {variables:?}");
    }
}

#[tokio::test]
async fn a_role_keeps_its_settings() {
    let profiles = Profiles::of_text(PROFILES).await;
    let given = Given::new("role".to_owned(), "--profile");
    let plan = plan(&Environment::default(), &profiles, Some(&given), true).unwrap();
    let expected = RoleStep {
        arn: "R1".into(),
        external_id: Some("x".into()),
        session_name: Some("n".into()),
        seconds: Some(1800),
    };
    assert_eq!(plan.roles, [expected]);
}
