//! [`TargetCheck`]: a whole target read and compared, with the digests that were kept when it was written or with a snapshot.
//! Neither the target nor its record is changed.

use std::sync::Arc;

use super::digests::Digests;
use super::files::StateFiles;
use super::lock::Locks;
use super::observe::recorded_digests;
use super::record;
use super::source::Source;
use super::verify::{self, DigestRequest, ImageDigests};
use crate::block::{BlockSet, Geometry};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::blocking;
use crate::progress::Progress;
use crate::target::{Content, Mark, Stop, Target, TargetRecord};

/// What a target is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CheckBasis {
    /// The digests of the run that wrote it. Nothing outside this machine is asked.
    Digests,
    /// This snapshot or image, as the record or a person names it.
    Source(String),
}

/// A locked target: no run changes it until this is dropped.
pub(crate) struct TargetCheck {
    target: Arc<dyn Target>,
    record: Option<TargetRecord>,
    digests: Option<Digests>,
    progress: Arc<Progress>,
    stop: Stop,
    _locks: Locks,
}

impl std::fmt::Debug for TargetCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TargetCheck({})", self.target.name())
    }
}

/// What a check found.
#[derive(Clone, Debug)]
pub(crate) struct CheckReport {
    /// The target as a person writes it.
    pub(crate) target: String,
    /// The snapshot or image that the target ought to hold.
    pub(crate) snapshot: String,
    /// Whether its kept digests were compared, and not the snapshot itself.
    pub(crate) by_digests: bool,
    /// Bytes of the volume.
    pub(crate) bytes: u64,
    /// Blocks that the record lists as left zero because their source is damaged.
    pub(crate) damaged_blocks: u64,
    /// How many more are zero because they are so in the source. No list says which.
    pub(crate) damaged_in_source: u64,
    geometry: Geometry,
    differing: BlockSet,
    /// Bytes that an image has beyond the end of the volume.
    surplus: u64,
}

impl CheckReport {
    /// What differs, as (offset, length) in bytes, ascending: whole blocks of 512 KiB, and what lies behind the volume's end.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + use<'_> {
        let behind = (self.surplus > 0).then_some((self.bytes, self.surplus));
        verify::ranges(&self.differing, self.geometry).chain(behind)
    }

    /// Blocks that differ.
    pub(crate) fn differing_blocks(&self) -> u64 {
        self.differing.len()
    }

    /// Whether nothing differs.
    pub(crate) fn is_equal(&self) -> bool {
        self.differing.is_empty() && self.surplus == 0
    }

    /// What the check ends with.
    ///
    /// # Errors
    /// `Corrupt` when anything differs.
    pub(crate) fn result(&self) -> Result<()> {
        let (target, snapshot) = (&self.target, &self.snapshot);
        let what = match (self.differing.is_empty(), self.surplus) {
            (true, 0) => return Ok(()),
            (true, surplus) => format!(
                "cannot verify {target}: it has {surplus} bytes behind the end of {snapshot}"
            ),
            (false, _) => format!(
                "cannot verify {target}: {} differ from {snapshot}",
                verify::describe(&self.differing, self.geometry)
            ),
        };
        Err(Error::new(Kind::Corrupt, what))
    }
}

impl TargetCheck {
    /// Locks a target and reads what is recorded of it.
    ///
    /// # Errors
    /// `Busy` while a run works on it; `Stopped`; the system's error.
    pub(crate) async fn begin(
        target: Arc<dyn Target>,
        progress: Arc<Progress>,
        stop: Stop,
    ) -> Result<Self> {
        progress.begin(format!("looking at {}", target.name()), 0);
        let (its, stopped) = (Arc::clone(&target), stop.clone());
        let look = blocking(move || {
            let files = StateFiles::of(&its.state().stem);
            let locks = Locks::take_to_read(&files.lock(), &its.locks()?, &stopped)?;
            let record = record::load(&files.record(), None)?;
            let record = record.filter(|record| record.target == its.id());
            let digests = recorded_digests(&files, record.as_ref(), true)?;
            Ok((locks, record, digests.filter(Digests::is_whole)))
        });
        let (locks, record, digests) = stop.unless(look).await?;
        Ok(Self {
            target,
            record,
            digests,
            progress,
            stop,
            _locks: locks,
        })
    }

    /// What the target is to be compared with. `asked` is the snapshot that a person named, as records name it; `fetches`
    /// whether the snapshot itself is read.
    ///
    /// # Errors
    /// `Undecided` when the record does not say that the target holds that, or when there are no digests to compare.
    pub(crate) fn basis(&self, asked: Option<&str>, fetches: bool) -> Result<CheckBasis> {
        let has_digests = self.digests.is_some();
        let name = self.target.name();
        basis(name, self.record.as_ref(), has_digests, asked, fetches)
    }

