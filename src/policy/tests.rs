use serde_json::{Value, json};

use super::*;

const KEY: &str = "arn:aws:kms:eu-west-1:111122223333:key/0a";

fn scope(verbs: &[AwsVerb]) -> PolicyScope {
    PolicyScope {
        verbs: verbs.to_vec(),
        ..PolicyScope::default()
    }
}

fn value(document: impl serde::Serialize) -> Value {
    serde_json::to_value(document).unwrap()
}

/// The statements of a document that allow this action.
fn allowing<'v>(document: &'v Value, action: &str) -> Vec<&'v Value> {
    let names = |of: &Value| match of {
        Value::Array(all) => all.iter().any(|one| one == action),
        one => one == action,
    };
    let all = document["Statement"].as_array().unwrap().iter();
    all.filter(|statement| names(&statement["Action"]))
        .collect()
}

#[test]
fn an_identity_policy_groups_actions_of_the_same_resources() {
    let found = value(scope(&[AwsVerb::Mount]).identity());
    let expected = json!({
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["ebs:ListSnapshotBlocks", "ebs:GetSnapshotBlock", "ebs:ListChangedBlocks"],
                "Resource": "arn:aws:ec2:*::snapshot/*"
            },
            {"Effect": "Allow", "Action": "ec2:DescribeSnapshots", "Resource": "*"}
        ]
    });
    assert_eq!(found, expected);
    // People read it from the top.
    let text = serde_json::to_string(&scope(&[AwsVerb::Ls]).identity()).unwrap();
    let order = ["Version", "Statement", "Effect", "Action", "Resource"];
    let places: Vec<_> = order.iter().map(|name| text.find(name).unwrap()).collect();
    assert!(places.is_sorted(), "{text}");
}

#[test]
fn no_verb_needs_a_permission_to_ask_who_it_is() {
    for verb in AwsVerb::ALL {
        let bucket = Some("b".parse().unwrap()).filter(|_| verb.needs_of_bucket().is_some());
        let scope = PolicyScope {
            bucket,
            ..scope(&[verb])
        };
        let found = value(scope.identity());
        assert!(allowing(&found, "sts:GetCallerIdentity").is_empty());
        for statement in found["Statement"].as_array().unwrap() {
            assert!(statement.get("Principal").is_none(), "{verb:?}");
        }
    }
    let sts = scope(&[AwsVerb::Mount]).endpoints();
    assert_eq!(
        allowing(&value(&sts["sts"]), "sts:GetCallerIdentity").len(),
        1
    );
}

#[test]
fn tags_and_jobs_limit_what_is_read_and_deleted_and_nothing_else() {
    let mut scope = scope(&[AwsVerb::Replicate]);
    scope.tag = Some("team=storage".parse().unwrap());
    scope.job = Some("web".parse().unwrap());
    let found = value(scope.identity());
    let condition = |action: &str| allowing(&found, action)[0].get("Condition").cloned();
    let tagged = json!({"StringEquals": {"aws:ResourceTag/team": "storage"}});
    for action in [
        "ebs:GetSnapshotBlock",
        "ebs:ListSnapshotBlocks",
        "ebs:ListChangedBlocks",
    ] {
        assert_eq!(condition(action), Some(tagged.clone()), "{action}");
    }
    let deleted = json!({
        "StringEquals": {"aws:ResourceTag/team": "storage"},
        "StringLike": {"aws:ResourceTag/ebsfs:cycle": "web/*"}
    });
    assert_eq!(condition("ec2:DeleteSnapshot"), Some(deleted));
    for action in ["ec2:DescribeSnapshots", "ec2:CreateSnapshot"] {
        assert_eq!(condition(action), None, "{action}");
    }
    scope.job = None;
    scope.tag = None;
    let found = value(scope.identity());
    let any = json!({"StringLike": {"aws:ResourceTag/ebsfs:cycle": "*"}});
    assert_eq!(allowing(&found, "ec2:DeleteSnapshot")[0]["Condition"], any);
}

