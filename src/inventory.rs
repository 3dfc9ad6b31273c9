//! [`Inventory`]: the machine around the disks of an instance, as plain values with a version.
//!
//! It is what a person needs to build a machine like it elsewhere: size, boot mode, order of disks, addresses, rules of the
//! network. It has no user data and no secrets. [`DescribeMachine`] is what describes the parts; [`inventory`] asks it for those that
//! belong to one instance, and [`assemble()`] puts them together. What the caller may not see is left out and named.

mod assemble;
mod gather;

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::error::Result;

pub use assemble::{MachineParts, assemble};
pub use gather::inventory;

/// The version of the JSON of [`Inventory`]; `docs/inventory.md` describes it.
pub const INVENTORY_VERSION: u32 = 1;

/// An instance and its surroundings: network, image, hardware.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// [`INVENTORY_VERSION`].
    pub version: u32,
    /// When it was read.
    pub time: String,
    /// The Region.
    pub region: Option<String>,
    /// The account that owns the instance.
    pub account: Option<String>,
    /// The instance itself.
    pub instance: InventoryInstance,
    /// Its processors and memory.
    pub hardware: Option<InventoryHardware>,
    /// Its EBS volumes in device order, the root first.
    pub disks: Vec<InventoryDisk>,
    /// Its network interfaces, by their index.
    pub interfaces: Vec<InventoryInterface>,
    /// The VPCs of the interfaces.
    pub vpcs: Vec<InventoryVpc>,
    /// The subnets of the interfaces.
    pub subnets: Vec<InventorySubnet>,
    /// The security groups of the interfaces.
    pub security_groups: Vec<InventoryGroup>,
    /// The image that it was started from.
    pub image: Option<InventoryImage>,
    /// What could not be read.
    pub omitted: Vec<InventoryOmission>,
}

/// Tags, by their keys.
pub type InventoryTags = BTreeMap<String, String>;

/// An instance, as DescribeInstances describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryInstance {
    /// Its id.
    pub id: String,
    /// Its type: `m5.large`.
    #[serde(rename = "type")]
    pub instance_type: Option<String>,
    /// `running`, `stopped` and so on.
    pub state: Option<String>,
    /// When it was started last.
    pub launch_time: Option<String>,
    /// Where it runs.
    pub availability_zone: Option<String>,
    /// `default`, `dedicated` or `host`.
    pub tenancy: Option<String>,
    /// `x86_64`, `arm64` and so on.
    pub architecture: Option<String>,
    /// The boot mode that its image asks for.
    pub boot_mode: Option<String>,
    /// The boot mode that it has now.
    pub current_boot_mode: Option<String>,
    /// The version of its NitroTPM.
    pub tpm: Option<String>,
    /// The operating system by its licence: `Linux/UNIX`.
    pub platform: Option<String>,
    /// `hvm` or `paravirtual`.
    pub virtualization: Option<String>,
    /// Whether it has the driver for enhanced networking.
    pub ena: Option<bool>,
    /// Whether it has a line of its own to EBS.
    pub ebs_optimized: Option<bool>,
    /// The cores that it uses.
    pub cores: Option<u64>,
    /// Threads of each core.
    pub threads_per_core: Option<u64>,
    /// The device that it boots from.
    pub root_device: Option<String>,
    /// The id of its image.
    pub image: Option<String>,
    /// The name of the key pair for SSH.
    pub key_name: Option<String>,
    /// The ARN of its instance profile.
    pub instance_profile: Option<String>,
    /// Its tags.
    pub tags: InventoryTags,
}

/// Processors and memory of an instance type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryHardware {
    /// vCPUs of the type; the instance can use fewer.
    pub vcpus: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Architectures that it can run.
    pub architectures: Vec<String>,
    /// Boot modes that it can have.
    pub boot_modes: Vec<String>,
    /// `nitro` or `xen`.
    pub hypervisor: Option<String>,
    /// Whether it is a machine of its own.
    pub bare_metal: Option<bool>,
    /// Bytes of the disks that belong to the type, whose contents no snapshot has.
    pub instance_storage_bytes: Option<u64>,
}

