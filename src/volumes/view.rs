//! [`VolumeView`]: a partition or a volume as a file: a name that is safe, and ranges of the disk. And which one a person means.

use std::collections::HashSet;
use std::io;

use super::{DiskFilesystem, DiskLayout, DiskPartition, LogicalVolume, ReadDisk};
use crate::error::{Error, Kind, Result};

/// Bytes of a name that comes from a disk, at most.
const MOST_NAME: usize = 64;
/// Partitions that a message lists, at most.
const MOST_SHOWN: usize = 20;
/// The file that is the whole disk.
pub(crate) const WHOLE_DISK: &str = "disk.raw";

/// Bytes of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteRange {
    /// From the start of the disk.
    pub(crate) start: u64,
    pub(crate) size: u64,
}

/// A partition or a linear volume, as a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeView {
    /// What messages call it.
    pub(crate) name: String,
    /// The name of its file in `partitions/`; `disk.raw` for the whole disk. No two views of a disk have the same.
    pub(crate) file: String,
    /// Its bytes, in their order.
    pub(crate) ranges: Vec<ByteRange>,
    /// What it holds; none before its contents are read.
    pub(crate) filesystem: Option<DiskFilesystem>,
    /// Names that select it, besides its file.
    aliases: Vec<String>,
    /// Whether it is taken where no partition is named, if it alone has a filesystem.
    is_usual: bool,
}

impl VolumeView {
    /// Bytes of the file.
    pub(crate) fn size(&self) -> u64 {
        self.ranges.iter().map(|range| range.size).sum()
    }

    /// A whole disk of 1 MiB.
    #[cfg(test)]
    pub(crate) fn of_whole(filesystem: DiskFilesystem) -> Self {
        Self {
            name: "the whole disk".to_owned(),
            file: WHOLE_DISK.to_owned(),
            ranges: vec![ByteRange {
                start: 0,
                size: 1 << 20,
            }],
            filesystem: Some(filesystem),
            aliases: Vec::new(),
            is_usual: true,
        }
    }

    fn has_filesystem(&self) -> bool {
        let held = self.filesystem.as_ref();
        held.is_some_and(|held| held.content.is_filesystem())
    }

    /// What it holds, in a word.
    fn content(&self) -> &'static str {
        let held = self.filesystem.as_ref();
        held.map_or("unknown", |held| held.content.name())
    }
}

/// Where an offset of a view is on the disk, and how many bytes of the view follow there without a gap; none at and beyond its end.
pub(crate) fn locate(ranges: &[ByteRange], offset: u64) -> Option<(u64, u64)> {
    let mut before = 0;
    for range in ranges {
        let within = offset - before;
        if within < range.size {
            return Some((range.start + within, range.size - within));
        }
        before += range.size;
    }
    None
}

/// Reads up to so many bytes of a view; fewer only at its end.
///
/// # Errors
/// Why the disk cannot be read.
pub(crate) fn read_view(
    read: ReadDisk<'_>,
    ranges: &[ByteRange],
    offset: u64,
    len: usize,
) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while bytes.len() < len
        && let Some((at, left)) = locate(ranges, offset.saturating_add(bytes.len() as u64))
    {
        let wanted = (len - bytes.len()).min(usize::try_from(left).unwrap_or(usize::MAX));
        let piece = read(at, wanted)?;
        if piece.is_empty() {
            break;
        }
        bytes.extend(piece);
    }
    Ok(bytes)
}

impl DiskLayout {
    /// What can be shown as files: partitions by number, then linear volumes of LVM.
    pub(crate) fn views(&self) -> Vec<VolumeView> {
        let partitions = self.partitions.iter().map(of_partition);
        let volumes = self.volumes.iter().filter_map(of_volume);
        let mut views: Vec<_> = partitions.chain(volumes).collect();
        let mut names = HashSet::new();
        for view in &mut views {
            let stem = view.file.clone();
            // At most as many tries as there are views.
            for copy in 2.. {
                if names.insert(view.file.clone()) {
                    break;
                }
                let short = stem.strip_suffix(".raw").unwrap_or(&stem);
                view.file = format!("{short}~{copy}.raw");
            }
        }
        views
    }

    /// The view that a person named by a number, a name, a label, a UUID, a file of `partitions/` or GROUP/VOLUME; without a name the
    /// only one with a filesystem, EFI system partitions left out.
    ///
    /// # Errors
    /// `Undecided` when several would do; `NotFound` when none does.
    pub(crate) fn select(&self, wanted: Option<&str>) -> Result<VolumeView> {
        let mut views = self.views();
        let Some(wanted) = wanted else {
            return self.usual(views);
        };
        if let Some(volume) = self.volumes.iter().find(|volume| volume.path() == wanted)
            && let Err(why) = &volume.ranges
        {
            let what = format!("cannot show the LVM volume {wanted}: {why}");
            return Err(Error::new(Kind::Invalid, what));
        }
        let number = wanted.parse::<u32>().ok();
        let matches = |view: &VolumeView| {
            view.file == wanted
                || view.file.strip_suffix(".raw") == Some(wanted)
                || view.aliases.iter().any(|alias| alias == wanted)
        };
        // A number is never a name: a partition that is called 2 must not hide the second one.
        let by_number = number.and_then(|number| {
            let mut partitions = self.partitions.iter();
            partitions.position(|partition| partition.number == number)
        });
        let mut found: Vec<VolumeView> = match (number, by_number) {
            (Some(_), Some(place)) => vec![views.swap_remove(place)],
            (Some(_), None) => Vec::new(),
            (None, _) => {
                views.retain(matches);
                views
            }
        };
        if found.len() > 1 {
            let what = format!(
                "cannot choose a partition: {} are called {wanted}; give one of {}",
                found.len(),
                names_of(&found)
            );
            return Err(Error::new(Kind::Undecided, what));
        }
        found.pop().ok_or_else(|| {
            let what = format!(
                "cannot find the partition {wanted}; this disk has {}",
                names_of(&self.views())
            );
            Error::new(Kind::NotFound, what)
        })
    }

