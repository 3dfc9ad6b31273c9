//! The status of a job as text, at most some 120 columns wide.

use std::time::{Duration, SystemTime};

use bytesize::ByteSize;

use crate::cli::{plain, table};
use crate::replicate::{
    CopyStatus, CycleRequests, DrillFindings, DrillsStatus, JobStatus, MonthStatus, RunStatus,
    StateError, TargetStatus, UnitStatus, VolumeStatus,
};
use crate::time::rfc3339_seconds;

/// The status of a job.
pub(super) fn of(job: &JobStatus, now: SystemTime) -> String {
    let mut lines = vec![plain(&head(job, now))];
    lines.extend(job.last_run.as_ref().map(last_run));
    if let Some(error) = job
        .last_run
        .as_ref()
        .and_then(|last| last.run.error.as_ref())
    {
        lines.push(format!("  {}", failed(error)));
    }
    lines.push(month(&job.month));
    let mut text = lines.join("\n");
    text.push('\n');
    if job.volumes.is_empty() {
        text.push_str("no volume yet\n");
        return text;
    }
    text.push_str(&recovery_points(job));
    text.extend(job.drills.as_ref().map(drills));
    for volume in &job.volumes {
        if let Some(copy) = &volume.under_way {
            text.push_str(&under_way(&volume.volume, copy, now));
        }
        for target in &volume.targets {
            text.push_str(&remarks(volume, target));
        }
    }
    text
}

fn head(job: &JobStatus, now: SystemTime) -> String {
    let mut parts: Vec<String> = job.schedule.iter().cloned().collect();
    if let Some(next) = job.next_run {
        let next_at = rfc3339_seconds(next);
        parts.push(match now.duration_since(next) {
            Ok(late) if late > Duration::ZERO => {
                format!("next run was due {next_at}, {} ago", span(late))
            }
            _ => format!("next run {next_at}"),
        });
    }
    if let Some(cycle) = job.starting {
        parts.push(format!(
            "making the snapshots of {}",
            rfc3339_seconds(cycle)
        ));
    }
    if parts.is_empty() {
        parts.push("without a schedule".to_owned());
    }
    let shard = job.shard.as_ref();
    let shard = shard.map(|shard| format!(", shard {shard}"));
    format!(
        "job {}{}: {}",
        job.job,
        shard.unwrap_or_default(),
        parts.join(", ")
    )
}

fn last_run(last: &RunStatus) -> String {
    let run = &last.run;
    let ended = run.ended.map(rfc3339_seconds).unwrap_or_default();
    let took = run.started.zip(run.ended);
    let took = took.and_then(|(started, ended)| ended.duration_since(started).ok());
    let took = took.map(|took| format!(" after {}", span(took)));
    format!(
        "last run    ended {ended}{}, {}",
        took.unwrap_or_default(),
        traffic(run.bytes, run.requests, last.dollars)
    )
}

fn month(month: &MonthStatus) -> String {
    let totals = &month.totals;
    format!(
        "{}     {} {}, {} failed, {}",
        totals.month,
        totals.runs,
        if totals.runs == 1 { "run" } else { "runs" },
        totals.failed,
        traffic(totals.bytes, totals.requests, month.dollars)
    )
}

fn traffic(bytes: u64, requests: CycleRequests, dollars: f64) -> String {
    format!(
        "{} fetched, {} gets, {} puts, {} lists, ${dollars:.4}",
        ByteSize::b(bytes),
        requests.gets,
        requests.puts,
        requests.lists
    )
}