/// An EBS volume of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryDisk {
    /// The name of the device, as EC2 calls it: `/dev/xvda`.
    pub device: Option<String>,
    /// The volume's id.
    pub volume: String,
    /// Whether the instance boots from it.
    pub is_root: bool,
    /// Whether it is deleted with the instance.
    pub delete_on_termination: Option<bool>,
    /// Its details from DescribeVolumes.
    #[serde(flatten)]
    pub details: DiskDetails,
}

/// A volume, as DescribeVolumes describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDetails {
    /// Its bytes.
    pub size_bytes: Option<u64>,
    /// `gp3`, `io2` and so on.
    #[serde(rename = "type")]
    pub volume_type: Option<String>,
    /// Operations a second that it is given.
    pub iops: Option<u64>,
    /// Bytes a second that it is given.
    pub throughput_bytes: Option<u64>,
    /// Whether it is encrypted.
    pub encrypted: Option<bool>,
    /// The ARN of its KMS key.
    pub kms_key: Option<String>,
    /// Whether several instances can have it.
    pub multi_attach: Option<bool>,
    /// The snapshot that it was made of.
    pub made_of: Option<String>,
    /// Its tags.
    pub tags: InventoryTags,
}

/// A network interface of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryInterface {
    /// Its id.
    pub id: String,
    /// Its place among the interfaces.
    pub index: Option<u64>,
    /// `interface`, `efa` and so on.
    #[serde(rename = "type")]
    pub interface_type: Option<String>,
    /// Its description.
    pub description: Option<String>,
    /// Its MAC address.
    pub mac: Option<String>,
    /// The VPC that it is in.
    pub vpc: Option<String>,
    /// The subnet that it is in.
    pub subnet: Option<String>,
    /// The ids of its security groups.
    pub security_groups: Vec<String>,
    /// Whether packets that are not for it are dropped.
    pub source_dest_check: Option<bool>,
    /// Its IPv4 addresses, the primary one first.
    pub addresses: Vec<InventoryAddress>,
    /// Its IPv6 addresses.
    pub ipv6_addresses: Vec<String>,
    /// Its IPv4 and IPv6 prefixes.
    pub prefixes: Vec<String>,
}

/// A private IPv4 address and the public one that leads to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryAddress {
    /// The private address.
    pub private: String,
    /// Its name in DNS.
    pub private_name: Option<String>,
    /// The public address.
    pub public: Option<String>,
    /// Its name in DNS.
    pub public_name: Option<String>,
    /// Whether the public address is an Elastic IP address of the account: it stays when the instance stops.
    pub is_elastic: bool,
    /// Whether it is the primary address of the interface.
    pub is_primary: bool,
}

/// A VPC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryVpc {
    /// Its id.
    pub id: String,
    /// Its IPv4 blocks.
    pub cidrs: Vec<String>,
    /// Its IPv6 blocks.
    pub ipv6_cidrs: Vec<String>,
    /// Whether it is the default one of the account.
    pub is_default: Option<bool>,
    /// Its tags.
    pub tags: InventoryTags,
}

/// A subnet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventorySubnet {
    /// Its id.
    pub id: String,
    /// Its VPC.
    pub vpc: Option<String>,
    /// Its availability zone.
    pub availability_zone: Option<String>,
    /// Its IPv4 block.
    pub cidr: Option<String>,
    /// Its IPv6 blocks.
    pub ipv6_cidrs: Vec<String>,
    /// Whether instances in it get public addresses.
    pub gives_public_addresses: Option<bool>,
    /// Its tags.
    pub tags: InventoryTags,
}