    /// The only view with a filesystem.
    fn usual(&self, views: Vec<VolumeView>) -> Result<VolumeView> {
        let all = names_of(&views);
        let (mut found, rest): (Vec<_>, Vec<_>) =
            views.into_iter().partition(VolumeView::has_filesystem);
        if found.iter().any(|view| view.is_usual) {
            found.retain(|view| view.is_usual);
        }
        if found.len() > 1 {
            let what = format!(
                "cannot choose a partition: several have a filesystem; give one of {}",
                names_of(&found)
            );
            return Err(Error::new(Kind::Undecided, what));
        }
        found.pop().ok_or_else(|| {
            let advice = rest.iter().find_map(|view| {
                let advice = view.filesystem.as_ref()?.content.advice()?;
                Some(format!("{}: {advice}", view.name))
            });
            let damage = self.damage.first().cloned();
            let why = match damage.or(advice) {
                Some(why) => why,
                None if all.is_empty() => "its table has no partition".to_owned(),
                None => format!("this disk has {all}"),
            };
            Error::new(Kind::NotFound, format!("cannot find a filesystem: {why}"))
        })
    }
}

impl LogicalVolume {
    /// What people call it.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }
}

/// Views by name and content, for a message.
fn names_of(views: &[VolumeView]) -> String {
    let shown = views.iter().take(MOST_SHOWN);
    let mut named: Vec<_> = shown
        .map(|view| format!("{} ({})", view.name, view.content()))
        .collect();
    if let Some(more) = views.len().checked_sub(MOST_SHOWN).filter(|more| *more > 0) {
        named.push(format!("and {more} more"));
    }
    named.join(", ")
}

fn of_partition(partition: &DiskPartition) -> VolumeView {
    let label = partition.filesystem.as_ref().map(|held| &held.label);
    let label = label.map(|label| [label.label.clone(), label.uuid.clone()]);
    let mut aliases: Vec<String> = label.into_iter().flatten().flatten().collect();
    aliases.extend(partition.uuid.clone());
    aliases.extend(Some(partition.name.clone()).filter(|name| !name.is_empty()));
    let (name, file) = match partition.number {
        0 => ("the whole disk".to_owned(), WHOLE_DISK.to_owned()),
        number => (
            match partition.name.as_str() {
                "" => number.to_string(),
                name => format!("{number}-{}", safe_name(name)),
            },
            format!("{number}-{}.raw", stem_of(partition)),
        ),
    };
    VolumeView {
        name,
        file,
        ranges: vec![partition.range()],
        filesystem: partition.filesystem.clone(),
        aliases,
        is_usual: !partition.is_efi_system(),
    }
}

/// A linear volume; none of any other.
fn of_volume(volume: &LogicalVolume) -> Option<VolumeView> {
    let ranges = volume.ranges.as_ref().ok()?.clone();
    // As device-mapper does it: a dash in a name is doubled, so that two different pairs of names differ.
    let dashed = |name: &str| name.replace('-', "--");
    let file = format!(
        "{}-{}-{}.raw",
        volume.partition,
        safe_name(&dashed(&volume.group)),
        safe_name(&dashed(&volume.name))
    );
    let label = volume.filesystem.as_ref().map(|held| &held.label);
    let label = label.map(|label| [label.label.clone(), label.uuid.clone()]);
    let mut aliases: Vec<String> = label.into_iter().flatten().flatten().collect();
    aliases.push(volume.path());
    aliases.extend(volume.uuid.clone());
    Some(VolumeView {
        name: volume.path(),
        file,
        ranges,
        filesystem: volume.filesystem.clone(),
        aliases,
        is_usual: true,
    })
}

/// The name of a partition's file, without its number: its name, else what the table says that it is for.
fn stem_of(partition: &DiskPartition) -> String {
    match safe_name(&partition.name) {
        name if !name.is_empty() => name,
        _ if partition.is_efi_system() => "EFI".to_owned(),
        _ => partition.kind.name.to_owned(),
    }
}

/// A name without anything that a path, a shell or a terminal could misread: letters and digits of any script, `.`, `_`, `+` and
/// `-` stay, each other character becomes `_`.
fn safe_name(name: &str) -> String {
    let mut safe = String::new();
    for c in name.chars() {
        let c = match c {
            c if c.is_alphanumeric() || "._+-".contains(c) => c,
            _ => '_',
        };
        if safe.len() + c.len_utf8() > MOST_NAME {
            break;
        }
        safe.push(c);
    }
    safe
}

#[cfg(test)]
mod tests;
