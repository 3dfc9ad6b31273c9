//! What is going to be done, in words or JSON, and the question before something is overwritten.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use bytesize::ByteSize;
use serde_json::json;

use super::words;
use crate::block::BLOCK_SIZE;
use crate::cli::log::{self, say};
use crate::cli::progress::{ProgressForm, Shown};
use crate::cost;
use crate::error::{Error, Kind, Result};
use crate::sync::{Decision, PlanReport, REPORT_VERSION, Ui};
use crate::target::TargetKind;

/// The terminal of the person, or what stands for it.
pub(super) struct Terminal<'a> {
    pub(super) form: ProgressForm,
    pub(super) json: bool,
    pub(super) dry_run: bool,
    pub(super) yes: bool,
    /// Whether the source is read from EBS.
    pub(super) is_ebs: bool,
    /// Blocks a second, at most.
    pub(super) rate: u32,
    pub(super) shown: &'a Shown,
}

impl Ui for Terminal<'_> {
    fn plans(&self, plans: &[PlanReport]) -> Result<()> {
        let lines = plans.iter().map(|plan| self.plan(plan));
        let text: String = lines.collect();
        if self.dry_run {
            let mut out = io::stdout();
            let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            return match printed {
                // Its reader has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                printed => printed
                    .map_err(|error| Error::with_source(Kind::Io, "cannot print the plan", error)),
            };
        }
        if self.form != ProgressForm::None && !plans.is_empty() {
            self.shown.hidden(|| say(text.trim_end()));
        }
        Ok(())
    }

    fn confirm(&self, target: &str) -> Result<()> {
        if self.yes || !io::stdin().is_terminal() {
            return Ok(());
        }
        let answer = self.shown.hidden(|| {
            log::ask(&format!("overwrite {target} [y/N]? "));
            let mut answer = String::new();
            let _ = io::stdin().read_line(&mut answer);
            answer
        });
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => Err(Error::new(
                Kind::Undecided,
                format!("cannot write {target}: the answer was no"),
            )),
        }
    }
}

impl Terminal<'_> {
    fn plan(&self, plan: &PlanReport) -> String {
        let cost = self.cost(plan);
        match self.form == ProgressForm::Json || (self.json && self.dry_run) {
            true => format!("{}\n", cost.json(plan)),
            false => cost.text(plan, self.rate),
        }
    }

    fn cost(&self, plan: &PlanReport) -> Cost {
        let left = (plan.write + plan.zero).saturating_sub(plan.done);
        let gets = if self.is_ebs { left.min(plan.write) } else { 0 };
        let is_new_snapshot = plan.kind == TargetKind::Ebs && plan.decision != Decision::Holds;
        let puts = if is_new_snapshot { left } else { 0 };
        Cost {
            gets,
            puts,
            dollars: cost::of_gets(gets) + cost::of_puts(puts),
            seconds: gets.max(puts) / u64::from(self.rate.max(1)),
        }
    }
}

/// What a plan costs.
struct Cost {
    gets: u64,
    puts: u64,
    dollars: f64,
    /// At least, by the limit of blocks a second.
    seconds: u64,
}

impl Cost {
    fn text(&self, plan: &PlanReport, rate: u32) -> String {
        let size = |blocks: u64| ByteSize::b(blocks * u64::from(BLOCK_SIZE));
        let since = plan.base.as_ref();
        let since = since.map(|base| format!(", what changed since {base}"));
        let mut lines = vec![
            format!("source    {}{}", plan.source, since.unwrap_or_default()),
            format!(
                "target    {}: {}",
                plan.target,
                words::decision(&plan.decision, plan.kind)
            ),
        ];
        for warning in &plan.warnings {
            lines.push(format!("warning   {warning}"));
        }
        if plan.compare_bytes > 0 {
            let size = ByteSize::b(plan.compare_bytes);
            let time = compare_seconds(plan).map(Duration::from_secs);
            let time = time.map(|time| format!(", about {}", humantime::format_duration(time)));
            lines.push(format!("compare   {size}{}", time.unwrap_or_default()));
        }
        let copies = !matches!(plan.decision, Decision::Holds | Decision::Compare);
        if copies {
            if let Some(room) = &plan.room {
                lines.push(format!("room      {room}"));
            }
            if plan.clone_bytes > 0 {
                lines.push(format!(
                    "clone     {} of the old image",
                    ByteSize::b(plan.clone_bytes)
                ));
            }
            lines.push(format!(
                "write     {} blocks, {}",
                plan.write,
                size(plan.write)
            ));
            if plan.zero > 0 {
                lines.push(format!(
                    "zero      {} blocks, {}",
                    plan.zero,
                    size(plan.zero)
                ));
            }
            if plan.done > 0 {
                lines.push(format!("done      {} blocks, by an earlier run", plan.done));
            }
            let requests = match (self.gets, self.puts) {
                (0, 0) => None,
                (gets, 0) => Some(format!("{gets} GetSnapshotBlock")),
                (0, puts) => Some(format!("{puts} PutSnapshotBlock")),
                (gets, puts) => Some(format!("{gets} GetSnapshotBlock, {puts} PutSnapshotBlock")),
            };
            if let Some(requests) = requests {
                let time = humantime::format_duration(Duration::from_secs(self.seconds));
                lines.push(format!("requests  {requests}, ${:.4}", self.dollars));
                lines.push(format!(
                    "time      {time} at least, at {rate} blocks a second"
                ));
            }
        }
        lines.push(String::new());
        lines.join("\n")
    }

    fn json(&self, plan: &PlanReport) -> serde_json::Value {
        json!({"version": REPORT_VERSION, "plan": {
            "source": plan.source,
            "base": plan.base,
            "target": plan.target,
            "what": words::decision(&plan.decision, plan.kind),
            "write_blocks": plan.write,
            "zero_blocks": plan.zero,
            "done_blocks": plan.done,
            "compare_bytes": plan.compare_bytes,
            "compare_seconds": compare_seconds(plan),
            "clone_bytes": plan.clone_bytes,
            "gets": self.gets,
            "puts": self.puts,
            "dollars": self.dollars,
            "seconds_at_least": self.seconds,
            "room": plan.room,
            "warnings": plan.warnings,
        }})
    }
}

/// The time of a comparison in whole seconds, rounded up.
fn compare_seconds(plan: &PlanReport) -> Option<u64> {
    plan.compare_time
        .map(|time| time.as_secs() + u64::from(time.subsec_nanos() > 0))
}