/// A security group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryGroup {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: Option<String>,
    /// Its description.
    pub description: Option<String>,
    /// Its VPC.
    pub vpc: Option<String>,
    /// Its rules for packets to the instance.
    pub ingress: Vec<InventoryRule>,
    /// Its rules for packets from the instance.
    pub egress: Vec<InventoryRule>,
    /// Its tags.
    pub tags: InventoryTags,
}

/// A rule of a security group: what it allows, for several peers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryRule {
    /// `tcp`, `udp`, `icmp`, a protocol's number; `-1` for all.
    pub protocol: Option<String>,
    /// The first port, or the type of ICMP.
    pub from_port: Option<i32>,
    /// The last port, or the code of ICMP.
    pub to_port: Option<i32>,
    /// The peers that it allows.
    pub peers: Vec<InventoryPeer>,
}

/// A peer that a rule allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryPeer {
    /// A block of addresses, the id of a security group, or the id of a prefix list.
    pub peer: String,
    /// What the rule is for.
    pub description: Option<String>,
}

/// An image of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryImage {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: Option<String>,
    /// Its description.
    pub description: Option<String>,
    /// The account that owns it.
    pub owner: Option<String>,
    /// When it was made.
    pub creation_date: Option<String>,
    /// `x86_64`, `arm64` and so on.
    pub architecture: Option<String>,
    /// The boot mode that it asks for.
    pub boot_mode: Option<String>,
    /// The version of the NitroTPM that it asks for.
    pub tpm: Option<String>,
    /// The operating system by its licence.
    pub platform: Option<String>,
    /// The device that it boots from.
    pub root_device: Option<String>,
    /// Whether all accounts can use it.
    pub is_public: Option<bool>,
    /// Its tags.
    pub tags: InventoryTags,
}

/// A part that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryOmission {
    /// The member of the inventory that is empty, or lacks details.
    pub part: String,
    /// The IAM action that reads it.
    pub action: String,
    /// Why it is left out.
    pub reason: OmissionReason,
}

/// Why a part is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OmissionReason {
    /// The caller is not allowed to read it.
    Denied,
    /// It does not exist any more, or belongs to another account.
    NotFound,
}

/// An instance, its disks and its interfaces, as DescribeInstances reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// The account that owns it.
    pub account: Option<String>,
    /// The instance itself.
    pub instance: InventoryInstance,
    /// Its EBS volumes, in any order, without details.
    pub disks: Vec<InventoryDisk>,
    /// Its network interfaces, in any order.
    pub interfaces: Vec<InventoryInterface>,
}

/// Details of volumes, by the volumes' ids.
pub type DetailsByVolume = BTreeMap<String, DiskDetails>;

/// Describes an instance and its surroundings. Each call needs the IAM action of its name.
pub trait DescribeMachine: Send + Sync {
    /// `ec2:DescribeInstances`.
    ///
    /// # Errors
    /// `NotFound` when there is no such instance, `Denied` without the permission, else why it is not answered.
    fn machine<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<Machine>>;

    /// `ec2:DescribeInstanceTypes`.
    ///
    /// # Errors
    /// As above.
    fn hardware<'a>(&'a self, instance_type: &'a str) -> BoxFuture<'a, Result<InventoryHardware>>;

    /// `ec2:DescribeVolumes`, of an instance.
    ///
    /// # Errors
    /// As above.
    fn disk_details<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<DetailsByVolume>>;

    /// `ec2:DescribeVpcs`.
    ///
    /// # Errors
    /// As above.
    fn vpcs<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<Vec<InventoryVpc>>>;

    /// `ec2:DescribeSubnets`.
    ///
    /// # Errors
    /// As above.
    fn subnets<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<Vec<InventorySubnet>>>;

    /// `ec2:DescribeSecurityGroups`.
    ///
    /// # Errors
    /// As above.
    fn security_groups<'a>(
        &'a self,
        ids: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<InventoryGroup>>>;

    /// `ec2:DescribeImages`.
    ///
    /// # Errors
    /// As above.
    fn image<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<InventoryImage>>;
}

#[cfg(test)]
mod tests;
