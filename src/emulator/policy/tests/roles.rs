//! Roles: who may assume them, and what their sessions may do.

use std::sync::Arc;
use std::time::SystemTime;

use super::*;
use crate::emulator::ec2::QueryForm;
use crate::emulator::sessions::{RoleRequest, RoleSession};

const ROLE: &str = "arn:aws:iam::111122223333:role/reader";
const ROOT: &str = "arn:aws:iam::111122223333:root";

fn role_request(more: &[(&str, &str)]) -> RoleRequest {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("RoleArn", ROLE)
        .append_pair("RoleSessionName", "night")
        .extend_pairs(more);
    RoleRequest::parse(&QueryForm::parse(form.finish().as_bytes())).unwrap()
}

/// A session of the role `reader`, with this session policy.
fn session(limits: Option<&Value>) -> Caller {
    let limits = limits.map(Value::to_string);
    let more: Vec<_> = limits
        .iter()
        .map(|text| ("Policy", text.as_str()))
        .collect();
    let session = RoleSession::new(&role_request(&more), SystemTime::UNIX_EPOCH);
    Caller {
        identity: EmulatedIdentity::Session(Arc::new(session)),
        ..user("web")
    }
}

fn user_of(arn: &str) -> Caller {
    Caller {
        identity: EmulatedIdentity::User(arn.parse().unwrap()),
        ..user("web")
    }
}

/// A request for the role, with this external id.
fn assume(external: Option<&str>) -> AccessRequest {
    let external: Vec<_> = external.iter().map(|id| ("sts:ExternalId", *id)).collect();
    AccessRequest {
        grantor: Some(PolicyGrantor::Role(ROLE.parse().unwrap())),
        ..request("sts:AssumeRole", ROLE, &external)
    }
}

fn trust(effect: &str, principal: &str, external: Option<&str>) -> Value {
    let mut one =
        json!({"Effect": effect, "Principal": {"AWS": principal}, "Action": "sts:AssumeRole"});
    if let Some(id) = external {
        one["Condition"] = json!({"StringEquals": {"sts:ExternalId": id}});
    }
    one
}

#[test]
fn a_role_is_assumed_by_callers_that_it_trusts_and_that_may_assume_it() {
    let may = statement("Allow", "sts:AssumeRole", "arn:aws:iam::*:role/reader");
    let must_not = statement("Deny", "sts:*", "*");
    let other = statement("Allow", "ebs:*", "*");
    let foreign = "arn:aws:iam::444455556666:user/audit";
    let foreign_root = "arn:aws:iam::444455556666:root";
    let no_trust = "because no role trust policy allows the sts:AssumeRole action";
    let no_identity = "because no identity-based policy allows the sts:AssumeRole action";
    let denied = "with an explicit deny in an identity-based policy";
    let trust_denied = "with an explicit deny in the role trust policy";
    let named = || vec![trust("Allow", USER, None)];
    let account = || vec![trust("Allow", ROOT, None)];
    let secret = || vec![trust("Allow", "444455556666", Some("e-1"))];
    for (caller, own, trusted, external, expected) in [
        // A role that names a user of its account needs no policy of the user.
        (USER, Some(&other), named(), None, ""),
        (USER, None, account(), None, ""),
        (USER, Some(&may), account(), None, ""),
        (USER, Some(&other), account(), None, no_identity),
        (USER, Some(&must_not), named(), None, denied),
        (
            USER,
            Some(&may),
            vec![trust("Allow", foreign_root, None)],
            None,
            no_trust,
        ),
        (
            USER,
            Some(&may),
            vec![trust("Allow", "*", None), trust("Deny", USER, None)],
            None,
            trust_denied,
        ),
        // Another account: both.
        (foreign, Some(&may), secret(), Some("e-1"), ""),
        (foreign, Some(&may), secret(), Some("e-2"), no_trust),
        (foreign, Some(&may), secret(), None, no_trust),
        (
            foreign,
            Some(&other),
            vec![trust("Allow", foreign, None)],
            None,
            no_identity,
        ),
        (foreign, Some(&may), account(), None, no_trust),
    ] {
        let mut file = json!({"roles": {"reader": {"trust": policy(&trusted), "policies": []}}});
        if let Some(own) = own {
            file["users"] = json!({caller: policy(std::slice::from_ref(own))});
        }
        let policies = parsed(&file).unwrap();
        let decision = policies.decide(&user_of(caller), "sts", &assume(external));
        assert_eq!(
            why_refused(decision),
            expected,
            "{caller} {own:?} {trusted:?} {external:?}"
        );
    }
    // A role that does not exist is refused like one that does not trust the caller.
    let decision = parsed(&json!({}))
        .unwrap()
        .decide(&user("web"), "sts", &assume(None));
    assert_eq!(decision, AccessDecision::RefusedByTrust(no_trust.into()));
}

#[test]
fn the_endpoint_of_sts_limits_who_assumes_a_role() {
    let endpoint = |resource: &str| {
        let mut allow = statement("Allow", "sts:AssumeRole", resource);
        allow["Principal"] = json!("*");
        json!({
            "roles": {"reader": {"trust": policy(&[trust("Allow", ROOT, None)]), "policies": []}},
            "endpoint": {"sts": policy(&[allow])}
        })
    };
    for (resource, expected) in [
        (ROLE, ""),
        (
            "arn:aws:iam::*:role/writer",
            "because no VPC endpoint policy allows the sts:AssumeRole action",
        ),
    ] {
        let policies = parsed(&endpoint(resource)).unwrap();
        let decision = policies.decide(&user("web"), "sts", &assume(None));
        assert_eq!(why_refused(decision), expected, "{resource}");
    }
}