    /// Compares the target with its digests.
    ///
    /// # Errors
    /// `Undecided` when some block has no digest, or when something else wrote the target meanwhile; `Corrupt`
    /// when the target is shorter than the volume; `Stopped`; why something cannot be read.
    pub(crate) async fn with_digests(&self) -> Result<CheckReport> {
        let held = self.record.as_ref().and_then(TargetRecord::held);
        let (Some(digests), Some(held)) = (&self.digests, held) else {
            return Err(no_digests(self.target.name(), held.unwrap_or_default()));
        };
        let geometry = digests.geometry();
        let (reader, before) = self.open(geometry).await?;
        let none = BlockSet::new();
        let reach = |blocks| self.progress.reach(blocks);
        let compared = verify::compare(reader, digests, &none, None, &reach, &self.stop).await?;
        let report = self.report(held, true, geometry, compared.differing, before.as_ref());
        if compared.unknown > 0 && report.is_equal() {
            let what = format!(
                "cannot verify {}: {} of its blocks have no digest; the others are equal",
                self.target.name(),
                compared.unknown
            );
            let remedy = Remedy::Fetch(Some(held.to_owned()));
            return Err(Error::new(Kind::Undecided, what).with_remedy(remedy));
        }
        self.unchanged(report, before).await
    }

    /// Compares the target with a snapshot or image.
    ///
    /// # Errors
    /// As for [`TargetCheck::with_digests`].
    pub(crate) async fn with_source(&self, source: &Source) -> Result<CheckReport> {
        let geometry = source.info.geometry;
        let (reader, before) = self.open(geometry).await?;
        let blocks = Arc::clone(&source.blocks);
        let reach = |blocks| self.progress.reach(blocks);
        let compared = verify::compare_sources(reader, blocks, &reach, &self.stop);
        let differing = compared.await?;
        if source.has_changed() {
            let what = format!(
                "cannot verify {}: {} was written while it was read",
                self.target.name(),
                source.info.name
            );
            return Err(Error::new(Kind::Undecided, what).with_remedy(Remedy::TryLater));
        }
        let report = self.report(
            &source.info.name,
            false,
            geometry,
            differing,
            before.as_ref(),
        );
        self.unchanged(report, before).await
    }

    /// Opens the target past the page cache, with its mark.
    async fn open(
        &self,
        geometry: Geometry,
    ) -> Result<(Arc<dyn crate::source::BlockSource>, Option<Mark>)> {
        let name = self.target.name();
        let before = self.mark().await?;
        if let Some(Mark::Image(image)) = &before
            && self.target.is_raw()
            && image.size < geometry.size()
        {
            let what = format!(
                "cannot verify {name}: it has {} bytes, the volume {}",
                image.size,
                geometry.size()
            );
            return Err(Error::new(Kind::Corrupt, what));
        }
        let reader = self.stop.unless(self.target.reader(None, geometry)).await?;
        let blocks = u64::from(geometry.block_count());
        self.progress.begin(format!("verifying {name}"), blocks);
        Ok((reader, before))
    }

    async fn mark(&self) -> Result<Option<Mark>> {
        let target = Arc::clone(&self.target);
        self.stop.unless(blocking(move || target.mark())).await
    }

    fn report(
        &self,
        snapshot: &str,
        by_digests: bool,
        geometry: Geometry,
        differing: BlockSet,
        mark: Option<&Mark>,
    ) -> CheckReport {
        let damaged = self.record.iter().flat_map(|record| &record.damaged);
        let surplus = match mark {
            Some(Mark::Image(image)) if self.target.is_raw() => {
                image.size.saturating_sub(geometry.size())
            }
            _ => 0,
        };
        CheckReport {
            target: self.target.name().to_owned(),
            snapshot: snapshot.to_owned(),
            by_digests,
            bytes: geometry.size(),
            damaged_blocks: damaged
                .map(|(first, end)| u64::from(end.saturating_sub(*first)))
                .sum(),
            damaged_in_source: self
                .record
                .as_ref()
                .map_or(0, |record| record.damaged_in_source),
            geometry,
            differing,
            surplus,
        }
    }

    /// Equal is only what nothing wrote while it was read.
    async fn unchanged(&self, report: CheckReport, before: Option<Mark>) -> Result<CheckReport> {
        if report.is_equal() && self.mark().await? != before {
            let name = self.target.name();
            let what = format!("cannot verify {name}: something else wrote it while it was read");
            return Err(Error::new(Kind::Undecided, what).with_remedy(Remedy::TryLater));
        }
        Ok(report)
    }
}

