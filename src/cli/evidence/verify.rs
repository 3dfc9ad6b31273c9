//! `ebsfs evidence verify`: evidence against its signature and its files, and an object against the evidence.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use serde_json::{Value, json};

use crate::block::Geometry;
use crate::cli::reading::ReadArgs;
use crate::cli::signals::{listen, only_read};
use crate::cli::store::end_reading;
use crate::cli::verify::with_ranges;
use crate::cli::{output, plain};
use crate::error::{Error, Kind, Remedy, Result};
use crate::evidence::{
    CustodyReport, EvidenceFolder, EvidenceObject, ObjectReport, SignatureState, SignerRequest,
    check_custody,
};
use crate::formats::ImageFormat;
use crate::repository::Address;
use crate::snapshot::Selector;
use crate::source::{DiskSource, size_of};
use crate::sync::{Progress, REPORT_VERSION};
use crate::targets::mark_of;

/// Check the signature and the files of evidence, and an image, device or snapshot against it
#[derive(Args, Debug)]
#[command(
    long_about = "Check evidence that ebsfs evidence wrote: the signature of its statement, then each file by the digests of the \
    statement. With an object, read it whole and compare each block and the digests of the whole.\n\n\
    Prints each differing range and ends with exit code 8 if anything differs. Without --allowed-signers a signature shows only that \
    the statement was not changed since it was signed, not who signed it."
)]
pub(super) struct EvidenceVerifyArgs {
    /// Directory of the evidence
    #[arg(required_unless_present = "custody")]
    directory: Option<PathBuf>,
    /// Object to compare: raw image, block device, disk.raw of a mount, snapshot id, or a snapshot of a repository,
    /// s3://BUCKET/PREFIX#SNAPSHOT
    object: Option<String>,
    /// Require a signature by a key of this file (ssh-keygen(1), ALLOWED SIGNERS)
    #[arg(long, value_name = "FILE")]
    allowed_signers: Option<PathBuf>,
    /// Require the signature of this signer of the file [default: the one that the file has for the key]
    #[arg(long, value_name = "NAME", requires = "allowed_signers")]
    signer: Option<String>,
    /// Check the chain of this custody log, which ebsfs mount --custody wrote, instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["directory", "object", "allowed_signers"])]
    custody: Option<PathBuf>,
    #[command(flatten)]
    reading: ReadArgs,
}

/// What the checks have found.
struct Checked {
    directory: PathBuf,
    folder: EvidenceFolder,
    signature: SignatureState,
    object: Option<ObjectReport>,
}

impl EvidenceVerifyArgs {
    pub(super) fn run(self) -> Result<()> {
        if let Some(log) = &self.custody {
            return self.check_custody(log);
        }
        let runtime = crate::cli::runtime()?;
        let done = runtime.block_on(self.verify());
        runtime.shutdown_timeout(Duration::from_millis(200));
        let checked = done.map_err(only_read)?;
        output::write(None, |out| match self.reading.json {
            true => self.in_json(&checked, out),
            false => self.in_words(&checked, out),
        })?;
        checked.object.map_or(Ok(()), |report| report.result())
    }

    fn check_custody(&self, log: &Path) -> Result<()> {
        let report = check_custody(log)?;
        output::write(None, |out| match self.reading.json {
            true => {
                let value = json!({
                    "version": REPORT_VERSION,
                    "custody": log,
                    "lines": report.lines,
                    "openings": report.openings,
                    "unclosed": report.unclosed,
                    "mounts": report.mounts,
                    "unended": report.unended,
                    "ended": report.is_ended,
                    "last_sha256": report.last,
                });
                writeln!(out, "{value}")
            }
            false => custody_in_words(log, &report, out),
        })?;
        report.result(log)
    }

    async fn verify(&self) -> Result<Checked> {
        self.reading.check(self.object.as_deref())?;
        let stop = listen()?;
        let progress = Arc::new(Progress::default());
        let shown = self.reading.show(&progress);
        // The definition of the options asks for one of both.
        let directory = self.directory.clone().unwrap_or_default();
        let folder = EvidenceFolder::open(&directory)?;
        let asked = SignerRequest {
            allowed: self.allowed_signers.clone(),
            signer: self.signer.clone(),
        };
        let signature = folder.check_signature(&asked, &stop).await?;
        folder.check_files(&progress, &stop).await?;
        let in_flight = self.reading.in_flight();
        let geometry = folder.statement().geometry()?;
        let object = match &self.object {
            None => None,
            Some(name) if is_path(name) => {
                let (object, mark) = (on_disk(name, geometry)?, mark_of(Path::new(name)));
                let report = folder.compare(&object, in_flight, &progress, &stop).await?;
                if report.is_equal() && mark_of(Path::new(name)) != mark {
                    let what =
                        format!("cannot verify {name}: something else wrote it while it was read");
                    let error = Error::new(Kind::Undecided, what);
                    return Err(error.with_remedy(Remedy::TryLater));
                }
                Some(report)
            }
            Some(name) => {
                let opened = self.reading.open(name, &shown, &stop).await?;
                let size = opened.source.info.geometry.size();
                let compared = match size == geometry.size() {
                    true => {
                        let object = EvidenceObject {
                            name: opened.source.info.name.clone(),
                            blocks: Arc::clone(&opened.source.blocks),
                            size: None,
                            may_be_larger: false,
                        };
                        folder.compare(&object, in_flight, &progress, &stop).await
                    }
                    false => Err(other_size(name, size, geometry)),
                };
                end_reading(opened.lease).await;
                Some(compared?)
            }
        };
        Ok(Checked {
            directory,
            folder,
            signature,
            object,
        })
    }

