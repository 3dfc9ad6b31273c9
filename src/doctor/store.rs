//! A repository's store: the way to it, read, listed, what its bucket keeps, and with a write of its own objects written, read in
//! part, created once, deleted.

mod bucket;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join;
use tokio::time::Instant;

use super::deadline::within;
use super::job::{DoctorClients, DoctorStore};
use super::network::{self, ServiceOrigin};
use super::refusal;
use super::row::{CheckKind, RowBoard, RowFinding, RowId};
use crate::aws::IamAction;
use crate::block::random_id;
use crate::error::{Error, Kind, Remedy, Result};
use crate::repository::{Deleted, ObjectProof, RepositoryCatalog, Store};
use crate::time::in_words;
use bucket::BucketRows;

/// How long one operation may take, with its retries.
const OPERATION: Duration = Duration::from_secs(8);
/// What is left of the whole time to delete the objects that were written.
const DELETION: Duration = Duration::from_secs(3);
/// Bytes of the object that measures the line: the size of a small pack.
const UPLOAD: usize = 8 << 20;
/// Bytes of the object that the other checks use.
const SMALL: usize = 64 << 10;

/// The rows of a store.
#[derive(Clone, Copy)]
struct StoreRows {
    open: RowId,
    list: RowId,
    /// Of a bucket of S3 that is written.
    bucket: Option<BucketRows>,
    /// Where something is written, or would be by the verb.
    written: Option<WriteRows>,
}

/// The rows of writes.
#[derive(Clone, Copy)]
struct WriteRows {
    put: RowId,
    range: RowId,
    create: RowId,
    upload: RowId,
    delete: RowId,
}

impl StoreRows {
    fn plan(board: &RowBoard, store: &DoctorStore, writes: bool) -> Self {
        let address = &store.address;
        let plan = |what: &str| board.plan(CheckKind::Store, format!("{what} {address}"));
        let is_written = store.is_written || writes;
        Self {
            open: plan("read of"),
            list: plan("listing of"),
            bucket: (is_written && address.is_s3()).then(|| BucketRows::plan(&plan)),
            written: is_written.then(|| WriteRows {
                put: plan("write to"),
                range: plan("read of a part in"),
                create: plan("creation in"),
                upload: plan("upload to"),
                delete: plan("delete in"),
            }),
        }
    }

    fn written(self) -> Vec<RowId> {
        let rows = self.written.iter();
        rows.flat_map(|rows| [rows.put, rows.range, rows.create, rows.upload, rows.delete])
            .collect()
    }

    /// The rows behind the first one.
    fn rest(self) -> Vec<RowId> {
        let bucket = self.bucket.iter().flat_map(BucketRows::all);
        let listed = std::iter::once(self.list).chain(bucket);
        listed.chain(self.written()).collect()
    }
}

/// Checks the store of this number, and the way to it where no account of AWS has it.
pub(super) async fn check(
    board: &RowBoard,
    number: usize,
    store: &DoctorStore,
    writes: bool,
    clients: &dyn DoctorClients,
    until: Instant,
) {
    let way = async {
        // Settings that make no client are the first row of the store.
        if let Ok(Some((http, origin))) = clients.origin(number).await {
            let origin = ServiceOrigin::of_store(store.address.to_string(), origin);
            network::check(board, &http, &origin).await;
        }
    };
    join(
        way,
        operations(board, number, store, writes, clients, until),
    )
    .await;
}