/// A line for each target, below a line for its volume.
fn recovery_points(job: &JobStatus) -> String {
    let heads = ["STATE", "LAG", "SNAPSHOT", "OF", "ARRIVED", "TARGET"];
    let mut rows = vec![heads.map(str::to_owned)];
    for volume in &job.volumes {
        if volume.targets.is_empty() {
            let state = state_of(volume, "missing");
            rows.push([state, "-", "-", "-", "-", "-"].map(str::to_owned));
        }
        rows.extend(volume.targets.iter().map(|target| row(volume, target)));
    }
    let table = table(&rows);
    let mut lines = table.lines();
    let mut text = lines.next().unwrap_or_default().to_owned() + "\n";
    for volume in &job.volumes {
        let instance = volume.instance.as_ref();
        let instance = instance.map(|id| format!(" of {id}")).unwrap_or_default();
        text.push_str(&plain(&format!("{}{instance}:", volume.volume)));
        text.push('\n');
        for line in lines.by_ref().take(volume.targets.len().max(1)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

fn row(volume: &VolumeStatus, target: &TargetStatus) -> [String; 6] {
    let point = target.recovery_point.as_ref();
    let time = point.and_then(|point| point.time);
    let arrived = point.and_then(|point| point.arrived).zip(time);
    let after = arrived.and_then(|(arrived, time)| arrived.duration_since(time).ok());
    [
        state_of(volume, target.state.name()).to_owned(),
        target.lag().map_or("-".into(), span),
        point.map_or("-".into(), |point| point.snapshot.to_string()),
        time.map_or("-".into(), rfc3339_seconds),
        after.map_or("-".into(), |after| format!("+{}", span(after))),
        target.target.clone(),
    ]
}

/// A line for all drills, and one for each instance or volume.
fn drills(drills: &DrillsStatus) -> String {
    let next = drills.next.map(rfc3339_seconds);
    let next = next.map(|next| format!(", next due {next}"));
    let mut text = format!("drills {}{}\n", drills.schedule, next.unwrap_or_default());
    for unit in &drills.units {
        text.push_str(&plain(&drills_of(unit)));
        text.push('\n');
    }
    text
}

fn drills_of(unit: &UnitStatus) -> String {
    let mut parts = Vec::new();
    match &unit.last {
        None => parts.push("not drilled yet".to_owned()),
        Some(last) => {
            let ended = last.ended.map(rfc3339_seconds).unwrap_or_default();
            // The name of a set ends with its time, that of an image with nothing.
            let of = match last.source.ends_with(&last.point) {
                true => String::new(),
                false => format!(" as {}", last.point),
            };
            let found = DrillFindings::in_words(&last.partitions, last.booted);
            parts.push(match &last.error {
                None => format!("passed {ended}: {}{of}: {found}", last.source),
                Some(error) => format!("{}: {found}", failed(error)),
            });
        }
    }
    parts.extend(unit.failure.as_ref().map(|error| {
        let when = error.when.map(rfc3339_seconds).unwrap_or_default();
        format!("no result {when}: {}", error.message)
    }));
    if unit.is_overdue {
        parts.push("overdue".to_owned());
    }
    format!("  {}: {}", unit.unit, parts.join("; "))
}

/// What is not selected any more does not count.
fn state_of<'a>(volume: &VolumeStatus, state: &'a str) -> &'a str {
    match volume.is_selected {
        true => state,
        false => "left",
    }
}

fn under_way(volume: &str, copy: &CopyStatus, now: SystemTime) -> String {
    let since = copy.since.map(|since| {
        let age = now.duration_since(since).unwrap_or_default();
        format!(" for {}", span(age))
    });
    let doing = match (&copy.phase, copy.is_interrupted) {
        (_, true) => "interrupted; the next run continues it".to_owned(),
        (None, false) => "waiting".to_owned(),
        (Some(phase), false) => {
            let counts = match phase.of {
                0 => String::new(),
                of => format!(", {} of {of} {}", phase.done, phase.unit),
            };
            let bytes = ByteSize::b(phase.bytes);
            format!("{}{counts}, {bytes} fetched", phase.what)
        }
    };
    let line = format!(
        "{volume}: copy of {} under way{}: {doing}",
        copy.snapshot,
        since.unwrap_or_default()
    );
    plain(&line) + "\n"
}

/// Why a recovery point is not current.
fn remarks(volume: &VolumeStatus, target: &TargetStatus) -> String {
    let mut text = String::new();
    let name = format!("{}: {}", volume.volume, target.target);
    if let Some(why) = &target.why_unusable {
        text.push_str(&plain(&format!("{name} is not usable: {why}")));
        text.push('\n');
    }
    let damaged = target.recovery_point.as_ref();
    let damaged = damaged.map_or(0, |point| point.damaged_blocks);
    if damaged > 0 {
        let line = format!("{name}: {damaged} blocks are zero, because their source is damaged");
        text.push_str(&plain(&line));
        text.push('\n');
    }
    if let Some(error) = &target.error {
        text.push_str(&plain(&format!("{name}: {}", failed(error))));
        text.push('\n');
    }
    text
}

fn failed(error: &StateError) -> String {
    let when = error.when.map(rfc3339_seconds).unwrap_or_default();
    let code = error.exit_code;
    plain(&format!(
        "failed {when} with exit code {code}: {}",
        error.message
    ))
}

/// A time in its two largest units: `2d 4h`, `3m 5s`.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m {rest}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests;