#[test]
fn the_target_of_a_job_is_limited_to_its_snapshots_without_a_volume() {
    let mut scope = scope(&[AwsVerb::Replicate, AwsVerb::Upload]);
    scope.job = Some("web".parse().unwrap());
    scope.tag = Some("team=storage".parse().unwrap());
    let no_volume = "arn:aws:ec2:*:*:volume/vol-ffffffff";
    let at_target = |job: Value| {
        let mut conditions = job;
        conditions["ArnLikeIfExists"] = json!({"ec2:ParentVolume": no_volume});
        conditions
    };
    let conditions = |scope: &PolicyScope| -> Vec<Value> {
        let found = value(scope.identity());
        let all = allowing(&found, "ec2:DeleteSnapshot").into_iter();
        all.map(|one| one["Condition"].clone()).collect()
    };
    let own = at_target(json!({"StringEquals": {"aws:ResourceTag/ebsfs:job": "web"}}));
    let at_source = json!({
        "StringEquals": {"aws:ResourceTag/team": "storage"},
        "StringLike": {"aws:ResourceTag/ebsfs:cycle": "web/*"}
    });
    assert_eq!(conditions(&scope), [at_source, own.clone()]);
    scope.verbs = vec![AwsVerb::Upload];
    assert_eq!(conditions(&scope), [own]);
    scope.job = None;
    assert!(conditions(&scope).is_empty());
    scope.verbs = vec![AwsVerb::Upload, AwsVerb::Gateway];
    scope.partition = PolicyPartition::China;
    let mut any = at_target(json!({"StringLike": {"aws:ResourceTag/ebsfs:job": "*"}}));
    any["ArnLikeIfExists"]["ec2:ParentVolume"] = no_volume.replace("aws", "aws-cn").into();
    assert_eq!(conditions(&scope), [any]);
    scope.is_minimal = true;
    assert!(conditions(&scope).is_empty());
}

#[test]
fn keys_are_used_through_the_service_of_their_region() {
    let mut scope = scope(&[AwsVerb::Sync, AwsVerb::Upload]);
    scope.keys = vec![KEY.parse().unwrap()];
    scope.bucket = Some("s3://b/p/".parse().unwrap());
    scope.bucket_keys = vec![KEY.parse().unwrap()];
    let found = value(scope.identity());
    let ec2 = json!({"StringEquals": {"kms:ViaService": "ec2.eu-west-1.amazonaws.com"}});
    let s3 = json!({"StringEquals": {"kms:ViaService": "s3.eu-west-1.amazonaws.com"}});
    assert_eq!(allowing(&found, "kms:ReEncrypt*")[0]["Condition"], ec2);
    assert_eq!(allowing(&found, "kms:GenerateDataKey")[0]["Condition"], s3);
    assert_eq!(allowing(&found, "kms:Decrypt").len(), 2);
    assert_eq!(allowing(&found, "kms:ReEncrypt*")[0]["Resource"], KEY);
    // A verb that reads no block decrypts nothing.
    let mut blocks = self::scope(&[AwsVerb::Blocks]);
    blocks.keys = vec![KEY.parse().unwrap()];
    let found = value(blocks.identity());
    assert!(allowing(&found, "kms:Decrypt").is_empty());
    assert_eq!(allowing(&found, "kms:DescribeKey").len(), 1);
}

#[test]
fn arns_have_the_partition_the_region_and_the_account() {
    let mut scope = scope(&[AwsVerb::Snapshot, AwsVerb::Mount]);
    scope.partition = PolicyPartition::China;
    scope.region = Some("cn-north-1".parse().unwrap());
    scope.account = Some("111122223333".parse().unwrap());
    scope.keys = vec![
        "arn:aws-cn:kms:cn-north-1:111122223333:key/0a"
            .parse()
            .unwrap(),
    ];
    let found = value(scope.identity());
    let resources = &allowing(&found, "ec2:CreateSnapshots")[0]["Resource"];
    let expected = json!([
        "arn:aws-cn:ec2:cn-north-1:111122223333:volume/*",
        "arn:aws-cn:ec2:cn-north-1:111122223333:instance/*",
        "arn:aws-cn:ec2:cn-north-1::snapshot/*"
    ]);
    assert_eq!(*resources, expected);
    let via = &allowing(&found, "kms:Decrypt")[0]["Condition"]["StringEquals"]["kms:ViaService"];
    let hosts = json!([
        "ec2.cn-north-1.amazonaws.com",
        "ec2.cn-north-1.amazonaws.com.cn"
    ]);
    assert_eq!(*via, hosts);
}