/// What the verb does in the store.
async fn operations(
    board: &RowBoard,
    number: usize,
    store: &DoctorStore,
    writes: bool,
    clients: &dyn DoctorClients,
    until: Instant,
) {
    let rows = StoreRows::plan(board, store, writes);
    let opened = match within(OPERATION, clients.store(number)).await {
        Ok(opened) => opened,
        Err(error) => {
            board.fill(rows.open, refused(&error, IamAction::GetObject));
            return board.skip(&rows.rest(), rows.open);
        }
    };
    let catalog = within(OPERATION, RepositoryCatalog::open(Arc::clone(&opened))).await;
    let is_reached = match &catalog {
        Ok(_) => {
            board.fill(rows.open, RowFinding::good("a repository"));
            true
        }
        Err(error) => {
            board.fill(rows.open, refused(error, IamAction::GetObject));
            error
                .remedy()
                .is_some_and(|remedy| matches!(remedy, Remedy::InitRepository(_)))
        }
    };
    if !is_reached {
        return board.skip(&rows.rest(), rows.open);
    }
    let kept = async {
        if let Some(rows) = &rows.bucket {
            bucket::check(board, rows, &opened).await;
        }
    };
    let used = async {
        match &catalog {
            Ok(catalog) => {
                board.start(rows.list);
                let names = within(OPERATION, catalog.names()).await;
                let version = opened.listing_version();
                let seen = names.map(|names| listing(names.len(), version));
                board.fill(rows.list, of_result(seen, IamAction::ListBucket));
            }
            Err(_) => board.skip(&[rows.list], rows.open),
        }
        match rows.written {
            Some(written) if writes => write(board, written, &opened, until).await,
            _ => {
                let finding = RowFinding {
                    fix: Some(Remedy::AllowWrites),
                    ..RowFinding::unknown("not tried: it needs a write")
                };
                for row in rows.written() {
                    board.fill(row, finding.clone());
                }
            }
        }
    };
    join(kept, used).await;
}

/// What a listing has shown; `version` is that of ListObjects.
fn listing(snapshots: usize, version: Option<u8>) -> String {
    let version = version.map(|version| format!(", by version {version} of ListObjects"));
    format!(
        "{snapshots} snapshots, between both fences{}",
        version.unwrap_or_default()
    )
}

/// Writes objects of its own, and deletes them.
async fn write(board: &RowBoard, rows: WriteRows, store: &Store, until: Instant) {
    let left = || (until - DELETION).saturating_duration_since(Instant::now());
    let limit = || OPERATION.min(left());
    let id = random_id();
    let (small, large) = (format!("doctor/{id}"), format!("doctor/{id}.large"));
    let bytes = Bytes::from(content(SMALL));
    board.start(rows.put);
    let put = within(
        limit(),
        store.put_proven(&small, std::slice::from_ref(&bytes)),
    )
    .await;
    let failure = put.as_ref().err().map(Error::kind);
    let proof = put.map(|proof| proven_put(&small, proof));
    board.fill(rows.put, of_result(proof, IamAction::PutObject));
    if let Some(kind) = failure {
        board.skip(&[rows.range, rows.create, rows.upload], rows.put);
        // The read that proves a put can be denied, and not the put.
        let is_deleted = kind == Kind::Denied
            && matches!(
                within(OPERATION, store.delete(&small)).await,
                Ok(Deleted::Done)
            );
        return match may_be_there(kind) {
            true => delete(board, rows.delete, store, &[small]).await,
            false if is_deleted => board.fill(rows.delete, deletion(Ok(Deleted::Done), &[])),
            false => board.skip(&[rows.delete], rows.put),
        };
    }
    board.start(rows.range);
    let part = within(limit(), store.get_range(&small, 1000..5000)).await;
    board.fill(
        rows.range,
        of_result(
            part.and_then(|part| of_part(&part, &bytes)),
            IamAction::GetObject,
        ),
    );
    board.start(rows.create);
    let refused = within(limit(), store.refuses_to_replace(&small, &bytes)).await;
    board.fill(rows.create, creation(refused));
    board.start(rows.upload);
    let (since, allowed) = (Instant::now(), limit());
    let sent = within(allowed, store.put(&large, &[Bytes::from(content(UPLOAD))])).await;
    let mut names = vec![small];
    if sent
        .as_ref()
        .err()
        .map(Error::kind)
        .is_none_or(may_be_there)
    {
        names.push(large);
    }
    board.fill(rows.upload, upload(sent, since.elapsed(), allowed));
    delete(board, rows.delete, store, &names).await;
}

