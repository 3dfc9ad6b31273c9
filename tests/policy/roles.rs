//! Roles of the emulator, assumed by profiles of ebsfs and by signed requests of curl.

use super::*;

const READER: &str = "arn:aws:iam::111122223333:role/reader";
const LISTER: &str = "arn:aws:iam::111122223333:role/lister";
const AUDIT: &str = "arn:aws:iam::444455556666:user/audit";

fn allow(action: &str, on: &str) -> Value {
    json!({"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": action, "Resource": on}})
}

fn trust(principal: &str, external: Option<&str>) -> Value {
    let mut one =
        json!({"Effect": "Allow", "Principal": {"AWS": principal}, "Action": "sts:AssumeRole"});
    if let Some(id) = external {
        one["Condition"] = json!({"StringEquals": {"sts:ExternalId": id}});
    }
    json!({"Version": "2012-10-17", "Statement": one})
}

/// A site with a user of another account, whom the role `reader` trusts, and the role `lister`, which trusts `reader`.
fn site_with_roles() -> (PolicySite, String) {
    let site = PolicySite::new();
    site.emulator.make_volume("vol-0a", 2048, [0, 3]);
    let id = site.emulator.snapshot("vol-0a");
    site.enforce(&json!({
        "users": {AUDIT: allow("sts:AssumeRole", "arn:aws:iam::111122223333:role/*")},
        "roles": {
            "reader": {
                "trust": trust("arn:aws:iam::444455556666:root", Some("e-1")),
                "policies": [printed(&["mount"]), allow("sts:AssumeRole", LISTER)]
            },
            "lister": {"trust": trust(READER, None), "policies": printed(&["ls"]), "max_session_s": 43_200}
        }
    }));
    let of_reader =
        format!("role_arn = {READER}\nsource_profile = audit\nrole_session_name = night");
    let config = format!(
        "[profile reader]\n{of_reader}\nexternal_id = e-1\n\
         [profile wrong]\n{of_reader}\nexternal_id = e-2\n\
         [profile without]\n{of_reader}\n\
         [profile untrusted]\nrole_arn = {LISTER}\nsource_profile = audit\n\
         [profile chained]\nrole_arn = {LISTER}\nsource_profile = reader\nrole_session_name = noon\n"
    );
    std::fs::write(site.at("config"), config).unwrap();
    (site, id)
}

fn as_profile(site: &PolicySite, profile: &str, args: &[&str]) -> Command {
    let mut command = site.ebsfs(args);
    command
        .env("AWS_CONFIG_FILE", site.at("config"))
        .env("AWS_PROFILE", profile);
    command
}

