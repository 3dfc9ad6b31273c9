//! Asks for the parts of an inventory: the instance first, then what it names, all at once.

use std::collections::BTreeSet;
use std::time::SystemTime;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use super::{DescribeMachine, Inventory, InventoryInterface, MachineParts, assemble};
use crate::error::Result;

/// The inventory of an instance.
///
/// # Errors
/// `NotFound` when there is no such instance, `Denied` where it may not be described; why a part is not answered. A part that may not
/// be described is no error: it is left out.
pub(crate) async fn inventory(
    describe: &dyn DescribeMachine,
    instance: &str,
    region: Option<&str>,
    now: SystemTime,
) -> Result<Inventory> {
    let machine = describe.machine(instance).await?;
    let of = |ids: fn(&InventoryInterface) -> &[String]| named(&machine.interfaces, ids);
    let vpcs = of(|interface| interface.vpc.as_slice());
    let subnets = of(|interface| interface.subnet.as_slice());
    let groups = of(|interface| interface.security_groups.as_slice());
    let instance_type = machine.instance.instance_type.as_deref();
    let image = machine.instance.image.as_deref();
    let (hardware, details, vpcs, subnets, security_groups, image) = futures_util::join!(
        maybe(instance_type.map(|name| describe.hardware(name))),
        maybe((!machine.disks.is_empty()).then(|| describe.disk_details(instance))),
        maybe((!vpcs.is_empty()).then(|| describe.vpcs(&vpcs))),
        maybe((!subnets.is_empty()).then(|| describe.subnets(&subnets))),
        maybe((!groups.is_empty()).then(|| describe.security_groups(&groups))),
        maybe(image.map(|id| describe.image(id))),
    );
    let parts = MachineParts {
        hardware,
        details,
        vpcs,
        subnets,
        security_groups,
        image,
    };
    assemble(machine, parts, region, now)
}

/// The ids that interfaces name, each once.
fn named(
    interfaces: &[InventoryInterface],
    ids: fn(&InventoryInterface) -> &[String],
) -> Vec<String> {
    let all: BTreeSet<&String> = interfaces.iter().flat_map(ids).collect();
    all.into_iter().cloned().collect()
}

/// The answer to a question, if there is one.
fn maybe<'a, T: Send + 'a>(
    asked: Option<BoxFuture<'a, Result<T>>>,
) -> BoxFuture<'a, Option<Result<T>>> {
    match asked {
        Some(asked) => asked.map(Some).boxed(),
        None => ready(None).boxed(),
    }
}
