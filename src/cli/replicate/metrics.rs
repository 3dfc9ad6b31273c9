//! The metrics of a job: served while it runs, or in a file at the end of a run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::debug;

use super::ReplicateArgs;
use crate::cli::metrics::traffic;
use crate::cli::status::local_contents;
use crate::error::Result;
use crate::files::blocking;
use crate::metrics::{
    Metric, MetricsFile, MetricsServer, ServedMetrics, replicate, replicate_counts,
};
use crate::replicate::{
    CycleRun, JobMemory, JobState, JobStatus, LocalContent, StatusRequest, read_state,
};

/// How often the records of images and devices are read: a disk that does not answer must hold up no scrape.
const LOOK_EVERY: Duration = Duration::from_secs(15);

type LocalContents = BTreeMap<String, LocalContent>;

/// Metrics that are served, and what reads records for them, until this is dropped.
pub(super) struct ServedJob {
    _served: ServedMetrics,
    looks: JoinHandle<()>,
}

impl Drop for ServedJob {
    fn drop(&mut self) {
        self.looks.abort();
    }
}

fn metrics_of(state: &JobState, local: &LocalContents, exit_code: Option<u8>) -> Vec<Metric> {
    let request = StatusRequest {
        now: SystemTime::now(),
        max_age: None,
        local,
    };
    replicate(&JobStatus::of(state, &request), exit_code)
}

/// Reads the records of a job's images and devices again and again.
async fn look(memory: Arc<JobMemory>, state_dir: PathBuf, seen: Arc<Mutex<LocalContents>>) {
    loop {
        let (state, state_dir) = (memory.look(JobState::clone), state_dir.clone());
        let found = blocking(move || Ok(local_contents(&state, &state_dir))).await;
        match found {
            Ok(found) => *seen.lock() = found,
            Err(error) => debug!("{}", error.chain()),
        }
        sleep(LOOK_EVERY).await;
    }
}

impl ReplicateArgs {
    /// Serves the metrics of a job until the result is dropped.
    pub(super) fn serve_metrics(&self, server: MetricsServer, run: &CycleRun) -> ServedJob {
        let seen = Arc::new(Mutex::new(LocalContents::new()));
        let memory = Arc::clone(&run.memory);
        let looks = look(Arc::clone(&memory), self.state_dir(), Arc::clone(&seen));
        let live = Arc::clone(&run.live);
        let traffic = traffic(&self.aws, &self.store);
        let read = move || {
            let state = memory.look(JobState::clone);
            let mut metrics = metrics_of(&state, &seen.lock(), None);
            metrics.extend(replicate_counts(&live.counts()));
            metrics.extend(traffic());
            metrics
        };
        ServedJob {
            looks: tokio::spawn(looks),
            _served: server.serve(read),
        }
    }

    /// Writes the metrics of a job after a run. A job that did not start has those of its last cycle, and the exit code of this
    /// run.
    pub(super) async fn write_metrics(
        &self,
        file: &MetricsFile,
        name: &str,
        result: &Result<()>,
    ) -> Result<()> {
        let state_dir = self.state_dir();
        let state = read_state(&state_dir, name).unwrap_or_else(|error| {
            debug!("{}", error.chain());
            JobState::new(name)
        });
        let code = result.as_ref().err();
        let code = code.map_or(0, |error| error.kind().exit_code());
        let known = state.clone();
        let local = blocking(move || Ok(local_contents(&known, &state_dir))).await?;
        let mut metrics = metrics_of(&state, &local, Some(code));
        metrics.extend(traffic(&self.aws, &self.store)());
        file.write(metrics)
    }
}
