//! EC2's descriptions of an instance and its surroundings as our types. Items without an id are left out.

use std::time::SystemTime;

use aws_sdk_ec2::types::{
    Image, Instance, InstanceNetworkInterface, InstanceNetworkInterfaceAssociation,
    InstancePrivateIpAddress, InstanceTypeInfo, IpPermission, Reservation, SecurityGroup, Subnet,
    Volume, Vpc,
};

use super::pages::PageItem;
use super::tags;
use crate::aws::IamAction;
use crate::inventory::{
    DiskDetails, InventoryAddress, InventoryDisk, InventoryGroup, InventoryHardware,
    InventoryImage, InventoryInstance, InventoryInterface, InventoryPeer, InventoryRule,
    InventorySubnet, InventoryVpc, Machine,
};
use crate::time::rfc3339_seconds;

/// Details of a volume, with its id.
#[derive(Debug)]
pub(super) struct NamedDetails {
    pub(super) id: String,
    pub(super) details: DiskDetails,
}

impl PageItem for NamedDetails {
    const MANY: &'static str = "volumes";
    const ACTION: &'static str = IamAction::DescribeVolumes.name();

    fn id(&self) -> &str {
        &self.id
    }
}

fn time(time: Option<aws_smithy_types::DateTime>) -> Option<String> {
    let time = SystemTime::try_from(time?).ok()?;
    Some(rfc3339_seconds(time))
}