#[test]
fn a_session_may_do_what_its_role_and_its_session_policy_allow() {
    let list = request("ebs:ListSnapshotBlocks", SNAPSHOT, &[]);
    let get = request("ebs:GetSnapshotBlock", SNAPSHOT, &[]);
    let who = request("sts:GetCallerIdentity", "*", &[]);
    let reads = policy(&[statement("Allow", "ebs:*", "*")]);
    let lists = policy(&[statement("Allow", "ebs:List*", "*")]);
    let denies = policy(&[
        statement("Deny", "ebs:Get*", "*"),
        statement("Allow", "ebs:*", "*"),
    ]);
    let file = |of_role: &Value| {
        let role = json!({"trust": policy(&[trust("Allow", ROOT, None)]), "policies": of_role});
        parsed(&json!({"roles": {"reader": role}})).unwrap()
    };
    let lacks =
        |kind: &str| format!("because no {kind} policy allows the ebs:GetSnapshotBlock action");
    for (of_role, limits, of_get) in [
        (reads.clone(), None, String::new()),
        (lists.clone(), None, lacks("identity-based")),
        (reads.clone(), Some(&lists), lacks("session")),
        (lists.clone(), Some(&reads), lacks("identity-based")),
        (
            reads.clone(),
            Some(&denies),
            "with an explicit deny in a session policy".into(),
        ),
        (json!([lists, reads]), Some(&reads), String::new()),
    ] {
        let (policies, caller) = (file(&of_role), session(limits));
        assert_eq!(
            why_refused(policies.decide(&caller, "ebs", &get)),
            of_get,
            "{of_role} {limits:?}"
        );
        for allowed in [&list, &who] {
            let decision = policies.decide(&caller, "ebs", allowed);
            assert_eq!(decision, AccessDecision::Allowed, "{of_role} {limits:?}");
        }
    }
    // Without policies, and if the role does not exist any more, it may do nothing.
    for policies in [file(&json!([])), parsed(&json!({})).unwrap()] {
        let decision = policies.decide(&session(None), "ebs", &get);
        assert_eq!(why_refused(decision), lacks("identity-based"));
    }
}

#[test]
fn a_session_is_named_by_its_role_and_by_its_own_arn() {
    let decrypt = AccessRequest {
        grantor: Some(PolicyGrantor::Key(KEY.into())),
        ..request("kms:Decrypt", KEY, &[])
    };
    let own = "arn:aws:sts::111122223333:assumed-role/reader/night";
    for (principal, expected) in [
        (ROLE, true),
        (own, true),
        ("arn:aws:sts::111122223333:assumed-role/reader/day", false),
        ("arn:aws:iam::111122223333:role/writer", false),
        // The policies of the role must allow it then.
        (ROOT, false),
    ] {
        let mut granted = statement("Allow", "kms:*", "*");
        granted["Principal"] = json!({"AWS": principal});
        let role = json!({"trust": policy(&[trust("Allow", ROOT, None)]), "policies": []});
        let file = json!({"kms_keys": {KEY: policy(&[granted])}, "roles": {"reader": role}});
        let decision = parsed(&file)
            .unwrap()
            .decide(&session(None), "ebs", &decrypt);
        assert_eq!(decision == AccessDecision::Allowed, expected, "{principal}");
    }
    let caller = session(None);
    assert_eq!(
        (caller.arn().as_str(), caller.principal_arn().as_str()),
        (own, ROLE)
    );
    assert_eq!(caller.counted_as(), "role/reader");
}

#[test]
fn a_role_that_the_emulator_cannot_read_is_refused() {
    let good = trust("Allow", ROOT, None);
    let mut with_resource = good.clone();
    with_resource["Resource"] = json!("*");
    let mut of_service = good.clone();
    of_service["Principal"] = json!({"Service": "ec2.amazonaws.com"});
    let without = json!({"Effect": "Allow", "Action": "sts:AssumeRole"});
    let role =
        |trust: &Value| json!({"trust": policy(std::slice::from_ref(trust)), "policies": []});
    for (name, role, words) in [
        (
            "reader",
            role(&with_resource),
            "trust: statement 1: a trust policy names a Resource",
        ),
        ("reader", role(&of_service), "does not know the Principal"),
        ("reader", role(&without), "it names no Principal"),
        ("a/b", role(&good), "neither the name nor the ARN of a role"),
        ("reader", json!({"policies": []}), "missing field `trust`"),
        (
            "reader",
            json!({"trust": policy(std::slice::from_ref(&good))}),
            "missing field `policies`",
        ),
        (
            "reader",
            json!({"trust": policy(std::slice::from_ref(&good)), "policies": [], "path": "/"}),
            "unknown field `path`",
        ),
        (
            "reader",
            json!({"trust": policy(std::slice::from_ref(&good)), "policies": [], "max_session_s": 60}),
            "not between 900 and 43200",
        ),
    ] {
        let why = parsed(&json!({"roles": {name: role}})).unwrap_err();
        assert!(why.contains(words), "{why}");
    }
    let both = json!({"roles": {"reader": role(&good), ROLE: role(&good)}});
    assert!(parsed(&both).unwrap_err().contains("is there twice"));
    let policies = parsed(&json!({"roles": {"reader": role(&good)}})).unwrap();
    assert_eq!(policies.longest_session(&ROLE.parse().unwrap()), Some(3600));
}