/// Whether an object can be there though the put of it has failed: without an answer, or acknowledged and not proven.
fn may_be_there(kind: Kind) -> bool {
    !matches!(kind, Kind::Denied | Kind::Invalid | Kind::NotFound)
}

/// Deletes objects of this check; those that stay are named.
async fn delete(board: &RowBoard, row: RowId, store: &Store, names: &[String]) {
    board.start(row);
    let (mut first, mut left) = (Ok(Deleted::Done), Vec::new());
    for name in names {
        let deleted = within(OPERATION, store.delete(name)).await;
        if !matches!(deleted, Ok(Deleted::Done)) {
            if left.is_empty() {
                first = deleted;
            }
            left.push(name.as_str());
        }
    }
    board.fill(row, deletion(first, &left));
}

/// The put of an object, and what has proven it.
fn proven_put(name: &str, proof: ObjectProof) -> String {
    let by = match proof {
        ObjectProof::Etag => "the ETag, an MD5".to_owned(),
        ObjectProof::Checksum(name) => format!("the store's {name}: the ETag is no MD5"),
        ObjectProof::Bytes => {
            "reading it, as each object that is written: no ETag or checksum of the store proves it"
                .to_owned()
        }
    };
    format!("{name} of {SMALL} bytes, proven by {by}")
}

