//! Makes the evidence: one pass over the source.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;
use tracing::warn;

use super::block_list::BlockListWriter;
use super::facts::{HostFacts, ProgramFacts};
use super::folder::{BLOCKS, FileFacts, IMAGE, NewFolder, SIGNATURE, STATEMENT};
use super::request_log::RequestLog;
use super::signature::{KeyFile, command_by_hand};
use super::statement::{EvidenceStatement, ImageFacts, SignatureFacts, SourceFacts, SourceKind};
use crate::aws::{CallerIdentity, RequestCounts};
use crate::block::{BLOCK_SIZE, hexadecimal};
use crate::error::{Kind, Remedy, Result};
use crate::progress::Progress;
use crate::sync::{DigestRequest, HeldBlock, OnDamage, Source, source_digest};
use crate::target::Stop;
use crate::time::rfc3339_millis;

/// What evidence is made of.
pub(crate) struct EvidenceJob<'a> {
    /// What is read.
    pub(crate) source: &'a Source,
    /// Members that its opening found: `region`, `endpoint`.
    pub(crate) about: Value,
    /// Whether EBS itself is read, which states a checksum of each block.
    pub(crate) is_ebs: bool,
    /// Who calls AWS, or why that is not known; none where nothing of AWS is called.
    pub(crate) caller: Option<Result<CallerIdentity>>,
    /// The requests so far.
    pub(crate) request_log: Arc<RequestLog>,
    /// Their counts.
    pub(crate) requests: RequestCounts,
    /// What the clients warn of, once all is read.
    pub(crate) notices: &'a (dyn Fn() -> Vec<String> + Send + Sync),
    /// The program.
    pub(crate) program: ProgramFacts,
    /// Signs the statement.
    pub(crate) key: Option<KeyFile>,
    /// Whether the image is written too.
    pub(crate) with_image: bool,
    /// Blocks read at once.
    pub(crate) in_flight: usize,
    /// What happens when a block is damaged.
    pub(crate) on_damage: OnDamage,
    /// When the run began.
    pub(crate) started: SystemTime,
}

/// Reads the source once and writes the evidence into `folder`; the statement, and its SHA-256 in hexadecimal.
///
/// # Errors
/// `Corrupt` when the source was written meanwhile; `NoSpace`; `Stopped`; why a block cannot be read or a file not be written. Nothing
/// is left of the evidence then, except when it could not be signed: then all of it is there but the signature.
pub(crate) async fn collect(
    job: EvidenceJob<'_>,
    mut folder: NewFolder,
    progress: &Progress,
    stop: &Stop,
) -> Result<(EvidenceStatement, String)> {
    let geometry = job.source.info.geometry;
    let mut list = BlockListWriter::begin(folder.file(BLOCKS)?, geometry, job.is_ebs)?;
    let mut on_block = |block: HeldBlock| list.add(&block);
    let copy = job.with_image.then(|| folder.image()).transpose()?;
    let request = DigestRequest {
        with_md5: true,
        with_sha1: true,
        in_flight: job.in_flight,
        on_damage: job.on_damage,
        on_block: Some(&mut on_block),
        copy,
    };
    let digests = source_digest(job.source, request, progress, stop).await?;
    let ended = SystemTime::now();
    let (blocks_file, blocks) = list.end()?;
    let image = ImageFacts {
        bytes: geometry.size(),
        block_bytes: BLOCK_SIZE,
        sha256: hexadecimal(&digests.sha256),
        sha1: hexadecimal(&digests.sha1.unwrap_or_default()),
        md5: hexadecimal(&digests.md5.unwrap_or_default()),
    };
    let source = source_facts(&job);
    let (requests_file, requests_listed, clocks) = job.request_log.end()?;
    let mut files = vec![blocks_file, requests_file];
    if job.with_image {
        folder.publish_image()?;
        files.push(FileFacts {
            name: IMAGE.to_owned(),
            bytes: image.bytes,
            sha256: image.sha256.clone(),
        });
    }
    let mut warnings = (job.notices)();
    let start_time = source.snapshot.as_ref().and_then(|it| it.get("start_time"));
    if job.is_ebs && start_time.is_none_or(Value::is_null) {
        warnings.push("EC2 did not describe the snapshot".to_owned());
    }
    if blocks.damaged > 0 {
        warnings.push(format!(
            "{} damaged blocks could not be read: blocks.csv names them, and every digest of the image takes them as zeroes",
            blocks.damaged
        ));
    }
    let by_action = job.requests.by_action().into_iter();
    let requests: BTreeMap<_, _> = by_action
        .map(|(action, counts)| (action.to_owned(), counts.into()))
        .collect();
    let (caller, caller_unknown) = match job.caller {
        None => (None, None),
        Some(Ok(caller)) => (Some(caller), None),
        Some(Err(error)) => (None, Some(error.chain())),
    };
    let (format, version) = EvidenceStatement::format();
    let statement = EvidenceStatement {
        format,
        version,
        image,
        blocks,
        source,
        caller,
        caller_unknown,
        program: job.program,
        machine: HostFacts::of_this(),
        started: rfc3339_millis(job.started),
        ended: rfc3339_millis(ended),
        clocks,
        requests,
        requests_listed,
        warnings,
        files,
        signature: job.key.is_some().then(SignatureFacts::of_ssh),
    };
    let bytes = statement.encoded();
    // What is written must be what is read.
    EvidenceStatement::decode(&bytes)?;
    let sha256 = publish(&mut folder, &bytes, job.key.as_ref(), progress, stop).await?;
    Ok((statement, sha256))
}

