//! Finds the snapshot of a repository that a person names: `latest`, an id, a volume, or a volume at a time.

use std::collections::BTreeSet;
use std::time::SystemTime;

use super::catalog::RepositoryCatalog;
use super::manifest::ManifestName;
use crate::error::{Error, Kind, Result};
use crate::target::VolumeKey;

/// Volumes that an error lists.
const LISTED: usize = 8;

/// What a person named.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selection<'a> {
    pub(super) what: &'a str,
    /// The last snapshot up to this time.
    pub(super) until: Option<SystemTime>,
}

impl<'a> Selection<'a> {
    pub(super) fn read(text: &'a str) -> Result<Self> {
        let (what, until) = match text.split_once('@') {
            Some((what, time)) => (what, Some(instant(time)?)),
            None => (text, None),
        };
        Ok(Self { what, until })
    }

    fn is_before(&self, name: &ManifestName) -> bool {
        self.until.is_none_or(|until| name.time <= until)
    }

    /// The newest of `names`, sorted by time, that an id or a volume's key selects, or `latest` where all are of one volume.
    fn choose<'n>(&self, names: &'n [ManifestName]) -> Result<Option<&'n ManifestName>> {
        if self.what == "latest" {
            one_volume(names, "cannot tell which volume's latest snapshot is meant")?;
        }
        let is_meant = |name: &&ManifestName| {
            self.what == "latest"
                || name.snapshot.as_str() == self.what
                || name.volume.as_str() == self.what
        };
        let mut names = names.iter().filter(|name| self.is_before(name));
        Ok(names.rfind(is_meant))
    }
}

/// Refuses snapshots that are, or may be, of several volumes.
fn one_volume(names: &[ManifestName], cannot: &str) -> Result<()> {
    let keys: BTreeSet<&VolumeKey> = names.iter().map(|name| &name.volume).collect();
    // Snapshots of unknown volumes may be of several.
    let is_one = keys.len() < 2 && !(names.len() > 1 && keys.iter().any(|key| key.is_unknown()));
    if is_one {
        return Ok(());
    }
    let mut listed: Vec<String> = keys.iter().map(|key| format!("#{key}")).collect();
    if listed.len() > LISTED {
        let more = listed.len() - LISTED;
        listed.truncate(LISTED);
        listed.push(format!("{more} more"));
    }
    let what = format!("{cannot}: name one of {}", listed.join(", "));
    Err(Error::new(Kind::Invalid, what))
}

impl RepositoryCatalog {
    /// The snapshot that `latest`, an id, a volume, or `VOLUME@TIME` (the last one until then) names. A volume is named by its
    /// key, else by what its manifests call it: a volume's id or a path. `latest` is refused where there are several volumes.
    ///
    /// # Errors
    /// `NotFound` when none does, `Invalid` when it names nothing or snapshots of several volumes.
    pub(crate) async fn find(&self, select: &str) -> Result<ManifestName> {
        let selection = Selection::read(select)?;
        let names = match selection.what {
            "latest" => self.proven_names(None).await?,
            what => {
                let names = self.names().await?;
                // An id needs no complete listing; the newest of a volume does.
                let of_id = names.iter().any(|name| name.snapshot.as_str() == what);
                match names.iter().find(|name| name.volume.as_str() == what) {
                    Some(name) if !of_id => self.proven_names(Some(&name.volume)).await?,
                    _ => names,
                }
            }
        };
        let within = |error: Error| error.context(self.store().address().to_string());
        if let Some(name) = selection.choose(&names).map_err(within)? {
            return Ok(name.clone());
        }
        let is_path = !selection.what.is_empty() && selection.what != "latest";
        if is_path && let Some(name) = self.find_by_text(&names, &selection).await? {
            return Ok(name);
        }
        let what = format!(
            "{} has no snapshot {select:?}: latest, an id, VOLUME and VOLUME@TIME name one (ebsfs repository ls)",
            self.store().address()
        );
        Err(Error::new(Kind::NotFound, what))
    }

