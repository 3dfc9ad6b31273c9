//! How far a run is: a bar, lines of text or of JSON on stderr.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use serde_json::json;
use tokio::signal::unix::SignalKind;
use tokio::task::JoinHandle;

use super::log::{self, say};
use super::signals::take;
use crate::ebs::Client;
use crate::progress::{Phase, Progress};
use crate::sync::REPORT_VERSION;

/// Between two lines of JSON.
const JSON_EVERY: Duration = Duration::from_secs(5);
/// Between two lines of text where there is no terminal.
const TEXT_EVERY: Duration = Duration::from_secs(60);
/// Between two updates of a bar.
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
            let mut asked = take(SignalKind::user_defined1()).ok();
            let mut tick = tokio::time::interval(every);
            tick.tick().await;
            loop {
                let asked = async {
                    match &mut asked {
                        Some(asked) => asked.received().await,
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
                    () = asked => say(&line.text()),
                }
            }
        });
        Self { task, bar, clients }
    }

    /// Sets the clients whose retries and throttles are shown.
    pub(super) fn count(&self, clients: &[Arc<Client>]) {
        *self.clients.lock() = clients.to_vec();
    }

    /// Does something while no bar is drawn.
    pub(super) fn hidden<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(|| {
                let done = work();
                // The bar is drawn again below the lines.
                log::flush();
                done
            }),
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

    /// Estimates from what the phase has done so far; none before the first.
    fn seconds_left(&self) -> Option<u64> {
        let (done, of) = self.progress.phase_counts();
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
        let (done, of) = self.progress.phase_counts();
        let Phase { what, unit, .. } = self.progress.phase();
        let mut text = what;
        match (done, of) {
            (0, 0) => {}
            (done, 0) => text.push_str(&format!(": {done} {unit}")),
            (done, of) => text.push_str(&format!(": {done} of {of} {unit}")),
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
        let (done, of) = self.progress.phase_counts();
        bar.set_length(of);
        bar.set_position(done);
        bar.set_message(self.text());
    }

    fn json(&self) -> serde_json::Value {
        let (retries, throttled) = self.troubles();
        let (done, of) = self.progress.phase_counts();
        let Phase { what, unit, .. } = self.progress.phase();
        json!({
            "version": REPORT_VERSION,
            "phase": what,
            unit: done,
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
