//! Which target belongs to which volume. A target of a job is a template; what each volume makes of it is decided here, and no two
//! volumes get one image or device.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use super::job::JobTarget;
use crate::error::{Error, Kind, Result};
use crate::repository::Address;

/// What a template can name: the volume's id, and the id of the instance that it is attached to.
const NAMES: [&str; 2] = ["volume", "instance"];

/// A volume of a cycle.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CycleVolume {
    /// Its id.
    pub(crate) id: String,
    /// The instance whose set it is in.
    pub(crate) instance: Option<String>,
}

/// A target of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AssignedTarget {
    /// Which of the job's targets it is made of.
    pub(crate) number: usize,
    /// Its name.
    pub(crate) name: String,
}

/// A target that is left out, or is missing.
#[derive(Debug)]
pub(super) struct AssignmentProblem {
    /// The volumes that it would be for.
    pub(crate) volumes: BTreeSet<String>,
    /// What is wrong.
    pub(crate) error: Error,
}

impl AssignmentProblem {
    fn new<'a>(volumes: impl IntoIterator<Item = &'a str>, what: String) -> Self {
        Self {
            volumes: volumes.into_iter().map(str::to_owned).collect(),
            error: Error::new(Kind::Invalid, what),
        }
    }
}

/// The targets of all volumes.
#[derive(Debug, Default)]
pub(super) struct Assignment {
    /// Each volume with its targets.
    pub(crate) volumes: BTreeMap<String, Vec<AssignedTarget>>,
    /// Volumes without a target, and targets that more than one volume would have: these are left out.
    pub(crate) problems: Vec<AssignmentProblem>,
    /// Volumes of which a target was left out: it may hold any of their snapshots.
    pub(crate) incomplete: BTreeSet<String>,
}

/// Whether a name is of something that many volumes can share: a repository, an account and Region.
pub(crate) fn is_shared(name: &str) -> bool {
    name.starts_with("ebs:") || Address::looks_like(name)
}

/// Whether a target is written for all volumes of a job: its name is another one for each.
pub(super) fn is_for_each(template: &str) -> bool {
    is_shared(template) || template.contains("{volume}")
}

/// Checks a template.
///
/// # Errors
/// `Invalid` when it names something unknown, or is a relative path.
pub(super) fn check(template: &str) -> Result<()> {
    let refused = |why: &str| {
        let what = format!("cannot use the target {template:?}: {why}");
        Err(Error::new(Kind::Invalid, what))
    };
    let mut rest = template;
    while let Some((_, behind)) = rest.split_once('{') {
        let Some((name, after)) = behind.split_once('}') else {
            return refused("it has a { without its }");
        };
        if !NAMES.contains(&name) {
            return refused(&format!(
                "{{{name}}} is unknown; {{volume}} and {{instance}} are known"
            ));
        }
        rest = after;
    }
    if rest.contains('}') {
        return refused("it has a } without its {");
    }
    if !is_shared(template) && !Path::new(template).is_absolute() {
        return refused(
            "it is neither an absolute path nor ebs:REGION nor the address of a repository",
        );
    }
    Ok(())
}

/// The name that a volume makes of a template; none where it needs an instance and there is none.
fn name_of(template: &str, volume: &CycleVolume) -> Option<String> {
    let name = template.replace("{volume}", &volume.id);
    if !name.contains("{instance}") {
        return Some(name);
    }
    Some(name.replace("{instance}", volume.instance.as_deref()?))
}

/// Gives each volume its targets. All volumes of the job are needed for that, those too that are not copied now.
pub(super) fn assign(targets: &[JobTarget], volumes: &BTreeSet<CycleVolume>) -> Assignment {
    let mut assignment = Assignment::default();
    let mut owners: BTreeMap<PathBuf, BTreeSet<&str>> = BTreeMap::new();
    for volume in volumes {
        let its = assignment.volumes.entry(volume.id.clone()).or_default();
        for (number, target) in targets.iter().enumerate() {
            let is_named = target.volumes.contains(&volume.id);
            // A disk of a fixed name is for the volume that it names, or for the only one that there is.
            let is_only = is_for_each(&target.to) || volumes.len() == 1;
            if !(is_named || target.volumes.is_empty() && is_only) {
                continue;
            }
            let Some(name) = name_of(&target.to, volume) else {
                let what = format!(
                    "cannot replicate {} to {}: it is attached to no instance",
                    volume.id, target.to
                );
                let problem = AssignmentProblem::new([&*volume.id], what);
                assignment.problems.push(problem);
                assignment.incomplete.insert(volume.id.clone());
                continue;
            };
            if !is_shared(&name) {
                let path = plain_path(&name);
                owners.entry(path).or_default().insert(&volume.id);
            }
            its.push(AssignedTarget { number, name });
        }
        if its.is_empty() {
            assignment.incomplete.insert(volume.id.clone());
            let what = format!("cannot replicate {}: no target is for it", volume.id);
            let problem = AssignmentProblem::new([&*volume.id], what);
            assignment.problems.push(problem);
        }
    }
    for (path, owners) in owners.iter().filter(|(_, owners)| owners.len() > 1) {
        let all: Vec<&str> = owners.iter().copied().collect();
        let ids = all.iter().map(|id| (*id).to_owned());
        assignment.incomplete.extend(ids);
        let what = format!(
            "cannot replicate {} to {}: it can hold one volume",
            all.join(" and "),
            path.display()
        );
        assignment.problems.push(AssignmentProblem::new(all, what));
    }
    for its in assignment.volumes.values_mut() {
        let mut seen = BTreeSet::new();
        its.retain(|target| {
            let is_free = || {
                owners
                    .get(&plain_path(&target.name))
                    .is_none_or(|all| all.len() == 1)
            };
            // The same name twice for one volume is one target.
            is_free() && seen.insert(target.name.clone())
        });
    }
    assignment
}

