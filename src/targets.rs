//! Implementations of [`Target`](crate::target::Target): a raw image, a block device, a new EBS snapshot. A repository target is
//! in [`crate::repository`].

mod device;
mod ebs;
mod holders;
mod identity;
mod image;
mod raw;
mod volume;

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::block::Delta;
use crate::error::{Error, Kind, Remedy};
use crate::files::FileMark;
use crate::target::Mark;

pub(crate) use device::DeviceTarget;
pub use ebs::{EbsAccount, EbsJob, EbsTarget};
pub(crate) use holders::{mounted_twins, obstacles};
pub(crate) use image::ImageTarget;
pub(crate) use volume::volume_key_of;

/// Two ticks of the coarsest kernel clock that stamps files (100 Hz): writes at least this far apart have different change
/// times.
const TWO_TICKS: Duration = Duration::from_millis(20);

/// The error of a target that changed between decision and open.
fn changed(name: &str) -> Error {
    let what = format!("cannot write {name}: something else wrote or replaced it just now");
    Error::new(Kind::Undecided, what).with_remedy(Remedy::TryLater)
}

/// Adapts a full copy to a target that holds unknown bytes: it zeroes all blocks that it does not write.
fn over_anything(plan: Arc<Delta>, may_hold_anything: bool) -> Arc<Delta> {
    if plan.base().is_some() || !may_hold_anything {
        return plan;
    }
    let mut plan = plan;
    Arc::make_mut(&mut plan).zero_what_grew();
    plan
}

/// Flushes an image or a device of this machine and returns its mark; none where the target has no mark.
pub(crate) fn mark_of(path: &Path) -> Option<Mark> {
    let file = File::open(path).ok()?;
    if file.metadata().ok()?.file_type().is_block_device() {
        return identity::device_mark(&file).map(Mark::Device);
    }
    FileMark::flushed(path).ok().map(Mark::Image)
}

#[cfg(test)]
mod tests;
