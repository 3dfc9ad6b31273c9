//! What `ebsfs doctor replicate` checks.

use std::path::PathBuf;
use std::time::Duration;

use super::ReplicateArgs;
use super::places::source_account;
use crate::cli::doctor::{Examination, ebs_services};
use crate::cli::target::ToArgs;
use crate::error::Result;
use crate::files::folder_of;
use crate::replicate::JobSource;
use crate::repository::Address;

impl ReplicateArgs {
    /// What this job needs.
    pub(in crate::cli) async fn examination(&self) -> Result<Examination> {
        let job = self.job()?;
        let mut examination = Examination::new("replicate", self.limits.limits());
        let machine = &mut examination.job.machine;
        machine.state_dir = Some(self.state_dir());
        machine.folders = job.stage.iter().cloned().collect();
        match &job.source {
            JobSource::Ec2(_) => {
                let services = ebs_services(true);
                examination.read("source", &self.aws, services, Vec::new(), Duration::ZERO);
                examination.make(job.clone());
            }
            JobSource::Repository(from) => {
                let options = self.store.options(examination.line());
                let account = source_account(&self.aws, &from.access);
                examination.store("source", from.address.clone(), options, &account, false);
            }
        }
        for target in &job.targets {
            let to = ToArgs::of_job(&target.access, Vec::new());
            if let Some(region) = target.to.strip_prefix("ebs:") {
                let account = to.ebs_account(to.ebs_region(region), &self.aws).await;
                examination.write(&target.to, &account);
            } else if Address::looks_like(&target.to) {
                let options = self.store.options(examination.line()).writing(&self.new);
                let account = to.account(&self.aws);
                examination.store(&target.to, target.to.parse()?, options, &account, true);
            } else {
                // The name of an image can be a template, its folder is none where it has no volume in it.
                let path = PathBuf::from(&target.to);
                let folder = folder_of(&path).to_owned();
                let has_template = folder.to_string_lossy().contains('{');
                let machine = &mut examination.job.machine;
                if target.to.contains('{') && !has_template {
                    machine.folders.push(folder);
                } else if !has_template {
                    machine.targets.push(path);
                }
            }
        }
        Ok(examination)
    }
}
