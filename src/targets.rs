//! The places of this machine and of EBS that a volume can be written to, each a [`Target`](crate::target::Target):
//! an image, a block device, a new EBS snapshot. (A repository is one too: [`crate::repository`].)

mod clone;
mod device;
mod ebs;
mod holders;
mod identity;
mod image;
mod raw;

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::block::Delta;
use crate::error::{Error, Kind, Remedy};
use crate::files::FileMark;
use crate::target::Mark;

pub use device::DeviceTarget;
pub use ebs::{EbsJob, EbsPlace, EbsTarget};
pub use holders::mounted_twins;
pub use image::ImageTarget;

/// Two ticks of the coarsest kernel clock that stamps files (100 Hz): writes so far apart have different change times.
const TWO_TICKS: Duration = Duration::from_millis(20);

/// A target that is not what it was when it was decided what to do with it.
fn changed(name: &str) -> Error {
    let what = format!("cannot write {name}: something else wrote or replaced it just now");
    Error::new(Kind::Undecided, what).with_remedy(Remedy::TryLater)
}

/// A plan for a target that may hold anything where nothing is written: a full copy zeroes the rest.
fn over_anything(plan: Arc<Delta>, may_hold_anything: bool) -> Arc<Delta> {
    if plan.base().is_some() || !may_hold_anything {
        return plan;
    }
    let mut plan = plan;
    Arc::make_mut(&mut plan).zero_what_grew();
    plan
}

/// The mark of an image or a device of this machine, once what is in the page cache is on disk; none where nothing tells.
pub fn mark_of(path: &Path) -> Option<Mark> {
    let file = File::open(path).ok()?;
    if file.metadata().ok()?.file_type().is_block_device() {
        return identity::device_mark(&file).map(Mark::Device);
    }
    FileMark::flushed(path).ok().map(Mark::Image)
}

#[cfg(test)]
mod tests;
