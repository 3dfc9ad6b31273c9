//! What `ebsfs doctor mount` checks.

use std::path::PathBuf;
use std::time::Duration;

use super::{Access, MountArgs};
use crate::cli::doctor::{Examination, ebs_services};
use crate::doctor::{MachineNeeds, MountNeeds};
use crate::error::Result;
use crate::repository::Address;
use crate::snapshot::Selector;

impl MountArgs {
    /// What this mount needs. The mountpoint may be left out before snapshots.
    pub(in crate::cli) fn examination(&self, sample: Duration) -> Result<Examination> {
        let first = self.mountpoint.to_str().unwrap_or_default();
        let mut examination = Examination::new("mount", self.limits.mount_limits());
        let mut mountpoint = Some(self.mountpoint.clone());
        if Address::looks_like(first) {
            mountpoint = self.select.first().map(PathBuf::from);
            let address: Address = first.parse()?;
            let options = self.store.options(examination.line());
            examination.store("source", address, options, &self.aws, false);
        } else {
            let mut select: Vec<Selector> = Vec::new();
            // Only a name that can be a snapshot is looked for: a dead mount would hang here.
            if let Ok(selector) = first.parse()
                && !self.mountpoint.exists()
            {
                mountpoint = None;
                select.push(selector);
            }
            for text in &self.select {
                select.push(text.parse()?);
            }
            let is_named = |selector: &Selector| matches!(selector, Selector::Snapshot(_));
            let needs_ec2 = select.is_empty() || !select.iter().all(is_named);
            examination.read("source", &self.aws, ebs_services(needs_ec2), select, sample);
        }
        examination.job.machine = MachineNeeds {
            mount: Some(MountNeeds {
                mountpoint,
                allows_others: self.access.access() == Access::AllUsers,
                needs: self.needs(),
            }),
            folders: self
                .disk
                .config("")
                .map(|disk| disk.folder)
                .into_iter()
                .collect(),
            ..MachineNeeds::default()
        };
        Ok(examination)
    }
}
