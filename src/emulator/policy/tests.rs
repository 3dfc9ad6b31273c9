use serde_json::json;

use super::condition::{AccessContext, is_like};
use super::decide::AccessDecision;
use super::needs::{AccessRequest, PolicyGrantor};
use super::*;
use crate::emulator::caller::EmulatedIdentity;

mod roles;

const SNAPSHOT: &str = "arn:aws:ec2:us-east-1::snapshot/snap-0a";
const KEY: &str = "arn:aws:kms:us-east-1:111122223333:key/0a";
const USER: &str = "arn:aws:iam::111122223333:user/web";

fn statement(effect: &str, action: &str, resource: &str) -> Value {
    json!({"Effect": effect, "Action": action, "Resource": resource})
}

fn policy(statements: &[Value]) -> Value {
    json!({"Version": "2012-10-17", "Statement": statements})
}

fn parsed(file: &Value) -> Result<AccessPolicies, String> {
    AccessPolicies::parse(file.to_string().as_bytes())
}

fn request(action: &str, resource: &str, keys: &[(&str, &str)]) -> AccessRequest {
    let mut context = AccessContext::default();
    for (key, value) in keys {
        context.add(key, value);
    }
    AccessRequest {
        action: action.into(),
        resource: resource.into(),
        context,
        grantor: None,
    }
}

/// A user of the account, by its profile.
fn user(profile: &str) -> Caller {
    Caller {
        region: "us-east-1".into(),
        service: "ebs".into(),
        identity: EmulatedIdentity::User(UserId::own(profile)),
    }
}

/// Why a decision refuses; empty where it allows.
fn why_refused(decision: AccessDecision) -> String {
    match decision {
        AccessDecision::Allowed => String::new(),
        AccessDecision::Refused(why) | AccessDecision::RefusedByTrust(why) => why,
        AccessDecision::RefusedByKey => "by KMS".into(),
    }
}

/// Why the user `web` is refused with these statements; empty where it is not.
fn refused(statements: &[Value], request: &AccessRequest) -> String {
    let policies = parsed(&json!({"users": {"web": policy(statements)}})).unwrap();
    why_refused(policies.decide(&user("web"), "ebs", request))
}

#[test]
fn a_deny_wins_over_an_allow_and_nothing_is_allowed_by_itself() {
    let get = request("ebs:GetSnapshotBlock", SNAPSHOT, &[]);
    let allow = statement("Allow", "ebs:Get*", "arn:aws:ec2:*::snapshot/*");
    let deny = statement("Deny", "EBS:getsnapshotblock", "*");
    let none = "because no identity-based policy allows the ebs:GetSnapshotBlock action";
    let denied = "with an explicit deny in an identity-based policy";
    let other = statement("Allow", "ebs:List*", "*");
    let with_account = statement("Allow", "ebs:*", "arn:aws:ec2:*:*:snapshot/snap-0a");
    let elsewhere = statement("Allow", "ebs:*", "arn:aws:ec2:eu-west-1::snapshot/*");
    let over_colons = statement("Allow", "ebs:*", "arn:aws:ec2:*:snapshot/*");
    for (statements, expected) in [
        (vec![allow.clone()], ""),
        (vec![statement("Allow", "*", "*")], ""),
        (vec![allow.clone(), deny.clone()], denied),
        (vec![deny, allow], denied),
        (vec![other], none),
        (vec![with_account], ""),
        (vec![elsewhere], none),
    ] {
        assert_eq!(refused(&statements, &get), expected, "{statements:?}");
    }
    // Five parts are no ARN.
    let text = parsed(&json!({"users": {"web": policy(&[over_colons])}})).unwrap_err();
    assert!(text.contains("must be * or an ARN"), "{text}");
    let account = "arn:aws:ec2:*:111122223333:snapshot/*";
    assert_eq!(refused(&[statement("Allow", "ebs:*", account)], &get), none);
}

