//! `ebsfs evidence`: digests of a snapshot, who read it where and when, signed; and an object checked against that.

mod verify;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use serde_json::json;

use super::output;
use super::reading::ReadArgs;
use super::signals::{listen, only_read};
use super::store::end_reading;
use super::sync::OnDamageArg;
use crate::aws::{CallerIdentity, Observer};
use crate::error::{Error, Kind, Result};
use crate::evidence::{
    EvidenceJob, EvidenceStatement, KeyFile, NewFolder, ProgramFacts, RequestLog, collect,
};
use crate::sync::{Progress, REPORT_VERSION};

/// Read a snapshot once and write digests, provenance and requests to a directory, signed; or verify such a directory
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    long_about = "Read a whole snapshot once and write evidence of it to a directory: SHA-256, SHA-1 and MD5 of the image, the SHA-256 of \
    each block beside the checksum that EBS stated, what EC2 states of the snapshot, the caller, program, machine, clock and each \
    request with the id that AWS gave it. With --key the statement is signed by ssh-keygen.\n\n\
    ebsfs evidence verify checks such a directory, and an image, device or mounted disk.raw against it."
)]
pub(super) struct EvidenceArgs {
    #[command(subcommand)]
    verb: Option<EvidenceVerb>,
    #[command(flatten)]
    collect: CollectArgs,
}

#[derive(Debug, Subcommand)]
enum EvidenceVerb {
    Verify(Box<verify::EvidenceVerifyArgs>),
}

#[derive(Args, Debug)]
struct CollectArgs {
    /// Snapshot id; volume id or tag:KEY=VALUE for its newest completed snapshot; raw image or block device; or a snapshot of a
    /// repository, s3://BUCKET/PREFIX#SNAPSHOT
    #[arg(required = true)]
    source: Option<String>,
    /// Directory for the evidence, new or empty. Only its owner can read it
    #[arg(short, long, value_name = "DIRECTORY", required = true)]
    output: Option<PathBuf>,
    /// Sign the statement with this SSH key: a private key, or the public key of one in an agent or a hardware token
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Write the image too, as disk.raw: sparse, with mode 0400, in the same pass
    #[arg(long)]
    image: bool,
    /// Action for a damaged block of the source; mark: list it, count it as zeroes in the digests, end with exit code 12
    #[arg(long, value_name = "ACTION", value_enum, default_value_t = OnDamageArg::Fail)]
    on_damage: OnDamageArg,
    #[command(flatten)]
    reading: ReadArgs,
}

/// What was made.
struct Collected {
    folder: PathBuf,
    statement: EvidenceStatement,
    sha256: String,
    is_signed: bool,
}

impl EvidenceArgs {
    pub(super) fn run(self) -> Result<()> {
        match self.verb {
            Some(EvidenceVerb::Verify(verify)) => verify.run(),
            None => self.collect.run(),
        }
    }
}

impl CollectArgs {
    fn run(mut self) -> Result<()> {
        let runtime = super::runtime()?;
        let done = runtime.block_on(self.collect());
        runtime.shutdown_timeout(Duration::from_millis(200));
        let done = done.map_err(only_read)?;
        output::write(None, |out| match self.reading.json {
            true => {
                let folder = &done.folder;
                let value = json!({
                    "version": REPORT_VERSION,
                    "directory": folder,
                    "statement_sha256": done.sha256,
                    "signed": done.is_signed,
                    "statement": done.statement,
                });
                writeln!(out, "{value}")
            }
            false => in_words(&done, out),
        })?;
        match done.statement.blocks.damaged {
            0 => Ok(()),
            count => {
                let what =
                    format!("{count} damaged blocks are zeroes in the digests of the evidence");
                Err(Error::new(Kind::Marked, what))
            }
        }
    }

    async fn collect(&mut self) -> Result<Collected> {
        let (Some(name), Some(folder)) = (self.source.clone(), self.output.clone()) else {
            let what = "cannot make evidence: it needs a source and a directory";
            return Err(Error::new(Kind::Invalid, what));
        };
        let started = SystemTime::now();
        self.reading.check(Some(&name))?;
        let stop = listen()?;
        let key = self.key.as_deref().map(KeyFile::new).transpose()?;
        let program = stop.unless(ProgramFacts::of_this()).await?;
        let folder = NewFolder::create(&folder)?;
        let request_log = Arc::new(RequestLog::begin(&folder)?);
        let requests = self
            .reading
            .observe(Observer::new(Arc::clone(&request_log) as Arc<_>));
        let progress = Arc::new(Progress::default());
        let shown = self.reading.show(&progress);
        let opened = self.reading.open(&name, &shown, &stop).await?;
        let caller = match opened.client {
            Some(_) => Some(self.caller(&stop).await?),
            None => None,
        };
        let client = opened.client.clone();
        let notices = move || client.iter().flat_map(|client| client.notices()).collect();
        let job = EvidenceJob {
            source: &opened.source,
            about: opened.about,
            is_ebs: opened.client.is_some(),
            caller,
            request_log,
            requests,
            notices: &notices,
            program,
            key,
            with_image: self.image,
            in_flight: self.reading.in_flight(),
            on_damage: self.on_damage.into(),
            started,
        };
        let at = folder.path().to_owned();
        let is_signed = job.key.is_some();
        let collected = collect(job, folder, &progress, &stop).await;
        end_reading(opened.lease).await;
        let (statement, sha256) = collected?;
        Ok(Collected {
            folder: at,
            statement,
            sha256,
            is_signed,
        })
    }

    /// Who calls AWS, or why STS does not say so: evidence without it is still evidence.
    async fn caller(&self, stop: &crate::target::Stop) -> Result<Result<CallerIdentity>> {
        let asked = async { Ok(self.reading.caller().await) };
        stop.unless(asked).await
    }
}

fn in_words(done: &Collected, out: &mut dyn Write) -> io::Result<()> {
    let statement = &done.statement;
    let (image, blocks) = (&statement.image, &statement.blocks);
    writeln!(out, "evidence   {}", done.folder.display())?;
    let size = ByteSize::b(image.bytes);
    writeln!(
        out,
        "image      {}, {size}",
        super::plain(&statement.source.name)
    )?;
    writeln!(out, "sha256     {}", image.sha256)?;
    writeln!(out, "sha1       {}", image.sha1)?;
    writeln!(out, "md5        {}", image.md5)?;
    let damaged = match blocks.damaged {
        0 => String::new(),
        count => format!(", {count} damaged"),
    };
    writeln!(
        out,
        "blocks     {} with data, {} of zeroes, {} not held{damaged}",
        blocks.data, blocks.zero, blocks.hole
    )?;
    for clock in &statement.clocks {
        writeln!(
            out,
            "clock      {} is {} to {} ms ahead of this machine",
            clock.host, clock.ahead_ms_least, clock.ahead_ms_most
        )?;
    }
    match (&statement.caller, &statement.caller_unknown) {
        (Some(caller), _) => writeln!(out, "caller     {}", super::plain(&caller.arn))?,
        (None, Some(why)) => writeln!(out, "caller     unknown: {}", super::plain(why))?,
        (None, None) => {}
    }
    for warning in &statement.warnings {
        writeln!(out, "warning    {}", super::plain(warning))?;
    }
    let signed = match done.is_signed {
        true => "signed",
        false => "not signed",
    };
    writeln!(out, "statement  {}, {signed}", done.sha256)
}