    fn in_words(&self, checked: &Checked, out: &mut dyn Write) -> io::Result<()> {
        let statement = checked.folder.statement();
        writeln!(out, "evidence   {}", checked.directory.display())?;
        writeln!(out, "statement  {}", checked.folder.sha256())?;
        let signature = match &checked.signature {
            SignatureState::Absent => {
                "none: nothing shows who made the evidence, or that it was not changed".to_owned()
            }
            SignatureState::Valid(key) => {
                format!("by key {key}: not trusted, --allowed-signers says whose keys are")
            }
            SignatureState::Trusted { key, signer } => format!("by {}, key {key}", plain(signer)),
        };
        writeln!(out, "signature  {signature}")?;
        let size = ByteSize::b(statement.image.bytes);
        writeln!(out, "image      {}, {size}", plain(&statement.source.name))?;
        writeln!(out, "sha256     {}", statement.image.sha256)?;
        if statement.blocks.damaged > 0 {
            let count = statement.blocks.damaged;
            writeln!(
                out,
                "damaged    {count} blocks were not read: they are zeroes in the digests"
            )?;
        }
        for file in &statement.files {
            writeln!(out, "file       {}: as stated", file.name)?;
        }
        for name in checked.folder.unlisted() {
            writeln!(out, "not listed {}: nothing here covers it", plain(name))?;
        }
        let Some(report) = &checked.object else {
            return writeln!(out, "result     the evidence is whole");
        };
        writeln!(out, "compared   {}", plain(&report.object))?;
        for (offset, length) in report.ranges() {
            writeln!(out, "differs    offset {offset}, {length} bytes")?;
        }
        if report.missing() > 0 {
            let missing = report.missing();
            writeln!(out, "missing    {missing} bytes at the end")?;
        }
        if report.is_equal() {
            writeln!(out, "result     equal")?;
        }
        Ok(())
    }

    fn in_json(&self, checked: &Checked, out: &mut dyn Write) -> io::Result<()> {
        let (state, key, signer) = match &checked.signature {
            SignatureState::Absent => ("none", None, None),
            SignatureState::Valid(key) => ("not_trusted", Some(key), None),
            SignatureState::Trusted { key, signer } => ("trusted", Some(key), Some(signer)),
        };
        let statement = checked.folder.statement();
        let mut value = json!({
            "version": REPORT_VERSION,
            "directory": checked.directory,
            "statement_sha256": checked.folder.sha256(),
            "signature": {"state": state, "key": key, "signer": signer},
            "source": statement.source.name,
            "image": statement.image,
            "damaged_blocks": statement.blocks.damaged,
            "unlisted": checked.folder.unlisted(),
        });
        let Some(report) = &checked.object else {
            return writeln!(out, "{value}");
        };
        let about = [
            ("object", Value::from(report.object.as_str())),
            ("equal", report.is_equal().into()),
            ("differing_blocks", report.differing_blocks().into()),
            ("missing_bytes", report.missing().into()),
        ];
        if let Some(members) = value.as_object_mut() {
            members.extend(about.map(|(name, value)| (name.to_owned(), value)));
        }
        with_ranges(&value, report.ranges(), out)
    }
}

fn custody_in_words(log: &Path, report: &CustodyReport, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "custody    {}", log.display())?;
    writeln!(
        out,
        "lines      {}, each follows the one before",
        report.lines
    )?;
    let (openings, unclosed) = (report.openings, report.unclosed);
    writeln!(out, "openings   {openings}, {unclosed} not closed")?;
    let (mounts, unended) = (report.mounts, report.unended);
    writeln!(out, "mounts     {mounts}, {unended} not ended")?;
    let end = match report.is_ended {
        true => "of a mount",
        false => "unknown: a mount is still running, was killed, or lines are missing",
    };
    writeln!(out, "end        {end}")?;
    writeln!(out, "last line  {}", report.last)
}

/// Whether a name is a path of this machine.
fn is_path(name: &str) -> bool {
    !Address::looks_like(name) && name.parse::<Selector>().is_err()
}

/// An image or device of this machine, read past the page cache.
fn on_disk(name: &str, geometry: Geometry) -> Result<EvidenceObject> {
    let path = Path::new(name);
    let failed = |error| Error::of_file(path, "cannot read", error);
    let kind = path.metadata().map_err(failed)?.file_type();
    let format = ImageFormat::of(&path.canonicalize().map_err(failed)?);
    if format != ImageFormat::Raw {
        let what = format!(
            "cannot verify {name}: evidence is compared with a raw image, not a .{} file",
            format.name()
        );
        let remedy = "make a raw image of it: qemu-img convert -O raw";
        return Err(Error::new(Kind::Invalid, what).with_remedy(Remedy::Do(remedy.into())));
    }
    let blocks = DiskSource::open_past_cache(path, geometry)?;
    let size = size_of(path, &std::fs::File::open(path).map_err(failed)?)?;
    Ok(EvidenceObject {
        name: name.to_owned(),
        blocks: Arc::new(blocks),
        size: Some(size),
        may_be_larger: !kind.is_file(),
    })
}

fn other_size(name: &str, size: u64, geometry: Geometry) -> Error {
    let what = format!(
        "cannot verify {name}: it has {size} bytes, and the image of the evidence {}",
        geometry.size()
    );
    Error::new(Kind::Corrupt, what)
}
