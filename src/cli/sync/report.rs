//! `--report FILE`: what a run did, target by target, with the SHA-256 of every block. It is written as the run goes and
//! appears whole or not at all.

use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::Source;
use crate::block::hexadecimal;
use crate::cli::output::Part;
use crate::error::{Error, Kind, Result};
use crate::sink::Written;
use crate::sync::Report;

/// A report being written.
pub(super) struct ReportFile {
    part: Part,
    is_first: bool,
}

impl ReportFile {
    /// Begins it, which tells at once whether it can be written.
    pub(super) fn begin(path: &Path, source: &Source, started: SystemTime) -> Result<Self> {
        let mut report = Self {
            part: Part::create(path)?,
            is_first: true,
        };
        let (name, started) = (json!(source.name), json!(rfc3339(started)));
        report.write(|out| {
            write!(
                out,
                "{{\"source\": {name}, \"started\": {started}, \"targets\": ["
            )
        })?;
        Ok(report)
    }

    /// A target that was brought to its end, with the digest of each block of its plan: null for zeroes.
    pub(super) fn done(&mut self, target: &str, report: &Report, written: Written) -> Result<()> {
        let mut told = serde_json::to_value(report).unwrap_or_default();
        if let Some(told) = told.as_object_mut() {
            told.insert("target".into(), target.into());
            told.insert("status".into(), "done".into());
        }
        let told = told.to_string();
        let open = told.strip_suffix('}').unwrap_or(&told).to_owned();
        self.next(|out| write!(out, "{open},\n\"blocks\": ["))?;
        for (number, block) in written.enumerate() {
            let (index, digest) = block?;
            let digest = digest.map_or(Value::Null, |digest| hexadecimal(&digest).into());
            let comma = if number == 0 { "" } else { "," };
            self.write(|out| write!(out, "{comma}\n[{index}, {digest}]"))?;
        }
        self.write(|out| write!(out, "]}}"))
    }

    /// A target that held the source already.
    pub(super) fn already(&mut self, target: &str, source: &str) -> Result<()> {
        let told = json!({"target": target, "status": "already", "source": source});
        self.next(|out| write!(out, "{told}"))
    }

    /// A target that was not.
    pub(super) fn failed(&mut self, target: &str, error: &Error) -> Result<()> {
        let told = json!({"target": target, "status": "failed", "error": error.chain()});
        self.next(|out| write!(out, "{told}"))
    }

    /// Ends it, and makes it appear.
    pub(super) fn end(mut self, bytes_fetched: u64, requests: &Value) -> Result<()> {
        let ended = json!(rfc3339(SystemTime::now()));
        self.write(|out| {
            writeln!(
                out,
                "],\n\"ended\": {ended}, \"bytes_fetched\": {bytes_fetched}, \"requests\": {requests}}}"
            )
        })?;
        self.part.finish()
    }

    fn next(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        let comma = if self.is_first { "\n" } else { ",\n" };
        self.is_first = false;
        self.write(|out| {
            write!(out, "{comma}")?;
            write(out)
        })
    }

    fn write(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        write(&mut self.part)
            .map_err(|error| Error::with_source(Kind::Io, "cannot write the report", error))
    }
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
