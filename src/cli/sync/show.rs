//! What is going to be done, and how far it is.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::words;
use crate::block::BLOCK_SIZE;
use crate::ebs::Client;
use crate::error::{Error, Kind, Result};
use crate::maps::Totals;
use crate::sync::{Decision, PlanReport, Progress, REPORT_VERSION, Ui};
use crate::target::TargetKind;

/// Between two lines of JSON.
const JSON_EVERY: Duration = Duration::from_secs(5);
/// Between two lines of text where there is no terminal.
const TEXT_EVERY: Duration = Duration::from_secs(60);
/// Between two looks for a bar.
const TICK: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ProgressForm {
    /// A bar on a terminal, else a line of text a minute
    Auto,
    /// A bar
    Bar,
    /// The plans, then a line every 5 seconds, as JSON
    Json,
    /// Nothing but warnings and errors
    None,
}

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
        if self.form != ProgressForm::None {
            self.shown.hidden(|| say(text.trim_end()));
        }
        Ok(())
    }

    fn confirm(&self, target: &str) -> Result<()> {
        if self.yes || !io::stdin().is_terminal() {
            return Ok(());
        }
        let answer = self.shown.hidden(|| {
            let _ = write!(io::stderr(), "overwrite {target} [y/N]? ");
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
            dollars: Totals::getting_cost(gets) + Totals::putting_cost(puts),
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
            lines.push(format!("compare   {}", ByteSize::b(plan.compare_bytes)));
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

/// Shows how far a run is, until it is dropped.
pub(super) struct Shown {
    task: JoinHandle<()>,
    bar: Option<ProgressBar>,
    clients: Arc<Mutex<Vec<Arc<Client>>>>,
}

impl Shown {
    pub(super) fn start(form: ProgressForm, progress: Arc<Progress>) -> Self {
        let is_bar = match form {
            ProgressForm::Auto => io::stderr().is_terminal(),
            form => form == ProgressForm::Bar,
        };
        let bar = is_bar.then(bar);
        let clients = Arc::new(Mutex::new(Vec::new()));
        let line = Line {
            progress,
            clients: Arc::clone(&clients),
            since: Instant::now(),
        };
        let shown = bar.clone();
        let task = tokio::spawn(async move {
            let every = match (&shown, form) {
                (Some(_), _) => TICK,
                (None, ProgressForm::Json) => JSON_EVERY,
                (None, _) => TEXT_EVERY,
            };
            let mut asked = signal(SignalKind::user_defined1()).ok();
            let mut tick = tokio::time::interval(every);
            tick.tick().await;
            loop {
                let asked = async {
                    match &mut asked {
                        Some(asked) => asked.recv().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    _ = tick.tick() => match (&shown, form) {
                        (Some(bar), _) => line.draw(bar),
                        (None, ProgressForm::Json) => say(&line.json().to_string()),
                        (None, ProgressForm::None) => {}
                        (None, _) => say(&line.text()),
                    },
                    _ = asked => say(&line.text()),
                }
            }
        });
        Self { task, bar, clients }
    }

    /// From now on the requests of these are counted.
    pub(super) fn count(&self, clients: &[Arc<Client>]) {
        *self.clients.lock() = clients.to_vec();
    }

    /// Does something while no bar is drawn.
    fn hidden<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(work),
            None => work(),
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A line on stderr. A reader that has gone, or a full disk, changes nothing.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// What is shown, in either form.
struct Line {
    progress: Arc<Progress>,
    clients: Arc<Mutex<Vec<Arc<Client>>>>,
    since: Instant,
}

impl Line {
    fn rate(&self) -> f64 {
        self.progress.bytes() as f64 / self.since.elapsed().as_secs_f64().max(0.001)
    }

    /// By the blocks of the phase that were done until now; none before there are any.
    fn seconds_left(&self) -> Option<u64> {
        let (done, of) = self.progress.phase_blocks();
        let each = self
            .progress
            .phase()
            .since
            .elapsed()
            .checked_div(u32::try_from(done).ok()?)?;
        let left = u32::try_from(of.saturating_sub(done)).ok()?;
        Some(each.saturating_mul(left).as_secs())
    }

    fn troubles(&self) -> (u64, u64) {
        let clients = self.clients.lock();
        let counts = clients.iter().map(|client| client.counts());
        counts.fold((0, 0), |(retries, throttled), counts| {
            (retries + counts.retries, throttled + counts.throttles)
        })
    }

    fn text(&self) -> String {
        let (retries, throttled) = self.troubles();
        let (done, of) = self.progress.phase_blocks();
        let mut text = self.progress.phase().what;
        if of > 0 {
            text.push_str(&format!(": {done} of {of} blocks"));
        }
        if self.progress.bytes() > 0 {
            let mebibytes = self.rate() / f64::from(1 << 20);
            let fetched = ByteSize::b(self.progress.bytes());
            text.push_str(&format!(", {fetched} fetched, {mebibytes:.1} MiB/s"));
        }
        if retries + throttled > 0 {
            text.push_str(&format!(", {retries} retries, {throttled} throttled"));
        }
        if let Some(left) = self.seconds_left().filter(|_| of > 0) {
            let left = humantime::format_duration(Duration::from_secs(left));
            text.push_str(&format!(", {left} left"));
        }
        text
    }

    fn draw(&self, bar: &ProgressBar) {
        let (done, of) = self.progress.phase_blocks();
        bar.set_length(of);
        bar.set_position(done);
        bar.set_message(self.text());
    }

    fn json(&self) -> serde_json::Value {
        let (retries, throttled) = self.troubles();
        let (done, of) = self.progress.phase_blocks();
        json!({
            "version": REPORT_VERSION,
            "phase": self.progress.phase().what,
            "blocks": done,
            "of": of,
            "bytes": self.progress.bytes(),
            "bytes_a_second": self.rate().round(),
            "seconds": self.since.elapsed().as_secs(),
            "seconds_left": self.seconds_left(),
            "retries": retries,
            "throttled": throttled,
        })
    }
}