#[test]
fn conditions_hold_as_iam_documents_them() {
    let tagged = [
        ("aws:ResourceTag/Team", "storage"),
        ("aws:TagKeys", "a"),
        ("aws:TagKeys", "b"),
    ];
    for (operator, key, values, with, without) in [
        (
            "StringEquals",
            "AWS:resourcetag/Team",
            json!("storage"),
            true,
            false,
        ),
        (
            "StringEquals",
            "aws:ResourceTag/Team",
            json!(["x", "storage"]),
            true,
            false,
        ),
        (
            "StringEquals",
            "aws:ResourceTag/team",
            json!("storage"),
            false,
            false,
        ),
        (
            "StringEquals",
            "aws:ResourceTag/Team",
            json!("stor*"),
            false,
            false,
        ),
        (
            "StringEqualsIgnoreCase",
            "aws:ResourceTag/Team",
            json!("STORAGE"),
            true,
            false,
        ),
        (
            "StringNotEquals",
            "aws:ResourceTag/Team",
            json!("storage"),
            false,
            true,
        ),
        (
            "StringLike",
            "aws:ResourceTag/Team",
            json!("stor*"),
            true,
            false,
        ),
        (
            "StringNotLike",
            "aws:ResourceTag/Team",
            json!("stor*"),
            false,
            true,
        ),
        (
            "ForAllValues:StringEquals",
            "aws:TagKeys",
            json!(["a", "b", "c"]),
            true,
            true,
        ),
        (
            "ForAllValues:StringEquals",
            "aws:TagKeys",
            json!("a"),
            false,
            true,
        ),
        (
            "ForAnyValue:StringEquals",
            "aws:TagKeys",
            json!("b"),
            true,
            false,
        ),
        (
            "ArnLikeIfExists",
            "ec2:ParentVolume",
            json!("arn:aws:ec2:*:*:volume/vol-ffffffff"),
            true,
            true,
        ),
        (
            "StringEqualsIfExists",
            "aws:ResourceTag/Team",
            json!("other"),
            false,
            true,
        ),
        ("Bool", "aws:RequestTag/x", json!(true), false, false),
        ("Null", "aws:ResourceTag/Team", json!("true"), false, true),
        ("Null", "aws:ResourceTag/Team", json!(false), true, false),
        ("Null", "aws:RequestTag/x", json!(true), true, true),
        ("Null", "aws:TagKeys", json!(["true", "false"]), true, true),
    ] {
        let mut allow = statement("Allow", "ebs:*", "*");
        allow["Condition"] = json!({operator: {key: values}});
        for (keys, expected) in [(&tagged[..], with), (&[], without)] {
            let list = request("ebs:ListSnapshotBlocks", SNAPSHOT, keys);
            let is_allowed = refused(std::slice::from_ref(&allow), &list).is_empty();
            assert_eq!(is_allowed, expected, "{allow} {keys:?}");
        }
    }
}

