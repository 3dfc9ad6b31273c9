//! The calls that describe an instance and its surroundings: [`DescribeMachine`] by EC2.

use aws_sdk_ec2::types::Filter;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::call::{CallName, CallRefusal, Repeat, call};
use super::machine;
use super::pages::{DescribedPage, list_pages};
use super::volumes::VOLUMES_PER_PAGE;
use super::{Ec2, filter};
use crate::aws::IamAction;
use crate::error::{Error, Kind, Result};
use crate::inventory::{
    DescribeMachine, DetailsByVolume, InventoryGroup, InventoryHardware, InventoryImage,
    InventorySubnet, InventoryVpc, Machine,
};

/// A call that is made once, on these ids.
fn name<'a>(action: &'static str, target: &'a str) -> CallName<'a> {
    CallName {
        action,
        target,
        repeat: Repeat::Single,
    }
}

/// The thing that was asked for, or an error: EC2 can leave it out of its reply.
fn there<T>(found: Option<T>, what: &str) -> Result<T> {
    found.ok_or_else(|| {
        let what = format!("there is no {what} that this account can see in this Region");
        Error::new(Kind::NotFound, what)
    })
}

impl Ec2 {
    async fn volume_details_once(
        &self,
        filters: &Filter,
        token: Option<String>,
    ) -> std::result::Result<DescribedPage<machine::NamedDetails>, CallRefusal> {
        let name = CallName {
            repeat: match &token {
                Some(_) => Repeat::Listing,
                None => Repeat::Single,
            },
            ..name(IamAction::DescribeVolumes.name(), "of the instance")
        };
        let send = |watch| {
            let request = self.sdk.describe_volumes().filters(filters.clone());
            let request = request.max_results(VOLUMES_PER_PAGE);
            let request = request.set_next_token(token.clone());
            request.customize().interceptor(watch).send()
        };
        let reply = call(&self.access, name, &|_| {}, send).await?;
        let volumes = reply.volumes.unwrap_or_default().into_iter();
        Ok(DescribedPage {
            items: volumes.filter_map(machine::details).collect(),
            next: reply.next_token.filter(|token| !token.is_empty()),
        })
    }
}

impl DescribeMachine for Ec2 {
    fn machine<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<Machine>> {
        async move {
            let send = |watch| {
                let request = self.sdk.describe_instances().instance_ids(instance);
                request.customize().interceptor(watch).send()
            };
            let name = name(IamAction::DescribeInstances.name(), instance);
            let reply = call(&self.access, name, &|_| {}, send).await?;
            let reservations = reply.reservations.unwrap_or_default().into_iter();
            let mut found = reservations.filter_map(|one| machine::machine(one, instance));
            there(found.next(), instance)
        }
        .boxed()
    }

    fn hardware<'a>(&'a self, instance_type: &'a str) -> BoxFuture<'a, Result<InventoryHardware>> {
        async move {
            let send = |watch| {
                let request = self.sdk.describe_instance_types();
                let request = request.instance_types(instance_type.into());
                request.customize().interceptor(watch).send()
            };
            let name = name(IamAction::DescribeInstanceTypes.name(), instance_type);
            let reply = call(&self.access, name, &|_| {}, send).await?;
            let mut types = reply.instance_types.unwrap_or_default().into_iter();
            let is_it = |one: &aws_sdk_ec2::types::InstanceTypeInfo| {
                let name = one.instance_type.as_ref();
                name.is_some_and(|name| name.as_str() == instance_type)
            };
            there(types.find(is_it).map(machine::hardware), instance_type)
        }
        .boxed()
    }

    fn disk_details<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<DetailsByVolume>> {
        async move {
            let id = instance.to_owned();
            let filter = &filter("attachment.instance-id", std::slice::from_ref(&id));
            let fetch = |token: Option<String>| {
                async move {
                    let page = self.volume_details_once(filter, token).await;
                    page.map_err(Into::into)
                }
                .boxed()
            };
            let volumes = list_pages(&|_| {}, fetch).await?;
            let named = volumes
                .into_iter()
                .map(|volume| (volume.id, volume.details));
            Ok(named.collect())
        }
        .boxed()
    }

    fn vpcs<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<Vec<InventoryVpc>>> {
        async move {
            let send = |watch| {
                let request = self.sdk.describe_vpcs().set_vpc_ids(Some(ids.to_vec()));
                request.customize().interceptor(watch).send()
            };
            let target = ids.join(", ");
            let name = name(IamAction::DescribeVpcs.name(), &target);
            let reply = call(&self.access, name, &|_| {}, send).await?;
            let vpcs = reply.vpcs.unwrap_or_default().into_iter();
            Ok(vpcs.filter_map(machine::vpc).collect())
        }
        .boxed()
    }

    fn subnets<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<Vec<InventorySubnet>>> {
        async move {
            let send = |watch| {
                let request = self.sdk.describe_subnets();
                let request = request.set_subnet_ids(Some(ids.to_vec()));
                request.customize().interceptor(watch).send()
            };
            let target = ids.join(", ");
            let name = name(IamAction::DescribeSubnets.name(), &target);
            let reply = call(&self.access, name, &|_| {}, send).await?;
            let subnets = reply.subnets.unwrap_or_default().into_iter();
            Ok(subnets.filter_map(machine::subnet).collect())
        }
        .boxed()
    }

    fn security_groups<'a>(
        &'a self,
        ids: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<InventoryGroup>>> {
        async move {
            let send = |watch| {
                let request = self.sdk.describe_security_groups();
                let request = request.set_group_ids(Some(ids.to_vec()));
                request.customize().interceptor(watch).send()
            };
            let target = ids.join(", ");
            let name = name(IamAction::DescribeSecurityGroups.name(), &target);
            let reply = call(&self.access, name, &|_| {}, send).await?;
            let groups = reply.security_groups.unwrap_or_default().into_iter();
            Ok(groups.filter_map(machine::group).collect())
        }
        .boxed()
    }

    fn image<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<InventoryImage>> {
        async move {
            let send = |watch| {
                let request = self.sdk.describe_images().image_ids(id);
                // Images are deprecated and disabled while their instances live.
                let request = request.include_deprecated(true).include_disabled(true);
                request.customize().interceptor(watch).send()
            };
            let name = name(IamAction::DescribeImages.name(), id);
            let reply = call(&self.access, name, &|_| {}, send).await?;
            let images = reply.images.unwrap_or_default().into_iter();
            let mut found = images.filter_map(machine::image);
            there(found.find(|image| image.id == id), id)
        }
        .boxed()
    }
}