#[test]
fn endpoints_have_a_policy_each_with_the_actions_of_their_service() {
    let mut scope = scope(&[AwsVerb::Sync, AwsVerb::Upload]);
    scope.bucket = Some("b".parse().unwrap());
    scope.account = Some("111122223333".parse().unwrap());
    let found = scope.endpoints();
    assert_eq!(
        found.keys().copied().collect::<Vec<_>>(),
        ["ebs", "ec2", "s3", "sts"]
    );
    let (ebs, ec2) = (value(&found["ebs"]), value(&found["ec2"]));
    let start = allowing(&ebs, "ebs:StartSnapshot")[0];
    assert_eq!(start["Principal"], "*");
    let account = json!({"StringEquals": {"aws:PrincipalAccount": "111122223333"}});
    assert_eq!(start["Condition"], account);
    for document in [&ebs, &ec2] {
        assert_eq!(allowing(document, "ec2:CreateTags").len(), 1);
    }
    assert!(allowing(&ebs, "ec2:DescribeSnapshots").is_empty());
    let reading = value(&self::scope(&[AwsVerb::Sync]).endpoints()["ebs"]);
    assert!(allowing(&reading, "ec2:CreateTags").is_empty());
    scope.principal = Some("arn:aws:iam::111122223333:role/proxy".parse().unwrap());
    let role =
        json!({"StringEquals": {"aws:PrincipalArn": "arn:aws:iam::111122223333:role/proxy"}});
    assert_eq!(
        value(&scope.endpoints()["s3"])["Statement"][0]["Condition"],
        role
    );
    // No caller has the ARN of an account.
    scope.account = None;
    scope.principal = Some("arn:aws:iam::111122223333:root".parse().unwrap());
    assert_eq!(
        value(&scope.endpoints()["s3"])["Statement"][0]["Condition"],
        account
    );
}

#[test]
fn the_endpoint_of_sts_lets_profiles_take_their_roles() {
    let role = "arn:aws:iam::111122223333:role/proxy";
    let all = "arn:aws:iam::111122223333:role/*";
    for (account, principal, expected) in [
        (None, None, "*"),
        (Some("111122223333"), None, all),
        (None, Some("arn:aws:iam::111122223333:root"), all),
        (None, Some("arn:aws:iam::111122223333:user/web"), all),
        (Some("444455556666"), Some(role), role),
    ] {
        let mut scope = scope(&[AwsVerb::Sync]);
        scope.account = account.map(|account| account.parse().unwrap());
        scope.principal = principal.map(|arn| arn.parse().unwrap());
        let sts = value(&scope.endpoints()["sts"]);
        for action in ["sts:AssumeRole", "sts:AssumeRoleWithWebIdentity"] {
            let [statement] = allowing(&sts, action)[..] else {
                panic!("{sts}");
            };
            assert_eq!(statement["Resource"], expected, "{account:?} {principal:?}");
            assert_eq!(statement["Principal"], "*");
            // Who takes a role has another ARN, and a web identity none.
            assert!(statement.get("Condition").is_none(), "{sts}");
        }
        assert!(allowing(&sts, "sts:GetCallerIdentity").is_empty());
    }
    let mut mount = scope(&[AwsVerb::Mount]);
    mount.principal = Some(role.parse().unwrap());
    let sts = value(&mount.endpoints()["sts"]);
    let condition = &allowing(&sts, "sts:GetCallerIdentity")[0]["Condition"];
    assert_eq!(condition["StringEquals"]["aws:PrincipalArn"], role);
}

