//! Members of a report that tell of the run as a whole.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::ebs::{Client, Counts};
use crate::files::{host_name, user_name};
use crate::progress::Progress;

/// Counts, requests and warnings of a run, with what is known of its source.
pub(super) fn about_run(about: &Value, progress: &Progress, clients: &[Arc<Client>]) -> Value {
    let sum = |count: fn(Counts) -> u64| -> u64 {
        clients.iter().map(|client| count(client.counts())).sum()
    };
    let warnings: Vec<String> = clients.iter().flat_map(|client| client.notices()).collect();
    let mut all = json!({
        "warnings": warnings,
        "bytes_fetched": progress.bytes(),
        "blocks_fetched": progress.blocks(),
        "requests": {
            "gets": sum(|counts| counts.gets),
            "puts": sum(|counts| counts.puts),
            "lists": sum(|counts| counts.lists),
            "retries": sum(|counts| counts.retries),
            "throttled": sum(|counts| counts.throttles),
        },
    });
    if let (Some(all), Some(about)) = (all.as_object_mut(), about.as_object()) {
        all.extend(about.clone());
    }
    all
}

/// Program, host and user, for a report.
pub(super) fn about_this_program() -> Value {
    json!({
        "program": concat!("ebsfs ", env!("CARGO_PKG_VERSION")),
        "host": host_name(),
        "user": user_name(),
        "uid": nix::unistd::geteuid().as_raw(),
    })
}
