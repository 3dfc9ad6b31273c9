//! What `ebsfs doctor sync` checks.

use std::path::PathBuf;
use std::time::Duration;

use super::SyncArgs;
use crate::cli::doctor::{Examination, ebs_services};
use crate::error::Result;
use crate::repository::Address;
use crate::snapshot::Selector;

impl SyncArgs {
    /// What this sync needs.
    pub(in crate::cli) async fn examination(&self) -> Result<Examination> {
        let mut examination = Examination::new("sync", self.limits());
        let machine = &mut examination.job.machine;
        machine.state_dir = Some(self.state_dir());
        machine.folders = self.stage.iter().cloned().collect();
        if let Some(source) = &self.source {
            if Address::looks_like(source) {
                let options = self.store.options(examination.line());
                examination.store("source", source.parse()?, options, &self.aws, false);
            } else if let Ok(selector) = source.parse::<Selector>() {
                let needs_ec2 = !matches!(selector, Selector::Snapshot(_));
                let services = ebs_services(needs_ec2);
                examination.read(
                    "source",
                    &self.aws,
                    services,
                    vec![selector],
                    Duration::ZERO,
                );
            }
        }
        for target in &self.targets {
            if let Some(region) = target.strip_prefix("ebs:") {
                let account = self
                    .to
                    .ebs_account(self.to.ebs_region(region), &self.aws)
                    .await;
                examination.write(target, &account);
            } else if Address::looks_like(target) {
                let address: Address = target.parse()?;
                let options = self.to.store(&self.store).options(examination.line());
                let account = self.to.account(&self.aws);
                let options = options.writing(&self.new);
                examination.store(target, address, options, &account, true);
            } else {
                examination.job.machine.targets.push(PathBuf::from(target));
            }
        }
        Ok(examination)
    }
}