#[test]
fn what_the_evaluator_does_not_know_is_refused_when_it_is_read() {
    let mut wrong = Vec::new();
    let mut add = |member: &str, value: Value| {
        let mut one = statement("Allow", "ebs:*", "*");
        one[member] = value;
        wrong.push(one);
    };
    add(
        "Condition",
        json!({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}),
    );
    add(
        "Condition",
        json!({"StringEquals": {"aws:SourceVpce": "vpce-1"}}),
    );
    add(
        "Condition",
        json!({"NullIfExists": {"aws:TagKeys": "true"}}),
    );
    add(
        "Condition",
        json!({"StringEquals": {"aws:ResourceTag/": "a"}}),
    );
    add("Condition", json!({"StringEquals": {"aws:TagKeys": []}}));
    add(
        "Condition",
        json!({"StringEquals": {"aws:TagKeys": "${aws:username}"}}),
    );
    add("Condition", json!({"Null": {"aws:ResourceTag/a": "yes"}}));
    add(
        "Condition",
        json!({"ForAnyValue:Null": {"aws:TagKeys": "true"}}),
    );
    add(
        "Condition",
        json!({"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::*"}}),
    );
    add("NotAction", json!("ebs:*"));
    add("Principal", json!("*"));
    add("Effect", json!("Permit"));
    add("Action", json!("GetSnapshotBlock"));
    add("Action", json!([]));
    add("Resource", json!("snap-0a"));
    for one in wrong {
        let file = json!({"users": {"web": policy(std::slice::from_ref(&one))}});
        let why = parsed(&file).unwrap_err();
        assert!(why.starts_with("users: web: "), "{one}: {why}");
    }
    for file in [
        json!({"users": {"a b": policy(&[statement("Allow", "*", "*")])}}),
        json!({"users": {"web": {"Version": "2008-10-17", "Statement": []}}}),
        json!({"roles": {"r": policy(&[statement("Allow", "*", "*")])}}),
        json!({"users": {"web": [], "arn:aws:iam::444455556666:user/web": []}}),
        json!({"kms_keys": {"alias/x": policy(&[])}}),
        json!({"kms_keys": {KEY: policy(&[statement("Allow", "kms:*", "*")])}}),
        json!({"endpoint": {"kms": policy(&[])}}),
        json!({"endpoint": "all"}),
        json!([]),
    ] {
        assert!(parsed(&file).is_err(), "{file}");
    }
    let service = json!({"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "*", "Resource": "*"});
    assert!(
        parsed(&json!({"endpoint": policy(&[service])}))
            .unwrap_err()
            .contains("Principal")
    );
}

#[test]
fn a_member_that_is_there_twice_is_refused() {
    let tagged = r#"{"StringEquals": {"aws:ResourceTag/a": "b"}}"#;
    let file = |condition: &str, more: &str| {
        format!(
            r#"{{"users": {{"web": {{"Version": "2012-10-17", "Statement": {{"Effect": "Allow", "Action": "ebs:*",
            "Resource": "*", "Condition": {condition}{more}}}}}}}}}"#
        )
    };
    assert!(AccessPolicies::parse(file(tagged, "").as_bytes()).is_ok());
    for (condition, more, member) in [
        (tagged, r#", "Condition": {}"#, "Condition"),
        (
            r#"{"StringEquals": {"aws:ResourceTag/a": "b"}, "StringEquals": {"aws:TagKeys": "a"}}"#,
            "",
            "StringEquals",
        ),
        (
            r#"{"StringEquals": {"aws:ResourceTag/a": "b", "aws:ResourceTag\u002fa": "c"}}"#,
            "",
            "aws:ResourceTag/a",
        ),
        (tagged, r#", "Effect": "Allow""#, "Effect"),
    ] {
        let why = AccessPolicies::parse(file(condition, more).as_bytes()).unwrap_err();
        assert!(why.contains(&format!("{member:?} is there twice")), "{why}");
    }
    let twice = r#"{"users": {"web": {}, "web": {}}}"#;
    assert!(AccessPolicies::parse(twice.as_bytes()).is_err());
}

#[test]
fn parts_of_an_arn_are_compared_one_by_one() {
    let allow = |pattern: &str| {
        let mut allow = statement("Allow", "ebs:*", "*");
        allow["Condition"] = json!({"ArnLike": {"aws:PrincipalArn": pattern}});
        allow
    };
    for (pattern, arn, expected) in [
        ("arn:aws:iam::*:user/web", USER, true),
        ("arn:*:iam:*:*:*", USER, true),
        ("arn:aws:iam::111122223333:user/*", USER, true),
        // A star does not match a colon, as it does in StringLike.
        (
            "arn:aws:*:a:b:user/web",
            "arn:aws:iam::1:a:b:user/web",
            false,
        ),
        ("arn:aws:iam::*:user/web", "user/web", false),
    ] {
        let list = request(
            "ebs:ListSnapshotBlocks",
            SNAPSHOT,
            &[("aws:PrincipalArn", arn)],
        );
        let is_allowed = refused(&[allow(pattern)], &list).is_empty();
        assert_eq!(is_allowed, expected, "{pattern} {arn}");
    }
}

#[test]
fn a_key_allows_a_user_itself_or_leaves_it_to_the_account() {
    let decrypt = AccessRequest {
        grantor: Some(PolicyGrantor::Key(KEY.into())),
        ..request(
            "kms:Decrypt",
            KEY,
            &[("kms:ViaService", "ec2.us-east-1.amazonaws.com")],
        )
    };
    let granted = |principal: &str, effect: &str| {
        let mut granted = statement(effect, "kms:*", "*");
        granted["Principal"] = json!({"AWS": principal});
        granted
    };
    let mut via = statement("Allow", "kms:Decrypt", KEY);
    via["Condition"] = json!({"StringLike": {"kms:ViaService": "ec2.*.amazonaws.com"}});
    let ebs = statement("Allow", "ebs:*", "*");
    let root = "arn:aws:iam::111122223333:root";
    let with = |own: &Value| Some(own.clone());
    for (identity, key, expected) in [
        // The default key policy.
        (with(&via), None, true),
        (with(&ebs), None, false),
        (None, None, true),
        (with(&via), Some(granted(root, "Allow")), true),
        (with(&ebs), Some(granted(root, "Allow")), false),
        (None, Some(granted("111122223333", "Allow")), true),
        (with(&ebs), Some(granted(USER, "Allow")), true),
        (
            with(&via),
            Some(granted("arn:aws:iam::111122223333:user/other", "Allow")),
            false,
        ),
        (
            None,
            Some(granted("arn:aws:iam::111122223333:user/other", "Allow")),
            false,
        ),
        (with(&via), Some(granted(USER, "Deny")), false),
    ] {
        let mut file = json!({});
        if let Some(own) = &identity {
            file["users"] = json!({"web": policy(std::slice::from_ref(own))});
        }
        if let Some(own) = &key {
            file["kms_keys"] = json!({KEY: policy(std::slice::from_ref(own))});
        }
        let decision = parsed(&file).unwrap().decide(&user("web"), "ebs", &decrypt);
        assert_eq!(
            decision == AccessDecision::Allowed,
            expected,
            "{identity:?} {key:?}"
        );
    }
}

#[test]
fn an_endpoint_limits_its_service_and_grants_nothing() {
    let mut all = statement("Allow", "ebs:List*", "*");
    all["Principal"] = json!("*");
    let reads = policy(&[statement("Allow", "ebs:*", "*")]);
    let file = |users: Value, endpoint: Value| json!({"users": users, "endpoint": endpoint});
    let why = |file: &Value, service: &str, action: &str| {
        let request = request(action, "*", &[]);
        why_refused(
            parsed(file)
                .unwrap()
                .decide(&user("web"), service, &request),
        )
    };
    let limited = file(
        json!({"web": reads}),
        json!({"ebs": policy(&[all.clone()])}),
    );
    let get = "ebs:GetSnapshotBlock";
    assert_eq!(why(&limited, "ebs", "ebs:ListSnapshotBlocks"), "");
    let closed = format!("because no VPC endpoint policy allows the {get} action");
    assert_eq!(why(&limited, "ebs", get), closed);
    // Another service has no endpoint here.
    assert_eq!(why(&limited, "sts", "sts:GetCallerIdentity"), "");
    let for_all = file(json!({}), policy(&[all]));
    assert_eq!(why(&for_all, "ebs", "ebs:ListChangedBlocks"), "");
    let closed = why(&for_all, "sts", "sts:GetCallerIdentity");
    assert!(closed.contains("no VPC endpoint policy"), "{closed}");
    let grants = file(
        json!({"web": policy(&[statement("Allow", "ec2:*", "*")])}),
        json!(null),
    );
    assert!(why(&grants, "ebs", get).contains("no identity-based policy"));
    assert_eq!(why(&grants, "sts", "sts:GetCallerIdentity"), "");
}

#[test]
fn patterns_match_as_iam_does_and_end_in_time() {
    for (pattern, text, expected) in [
        ("", "", true),
        ("*", "", true),
        ("?", "", false),
        ("a*c", "abc", true),
        ("a*c", "abd", false),
        ("*a*b", "xaybzb", true),
        ("a?c", "abc", true),
        ("web/*", "web/2026", true),
        ("web/*", "web", false),
        ("A", "a", false),
    ] {
        assert_eq!(is_like(pattern, text), expected, "{pattern} {text}");
    }
    let (pattern, text) = ("*a".repeat(200) + "b", "a".repeat(5000));
    assert!(!is_like(&pattern, &text));
}
