//! What is to be done, and how far it is.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::choice::Choice;
use crate::block::BLOCK_SIZE;
use crate::ebs::Client;
use crate::error::{Error, Kind, Result};
use crate::maps::Totals;
use crate::sync::{Progress, Target, Task};

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
    /// The plan, and then a line every 5 seconds, as JSON on stderr
    Json,
    /// Nothing
    None,
}

/// What is to be done.
pub(super) struct Plans<'a> {
    pub(super) choices: &'a [Choice],
    /// Blocks a second, at most.
    pub(super) rate: u32,
    /// Whether the source is read from EBS.
    pub(super) is_ebs: bool,
    pub(super) form: ProgressForm,
}

/// What is to be done for one target, as both forms tell it.
struct Told<'a> {
    task: &'a Task,
    target: String,
    what: &'static str,
    is_done: bool,
    write: u64,
    zero: u64,
    done: u64,
    gets: u64,
    puts: u64,
    dollars: f64,
    seconds: u64,
    room: Option<&'a str>,
}

impl Plans<'_> {
    /// Prints the plan of each target, as text or as a line of JSON.
    pub(super) fn print(&self, mut out: impl Write) -> Result<()> {
        let is_json = self.form == ProgressForm::Json;
        let mut told = self.choices.iter().map(|choice| self.tell(choice));
        let print = told.try_for_each(|told| match is_json {
            true => writeln!(out, "{}", told.json()),
            false => self.write(&told, &mut out),
        });
        let print = print.and_then(|()| out.flush());
        // Who reads it has seen enough.
        let is_over = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
        if print.as_ref().is_err_and(is_over) {
            return Ok(());
        }
        print.map_err(|error| Error::with_source(Kind::Io, "cannot print the plan", error))
    }

    fn tell<'a>(&self, choice: &'a Choice) -> Told<'a> {
        let (task, plan, done) = choice.plan();
        let (write, zero) = (plan.write().len(), plan.zero().len());
        let left = (write + zero).saturating_sub(done);
        let gets = if self.is_ebs { left.min(write) } else { 0 };
        let puts = if choice.place.remote().is_some() {
            left
        } else {
            0
        };
        Told {
            task,
            target: choice.place.shown(),
            what: choice.what(),
            is_done: choice.is_done(),
            write,
            zero,
            done,
            gets,
            puts,
            dollars: Totals::getting_cost(gets) + Totals::putting_cost(puts),
            seconds: gets.max(puts) / u64::from(self.rate.max(1)),
            room: choice.room.as_deref(),
        }
    }

    fn write(&self, told: &Told<'_>, out: &mut impl Write) -> io::Result<()> {
        let size = |blocks: u64| ByteSize::b(blocks * u64::from(BLOCK_SIZE));
        let since = told.task.base.as_ref();
        let since = since.map(|base| format!(", what changed since {base}"));
        let source = &told.task.source;
        writeln!(out, "source    {source}{}", since.unwrap_or_default())?;
        writeln!(out, "target    {}: {}", told.target, told.what)?;
        if told.is_done {
            return Ok(());
        }
        if let Some(room) = &told.room {
            writeln!(out, "room      {room}")?;
        }
        writeln!(out, "write     {} blocks, {}", told.write, size(told.write))?;
        if told.zero > 0 {
            writeln!(out, "zero      {} blocks, {}", told.zero, size(told.zero))?;
        }
        if told.done > 0 {
            writeln!(out, "done      {} blocks, by an earlier run", told.done)?;
        }
        let requests = match (told.gets, told.puts) {
            (0, 0) => return Ok(()),
            (gets, 0) => format!("{gets} GetSnapshotBlock"),
            (0, puts) => format!("{puts} PutSnapshotBlock"),
            (gets, puts) => format!("{gets} GetSnapshotBlock, {puts} PutSnapshotBlock"),
        };
        writeln!(out, "requests  {requests}, ${:.4}", told.dollars)?;
        let time = humantime::format_duration(Duration::from_secs(told.seconds));
        let rate = self.rate;
        writeln!(out, "time      {time} at least, at {rate} blocks a second")
    }
}

impl Told<'_> {
    fn json(&self) -> serde_json::Value {
        json!({"plan": {
            "source": self.task.source,
            "base": self.task.base,
            "target": self.target,
            "what": self.what,
            "write_blocks": self.write,
            "zero_blocks": self.zero,
            "done_blocks": self.done,
            "gets": self.gets,
            "puts": self.puts,
            "dollars": self.dollars,
            "seconds_at_least": self.seconds,
            "room": self.room,
        }})
    }
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
        clients: Vec<Arc<Client>>,
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
                clients,
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
                        None if is_json => say(&line.json().to_string()),
                        None => {}
                    },
                    _ = asked => say(&line.text()),
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

/// A line on stderr, for whoever is still there.
pub(super) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
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
    clients: Vec<Arc<Client>>,
    since: Instant,
}

impl Line {
    fn rate(&self) -> f64 {
        self.progress.bytes() as f64 / self.since.elapsed().as_secs_f64().max(0.001)
    }

    fn done(&self) -> u64 {
        self.progress.blocks() + self.progress.blocks_zeroed()
    }

    /// By the blocks that were done until now; none before there are any.
    fn left_seconds(&self) -> Option<u64> {
        let each = self
            .since
            .elapsed()
            .checked_div(u32::try_from(self.done()).ok()?)?;
        let left = u32::try_from(self.left.saturating_sub(self.done())).ok()?;
        Some(each.saturating_mul(left).as_secs())
    }

    fn troubles(&self) -> (u64, u64) {
        let counts = self.clients.iter().map(|client| client.counts());
        counts.fold((0, 0), |(retries, throttled), counts| {
            (retries + counts.retries, throttled + counts.throttles)
        })
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
            "seconds_left": self.left_seconds(),
            "retries": retries,
            "throttled": throttled,
        })
    }
}
