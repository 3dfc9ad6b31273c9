//! [`ReadArgs`]: options of the verbs that read a whole target or source, print a result and change nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::progress::{ProgressForm, Shown};
use super::source::{OpenedSource, SourceArgs, SourceRequest, ToEbs, open};
use super::target::{TargetRequest, ToArgs};
use crate::aws::{CallerIdentity, Observer, RequestCounts};
use crate::error::Result;
use crate::files::default_state_dir;
use crate::repository::{Address, Bandwidth, RepositoryCatalog};
use crate::sync::Progress;
use crate::target::Stop;

#[derive(Args, Debug)]
// The heading of options before these would hold for them too.
#[command(next_help_heading = None::<&str>)]
pub(super) struct ReadArgs {
    /// Print the result as one JSON object
    #[arg(long)]
    pub(super) json: bool,
    /// Form of the progress on stderr
    #[arg(long, value_name = "FORM", value_enum, default_value_t = ProgressForm::Auto)]
    progress: ProgressForm,
    /// Directory for the records and digests of devices [env: EBSFS_STATE_DIR; default: /var/lib/ebsfs for root, else $XDG_STATE_HOME/ebsfs]
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    from: SourceArgs,
}

impl ReadArgs {
    /// Shows `observer` each request of the clients that are made from now on; the counts of these.
    pub(super) fn observe(&mut self, observer: Observer) -> RequestCounts {
        self.from.aws.observer = observer;
        self.from.aws.requests.clone()
    }

    /// Who calls AWS, by STS.
    ///
    /// # Errors
    /// As for [`crate::aws::Aws::caller`]; errors of the settings.
    pub(super) async fn caller(&self) -> Result<CallerIdentity> {
        self.from.aws.load_with_credentials().await?.caller().await
    }

    /// Directory for the records and digests of devices.
    pub(super) fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(default_state_dir)
    }

    /// Shows the progress until it is dropped.
    pub(super) fn show(&self, progress: &Arc<Progress>) -> Shown {
        Shown::start(self.progress, Arc::clone(progress))
    }

    /// Blocks in flight, at most.
    pub(super) fn in_flight(&self) -> usize {
        self.from.limits.max_in_flight as usize
    }

    /// Blocks a second, at most.
    pub(super) fn rate(&self) -> u32 {
        let limits = self.from.limits.limits();
        limits.max_rps.min(limits.max_snapshot_rps)
    }

    /// Opens the repository at an address.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub(super) async fn repository(&self, address: &Address) -> Result<RepositoryCatalog> {
        self.from
            .store(Bandwidth::default())
            .repository(address, &self.from.aws)
            .await
    }

    /// How a target is reached where the source's account is not the target's.
    pub(super) fn target_request<'a>(
        &'a self,
        to: &'a ToArgs,
        state_dir: &'a Path,
    ) -> TargetRequest<'a> {
        TargetRequest {
            to,
            aws: &self.from.aws,
            store: self.from.store(Bandwidth::default()),
            limits: self.from.limits.limits(),
            state_dir,
            in_place: false,
            is_shared: false,
            dedup: false,
            compress: false,
        }
    }

    /// Refuses options that would do nothing for a source of this name.
    pub(super) fn check(&self, name: Option<&str>) -> Result<()> {
        self.from.check(name)
    }

    /// Opens a source, and counts its requests.
    ///
    /// # Errors
    /// `Stopped`; why it cannot be opened.
    pub(super) async fn open(
        &self,
        name: &str,
        shown: &Shown,
        stop: &Stop,
    ) -> Result<OpenedSource> {
        self.open_for(name, ToEbs::None, shown, stop).await
    }

    /// The same for a source that is copied to new EBS snapshots, which take whole blocks alone.
    ///
    /// # Errors
    /// As for [`ReadArgs::open`].
    pub(super) async fn open_for(
        &self,
        name: &str,
        to_ebs: ToEbs,
        shown: &Shown,
        stop: &Stop,
    ) -> Result<OpenedSource> {
        let state_dir = self.state_dir();
        let request = SourceRequest {
            to_ebs,
            ..self.from.request(name, &state_dir)
        };
        let opened = open(&request, stop).await?;
        shown.count(opened.client.as_slice());
        Ok(opened)
    }
}
