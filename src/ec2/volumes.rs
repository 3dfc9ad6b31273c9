//! DescribeVolumes and DescribeInstances: the volumes and instances to make snapshots of.

use aws_sdk_ec2::operation::describe_volumes::builders::DescribeVolumesFluentBuilder;
use aws_sdk_ec2::types::{Instance, Volume, VolumeAttachmentState};
use futures_util::FutureExt;

use super::call::{CallName, CallRefusal, Repeat, call};
use super::pages::{DescribedPage, PageItem, list_pages};
use super::{Ec2, filter, tags};
use crate::aws::IamAction;
use crate::error::{Error, Kind, Result};
use crate::snapshot::{InstanceInfo, VolumeInfo, VolumeSelector};

/// The most volumes per page that EC2 recommends
/// (<https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeVolumes.html>).
pub(super) const VOLUMES_PER_PAGE: i32 = 500;

impl Ec2 {
    /// The volumes that a selector names.
    pub(super) async fn describe_volumes(
        &self,
        select: &VolumeSelector,
    ) -> Result<Vec<VolumeInfo>> {
        let filters = match select {
            VolumeSelector::Volume(id) => {
                let fill = |request: DescribeVolumesFluentBuilder| request.volume_ids(id);
                let page = self.volumes_once(id, Repeat::Single, fill).await?;
                let mut volumes = page.items;
                volumes.retain(|volume| volume.id == *id);
                if volumes.is_empty() {
                    let what = format!("there is no {id} in this Region and account");
                    return Err(Error::new(Kind::NotFound, what));
                }
                return Ok(volumes);
            }
            VolumeSelector::Instance(id) => {
                filter("attachment.instance-id", std::slice::from_ref(id))
            }
            VolumeSelector::Tag { key, value } => filter(&format!("tag:{key}"), &[literal(value)]),
        };
        let filters = &filters;
        let fetch = |token: Option<String>| {
            async move {
                let repeat = match &token {
                    Some(_) => Repeat::Listing,
                    None => Repeat::Single,
                };
                let fill = |request: DescribeVolumesFluentBuilder| {
                    request
                        .filters(filters.clone())
                        .max_results(VOLUMES_PER_PAGE)
                        .set_next_token(token.clone())
                };
                let page = self.volumes_once("in this Region", repeat, fill).await;
                page.map_err(Into::into)
            }
            .boxed()
        };
        let mut volumes = list_pages(&|_| {}, fetch).await?;
        match select {
            VolumeSelector::Tag { key, value } => {
                volumes.retain(|volume: &VolumeInfo| volume.tags.get(key) == Some(value));
            }
            VolumeSelector::Instance(id) => volumes.retain(|volume| volume.instances.contains(id)),
            VolumeSelector::Volume(_) => {}
        }
        Ok(volumes)
    }

    async fn volumes_once(
        &self,
        target: &str,
        repeat: Repeat,
        fill: impl Fn(DescribeVolumesFluentBuilder) -> DescribeVolumesFluentBuilder,
    ) -> std::result::Result<DescribedPage<VolumeInfo>, CallRefusal> {
        let name = CallName {
            action: VolumeInfo::ACTION,
            target,
            repeat,
        };
        let send = |watch| {
            let request = fill(self.sdk.describe_volumes());
            request.customize().interceptor(watch).send()
        };
        let reply = call(&self.access, name, &|_| {}, send).await?;
        let volumes = reply.volumes.unwrap_or_default();
        Ok(DescribedPage {
            items: volumes.into_iter().filter_map(volume).collect(),
            next: reply.next_token.filter(|token| !token.is_empty()),
        })
    }

    /// The instances with these ids.
    pub(super) async fn describe_instances(&self, ids: &[String]) -> Result<Vec<InstanceInfo>> {
        let target = ids.join(", ");
        let name = CallName {
            action: IamAction::DescribeInstances.name(),
            target: &target,
            repeat: Repeat::Single,
        };
        let send = |watch| {
            let request = self.sdk.describe_instances();
            let request = request.set_instance_ids(Some(ids.to_vec()));
            request.customize().interceptor(watch).send()
        };
        let reply = call(&self.access, name, &|_| {}, send).await?;
        let reservations = reply.reservations.unwrap_or_default().into_iter();
        let instances = reservations.flat_map(|reserved| reserved.instances.unwrap_or_default());
        let found: Vec<_> = instances.filter_map(instance).collect();
        for id in ids {
            if !found.iter().any(|instance| instance.id == *id) {
                let what = format!("there is no {id} in this Region and account");
                return Err(Error::new(Kind::NotFound, what));
            }
        }
        Ok(found)
    }
}

/// A value of a filter that matches only itself: `*` and `?` match anything there
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html>).
fn literal(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for c in value.chars() {
        if matches!(c, '*' | '?' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

fn volume(from: Volume) -> Option<VolumeInfo> {
    let attachments = from.attachments.unwrap_or_default().into_iter();
    let attached = attachments.filter(|attachment| {
        attachment.state != Some(VolumeAttachmentState::Detached)
            && attachment.state != Some(VolumeAttachmentState::Detaching)
    });
    Some(VolumeInfo {
        id: from.volume_id?,
        instances: attached
            .filter_map(|attachment| attachment.instance_id)
            .collect(),
        tags: tags(from.tags),
    })
}

fn instance(from: Instance) -> Option<InstanceInfo> {
    let root = from.root_device_name;
    let mut boot_volume = None;
    let mut volumes = Vec::new();
    for mapping in from.block_device_mappings.unwrap_or_default() {
        let Some(id) = mapping.ebs.and_then(|ebs| ebs.volume_id) else {
            continue;
        };
        if mapping.device_name.is_some() && mapping.device_name == root {
            boot_volume = Some(id.clone());
        }
        volumes.push(id);
    }
    Some(InstanceInfo {
        id: from.instance_id?,
        boot_volume,
        volumes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_a_filter_matches_only_itself() {
        assert_eq!(literal("web"), "web");
        assert_eq!(literal("w*b?\\"), "w\\*b\\?\\\\");
    }
}
