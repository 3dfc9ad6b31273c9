//! What is to be done, and how far it is.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::plan::Choice;
use crate::block::BLOCK_SIZE;
use crate::ebs::Client;
use crate::error::{Error, Kind, Result};
use crate::maps::Totals;
use crate::sync::{Progress, Target};

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Between two looks for a bar.
const TICK: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ProgressForm {
    /// A bar on a terminal, else JSON
    Auto,
    /// A bar on stderr
    Bar,
    /// A line of JSON on stdout every 5 seconds
    Json,
    /// Nothing
    None,
}

/// Blocks a second, at most.
pub(super) struct Speed(pub(super) u32);

/// Prints the plan of each target.
pub(super) fn plans(choices: &[Choice], speed: &Speed, mut out: impl Write) -> Result<()> {
    let mut print = || -> std::io::Result<()> {
        for choice in choices {
            let (task, plan, done) = choice.plan();
            let (write, zero) = (plan.write().len(), plan.zero().len());
            let size = |blocks: u64| ByteSize::b(blocks * u64::from(BLOCK_SIZE));
            let since = task
                .base
                .as_ref()
                .map(|base| format!(", what changed since {base}"));
            writeln!(
                out,
                "source    {}{}",
                task.source,
                since.unwrap_or_default()
            )?;
            writeln!(
                out,
                "target    {}: {}",
                choice.place.path().display(),
                choice.what()
            )?;
            writeln!(out, "write     {write} blocks, {}", size(write))?;
            if zero > 0 {
                writeln!(out, "zero      {zero} blocks, {}", size(zero))?;
            }
            if done > 0 {
                writeln!(out, "done      {done} blocks, by an earlier run")?;
            }
            let left = (write + zero).saturating_sub(done).min(write);
            if task.source.starts_with("snap-") {
                let cost = Totals::getting_cost(left);
                writeln!(out, "requests  {left} GetSnapshotBlock, ${cost:.4}")?;
                let time = Duration::from_secs(left / u64::from(speed.0.max(1)));
                let time = humantime::format_duration(time);
                writeln!(
                    out,
                    "time      {time} at least, at {} blocks a second",
                    speed.0
                )?;
            }
        }
        out.flush()
    };
    print().map_err(|error| Error::with_source(Kind::Io, "cannot print the plan", error))
}

/// Shows how far a copy is, until it is dropped.
pub(super) struct Shown {
    task: JoinHandle<()>,
    bar: Option<ProgressBar>,
}

impl Shown {
    pub(super) fn start(
        form: ProgressForm,
        targets: &[Target],
        progress: Arc<Progress>,
        client: Option<Arc<Client>>,
    ) -> Self {
        let is_bar = match form {
            ProgressForm::Auto => std::io::stderr().is_terminal(),
            form => form == ProgressForm::Bar,
        };
        let is_json = form == ProgressForm::Json || (form == ProgressForm::Auto && !is_bar);
        // What is left for the target that has most to do; done together, each block counts once.
        let left = targets.iter().map(|target| {
            let plan = target.checkpoint.plan();
            (plan.write().len() + plan.zero().len()).saturating_sub(target.checkpoint.done())
        });
        let left = left.max().unwrap_or(0);
        let bar = is_bar.then(|| bar(left));
        let shown = bar.clone();
        let task = tokio::spawn(async move {
            let line = Line {
                left,
                progress,
                client,
                since: Instant::now(),
            };
            let mut asked = signal(SignalKind::user_defined1()).ok();
            let mut tick = tokio::time::interval(if is_bar { TICK } else { LINE_EVERY });
            tick.tick().await;
            loop {
                let asked = async {
                    match &mut asked {
                        Some(asked) => asked.recv().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    _ = tick.tick() => match &shown {
                        Some(bar) => line.draw(bar),
                        None if is_json => println!("{}", line.json()),
                        None => {}
                    },
                    _ = asked => eprintln!("{}", line.text()),
                }
            }
        });
        Self { task, bar }
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

fn bar(left: u64) -> ProgressBar {
    let bar = ProgressBar::new(left);
    let style = "{bar:30} {percent}% {pos}/{len} blocks, {msg}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}

/// What is shown, in either form.
struct Line {
    left: u64,
    progress: Arc<Progress>,
    client: Option<Arc<Client>>,
    since: Instant,
}

impl Line {
    fn rate(&self) -> f64 {
        self.progress.bytes() as f64 / self.since.elapsed().as_secs_f64().max(0.001)
    }

    fn done(&self) -> u64 {
        self.progress.blocks() + self.progress.blocks_zeroed()
    }

    fn troubles(&self) -> (u64, u64) {
        let counts = self.client.as_ref().map(|client| client.counts());
        counts.map_or((0, 0), |counts| (counts.retries, counts.throttles))
    }

    fn message(&self) -> String {
        let (retries, throttled) = self.troubles();
        let mebibytes = self.rate() / f64::from(1 << 20);
        let fetched = ByteSize::b(self.progress.bytes());
        format!("{fetched} fetched, {mebibytes:.1} MiB/s, {retries} retries, {throttled} throttled")
    }

    fn draw(&self, bar: &ProgressBar) {
        bar.set_position(self.done());
        bar.set_message(self.message());
    }

    fn text(&self) -> String {
        format!(
            "{} of {} blocks, {}",
            self.done(),
            self.left,
            self.message()
        )
    }

    fn json(&self) -> serde_json::Value {
        let (retries, throttled) = self.troubles();
        json!({
            "blocks": self.done(),
            "of": self.left,
            "bytes": self.progress.bytes(),
            "bytes_a_second": self.rate().round(),
            "seconds": self.since.elapsed().as_secs(),
            "retries": retries,
            "throttled": throttled,
        })
    }
}
