//! `ebsfs inventory` against the emulator: every member, what is denied, what does not exist.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::readme::{blocks, commands, members, page};
use crate::support::*;

const INSTANCE: &str = "i-0123456789abcdef0";
const OTHER: &str = "i-0fedcba9876543210";

/// An instance of two volumes, and another one of one.
fn account() -> Emulator {
    let emulator = Emulator::start();
    for id in ["vol-0a", "vol-0b", "vol-0c"] {
        emulator.make_volume(id, 2048, [0]);
    }
    emulator.post(&format!("volumes/vol-0c?instance={OTHER}"));
    emulator.post("volumes/vol-0b?tag=Name%3Ddata%20disk");
    emulator
}

/// The inventory and the log.
fn inventory(emulator: &Emulator, instance: &str) -> (Value, String) {
    let mut command = emulator.ebsfs(&["inventory", instance]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    (serde_json::from_slice(&output.stdout).unwrap(), said)
}

#[test]
fn the_inventory_is_what_the_account_has() {
    let emulator = account();
    emulator.reset();
    let (found, said) = inventory(&emulator, INSTANCE);
    assert_eq!(said, "");
    assert_eq!(found["version"], 1);
    assert_eq!(found["region"], "us-east-1");
    assert_eq!(found["omitted"], json!([]));
    let instance = &found["instance"];
    for (member, value) in [
        ("id", INSTANCE),
        ("type", "m5.large"),
        ("state", "running"),
        ("launch_time", "2026-06-30T12:00:00Z"),
        ("architecture", "x86_64"),
        ("boot_mode", "uefi-preferred"),
        ("current_boot_mode", "uefi"),
        ("root_device", "/dev/xvda"),
    ] {
        assert_eq!(instance[member], value, "{member}");
    }
    assert_eq!(instance["tags"], json!({"Name": "web"}));
    assert_eq!(found["hardware"]["vcpus"], 2);
    assert_eq!(found["hardware"]["memory_bytes"], 8u64 << 30);
    let boot_modes = &found["hardware"]["boot_modes"];
    assert_eq!(*boot_modes, json!(["legacy-bios", "uefi"]));
    let disks = found["disks"].as_array().unwrap();
    let of = |member: &str| disks.iter().map(|disk| disk[member].clone()).collect();
    let of = |member: &str| -> Value { Value::Array(of(member)) };
    assert_eq!(of("volume"), json!(["vol-0a", "vol-0b"]));
    assert_eq!(of("device"), json!(["/dev/xvda", "/dev/xvdb"]));
    assert_eq!(of("is_root"), json!([true, false]));
    assert_eq!(of("delete_on_termination"), json!([true, false]));
    assert_eq!(of("size_bytes"), json!([1 << 30, 1 << 30]));
    assert_eq!(of("throughput_bytes"), json!([125 << 20, 125 << 20]));
    assert_eq!(of("tags"), json!([{}, {"Name": "data disk"}]));
    let interface = &found["interfaces"][0];
    assert_eq!(interface["index"], 0);
    assert_eq!(interface["ipv6_addresses"], json!(["2001:db8::10"]));
    let addresses = interface["addresses"].as_array().unwrap();
    let private: Vec<_> = addresses.iter().map(|one| &one["private"]).collect();
    assert_eq!(private, ["10.0.1.10", "10.0.1.11"], "the primary one first");
    assert_eq!(addresses[0]["public"], "203.0.113.10");
    assert_eq!(addresses[0]["is_elastic"], true);
    assert_eq!(
        found["vpcs"][0]["cidrs"],
        json!(["10.0.0.0/16", "10.1.0.0/16"])
    );
    assert_eq!(found["subnets"][0]["cidr"], "10.0.1.0/24");
    let group = &found["security_groups"][0];
    let peers = |rule: &Value| -> Vec<String> {
        let peers = rule["peers"].as_array().unwrap().iter();
        peers
            .map(|peer| peer["peer"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(group["ingress"][0]["from_port"], 443);
    assert_eq!(peers(&group["ingress"][0]), ["0.0.0.0/0", "::/0"]);
    assert_eq!(peers(&group["ingress"][1]), ["sg-0fedcba9876543210"]);
    assert_eq!(group["egress"][0]["protocol"], "-1");
    assert_eq!(found["image"]["name"], "debian-13");
    for call in [
        "DescribeInstances",
        "DescribeInstanceTypes",
        "DescribeVolumes",
        "DescribeVpcs",
        "DescribeSubnets",
        "DescribeSecurityGroups",
        "DescribeImages",
    ] {
        assert_eq!(emulator.count(call), 1, "{call}");
    }
    let (other, _) = inventory(&emulator, OTHER);
    assert_eq!(other["disks"].as_array().unwrap().len(), 1);
    assert_eq!(other["disks"][0]["volume"], "vol-0c");
}

#[test]
fn undescribable_parts_are_left_out_and_named() {
    let emulator = account();
    for (action, part) in [
        ("DescribeInstanceTypes", "hardware"),
        ("DescribeVolumes", "disks"),
        ("DescribeVpcs", "vpcs"),
        ("DescribeSubnets", "subnets"),
        ("DescribeSecurityGroups", "security_groups"),
        ("DescribeImages", "image"),
    ] {
        emulator.set(&format!("deny=ec2:{action}"));
        let (found, said) = inventory(&emulator, INSTANCE);
        let named = json!([{"part": part, "action": format!("ec2:{action}"), "reason": "denied"}]);
        assert_eq!(found["omitted"], named, "{said}");
        assert!(said.contains(&format!("{part}: left out")), "{said}");
        match part {
            // Ids and order are those of the instance.
            "disks" => {
                assert_eq!(found["disks"][1]["volume"], "vol-0b");
                assert_eq!(found["disks"][1]["size_bytes"], Value::Null);
            }
            part => assert!([Value::Null, json!([])].contains(&found[part]), "{found}"),
        }
    }
    emulator.set("deny=&image_deregistered=true");
    let (found, _) = inventory(&emulator, INSTANCE);
    assert_eq!(found["image"], Value::Null);
    assert_eq!(found["omitted"][0]["reason"], "not_found");
}

#[test]
fn an_instance_that_cannot_be_described_is_an_error() {
    let emulator = account();
    for (instance, deny, code) in [
        ("i-0abc", "", 3),
        (INSTANCE, "ec2:DescribeInstances", 4),
        ("vol-0a", "", 2),
    ] {
        emulator.set(&format!("deny={deny}"));
        let output = emulator.ebsfs(&["inventory", instance]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{instance}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn the_page_explains_every_member_and_its_commands_work() {
    let emulator = account();
    let folder = tempfile::tempdir().unwrap();
    let text = page("docs/inventory.md");
    assert_eq!(blocks(&text).len(), 1);
    let output = commands(&emulator, &text, ["snap-0a", "snap-0b"], folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    emulator.set("deny=ec2:DescribeVolumes");
    let denied = inventory(&emulator, INSTANCE).0;
    emulator.set("deny=");
    let mut found = BTreeSet::new();
    members(&inventory(&emulator, INSTANCE).0, &mut found);
    members(&denied, &mut found);
    found.remove("Name");
    for name in found {
        assert!(text.contains(&format!("`{name}`")), "{name}");
    }
}
