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

pub(crate) use assemble::{MachineParts, assemble};
pub(crate) use gather::inventory;

/// The version of the JSON of [`Inventory`]; `docs/inventory.md` describes it.
pub(crate) const INVENTORY_VERSION: u32 = 1;

/// An instance and its surroundings: network, image, hardware.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inventory {
    /// [`INVENTORY_VERSION`].
    pub(crate) version: u32,
    /// When it was read.
    pub(crate) time: String,
    /// The Region.
    pub(crate) region: Option<String>,
    /// The account that owns the instance.
    pub(crate) account: Option<String>,
    /// The instance itself.
    pub(crate) instance: InventoryInstance,
    /// Its processors and memory.
    pub(crate) hardware: Option<InventoryHardware>,
    /// Its EBS volumes in device order, the root first.
    pub(crate) disks: Vec<InventoryDisk>,
    /// Its network interfaces, by their index.
    pub(crate) interfaces: Vec<InventoryInterface>,
    /// The VPCs of the interfaces.
    pub(crate) vpcs: Vec<InventoryVpc>,
    /// The subnets of the interfaces.
    pub(crate) subnets: Vec<InventorySubnet>,
    /// The security groups of the interfaces.
    pub(crate) security_groups: Vec<InventoryGroup>,
    /// The image that it was started from.
    pub(crate) image: Option<InventoryImage>,
    /// What could not be read.
    pub(crate) omitted: Vec<InventoryOmission>,
}

/// Tags, by their keys.
pub(crate) type InventoryTags = BTreeMap<String, String>;

/// An instance, as DescribeInstances describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InventoryInstance {
    /// Its id.
    pub(crate) id: String,
    /// Its type: `m5.large`.
    #[serde(rename = "type")]
    pub(crate) instance_type: Option<String>,
    /// `running`, `stopped` and so on.
    pub(crate) state: Option<String>,
    /// When it was started last.
    pub(crate) launch_time: Option<String>,
    /// Where it runs.
    pub(crate) availability_zone: Option<String>,
    /// `default`, `dedicated` or `host`.
    pub(crate) tenancy: Option<String>,
    /// `x86_64`, `arm64` and so on.
    pub(crate) architecture: Option<String>,
    /// The boot mode that its image asks for.
    pub(crate) boot_mode: Option<String>,
    /// The boot mode that it has now.
    pub(crate) current_boot_mode: Option<String>,
    /// The version of its NitroTPM.
    pub(crate) tpm: Option<String>,
    /// The operating system by its licence: `Linux/UNIX`.
    pub(crate) platform: Option<String>,
    /// `hvm` or `paravirtual`.
    pub(crate) virtualization: Option<String>,
    /// Whether it has the driver for enhanced networking.
    pub(crate) ena: Option<bool>,
    /// Whether it has a line of its own to EBS.
    pub(crate) ebs_optimized: Option<bool>,
    /// The cores that it uses.
    pub(crate) cores: Option<u64>,
    /// Threads of each core.
    pub(crate) threads_per_core: Option<u64>,
    /// The device that it boots from.
    pub(crate) root_device: Option<String>,
    /// The id of its image.
    pub(crate) image: Option<String>,
    /// The name of the key pair for SSH.
    pub(crate) key_name: Option<String>,
    /// The ARN of its instance profile.
    pub(crate) instance_profile: Option<String>,
    /// Its tags.
    pub(crate) tags: InventoryTags,
}

/// Processors and memory of an instance type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InventoryHardware {
    /// vCPUs of the type; the instance can use fewer.
    pub(crate) vcpus: Option<u64>,
    /// Bytes of memory.
    pub(crate) memory_bytes: Option<u64>,
    /// Architectures that it can run.
    pub(crate) architectures: Vec<String>,
    /// Boot modes that it can have.
    pub(crate) boot_modes: Vec<String>,
    /// `nitro` or `xen`.
    pub(crate) hypervisor: Option<String>,
    /// Whether it is a machine of its own.
    pub(crate) bare_metal: Option<bool>,
    /// Bytes of the disks that belong to the type, whose contents no snapshot has.
    pub(crate) instance_storage_bytes: Option<u64>,
}

/// An EBS volume of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InventoryDisk {
    /// The name of the device, as EC2 calls it: `/dev/xvda`.
    pub(crate) device: Option<String>,
    /// The volume's id.
    pub(crate) volume: String,
    /// Whether the instance boots from it.
    pub(crate) is_root: bool,
    /// Whether it is deleted with the instance.
    pub(crate) delete_on_termination: Option<bool>,
    /// Its details from DescribeVolumes.
    #[serde(flatten)]
    pub(crate) details: DiskDetails,
}

/// A volume, as DescribeVolumes describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskDetails {
    /// Its bytes.
    pub(crate) size_bytes: Option<u64>,
    /// `gp3`, `io2` and so on.
    #[serde(rename = "type")]
    pub(crate) volume_type: Option<String>,
    /// Operations a second that it is given.
    pub(crate) iops: Option<u64>,
    /// Bytes a second that it is given.
    pub(crate) throughput_bytes: Option<u64>,
    /// Whether it is encrypted.
    pub(crate) encrypted: Option<bool>,
    /// The ARN of its KMS key.
    pub(crate) kms_key: Option<String>,
    /// Whether several instances can have it.
    pub(crate) multi_attach: Option<bool>,
    /// The snapshot that it was made of.
    pub(crate) made_of: Option<String>,
    /// Its tags.
    pub(crate) tags: InventoryTags,
}