    /// The newest snapshot whose manifest has this volume name: the path of an image or device, or the id of a volume that has
    /// another key.
    async fn find_by_text(
        &self,
        names: &[ManifestName],
        selection: &Selection<'_>,
    ) -> Result<Option<ManifestName>> {
        let is_its = |manifest: super::Manifest| manifest.volume.as_deref() == Some(selection.what);
        let read = self.manifests(names.to_vec(), is_its).await?;
        // The volume of a damaged manifest is unknown.
        let its = read
            .into_iter()
            .filter(|(_, is_its)| matches!(is_its, Ok(true)));
        let its: Vec<ManifestName> = its.map(|(name, _)| name).collect();
        let cannot = format!(
            "{} has several volumes {:?}",
            self.store().address(),
            selection.what
        );
        one_volume(&its, &cannot)?;
        Ok(its.into_iter().rfind(|name| selection.is_before(name)))
    }
}

/// A time as people write it: `2026-06-30T12:00:00Z`, `2026-06-30T12:00Z` or `2026-06-30`, which is its end.
fn instant(text: &str) -> Result<SystemTime> {
    let forms = [
        text.to_owned(),
        text.replace('Z', ":59.999Z"),
        format!("{text}T23:59:59.999Z"),
    ];
    let read = forms
        .iter()
        .find_map(|form| humantime::parse_rfc3339(form).ok());
    read.ok_or_else(|| {
        let what = format!("{text:?} is no time: write 2026-06-30T12:00Z or 2026-06-30");
        Error::new(Kind::Invalid, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<ManifestName> {
        let mut names: Vec<ManifestName> = texts.iter().map(|text| text.parse().unwrap()).collect();
        names.sort();
        names
    }

    fn chosen(names: &[ManifestName], text: &str) -> Result<Option<String>> {
        let found = Selection::read(text)?.choose(names)?;
        Ok(found.map(|name| name.snapshot.to_string()))
    }

    #[test]
    fn latest_needs_a_volume_where_there_are_several() {
        let one = names(&[
            "20260101T000000000Z.vol-0a.snap-01",
            "20260102T000000000Z.vol-0a.snap-02",
        ]);
        assert_eq!(chosen(&one, "latest").unwrap().as_deref(), Some("snap-02"));
        assert_eq!(
            chosen(&one, "latest@2026-01-01").unwrap().as_deref(),
            Some("snap-01")
        );
        assert_eq!(chosen(&[], "latest").unwrap(), None);
        let two = names(&[
            "20260101T000000000Z.vol-0a.snap-01",
            "20260102T000000000Z.web.snap-02",
            "20260103T000000000Z.unknown.snap-03",
        ]);
        for select in ["latest", "latest@2026-01-01"] {
            let error = chosen(&two, select).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.chain().contains("#unknown, #vol-0a, #web"), "{error}");
        }
        assert_eq!(chosen(&two, "web").unwrap().as_deref(), Some("snap-02"));
        assert_eq!(chosen(&two, "snap-01").unwrap().as_deref(), Some("snap-01"));
        assert_eq!(chosen(&two, "/srv/a.raw").unwrap(), None);
        // Snapshots of unknown volumes may be of several.
        let unknown = names(&[
            "20260101T000000000Z.unknown.snap-01",
            "20260102T000000000Z.unknown.snap-02",
        ]);
        assert_eq!(
            chosen(&unknown, "latest").unwrap_err().kind(),
            Kind::Invalid
        );
        assert!(chosen(&unknown[..1], "latest").unwrap().is_some());
    }

    #[test]
    fn a_time_may_omit_its_small_units() {
        let at = |text| crate::time::rfc3339_seconds(instant(text).unwrap());
        assert_eq!(at("2026-06-30T12:00:07Z"), "2026-06-30T12:00:07Z");
        assert_eq!(at("2026-06-30T12:00Z"), "2026-06-30T12:00:59Z");
        assert_eq!(at("2026-06-30"), "2026-06-30T23:59:59Z");
        assert!(instant("yesterday").is_err());
    }
}
