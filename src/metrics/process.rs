//! Metrics of the process and the program.

use std::time::SystemTime;

use super::{Metric, MetricValues, gauge};

/// Metrics of this process, which began at `started`.
pub(crate) fn process(started: SystemTime) -> Vec<Metric> {
    let mut metrics = vec![
        Metric {
            name: "ebsfs_build_info",
            help: "The version of ebsfs; the value is always 1",
            values: MetricValues::Gauges(vec![(vec![("version", env!("CARGO_PKG_VERSION"))], 1.0)]),
        },
        gauge(
            "process_start_time_seconds",
            "When the process began, in seconds since 1970",
            seconds(started),
        ),
    ];
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(kibibytes) = resident(&status) {
        metrics.push(gauge(
            "process_resident_memory_bytes",
            "Memory of the process that is in RAM",
            kibibytes * 1024.0,
        ));
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        metrics.push(gauge(
            "process_open_fds",
            "Open file descriptors",
            open.count() as f64,
        ));
    }
    metrics
}

/// A time as Prometheus writes it.
pub(super) fn seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// Resident memory in KiB, in the text of `/proc/PID/status`.
fn resident(status: &str) -> Option<f64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_from_the_status_of_the_process() {
        for (status, found) in [
            (
                "Name:\tx\nVmRSS:\t   13108 kB\nVmData:\t 1 kB\n",
                Some(13108.0),
            ),
            ("VmRSS:\t13108\n", None),
            ("", None),
        ] {
            assert_eq!(resident(status), found, "{status:?}");
        }
    }
}