#[test]
fn a_profile_with_a_role_does_what_the_role_may_do_and_nothing_else() {
    let (site, id) = site_with_roles();
    let mount = Mount::start(as_profile(&site, "reader", &["mount", "-v"]), &[&id]);
    let disk = mount.disk(&id);
    for index in [0, 1, 3] {
        let expected = match index {
            1 => vec![0; BLOCK as usize],
            index => content("vol-0a", index),
        };
        assert!(
            read_at(&disk, index * BLOCK, BLOCK as usize) == expected,
            "{index}"
        );
    }
    let who = "arn:aws:sts::111122223333:assumed-role/reader/night";
    wait_for("the caller in the log", || mount.log().contains(who));
    drop(mount);

    let image = site.path("image.raw");
    std::fs::copy(site.emulator.volume("vol-0a"), &image).unwrap();
    let by =
        |profile: &str, args: &[&str]| ends_within(LIMIT, &mut as_profile(&site, profile, args));
    let (code, said) = by("reader", &["sync", &image, "ebs:"]);
    let refused = format!(
        "User: {who} is not authorized to perform: ebs:StartSnapshot on resource: arn:aws:ec2:us-east-1::snapshot/* \
         because no identity-based policy allows the ebs:StartSnapshot action"
    );
    assert!(code == 4 && said.contains(&refused), "{said}");
    assert_eq!(by("chained", &["ls"]).0, 0);
    let (code, said) = by("chained", &["digest", &id]);
    let refused = format!(
        "User: arn:aws:sts::111122223333:assumed-role/lister/noon is not authorized to perform: ebs:ListSnapshotBlocks on \
         resource: arn:aws:ec2:us-east-1::snapshot/{id} because no identity-based policy allows the ebs:ListSnapshotBlocks action"
    );
    assert!(code == 4 && said.contains(&refused), "{said}");
    let untrusted = format!(
        "User: {AUDIT} is not authorized to perform: sts:AssumeRole because no role trust policy allows the sts:AssumeRole action"
    );
    for profile in ["wrong", "without", "untrusted"] {
        let (code, said) = by(profile, &["ls"]);
        let needed = "the trust policy of the role must allow sts:AssumeRole";
        assert!(
            code == 4 && said.contains(&untrusted) && said.contains(needed),
            "{profile}: {said}"
        );
    }
    // The user alone is of an account that has no snapshots.
    let (code, said) = by("audit", &["ls"]);
    assert!(code == 4 && said.contains("OptInRequired"), "{code} {said}");

    let url = format!("{}/_emulator/actions", site.emulator.url());
    let asked: Value =
        serde_json::from_str(&run(Command::new("curl").args(["-sSf", &url]))).unwrap();
    let on = format!("arn:aws:ec2:us-east-1::snapshot/{id}");
    assert!(
        asked["role/reader"]["ebs:GetSnapshotBlock"][on].as_u64() > Some(0),
        "{asked}"
    );
    assert!(
        asked["audit"]["sts:AssumeRole"][READER].as_u64() > Some(3),
        "{asked}"
    );
    assert!(
        asked["role/reader"]["sts:AssumeRole"][LISTER].as_u64() > Some(0),
        "{asked}"
    );
}

#[test]
fn an_expired_session_of_a_role_is_replaced_by_a_new_one() {
    let (site, id) = site_with_roles();
    site.emulator.set("session_life_s=1");
    let mount = Mount::start(as_profile(&site, "reader", &["mount"]), &[&id]);
    let disk = mount.disk(&id);
    assert!(read_at(&disk, 0, BLOCK as usize) == content("vol-0a", 0));
    let before = site.emulator.count("AssumeRole");
    std::thread::sleep(Duration::from_millis(1100));
    assert!(
        read_at(&disk, 3 * BLOCK, BLOCK as usize) == content("vol-0a", 3),
        "{}",
        mount.log()
    );
    assert!(site.emulator.count("AssumeRole") > before);
}

/// Keys, and the token of a session.
struct CurlKeys {
    id: String,
    secret: String,
    token: String,
}

impl CurlKeys {
    /// Those of a profile in the `credentials` file.
    fn of(site: &PolicySite, profile: &str) -> Self {
        let text =
            std::fs::read_to_string(site.emulator.folder.path().join("credentials")).unwrap();
        let own = text.split(&format!("[{profile}]\n")).nth(1).unwrap();
        let value = |name: &str| {
            let line = own.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim_start_matches([' ', '=']).to_owned()
        };
        Self {
            id: value("aws_access_key_id"),
            secret: value("aws_secret_access_key"),
            token: String::new(),
        }
    }

    /// Those in a reply of AssumeRole.
    fn in_reply(reply: &str) -> Self {
        Self {
            id: element(reply, "AccessKeyId"),
            secret: element(reply, "SecretAccessKey"),
            token: element(reply, "SessionToken"),
        }
    }

    /// A call to STS, signed by curl: the status and the reply.
    fn sts(&self, site: &PolicySite, form: &str) -> (u16, String) {
        let mut command = Command::new("curl");
        command
            .args(["-sS", "-w", "%{http_code}", "--user"])
            .arg(format!("{}:{}", self.id, self.secret))
            .args(["--aws-sigv4", "aws:amz:us-east-1:sts", "--data", form]);
        if !self.token.is_empty() {
            command.args(["-H", &format!("x-amz-security-token: {}", self.token)]);
        }
        let shown = run(command.arg(site.emulator.url()));
        let (body, status) = shown.split_at(shown.len() - 3);
        (status.parse().unwrap(), body.to_owned())
    }
}

