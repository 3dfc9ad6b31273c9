//! [`JobDrill`]: how and when a job drills its own recovery points.

use std::path::PathBuf;
use std::time::Duration;

use super::{JobSource, JobTarget, ReplicateJob};
use crate::error::{Error, Kind, Result};
use crate::replicate::schedule::Schedule;
use crate::repository::Address;
use crate::snapshot::VolumeSelector;

/// The longest text that a console is searched for, in bytes.
const LONGEST_TEXT: usize = 1024;
/// The least memory of a machine, in bytes.
const LEAST_MEMORY: u64 = 16 << 20;

/// How and when the recovery points of a job are drilled. What is not given is as a drill has it by default.
#[derive(Clone, Debug)]
pub(crate) struct JobDrill {
    /// When drills are due.
    pub(crate) schedule: Schedule,
    /// The target whose recovery points are drilled, as the job writes it; none: the first of each volume that can be drilled,
    /// repositories before images and devices.
    pub(crate) target: Option<String>,
    /// How machines are started; none: filesystems are checked, and nothing is started.
    pub(crate) boot: Option<DrillBoot>,
    /// The folder for overlays.
    pub(crate) scratch: Option<PathBuf>,
    /// Bytes that the overlay of a disk may take.
    pub(crate) overlay_limit: Option<u64>,
    /// Whether this machine's kernel may mount an XFS to replay its log.
    pub(crate) replays_xfs: bool,
}

/// How machines are started in a drill.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DrillBoot {
    /// The text on the console that shows that the machine is up.
    pub(crate) wait_for: Option<String>,
    /// How long the machine has for it.
    pub(crate) timeout: Option<Duration>,
    /// Bytes of its memory.
    pub(crate) memory: Option<u64>,
}

impl JobDrill {
    /// Whether recovery points of a target are drilled. Those in EBS are not: each read there costs money.
    pub(in crate::replicate) fn includes(&self, target: &JobTarget) -> bool {
        let is_named = self.target.as_ref().is_none_or(|name| *name == target.to);
        is_named && !target.to.starts_with("ebs:")
    }

    pub(super) fn check(&self, job: &ReplicateJob) -> Result<()> {
        let invalid = |what: String| Err(Error::new(Kind::Invalid, what));
        if let Some(name) = &self.target
            && !job.targets.iter().any(|target| target.to == *name)
        {
            return invalid(format!(
                "cannot drill the target {name}: the job has no target of this name"
            ));
        }
        if !job.targets.iter().any(|target| self.includes(target)) {
            return invalid(
                "cannot use drill: only repositories, images and devices can be drilled, and the job has none as its target".into(),
            );
        }
        if let Some(scratch) = self.scratch.as_ref().filter(|path| !path.is_absolute()) {
            return invalid(format!(
                "cannot use {} as scratch of drill: it is no absolute path",
                scratch.display()
            ));
        }
        match &self.boot {
            Some(boot) => self.check_boot(boot, job),
            None => Ok(()),
        }
    }

    fn check_boot(&self, boot: &DrillBoot, job: &ReplicateJob) -> Result<()> {
        let invalid = |what: &str| Err(Error::new(Kind::Invalid, what));
        let text = boot.wait_for.as_ref();
        if text.is_some_and(|text| !(1..=LONGEST_TEXT).contains(&text.len())) {
            return invalid("wait_for of drill must have 1 to 1,024 bytes");
        }
        if boot.timeout.is_some_and(|time| time.is_zero()) {
            return invalid("boot_timeout of drill must be longer than 0s");
        }
        if boot.memory.is_some_and(|bytes| bytes < LEAST_MEMORY) {
            return invalid("memory of drill must be at least 16MiB");
        }
        let JobSource::Ec2(volumes) = &job.source else {
            return Ok(());
        };
        let mut selectors = volumes.select.iter();
        let has_instances = selectors.any(|select| matches!(select, VolumeSelector::Instance(_)));
        let mut targets = job.targets.iter().filter(|target| self.includes(target));
        let has_sets = targets.any(|target| Address::looks_like(&target.to));
        if has_instances && !(has_sets && job.keeps_machines()) {
            return invalid(
                "cannot use boot of drill: an instance boots from its set, which needs a repository to drill, and inventory",
            );
        }
        Ok(())
    }
}