/// A path without what does not change where it leads. Links are not followed: [`crate::sync`] locks what is behind them.
fn plain_path(name: &str) -> PathBuf {
    let parts = Path::new(name).components();
    parts
        .filter(|part| !matches!(part, Component::CurDir))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(to: &str, volumes: &[&str]) -> JobTarget {
        JobTarget {
            volumes: volumes.iter().map(|id| (*id).to_owned()).collect(),
            ..JobTarget::new(to)
        }
    }

    fn volumes(ids: &[(&str, &str)]) -> BTreeSet<CycleVolume> {
        let volumes = ids.iter().map(|(id, instance)| CycleVolume {
            id: (*id).to_owned(),
            instance: (!instance.is_empty()).then(|| (*instance).to_owned()),
        });
        volumes.collect()
    }

    /// `vol-0a: NAME NAME` for each volume, and the problems.
    fn assigned(targets: &[JobTarget], ids: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let found = assign(targets, &volumes(ids));
        let lines = found.volumes.iter().map(|(id, its)| {
            let names: Vec<_> = its.iter().map(|target| target.name.as_str()).collect();
            format!("{id}: {}", names.join(" "))
        });
        let problems = found.problems.iter().map(|problem| problem.error.chain());
        (lines.collect(), problems.collect())
    }

    #[test]
    fn each_volume_has_its_own_target_and_none_has_anothers() {
        let two = [("vol-0a", "i-1"), ("vol-0b", "")];
        for (targets, ids, lines, problems) in [
            (
                vec![target("file:///r", &[]), target("/srv/{volume}.raw", &[])],
                &two[..],
                vec![
                    "vol-0a: file:///r /srv/vol-0a.raw",
                    "vol-0b: file:///r /srv/vol-0b.raw",
                ],
                vec![],
            ),
            // A fixed name: for the volume that it names.
            (
                vec![
                    target("/dev/sdb", &["vol-0b"]),
                    target("ebs:eu-west-2", &[]),
                ],
                &two,
                vec!["vol-0a: ebs:eu-west-2", "vol-0b: /dev/sdb ebs:eu-west-2"],
                vec![],
            ),
            // For the only volume.
            (
                vec![target("/srv/x.raw", &[])],
                &two[..1],
                vec!["vol-0a: /srv/x.raw"],
                vec![],
            ),
            (
                vec![target("/srv/x.raw", &[])],
                &two,
                vec!["vol-0a: ", "vol-0b: "],
                vec!["vol-0a: no target", "vol-0b: no target"],
            ),
            // One image for two volumes: neither gets it.
            (
                vec![
                    target("/srv/x.raw", &["vol-0a", "vol-0b"]),
                    target("s3://b/p", &[]),
                ],
                &two,
                vec!["vol-0a: s3://b/p", "vol-0b: s3://b/p"],
                vec!["vol-0a and vol-0b to /srv/x.raw"],
            ),
            (
                vec![
                    target("/srv/x.raw", &["vol-0a"]),
                    target("/srv//./x.raw", &["vol-0b"]),
                ],
                &two,
                vec!["vol-0a: ", "vol-0b: "],
                vec!["vol-0a and vol-0b to /srv/x.raw"],
            ),
            (
                vec![target("/srv/{instance}/{volume}", &[])],
                &two,
                vec!["vol-0a: /srv/i-1/vol-0a", "vol-0b: "],
                vec!["attached to no instance", "vol-0b: no target"],
            ),
            // The same target twice is one.
            (
                vec![
                    target("/srv/{volume}", &[]),
                    target("/srv/vol-0a", &["vol-0a"]),
                ],
                &two[..1],
                vec!["vol-0a: /srv/vol-0a"],
                vec![],
            ),
        ] {
            let (found, why) = assigned(&targets, ids);
            assert_eq!(found, lines, "{targets:?}");
            assert_eq!(why.len(), problems.len(), "{why:?}");
            for (why, words) in why.iter().zip(problems) {
                assert!(why.contains(words), "{why}");
            }
        }
    }

    #[test]
    fn a_volume_of_which_a_target_is_left_out_is_incomplete() {
        let two = volumes(&[("vol-0a", "i-1"), ("vol-0b", "")]);
        let shared = target("s3://b/p", &[]);
        for (targets, incomplete) in [
            (vec![shared.clone()], &[][..]),
            (
                vec![shared.clone(), target("/srv/a", &["vol-0a", "vol-0b"])],
                &["vol-0a", "vol-0b"],
            ),
            (
                vec![shared, target("/srv/{instance}/{volume}", &[])],
                &["vol-0b"],
            ),
            (vec![target("/srv/a", &["vol-0a"])], &["vol-0b"]),
        ] {
            let found = assign(&targets, &two).incomplete;
            let found: Vec<&str> = found.iter().map(String::as_str).collect();
            assert_eq!(found, incomplete, "{targets:?}");
        }
    }

    #[test]
    fn a_template_names_what_is_known_and_an_absolute_place() {
        for good in [
            "/srv/{volume}.raw",
            "s3://b/{instance}/p",
            "ebs:",
            "ebs:eu-west-2",
            "file:///r",
        ] {
            assert!(check(good).is_ok(), "{good}");
        }
        for wrong in [
            "/srv/{disk}.raw",
            "/srv/{volume",
            "/srv/volume}",
            "srv/{volume}",
            "",
            "/srv/{}",
        ] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }
}