/// Bytes that no line compresses.
fn content(len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

fn of_part(part: &Bytes, whole: &Bytes) -> Result<String> {
    match whole.get(1000..5000) == Some(&part[..]) {
        true => Ok("bytes 1000 to 4999 are those that were written".to_owned()),
        false => Err(Error::new(
            Kind::Corrupt,
            "the store returns other bytes than those that were written",
        )),
    }
}

/// A failure of a store as a row. A bucket that is missing or elsewhere says so itself.
fn refused(error: &Error, action: IamAction) -> RowFinding {
    let finding = RowFinding::of_error(error);
    if finding.fix.is_some() {
        return finding;
    }
    let fix = match error.kind() {
        Kind::Denied => refusal::advice(&finding.seen, action.name()),
        Kind::NotFound => "check the name of the bucket, and the Region and endpoint of the store".to_owned(),
        Kind::Invalid => "set the Region of the bucket (AWS_REGION; aws s3api get-bucket-location --bucket BUCKET), or the \
            endpoint of the store (AWS_ENDPOINT_URL_S3)"
            .to_owned(),
        Kind::Io | Kind::NoSpace => "look at the folder: df -h, ls -ld".to_owned(),
        _ => "the rows above say whether the store is reached; else try again".to_owned(),
    };
    finding.fixed_by(fix)
}

fn of_result(done: Result<String>, action: IamAction) -> RowFinding {
    match done {
        Ok(seen) => RowFinding::good(seen),
        Err(error) => refused(&error, action),
    }
}

/// The row of a conditional write.
fn creation(done: Result<Option<bool>>) -> RowFinding {
    match done {
        Ok(Some(true)) => RowFinding::good("a second creation of the same name is refused"),
        Ok(Some(false)) => RowFinding::warning(
            "the store ignores If-None-Match: of two runs that make one object at once, the last one wins",
            "write to the repository from one machine at a time, or use a store with conditional writes",
        ),
        Ok(None) => RowFinding::warning(
            "the store refuses If-None-Match: objects are created without it",
            "write to the repository from one machine at a time, or use a store with conditional writes",
        ),
        Err(error) => refused(&error, IamAction::PutObject),
    }
}

/// The row of an upload that took so long, of the time that it had.
fn upload(done: Result<()>, took: Duration, allowed: Duration) -> RowFinding {
    match done {
        Ok(()) => {
            let rate = UPLOAD as f64 / f64::from(1 << 20) / took.as_secs_f64().max(0.001);
            RowFinding::good(format!("8 MiB at {rate:.1} MiB/s, with the store's check"))
        }
        Err(error) if error.kind() == Kind::Unavailable && took >= allowed => RowFinding::warning(
            format!("8 MiB were not sent in {}", in_words(allowed)),
            "the line is slow: a sync works and takes long; --bandwidth shares it with others",
        ),
        Err(error) => refused(&error, IamAction::PutObject),
    }
}

/// The row of a deletion, and the names of what is left.
fn deletion(done: Result<Deleted>, left: &[&str]) -> RowFinding {
    let finding = match done {
        Ok(Deleted::Done) => RowFinding::good("the objects of this check are deleted"),
        Ok(Deleted::Locked(why)) => RowFinding::warning(
            format!("retention keeps objects: {why}"),
            "prune frees space only after the retention of the bucket: S3 console > BUCKET > Properties > Object Lock; delete \
             doctor/ then",
        ),
        Err(error) => refused(&error, IamAction::DeleteObject).unless_needed(false),
    };
    if left.is_empty() {
        return finding;
    }
    let seen = format!("{}; left there: {}", finding.seen, left.join(", "));
    RowFinding { seen, ..finding }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::row::RowState;

    #[test]
    fn what_a_store_does_with_a_write_is_good_warns_or_fails() {
        let denied = || Error::new(Kind::Denied, "AccessDenied");
        for (finding, state, words) in [
            (creation(Ok(Some(true))), RowState::Good, "is refused"),
            (
                creation(Ok(Some(false))),
                RowState::Warning,
                "ignores If-None-Match",
            ),
            (
                creation(Ok(None)),
                RowState::Warning,
                "refuses If-None-Match",
            ),
            (creation(Err(denied())), RowState::Failed, "AccessDenied"),
            (deletion(Ok(Deleted::Done), &[]), RowState::Good, "deleted"),
            (
                deletion(Ok(Deleted::Locked("hold".into())), &["doctor/a"]),
                RowState::Warning,
                "hold; left there: doctor/a",
            ),
            (
                deletion(Err(denied()), &["doctor/a", "doctor/b"]),
                RowState::Warning,
                "AccessDenied; left there: doctor/a, doctor/b",
            ),
            (
                upload(Ok(()), Duration::from_secs(4), OPERATION),
                RowState::Good,
                "2.0 MiB/s",
            ),
            (
                refused(&denied(), IamAction::PutObject),
                RowState::Failed,
                "AccessDenied",
            ),
        ] {
            assert_eq!(finding.state, state, "{finding:?}");
            assert!(finding.seen.contains(words), "{finding:?}");
        }
    }

    #[test]
    fn a_put_says_what_has_proven_it_and_a_listing_its_version() {
        for (proof, words) in [
            (ObjectProof::Etag, "by the ETag, an MD5"),
            (
                ObjectProof::Checksum("crc64nvme"),
                "by the store's crc64nvme: the ETag is no MD5",
            ),
            (ObjectProof::Bytes, "by reading it"),
        ] {
            assert!(proven_put("doctor/a", proof).contains(words), "{proof:?}");
        }
        assert_eq!(
            listing(3, Some(1)),
            "3 snapshots, between both fences, by version 1 of ListObjects"
        );
        assert_eq!(listing(0, None), "0 snapshots, between both fences");
        let certain = [Kind::Denied, Kind::Invalid, Kind::NotFound];
        assert!(!certain.into_iter().any(may_be_there));
        assert!(may_be_there(Kind::Unavailable) && may_be_there(Kind::Corrupt));
    }

    #[test]
    fn a_refusal_of_a_store_says_what_to_set() {
        for (kind, words) in [
            (Kind::Denied, "Who can deny s3:PutObject"),
            (Kind::NotFound, "name of the bucket"),
            (Kind::Invalid, "AWS_REGION"),
            (Kind::Unavailable, "rows above"),
        ] {
            let found = refused(&Error::new(kind, "x"), IamAction::PutObject);
            assert!(
                matches!(&found.fix, Some(Remedy::Do(fix)) if fix.contains(words)),
                "{found:?}"
            );
        }
        let bytes = Bytes::from(content(SMALL));
        assert!(of_part(&bytes.slice(1000..5000), &bytes).is_ok());
        assert!(of_part(&bytes.slice(1001..5001), &bytes).is_err());
    }
}