/// Signs the statement and writes it, after its signature. Where it cannot be signed it is written all the same: what was read is not
/// lost, and it says that a signature belongs to it.
async fn publish(
    folder: &mut NewFolder,
    statement: &[u8],
    key: Option<&KeyFile>,
    progress: &Progress,
    stop: &Stop,
) -> Result<String> {
    let signed = match key {
        None => Ok(None),
        Some(key) => {
            progress.begin(format!("signing with {}", key.path().display()), 0);
            key.sign(statement, stop).await.map(Some)
        }
    };
    if let Ok(Some(signature)) = &signed {
        let mut file = folder.file(SIGNATURE)?;
        file.add(signature)?;
        file.end()?;
    }
    if let Err(error) = &signed
        && error.kind() == Kind::Stopped
    {
        return Err(error.clone());
    }
    let mut file = folder.file(STATEMENT)?;
    file.add(statement)?;
    let facts = file.end()?;
    folder.finish();
    match (signed, key) {
        (Err(error), Some(key)) => {
            warn!(
                "the evidence in {} is whole but not signed",
                folder.path().display()
            );
            let by_hand = command_by_hand(key, folder.path());
            Err(error.with_remedy(Remedy::Do(by_hand)))
        }
        (signed, _) => signed.map(|_| facts.sha256),
    }
}

/// What was read, with what EC2 has stated by now.
fn source_facts(job: &EvidenceJob<'_>) -> SourceFacts {
    let info = &job.source.info;
    let later = match (&job.source.catalog, info.id()) {
        (Some(catalog), Some(id)) => catalog.known(&id),
        _ => None,
    };
    let snapshot = later.as_deref().or(info.snapshot.as_ref());
    let text = |name: &str| job.about.get(name)?.as_str().map(str::to_owned);
    SourceFacts {
        name: info.name.clone(),
        kind: match (job.is_ebs, snapshot) {
            (true, _) => SourceKind::Ebs,
            (false, Some(_)) => SourceKind::Repository,
            (false, None) => SourceKind::Disk,
        },
        snapshot: snapshot.map(|snapshot| serde_json::to_value(snapshot).unwrap_or_default()),
        region: text("region"),
        endpoint: text("endpoint"),
    }
}