fn text(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn number(number: Option<i32>) -> Option<u64> {
    u64::try_from(number?).ok()
}

/// The instance of this id in a reservation.
pub(super) fn machine(from: Reservation, id: &str) -> Option<Machine> {
    let mut instances = from.instances.unwrap_or_default().into_iter();
    let found = instances.find(|one| one.instance_id.as_deref() == Some(id))?;
    let root = found.root_device_name.clone();
    let mappings = found.block_device_mappings.clone().unwrap_or_default();
    let disks = mappings.into_iter().filter_map(|mapping| {
        let ebs = mapping.ebs?;
        Some(InventoryDisk {
            is_root: mapping.device_name.is_some() && mapping.device_name == root,
            device: text(mapping.device_name),
            volume: ebs.volume_id?,
            delete_on_termination: ebs.delete_on_termination,
            details: DiskDetails::default(),
        })
    });
    let account = text(from.owner_id);
    let interfaces = found.network_interfaces.clone().unwrap_or_default();
    let interfaces = interfaces
        .into_iter()
        .filter_map(|one| interface(one, account.as_deref()));
    Some(Machine {
        disks: disks.collect(),
        interfaces: interfaces.collect(),
        instance: instance(found),
        account,
    })
}

fn instance(from: Instance) -> InventoryInstance {
    let cpu = from.cpu_options;
    let placement = from.placement;
    InventoryInstance {
        id: from.instance_id.unwrap_or_default(),
        instance_type: from.instance_type.map(|of| of.as_str().to_owned()),
        state: from
            .state
            .and_then(|state| state.name)
            .map(|name| name.as_str().to_owned()),
        launch_time: time(from.launch_time),
        availability_zone: placement
            .as_ref()
            .and_then(|place| text(place.availability_zone.clone())),
        tenancy: placement
            .and_then(|place| place.tenancy)
            .map(|tenancy| tenancy.as_str().to_owned()),
        architecture: from.architecture.map(|of| of.as_str().to_owned()),
        boot_mode: from.boot_mode.map(|of| of.as_str().to_owned()),
        current_boot_mode: from
            .current_instance_boot_mode
            .map(|of| of.as_str().to_owned()),
        tpm: text(from.tpm_support),
        platform: text(from.platform_details),
        virtualization: from.virtualization_type.map(|of| of.as_str().to_owned()),
        ena: from.ena_support,
        ebs_optimized: from.ebs_optimized,
        cores: number(cpu.as_ref().and_then(|cpu| cpu.core_count)),
        threads_per_core: number(cpu.and_then(|cpu| cpu.threads_per_core)),
        root_device: text(from.root_device_name),
        image: text(from.image_id),
        key_name: text(from.key_name),
        instance_profile: from
            .iam_instance_profile
            .and_then(|profile| text(profile.arn)),
        tags: tags(from.tags),
    }
}

/// An interface. An Elastic IP address belongs to the account, another public one to Amazon.
fn interface(from: InstanceNetworkInterface, account: Option<&str>) -> Option<InventoryInterface> {
    let addresses = from.private_ip_addresses.unwrap_or_default().into_iter();
    let ipv6 = from.ipv6_addresses.unwrap_or_default().into_iter();
    let ipv4_prefixes = from.ipv4_prefixes.unwrap_or_default().into_iter();
    let ipv4_prefixes = ipv4_prefixes.filter_map(|prefix| prefix.ipv4_prefix);
    let ipv6_prefixes = from.ipv6_prefixes.unwrap_or_default().into_iter();
    let ipv6_prefixes = ipv6_prefixes.filter_map(|prefix| prefix.ipv6_prefix);
    let groups = from.groups.unwrap_or_default().into_iter();
    Some(InventoryInterface {
        id: from.network_interface_id?,
        index: number(from.attachment.and_then(|attached| attached.device_index)),
        interface_type: text(from.interface_type),
        description: text(from.description),
        mac: text(from.mac_address),
        vpc: text(from.vpc_id),
        subnet: text(from.subnet_id),
        security_groups: groups.filter_map(|group| group.group_id).collect(),
        source_dest_check: from.source_dest_check,
        addresses: addresses.filter_map(|one| address(one, account)).collect(),
        ipv6_addresses: ipv6.filter_map(|address| address.ipv6_address).collect(),
        prefixes: ipv4_prefixes.chain(ipv6_prefixes).collect(),
    })
}

fn address(from: InstancePrivateIpAddress, account: Option<&str>) -> Option<InventoryAddress> {
    let public = from
        .association
        .unwrap_or_else(|| InstanceNetworkInterfaceAssociation::builder().build());
    Some(InventoryAddress {
        private: from.private_ip_address?,
        private_name: text(from.private_dns_name),
        is_elastic: account.is_some() && public.ip_owner_id.as_deref() == account,
        public: text(public.public_ip),
        public_name: text(public.public_dns_name),
        is_primary: from.primary == Some(true),
    })
}

pub(super) fn hardware(from: InstanceTypeInfo) -> InventoryHardware {
    let mebibytes = from.memory_info.and_then(|memory| memory.size_in_mib);
    let mebibytes = mebibytes.and_then(|size| u64::try_from(size).ok());
    let storage = from.instance_storage_info;
    let gigabytes = storage.and_then(|storage| storage.total_size_in_gb);
    let gigabytes = gigabytes.and_then(|size| u64::try_from(size).ok());
    let architectures = from
        .processor_info
        .and_then(|processor| processor.supported_architectures);
    let architectures = architectures.unwrap_or_default().into_iter();
    let boot_modes = from.supported_boot_modes.unwrap_or_default().into_iter();
    InventoryHardware {
        vcpus: number(from.v_cpu_info.and_then(|cpu| cpu.default_v_cpus)),
        memory_bytes: mebibytes.and_then(|size| size.checked_mul(1 << 20)),
        architectures: architectures.map(|of| of.as_str().to_owned()).collect(),
        boot_modes: boot_modes.map(|of| of.as_str().to_owned()).collect(),
        hypervisor: from.hypervisor.map(|of| of.as_str().to_owned()),
        bare_metal: from.bare_metal,
        instance_storage_bytes: gigabytes.and_then(|size| size.checked_mul(1_000_000_000)),
    }
}

pub(super) fn details(from: Volume) -> Option<NamedDetails> {
    let details = DiskDetails {
        size_bytes: number(from.size).and_then(|gib| gib.checked_mul(1 << 30)),
        volume_type: from.volume_type.map(|of| of.as_str().to_owned()),
        iops: number(from.iops),
        throughput_bytes: number(from.throughput).and_then(|mib| mib.checked_mul(1 << 20)),
        encrypted: from.encrypted,
        kms_key: text(from.kms_key_id),
        multi_attach: from.multi_attach_enabled,
        made_of: text(from.snapshot_id),
        tags: tags(from.tags),
    };
    let id = from.volume_id?;
    Some(NamedDetails { id, details })
}

pub(super) fn vpc(from: Vpc) -> Option<InventoryVpc> {
    let associated = from.cidr_block_association_set.unwrap_or_default();
    let associated = associated.into_iter().filter_map(|one| one.cidr_block);
    let mut cidrs: Vec<String> = from.cidr_block.into_iter().collect();
    for cidr in associated {
        if !cidrs.contains(&cidr) {
            cidrs.push(cidr);
        }
    }
    let ipv6 = from.ipv6_cidr_block_association_set.unwrap_or_default();
    Some(InventoryVpc {
        id: from.vpc_id?,
        cidrs,
        ipv6_cidrs: ipv6
            .into_iter()
            .filter_map(|one| one.ipv6_cidr_block)
            .collect(),
        is_default: from.is_default,
        tags: tags(from.tags),
    })
}

pub(super) fn subnet(from: Subnet) -> Option<InventorySubnet> {
    let ipv6 = from.ipv6_cidr_block_association_set.unwrap_or_default();
    Some(InventorySubnet {
        id: from.subnet_id?,
        vpc: text(from.vpc_id),
        availability_zone: text(from.availability_zone),
        cidr: text(from.cidr_block),
        ipv6_cidrs: ipv6
            .into_iter()
            .filter_map(|one| one.ipv6_cidr_block)
            .collect(),
        gives_public_addresses: from.map_public_ip_on_launch,
        tags: tags(from.tags),
    })
}

pub(super) fn group(from: SecurityGroup) -> Option<InventoryGroup> {
    let rules = |rules: Option<Vec<IpPermission>>| {
        let rules = rules.unwrap_or_default().into_iter();
        rules.map(rule).collect()
    };
    Some(InventoryGroup {
        id: from.group_id?,
        name: text(from.group_name),
        description: text(from.description),
        vpc: text(from.vpc_id),
        ingress: rules(from.ip_permissions),
        egress: rules(from.ip_permissions_egress),
        tags: tags(from.tags),
    })
}

fn rule(from: IpPermission) -> InventoryRule {
    let ipv4 = from.ip_ranges.unwrap_or_default().into_iter();
    let ipv4 = ipv4.map(|one| (one.cidr_ip, one.description));
    let ipv6 = from.ipv6_ranges.unwrap_or_default().into_iter();
    let ipv6 = ipv6.map(|one| (one.cidr_ipv6, one.description));
    let lists = from.prefix_list_ids.unwrap_or_default().into_iter();
    let lists = lists.map(|one| (one.prefix_list_id, one.description));
    let groups = from.user_id_group_pairs.unwrap_or_default().into_iter();
    let groups = groups.map(|one| (one.group_id, one.description));
    let peers = ipv4.chain(ipv6).chain(lists).chain(groups);
    let peers = peers.filter_map(|(peer, description)| {
        Some(InventoryPeer {
            peer: peer?,
            description: text(description),
        })
    });
    InventoryRule {
        protocol: text(from.ip_protocol),
        from_port: from.from_port,
        to_port: from.to_port,
        peers: peers.collect(),
    }
}

pub(super) fn image(from: Image) -> Option<InventoryImage> {
    Some(InventoryImage {
        id: from.image_id?,
        name: text(from.name),
        description: text(from.description),
        owner: text(from.owner_id),
        creation_date: text(from.creation_date),
        architecture: from.architecture.map(|of| of.as_str().to_owned()),
        boot_mode: from.boot_mode.map(|of| of.as_str().to_owned()),
        tpm: from.tpm_support.map(|of| of.as_str().to_owned()),
        platform: text(from.platform_details),
        root_device: text(from.root_device_name),
        is_public: from.public,
        tags: tags(from.tags),
    })
}