/// The digests of a whole source, without a copy of it; each block that it holds is read once.
///
/// # Errors
/// `Corrupt` when the source was written meanwhile; `Stopped`; why a block cannot be read; what `request` says of a block.
pub(crate) async fn source_digest(
    source: &Source,
    request: DigestRequest<'_>,
    progress: &Progress,
    stop: &Stop,
) -> Result<ImageDigests> {
    let name = &source.info.name;
    let blocks = u64::from(source.info.geometry.block_count());
    progress.begin(format!("reading {name}"), blocks);
    let reach = |blocks| progress.reach(blocks);
    let digests = verify::digest_with(&*source.blocks, request, &reach, stop).await?;
    if source.has_changed() {
        let what = format!("cannot digest {name}: it was written while it was read");
        return Err(Error::new(Kind::Corrupt, what));
    }
    Ok(digests)
}

/// [`TargetCheck::basis`] as a pure function.
fn basis(
    name: &str,
    record: Option<&TargetRecord>,
    has_digests: bool,
    asked: Option<&str>,
    fetches: bool,
) -> Result<CheckBasis> {
    let refused = |why: String, remedy| {
        let what = format!("cannot verify {name}: {why}");
        Err(Error::new(Kind::Undecided, what).with_remedy(remedy))
    };
    let content = record.map(|record| &record.content);
    if let Some(Content::Between { base, head }) = content {
        let base = base.as_deref().unwrap_or("something unknown");
        let why = format!("it is between {base} and {head}, an unfinished copy");
        let finish = format!("finish the copy of {head} first");
        return refused(why, Remedy::Do(finish));
    }
    let held = record.and_then(TargetRecord::held);
    match (held, asked, fetches) {
        (_, Some(asked), true) => Ok(CheckBasis::Source(asked.to_owned())),
        (Some(held), None, true) => Ok(CheckBasis::Source(held.to_owned())),
        (None, asked, _) => {
            let why = "content unknown (no record)".to_owned();
            refused(why, Remedy::Fetch(asked.map(str::to_owned)))
        }
        (Some(held), Some(asked), false) if held != asked => {
            let why = format!("its record says that it holds {held}, not {asked}");
            refused(why, Remedy::Fetch(Some(asked.to_owned())))
        }
        (Some(held), _, false) => match has_digests {
            true => Ok(CheckBasis::Digests),
            false => Err(no_digests(name, held)),
        },
    }
}

fn no_digests(name: &str, held: &str) -> Error {
    let what = format!("cannot verify {name}: no digests of all its blocks were kept");
    let remedy = Remedy::Fetch(Some(held.to_owned()));
    Error::new(Kind::Undecided, what).with_remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(content: Content) -> TargetRecord {
        TargetRecord {
            run: "1".into(),
            target: "file:/a".into(),
            content,
            volume: None,
            volume_bytes: 1,
            mark: None,
            time: None,
            replica: None,
            damaged: Vec::new(),
            damaged_in_source: 0,
            is_old_format: false,
            report: serde_json::Value::Null,
        }
    }

    #[test]
    fn a_check_compares_with_the_recorded_or_the_named_snapshot() {
        let holds = record(Content::Holds("snap-a".into()));
        let between = record(Content::Between {
            base: None,
            head: "snap-b".into(),
        });
        let source = |name: &str| Ok(CheckBasis::Source(name.to_owned()));
        let refused = |words: &'static str, remedy: Option<Option<&str>>| {
            Err((words, remedy.map(|name| name.map(str::to_owned))))
        };
        let (a, b) = (Some("snap-a"), Some("snap-b"));
        // Record, digests, asked, fetches.
        let rows = [
            (Some(&holds), true, None, false, Ok(CheckBasis::Digests)),
            (Some(&holds), true, a, false, Ok(CheckBasis::Digests)),
            (Some(&holds), true, None, true, source("snap-a")),
            (Some(&holds), false, a, true, source("snap-a")),
            (Some(&holds), true, b, true, source("snap-b")),
            (Some(&holds), true, b, false, refused("not snap-b", Some(b))),
            (
                Some(&holds),
                false,
                None,
                false,
                refused("no digests", Some(a)),
            ),
            (
                Some(&holds),
                false,
                a,
                false,
                refused("no digests", Some(a)),
            ),
            (None, false, None, false, refused("no record", Some(None))),
            (None, false, None, true, refused("no record", Some(None))),
            (None, false, a, false, refused("no record", Some(a))),
            (None, false, a, true, source("snap-a")),
            (Some(&between), true, None, false, refused("between", None)),
            (Some(&between), true, b, true, refused("between", None)),
        ];
        for (record, digests, asked, fetches, wanted) in rows {
            let found = basis("/a", record, digests, asked, fetches);
            match (found, wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, wanted),
                (Err(error), Err((words, remedy))) => {
                    assert_eq!(error.kind(), Kind::Undecided);
                    assert!(error.chain().contains(words), "{error:?}");
                    if let Some(remedy) = remedy {
                        assert_eq!(error.remedy(), Some(&Remedy::Fetch(remedy)));
                    }
                }
                (found, wanted) => panic!("{asked:?} {fetches}: {found:?}, not {wanted:?}"),
            }
        }
    }
}