#[test]
fn tags_that_limit_a_policy_cannot_be_set_on_other_snapshots() {
    let created = |document: &Value| -> Vec<Value> {
        let all = allowing(document, "ec2:CreateTags").into_iter();
        all.map(|one| one["Condition"].clone()).collect()
    };
    let of = |verbs: &[AwsVerb], tag: Option<&str>, is_minimal: bool| PolicyScope {
        tag: tag.map(|tag| tag.parse().unwrap()),
        is_minimal,
        ..scope(verbs)
    };
    let made = |names: Value| json!({"StringEquals": {"ec2:CreateAction": names}});
    let both = json!(["CreateSnapshot", "CreateSnapshots"]);
    let null = |keys: &[&str]| {
        let keys = keys.iter();
        let keys = keys.map(|key| (format!("aws:RequestTag/{key}"), json!("true")));
        json!({"Null": Value::Object(keys.collect())})
    };
    let tag = Some("team=storage");
    for (verbs, tag, is_minimal, expected) in [
        (
            &[AwsVerb::Sync, AwsVerb::Upload][..],
            tag,
            false,
            vec![null(&["team"])],
        ),
        (
            &[AwsVerb::Sync, AwsVerb::Upload],
            None,
            false,
            vec![Value::Null],
        ),
        (
            &[AwsVerb::Digest, AwsVerb::Snapshot],
            tag,
            false,
            vec![made(both.clone()), null(&["team"])],
        ),
        (
            &[AwsVerb::Replicate],
            None,
            false,
            vec![made(both.clone()), null(&["ebsfs:cycle"])],
        ),
        (
            &[AwsVerb::Replicate, AwsVerb::Upload],
            tag,
            false,
            vec![made(both), null(&["team", "ebsfs:cycle"])],
        ),
        // It deletes nothing.
        (&[AwsVerb::Replicate], None, true, vec![Value::Null]),
        (
            &[AwsVerb::Replicate],
            tag,
            true,
            vec![made(json!("CreateSnapshot")), null(&["team"])],
        ),
    ] {
        let scope = of(verbs, tag, is_minimal);
        assert_eq!(
            created(&value(scope.identity())),
            expected,
            "{verbs:?} {tag:?}"
        );
    }
    // Endpoints have both conditions.
    let mut scope = of(&[AwsVerb::Replicate, AwsVerb::Upload], tag, false);
    scope.account = Some("111122223333".parse().unwrap());
    let endpoints = scope.endpoints();
    for (service, count) in [("ec2", 2), ("ebs", 1)] {
        let found = created(&value(&endpoints[service]));
        assert_eq!(found.len(), count, "{service}: {found:?}");
        for condition in found {
            let account = &condition["StringEquals"]["aws:PrincipalAccount"];
            assert_eq!(account, "111122223333", "{service}");
        }
    }
}

#[test]
fn keys_of_several_regions_are_used_through_the_service_of_each() {
    let other = "arn:aws:kms:us-east-1:111122223333:key/0b";
    let mut scope = scope(&[AwsVerb::Mount]);
    scope.keys = [KEY, KEY, other].map(|key| key.parse().unwrap()).into();
    scope.account = Some("111122223333".parse().unwrap());
    let via = json!({"StringEquals": {"kms:ViaService": ["ec2.eu-west-1.amazonaws.com", "ec2.us-east-1.amazonaws.com"]}});
    let key = value(scope.key_policy());
    assert_eq!(allowing(&key, "kms:Decrypt")[0]["Condition"], via);
    // The user gets each key in its own Region alone.
    let own = value(scope.identity());
    let regions: Vec<_> = allowing(&own, "kms:Decrypt")
        .iter()
        .map(|one| one["Condition"]["StringEquals"]["kms:ViaService"].clone())
        .collect();
    assert_eq!(
        regions,
        ["ec2.eu-west-1.amazonaws.com", "ec2.us-east-1.amazonaws.com"]
    );
}

