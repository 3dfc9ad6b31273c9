//! The policies that the EBS User Guide recommends, compared with what the verbs need.
//!
//! `ebsapi-permissions.json` has the three policies of
//! <https://docs.aws.amazon.com/ebs/latest/userguide/ebsapi-permissions.html>: for reading, for writing and for encrypted
//! snapshots, with a Region and a key filled in.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{KEY, LIMIT, PolicySite, is_below, is_named, pairs, printed};
use crate::support::*;

fn documented() -> Vec<Value> {
    serde_json::from_str(include_str!("../fixtures/ebsapi-permissions.json")).unwrap()
}

#[test]
fn the_documented_policies_lack_some_needed_actions_and_have_unneeded_ones() {
    let documented: BTreeSet<_> = documented().iter().flat_map(pairs).collect();
    let needed = ["sync", "upload", "--region", "us-east-1", "--kms", KEY];
    let needed = pairs(&printed(&needed));
    let covers = |wide: &(String, String), pair: &(String, String)| {
        is_named(&wide.0, &pair.0) && is_below(&wide.1, &pair.1)
    };
    let named = |pairs: &[&(String, String)]| -> BTreeSet<String> {
        pairs
            .iter()
            .map(|(action, on)| format!("{action} on {on}"))
            .collect()
    };
    let lacks: Vec<_> = needed
        .iter()
        .filter(|pair| !documented.iter().any(|wide| covers(wide, pair)))
        // A documented action that a needed pattern includes is enough.
        .filter(|pair| !(pair.0.ends_with('*') && documented.iter().any(|own| covers(pair, own))))
        .collect();
    let excess: Vec<_> = documented
        .iter()
        .filter(|pair| !needed.iter().any(|wide| covers(wide, pair)))
        .collect();
    let (lacks, excess) = (named(&lacks), named(&excess));
    println!("lacks: {lacks:#?}\nexcess: {excess:#?}");
    let set = |of: &[&str]| {
        of.iter()
            .map(|one| (*one).to_owned())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(
        lacks,
        set(&[
            "ec2:CreateTags on arn:aws:ec2:us-east-1::snapshot/*",
            "ec2:DescribeSnapshots on *",
            "ec2:GetEbsEncryptionByDefault on *",
        ])
    );
    // The guide grants these actions of EC2 on the ARN of a key, where they have no effect.
    assert_eq!(
        excess,
        set(&[
            &*format!("ec2:CreateTags on {KEY}"),
            &*format!("ec2:GetEbsDefaultKmsKeyId on {KEY}"),
            &*format!("kms:CreateGrant on {KEY}"),
            &*format!("kms:Encrypt on {KEY}"),
        ])
    );
}

#[test]
fn the_documented_policies_are_enough_to_read_but_not_to_upload() {
    let site = PolicySite::new();
    site.emulator.make_volume("vol-0a", 2048, [0, 3]);
    let id = site.emulator.snapshot("vol-0a");
    site.enforce(&json!({"users": {"default": documented()}}));
    let image = site.path("image.raw");
    let (code, said) = ends_within(LIMIT, &mut site.ebsfs(&["sync", &id, &image]));
    assert!(
        code == 0 && said.contains("ec2:DescribeSnapshots"),
        "{said}"
    );
    let (code, said) = ends_within(LIMIT, &mut site.ebsfs(&["sync", &image, "ebs:"]));
    println!("{said}");
    assert_eq!(code, 4, "{said}");
    assert_eq!(site.emulator.count("PutSnapshotBlock"), 0);
}
