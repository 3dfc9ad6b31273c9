//! [`MetricsFile`]: metrics as a file for the textfile collector of node_exporter.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::Metric;
use super::text::render;
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::{AtomicFile, read_ours};

/// What node_exporter reads of a directory.
const ENDING: &str = "prom";
/// The label that tells the files of one directory from each other: node_exporter refuses two equal values.
const LABEL: &str = "name";

/// A file of metrics.
#[derive(Clone, Debug)]
pub(crate) struct MetricsFile {
    path: PathBuf,
    /// Its name without the ending.
    name: String,
}

impl MetricsFile {
    /// A file at this path, which can be written. Nothing is changed yet.
    ///
    /// # Errors
    /// `Invalid` where node_exporter would not read it, or something else than a regular file is there; what the system says.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let is_read = path.extension().is_some_and(|ending| ending == ENDING);
        let name = path.file_stem().and_then(|name| name.to_str());
        let Some(name) = name.filter(|_| is_read) else {
            let what = format!(
                "cannot write metrics to {}: node_exporter reads only files whose names end with .{ENDING}",
                path.display()
            );
            let error = Error::new(Kind::Invalid, what);
            return Err(error.with_remedy(Remedy::Do(format!("name a file like backup.{ENDING}"))));
        };
        drop(AtomicFile::create(path)?);
        Ok(Self {
            path: path.to_owned(),
            name: name.to_owned(),
        })
    }

    /// The values that the file has for metrics without labels of their own; none where it is absent or not ours.
    pub(crate) fn earlier(&self, names: &[&'static str]) -> Vec<(&'static str, f64)> {
        let bytes = read_ours(&self.path).ok().flatten().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let found = names.iter().map(|name| Some((*name, value(&text, name)?)));
        found.flatten().collect()
    }

    /// Replaces the file whole or not at all. Other users can read it: node_exporter runs as one of them.
    ///
    /// # Errors
    /// What the system says: then the old file stands.
    pub(crate) fn write(&self, metrics: Vec<Metric>) -> Result<()> {
        let text = render(metrics, Some((LABEL, self.name.clone())));
        let mut file = AtomicFile::create(&self.path)?.readable_by_all()?;
        file.write_all(text.as_bytes())
            .map_err(|error| Error::of_file(&self.path, "cannot write", error))?;
        file.commit()
    }
}

/// The first value of a metric in a text.
fn value(text: &str, name: &str) -> Option<f64> {
    let mut lines = text.lines();
    let rest = lines.find_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with(['{', ' ']).then_some(rest)
    })?;
    let (_, value) = rest.rsplit_once(' ')?;
    let value: f64 = value.parse().ok()?;
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::metrics::gauge;

    #[test]
    fn a_file_is_replaced_whole_and_its_values_are_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nightly db.prom");
        let file = MetricsFile::new(&path).unwrap();
        assert!(!path.exists());
        assert!(file.earlier(&["ebsfs_a"]).is_empty());
        for value in [1_782_820_800.25, 2.0] {
            file.write(vec![
                gauge("ebsfs_ab", "x", 9.0),
                gauge("ebsfs_a", "x", value),
            ])
            .unwrap();
            assert_eq!(file.earlier(&["ebsfs_a", "ebsfs_c"]), [("ebsfs_a", value)]);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("ebsfs_a{name=\"nightly db\"} 2"), "{text}");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_node_exporter_would_not_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("link.prom")).unwrap();
        for name in ["a", "a.txt", ".prom", "link.prom"] {
            let error = MetricsFile::new(&folder.path().join(name)).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{name}");
        }
        let error = MetricsFile::new(&folder.path().join("absent/a.prom")).unwrap_err();
        assert_eq!(error.kind(), Kind::Io);
    }

    #[test]
    fn a_value_is_found_by_its_whole_name() {
        for (text, found) in [
            ("a_b 1\na 2\n", Some(2.0)),
            ("a{name=\"x y\"} 3.5\n", Some(3.5)),
            ("# HELP a x 4\na NaN\n", None),
            ("a{", None),
            ("a 1e400\n", None),
            ("", None),
        ] {
            assert_eq!(value(text, "a"), found, "{text:?}");
        }
    }
}
