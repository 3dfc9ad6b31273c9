//! Puts the parts of an inventory together, orders them, and names what is left out. Pure.

use std::time::SystemTime;

use super::{
    DetailsByVolume, INVENTORY_VERSION, Inventory, InventoryDisk, InventoryGroup,
    InventoryHardware, InventoryImage, InventoryOmission, InventorySubnet, InventoryVpc, Machine,
    OmissionReason,
};
use crate::error::{Error, Kind, Result};
use crate::time::rfc3339_seconds;

/// The answers for the parts; none where nothing was asked.
#[derive(Debug, Default)]
pub(crate) struct MachineParts {
    /// The instance's type.
    pub(crate) hardware: Option<Result<InventoryHardware>>,
    /// Its volumes.
    pub(crate) details: Option<Result<DetailsByVolume>>,
    /// The VPCs of its interfaces.
    pub(crate) vpcs: Option<Result<Vec<InventoryVpc>>>,
    /// Their subnets.
    pub(crate) subnets: Option<Result<Vec<InventorySubnet>>>,
    /// Their security groups.
    pub(crate) security_groups: Option<Result<Vec<InventoryGroup>>>,
    /// Its image.
    pub(crate) image: Option<Result<InventoryImage>>,
}

/// An inventory of an instance and the answers for its parts, read at `now`.
///
/// # Errors
/// An answer that is neither a refusal nor a thing that does not exist: asking again later can succeed.
pub(crate) fn assemble(
    machine: Machine,
    parts: MachineParts,
    region: Option<&str>,
    now: SystemTime,
) -> Result<Inventory> {
    let mut omitted = Vec::new();
    let hardware = read(
        "hardware",
        "DescribeInstanceTypes",
        parts.hardware,
        &mut omitted,
    )?;
    let details = read("disks", "DescribeVolumes", parts.details, &mut omitted)?;
    let vpcs = read("vpcs", "DescribeVpcs", parts.vpcs, &mut omitted)?;
    let subnets = read("subnets", "DescribeSubnets", parts.subnets, &mut omitted)?;
    let groups = read(
        "security_groups",
        "DescribeSecurityGroups",
        parts.security_groups,
        &mut omitted,
    )?;
    let image = read("image", "DescribeImages", parts.image, &mut omitted)?;
    let (mut vpcs, mut subnets, mut groups) = (
        vpcs.unwrap_or_default(),
        subnets.unwrap_or_default(),
        groups.unwrap_or_default(),
    );
    vpcs.sort_by(|a, b| a.id.cmp(&b.id));
    subnets.sort_by(|a, b| a.id.cmp(&b.id));
    groups.sort_by(|a, b| a.id.cmp(&b.id));
    let mut interfaces = machine.interfaces;
    interfaces.sort_by(|a, b| (a.index, &a.id).cmp(&(b.index, &b.id)));
    for interface in &mut interfaces {
        interface
            .addresses
            .sort_by_key(|address| !address.is_primary);
    }
    Ok(Inventory {
        version: INVENTORY_VERSION,
        time: rfc3339_seconds(now),
        region: region.map(str::to_owned),
        account: machine.account,
        instance: machine.instance,
        hardware,
        disks: in_device_order(machine.disks, details.unwrap_or_default()),
        interfaces,
        vpcs,
        subnets,
        security_groups: groups,
        image,
        omitted,
    })
}

/// An answer; nothing, and a line in `omitted`, where it was refused or does not exist.
fn read<T>(
    part: &str,
    action: &str,
    answer: Option<Result<T>>,
    omitted: &mut Vec<InventoryOmission>,
) -> Result<Option<T>> {
    let error = match answer {
        None => return Ok(None),
        Some(Ok(answer)) => return Ok(Some(answer)),
        Some(Err(error)) => error,
    };
    let reason = reason_of(&error).ok_or(error)?;
    omitted.push(InventoryOmission {
        part: part.to_owned(),
        action: format!("ec2:{action}"),
        reason,
    });
    Ok(None)
}

fn reason_of(error: &Error) -> Option<OmissionReason> {
    match error.kind() {
        Kind::Denied => Some(OmissionReason::Denied),
        Kind::NotFound => Some(OmissionReason::NotFound),
        _ => None,
    }
}

/// The root first, then by device name: `/dev/sdf` before `/dev/sdg`, and `/dev/sdz` before `/dev/sdaa`.
fn in_device_order(
    mut disks: Vec<InventoryDisk>,
    mut details: DetailsByVolume,
) -> Vec<InventoryDisk> {
    for disk in &mut disks {
        if let Some(details) = details.remove(&disk.volume) {
            disk.details = details;
        }
    }
    disks.sort_by_cached_key(|disk| {
        let device = disk.device.clone().unwrap_or_default();
        let has_no_name = device.is_empty();
        (
            !disk.is_root,
            has_no_name,
            device.len(),
            device,
            disk.volume.clone(),
        )
    });
    disks
}
