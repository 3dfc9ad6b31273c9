use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::ready;
use parking_lot::Mutex;

use super::*;
use crate::error::{Error, Kind};

/// One instance; any part of it can fail.
#[derive(Default)]
struct Account {
    machine: Machine,
    fails: BTreeMap<&'static str, Kind>,
    asked: Mutex<Vec<String>>,
}

impl Account {
    fn answer<T: Send + 'static>(
        &self,
        call: &str,
        ids: &[String],
        value: T,
    ) -> BoxFuture<'_, Result<T>> {
        self.asked.lock().push(format!("{call} {}", ids.join(",")));
        let fails = self.fails.get(call);
        let answer = match fails {
            Some(kind) => Err(Error::new(*kind, call)),
            None => Ok(value),
        };
        ready(answer).boxed()
    }
}

impl DescribeMachine for Account {
    fn machine<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<Machine>> {
        self.answer("machine", &[instance.to_owned()], self.machine.clone())
    }

    fn hardware<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<InventoryHardware>> {
        let hardware = InventoryHardware {
            vcpus: Some(2),
            ..InventoryHardware::default()
        };
        self.answer("hardware", &[name.to_owned()], hardware)
    }

    fn disk_details<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<DetailsByVolume>> {
        let details = DiskDetails {
            size_bytes: Some(1 << 30),
            ..DiskDetails::default()
        };
        // One more than the instance has: attached between the two calls.
        let all = ["vol-1", "vol-2", "vol-9"].map(|id| (id.to_owned(), details.clone()));
        self.answer("disk_details", &[instance.to_owned()], all.into())
    }

    fn vpcs<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<Vec<InventoryVpc>>> {
        self.answer("vpcs", ids, Vec::new())
    }

    fn subnets<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<Vec<InventorySubnet>>> {
        self.answer("subnets", ids, Vec::new())
    }

    fn security_groups<'a>(
        &'a self,
        ids: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<InventoryGroup>>> {
        let groups = ids.iter().rev().map(|id| InventoryGroup {
            id: id.clone(),
            ..InventoryGroup::default()
        });
        self.answer("security_groups", ids, groups.collect())
    }

    fn image<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<InventoryImage>> {
        self.answer("image", &[id.to_owned()], InventoryImage::default())
    }
}

fn disk(device: &str, volume: &str, is_root: bool) -> InventoryDisk {
    InventoryDisk {
        device: Some(device.to_owned()).filter(|device| !device.is_empty()),
        volume: volume.to_owned(),
        is_root,
        ..InventoryDisk::default()
    }
}

fn interface(id: &str, index: u64, groups: &[&str]) -> InventoryInterface {
    InventoryInterface {
        id: id.to_owned(),
        index: Some(index),
        vpc: Some("vpc-1".to_owned()),
        subnet: Some(format!("subnet-{index}")),
        security_groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        ..InventoryInterface::default()
    }
}

fn account() -> Account {
    let mut account = Account::default();
    let machine = &mut account.machine;
    machine.instance.id = "i-1".to_owned();
    machine.instance.instance_type = Some("m5.large".to_owned());
    machine.instance.image = Some("ami-1".to_owned());
    machine.disks = vec![
        disk("/dev/sdaa", "vol-4", false),
        disk("", "vol-5", false),
        disk("/dev/sdg", "vol-3", false),
        disk("/dev/xvda", "vol-1", true),
        disk("/dev/sdf", "vol-2", false),
    ];
    machine.interfaces = vec![
        interface("eni-b", 1, &["sg-2", "sg-1"]),
        interface("eni-a", 0, &["sg-1"]),
    ];
    account
}

async fn read(account: &Account) -> Result<Inventory> {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
    inventory(account, "i-1", Some("us-east-1"), now).await
}

#[tokio::test]
async fn parts_are_asked_once_and_put_in_order() {
    let account = account();
    let found = read(&account).await.unwrap();
    let volumes: Vec<_> = found.disks.iter().map(|disk| &*disk.volume).collect();
    assert_eq!(volumes, ["vol-1", "vol-2", "vol-3", "vol-4", "vol-5"]);
    let sizes: Vec<_> = found
        .disks
        .iter()
        .map(|disk| disk.details.size_bytes)
        .collect();
    assert_eq!(sizes, [Some(1 << 30), Some(1 << 30), None, None, None]);
    let interfaces: Vec<_> = found.interfaces.iter().map(|one| &*one.id).collect();
    assert_eq!(interfaces, ["eni-a", "eni-b"]);
    let groups: Vec<_> = found.security_groups.iter().map(|one| &*one.id).collect();
    assert_eq!(groups, ["sg-1", "sg-2"]);
    assert_eq!((found.version, &*found.time), (1, "1970-01-01T00:01:00Z"));
    assert!(found.omitted.is_empty());
    let mut asked = account.asked.lock().clone();
    asked.sort();
    assert_eq!(
        asked,
        [
            "disk_details i-1",
            "hardware m5.large",
            "image ami-1",
            "machine i-1",
            "security_groups sg-1,sg-2",
            "subnets subnet-0,subnet-1",
            "vpcs vpc-1",
        ]
    );
}

#[tokio::test]
async fn a_denied_or_absent_part_is_left_out_and_named() {
    for (call, part, action) in [
        ("hardware", "hardware", "ec2:DescribeInstanceTypes"),
        ("disk_details", "disks", "ec2:DescribeVolumes"),
        ("vpcs", "vpcs", "ec2:DescribeVpcs"),
        ("subnets", "subnets", "ec2:DescribeSubnets"),
        (
            "security_groups",
            "security_groups",
            "ec2:DescribeSecurityGroups",
        ),
        ("image", "image", "ec2:DescribeImages"),
    ] {
        for (kind, reason) in [
            (Kind::Denied, Some(OmissionReason::Denied)),
            (Kind::NotFound, Some(OmissionReason::NotFound)),
            (Kind::Throttled, None),
            (Kind::Unavailable, None),
        ] {
            let mut account = account();
            account.fails.insert(call, kind);
            match (read(&account).await, reason) {
                (Ok(found), Some(reason)) => {
                    let expected = InventoryOmission {
                        part: part.to_owned(),
                        action: action.to_owned(),
                        reason,
                    };
                    assert_eq!(found.omitted, [expected]);
                    // The disks themselves are known from the instance.
                    assert_eq!(found.disks.len(), 5);
                }
                (Err(error), None) => assert_eq!(error.kind(), kind),
                (found, _) => panic!("{call} {kind:?}: {found:?}"),
            }
        }
    }
}

#[tokio::test]
async fn an_instance_that_is_not_described_has_no_inventory() {
    for kind in [Kind::Denied, Kind::NotFound] {
        let mut account = account();
        account.fails.insert("machine", kind);
        assert_eq!(read(&account).await.unwrap_err().kind(), kind);
        assert_eq!(*account.asked.lock(), ["machine i-1"]);
    }
}

#[tokio::test]
async fn an_instance_without_parts_asks_for_none() {
    let account = Account::default();
    let found = read(&account).await.unwrap();
    assert_eq!(*account.asked.lock(), ["machine i-1"]);
    assert!(found.omitted.is_empty() && found.image.is_none());
}

#[tokio::test]
async fn json_is_read_again_as_it_was_written() {
    let found = read(&account()).await.unwrap();
    let text = serde_json::to_string(&found).unwrap();
    assert_eq!(serde_json::from_str::<Inventory>(&text).unwrap(), found);
}