#[test]
fn bucket_and_key_policies_name_who_they_are_for() {
    let mut scope = scope(&[AwsVerb::Gateway, AwsVerb::Mount]);
    scope.bucket = Some("b/p".parse().unwrap());
    assert!(scope.bucket_policy().is_none() && scope.key_policy().is_none());
    scope.account = Some("111122223333".parse().unwrap());
    let root = json!({"AWS": "arn:aws:iam::111122223333:root"});
    let bucket = value(scope.bucket_policy());
    for statement in bucket["Statement"].as_array().unwrap() {
        assert_eq!(statement["Principal"], root);
    }
    assert_eq!(
        allowing(&bucket, "s3:PutObject")[0]["Resource"],
        "arn:aws:s3:::b/p/runs/*"
    );
    assert!(allowing(&bucket, "ec2:DescribeSnapshots").is_empty());
    let key = value(scope.key_policy());
    let decrypt = allowing(&key, "kms:Decrypt");
    assert_eq!(decrypt.len(), 1);
    assert_eq!(
        (&decrypt[0]["Principal"], &decrypt[0]["Resource"]),
        (&root, &json!("*"))
    );
    let anywhere = json!({"StringLike": {"kms:ViaService": "ec2.*.amazonaws.com"}});
    assert_eq!(decrypt[0]["Condition"], anywhere);
    scope.bucket_keys = vec![KEY.parse().unwrap()];
    let key = value(scope.key_policy());
    let s3 = json!({"StringEquals": {"kms:ViaService": "s3.eu-west-1.amazonaws.com"}});
    assert_eq!(allowing(&key, "kms:Decrypt")[0]["Condition"], s3);
}

#[test]
fn a_minimal_policy_has_only_what_a_verb_cannot_do_without() {
    let mut scope = scope(&[AwsVerb::RepositoryRead]);
    scope.bucket = Some("b".parse().unwrap());
    scope.is_minimal = true;
    let found = value(scope.identity());
    assert!(allowing(&found, "s3:PutObject").is_empty());
    assert_eq!(found["Statement"].as_array().unwrap().len(), 2);
    let rows = scope.rows();
    assert!(
        rows.iter().all(|row| row[3] == "the command fails"),
        "{rows:?}"
    );
}

#[test]
fn values_that_would_widen_a_policy_are_refused() {
    for wrong in [
        "*",
        "eu-*",
        "",
        "eu west",
        "us-iso-east-1",
        "eusc-de-east-1",
    ] {
        assert!(wrong.parse::<RegionName>().is_err(), "{wrong}");
    }
    for wrong in ["12345678901", "1111222233334", "*", "11112222333x"] {
        assert!(wrong.parse::<AccountId>().is_err(), "{wrong}");
    }
    for wrong in ["*", "w/b", "", "a b"] {
        assert!(wrong.parse::<PolicyJobName>().is_err(), "{wrong}");
    }
    for wrong in ["k", "=v", "k*=v", "k=${aws:username}", "k=a\nb"] {
        assert!(wrong.parse::<PolicyTag>().is_err(), "{wrong}");
    }
    for wrong in ["", "*", "b*", "b/*", "b/p?", "s3:///p", "b/a#latest"] {
        assert!(wrong.parse::<BucketPath>().is_err(), "{wrong}");
    }
    for wrong in [
        "alias/x",
        "arn:aws:kms:eu-west-1:111122223333:alias/x",
        "arn:aws:kms:*:111122223333:key/0a",
        "arn:aws:kms:eu-west-1:111122223333:key/*",
        "arn:other:kms:eu-west-1:111122223333:key/0a",
        "arn:aws:kms:cn-north-1:111122223333:key/0a",
    ] {
        assert!(wrong.parse::<KmsKeyArn>().is_err(), "{wrong}");
    }
    for wrong in [
        "*",
        "arn:aws:iam::111122223333:role/*",
        "arn:aws:sts::111122223333:assumed-role/a/b",
        "arn:aws:iam::*:root",
    ] {
        assert!(wrong.parse::<PrincipalArn>().is_err(), "{wrong}");
    }
    assert_eq!(KEY.parse::<KmsKeyArn>().unwrap().to_string(), KEY);
    assert!("team=a b=c".parse::<PolicyTag>().is_ok());
}

#[test]
fn every_kms_action_of_the_table_has_a_place_in_a_policy() {
    for action in IamAction::ALL {
        for kms in action.kms() {
            assert!(KMS_ORDER.contains(kms), "{kms}");
        }
    }
}