/// The text of an element of XML.
fn element(xml: &str, name: &str) -> String {
    let rest = xml.split(&format!("<{name}>")).nth(1);
    let rest = rest.unwrap_or_else(|| panic!("{name} in {xml}"));
    rest.split("</").next().unwrap().to_owned()
}

#[test]
fn temporary_keys_of_sts_expire_and_need_their_token() {
    let (site, _) = site_with_roles();
    let user = CurlKeys::of(&site, "audit");
    let ask = |more: &str| {
        let form = format!(
            "Action=AssumeRole&Version=2011-06-15&RoleArn={READER}&RoleSessionName=night&ExternalId=e-1{more}"
        );
        user.sts(&site, &form)
    };
    let (status, reply) = ask("&DurationSeconds=900");
    assert_eq!(status, 200, "{reply}");
    let arn = "arn:aws:sts::111122223333:assumed-role/reader/night";
    assert_eq!(element(&reply, "Arn"), arn);
    assert_eq!(element(&reply, "AssumedRoleId"), "AROAREADER:night");
    let until = humantime::parse_rfc3339(&element(&reply, "Expiration")).unwrap();
    let left = until
        .duration_since(std::time::SystemTime::now())
        .unwrap()
        .as_secs();
    assert!((880..=900).contains(&left), "{left}");
    let keys = CurlKeys::in_reply(&reply);
    let who = "Action=GetCallerIdentity&Version=2011-06-15";
    let (status, said) = keys.sts(&site, who);
    assert_eq!(
        (status, element(&said, "Arn").as_str()),
        (200, arn),
        "{said}"
    );
    assert_eq!(element(&said, "UserId"), "AROAREADER:night");
    assert_eq!(element(&said, "Account"), "111122223333");
    let (_, said) = user.sts(&site, who);
    assert_eq!(element(&said, "Account"), "444455556666");
    assert_eq!(element(&said, "Arn"), AUDIT);

    let code = |(status, said): (u16, String)| format!("{status} {}", element(&said, "Code"));
    let other = CurlKeys::in_reply(&ask("").1);
    for token in ["", &other.token] {
        let wrong = CurlKeys {
            id: keys.id.clone(),
            secret: keys.secret.clone(),
            token: token.into(),
        };
        assert_eq!(code(wrong.sts(&site, who)), "403 InvalidClientTokenId");
    }
    for (more, expected) in [
        ("&DurationSeconds=899", "400 ValidationError"),
        // The role has no max_session_s: an hour.
        ("&DurationSeconds=3601", "400 ValidationError"),
        ("&Tags.member.1.Key=a", "400 ValidationError"),
        ("&Policy=%7B", "400 MalformedPolicyDocument"),
    ] {
        assert_eq!(code(ask(more)), expected, "{more}");
    }
    // The session of a session is at most an hour, though the role allows twelve.
    let chained = |seconds: u32| {
        let form = format!(
            "Action=AssumeRole&RoleArn={LISTER}&RoleSessionName=noon&DurationSeconds={seconds}"
        );
        keys.sts(&site, &form)
    };
    assert_eq!(chained(3600).0, 200);
    assert_eq!(code(chained(3601)), "400 ValidationError");
    // A role that is not in force any more.
    site.enforce(&json!({}));
    assert_eq!(code(ask("")), "403 AccessDenied");

    site.emulator.set(&format!(
        "expired_sessions={}",
        other.token.replace('=', "%3D")
    ));
    assert_eq!(code(other.sts(&site, who)), "403 ExpiredToken");
    assert_eq!(keys.sts(&site, who).0, 200);
    site.emulator.post("clock?ahead_s=901");
    assert_eq!(code(keys.sts(&site, who)), "403 ExpiredToken");
}