/// A network interface of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InventoryInterface {
    /// Its id.
    pub(crate) id: String,
    /// Its place among the interfaces.
    pub(crate) index: Option<u64>,
    /// `interface`, `efa` and so on.
    #[serde(rename = "type")]
    pub(crate) interface_type: Option<String>,
    /// Its description.
    pub(crate) description: Option<String>,
    /// Its MAC address.
    pub(crate) mac: Option<String>,
    /// The VPC that it is in.
    pub(crate) vpc: Option<String>,
    /// The subnet that it is in.
    pub(crate) subnet: Option<String>,
    /// The ids of its security groups.
    pub(crate) security_groups: Vec<String>,
    /// Whether packets that are not for it are dropped.
    pub(crate) source_dest_check: Option<bool>,
    /// Its IPv4 addresses, the primary one first.
    pub(crate) addresses: Vec<InventoryAddress>,
    /// Its IPv6 addresses.
    pub(crate) ipv6_addresses: Vec<String>,
    /// Its IPv4 and IPv6 prefixes.
    pub(crate) prefixes: Vec<String>,
}

/// A private IPv4 address and the public one that leads to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InventoryAddress {
    /// The private address.
    pub(crate) private: String,
    /// Its name in DNS.
    pub(crate) private_name: Option<String>,
    /// The public address.
    pub(crate) public: Option<String>,
    /// Its name in DNS.
    pub(crate) public_name: Option<String>,
    /// Whether the public address is an Elastic IP address of the account: it stays when the instance stops.
    pub(crate) is_elastic: bool,
    /// Whether it is the primary address of the interface.
    pub(crate) is_primary: bool,
}

/// A VPC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InventoryVpc {
    /// Its id.
    pub(crate) id: String,
    /// Its IPv4 blocks.
    pub(crate) cidrs: Vec<String>,
    /// Its IPv6 blocks.
    pub(crate) ipv6_cidrs: Vec<String>,
    /// Whether it is the default one of the account.
    pub(crate) is_default: Option<bool>,
    /// Its tags.
    pub(crate) tags: InventoryTags,
}

/// A subnet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InventorySubnet {
    /// Its id.
    pub(crate) id: String,
    /// Its VPC.
    pub(crate) vpc: Option<String>,
    /// Its availability zone.
    pub(crate) availability_zone: Option<String>,
    /// Its IPv4 block.
    pub(crate) cidr: Option<String>,
    /// Its IPv6 blocks.
    pub(crate) ipv6_cidrs: Vec<String>,
    /// Whether instances in it get public addresses.
    pub(crate) gives_public_addresses: Option<bool>,
    /// Its tags.
    pub(crate) tags: InventoryTags,
}

/// A security group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InventoryGroup {
    /// Its id.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: Option<String>,
    /// Its description.
    pub(crate) description: Option<String>,
    /// Its VPC.
    pub(crate) vpc: Option<String>,
    /// Its rules for packets to the instance.
    pub(crate) ingress: Vec<InventoryRule>,
    /// Its rules for packets from the instance.
    pub(crate) egress: Vec<InventoryRule>,
    /// Its tags.
    pub(crate) tags: InventoryTags,
}

/// A rule of a security group: what it allows, for several peers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InventoryRule {
    /// `tcp`, `udp`, `icmp`, a protocol's number; `-1` for all.
    pub(crate) protocol: Option<String>,
    /// The first port, or the type of ICMP.
    pub(crate) from_port: Option<i32>,
    /// The last port, or the code of ICMP.
    pub(crate) to_port: Option<i32>,
    /// The peers that it allows.
    pub(crate) peers: Vec<InventoryPeer>,
}

/// A peer that a rule allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InventoryPeer {
    /// A block of addresses, the id of a security group, or the id of a prefix list.
    pub(crate) peer: String,
    /// What the rule is for.
    pub(crate) description: Option<String>,
}

/// An image of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InventoryImage {
    /// Its id.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: Option<String>,
    /// Its description.
    pub(crate) description: Option<String>,
    /// The account that owns it.
    pub(crate) owner: Option<String>,
    /// When it was made.
    pub(crate) creation_date: Option<String>,
    /// `x86_64`, `arm64` and so on.
    pub(crate) architecture: Option<String>,
    /// The boot mode that it asks for.
    pub(crate) boot_mode: Option<String>,
    /// The version of the NitroTPM that it asks for.
    pub(crate) tpm: Option<String>,
    /// The operating system by its licence.
    pub(crate) platform: Option<String>,
    /// The device that it boots from.
    pub(crate) root_device: Option<String>,
    /// Whether all accounts can use it.
    pub(crate) is_public: Option<bool>,
    /// Its tags.
    pub(crate) tags: InventoryTags,
}

/// A part that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InventoryOmission {
    /// The member of the inventory that is empty, or lacks details.
    pub(crate) part: String,
    /// The IAM action that reads it.
    pub(crate) action: String,
    /// Why it is left out.
    pub(crate) reason: OmissionReason,
}

/// Why a part is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OmissionReason {
    /// The caller is not allowed to read it.
    Denied,
    /// It does not exist any more, or belongs to another account.
    NotFound,
}

/// An instance, its disks and its interfaces, as DescribeInstances reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    /// The account that owns it.
    pub(crate) account: Option<String>,
    /// The instance itself.
    pub(crate) instance: InventoryInstance,
    /// Its EBS volumes, in any order, without details.
    pub(crate) disks: Vec<InventoryDisk>,
    /// Its network interfaces, in any order.
    pub(crate) interfaces: Vec<InventoryInterface>,
}

/// Details of volumes, by the volumes' ids.
pub(crate) type DetailsByVolume = BTreeMap<String, DiskDetails>;

/// Describes an instance and its surroundings. Each call needs the IAM action of its name.
pub(crate) trait DescribeMachine: Send + Sync {
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
