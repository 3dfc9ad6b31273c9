//! Words a [`Remedy`] as an option or a command.

use super::log;
use crate::error::{Error, Remedy, Result};

/// The error and its remedy on one line.
pub(super) fn in_words(error: &Error) -> String {
    match error.remedy() {
        Some(remedy) => format!("{}: {}", error.chain(), option(remedy)),
        None => error.chain(),
    }
}

/// The option or command that carries out a remedy.
pub(super) fn option(remedy: &Remedy) -> String {
    match remedy {
        Remedy::Restart => "--restart drops its progress and copies from the start".into(),
        Remedy::Overwrite(token) => {
            format!("--overwrite {} overwrites it", quoted(token))
        }
        Remedy::DiscardForeignWrites => "--discard-foreign-writes overwrites those blocks".into(),
        Remedy::Trust(snapshot) => {
            format!(
                "--trust {snapshot} vouches that it holds {snapshot}; without --base all blocks are copied"
            )
        }
        Remedy::CopyAll => "without --base all blocks are copied".into(),
        Remedy::BaseAuto => "use --base auto, or copy all blocks without --base".into(),
        Remedy::AllowPlaintext => "use --kms-key (ebs:) or --allow-plaintext".into(),
        Remedy::MarkDamage => {
            "ebsfs sync and ebsfs evidence with --on-damage mark leave such blocks zero, list them and go on".into()
        }
        Remedy::Fetch(Some(snapshot)) => {
            format!("--fetch compares it with {snapshot} itself, block by block")
        }
        Remedy::Fetch(None) => {
            "ebsfs verify TARGET SNAPSHOT --fetch compares it with a snapshot that you name".into()
        }
        Remedy::ReplaceRecord => "--replace replaces it".into(),
        Remedy::CompareUnrelated => {
            "ebsfs changes --unrelated compare reads and compares all blocks".into()
        }
        Remedy::ReplayInOverlay => "--overlay replays its journal first".into(),
        Remedy::NoOverlay => "attach it without --overlay".into(),
        Remedy::TryLater => "run the same command later".into(),
        Remedy::InitRepository(address) => format!("ebsfs repository init {address} makes one"),
        Remedy::AcceptMissing {
            repository,
            manifest,
        } => {
            let (repository, manifest) = (quoted(repository), quoted(manifest));
            format!(
                "ebsfs repository prune {repository} --accept-missing {manifest} continues without it"
            )
        }
        Remedy::ForgetRun { repository, run } => {
            let (repository, run) = (quoted(repository), quoted(run));
            format!(
                "ebsfs repository prune {repository} --forget-run {run} continues without it, if it has ended"
            )
        }
        Remedy::AdoptCycle(cycle) => {
            format!("the same command with --cycle {cycle} adopts what was made")
        }
        Remedy::NamePartition => "--partition PARTITION names one".into(),
        Remedy::ReplaceFiles => "--overwrite replaces files that are there".into(),
        Remedy::NameScratch => "--scratch DIRECTORY takes another one".into(),
        Remedy::KeepConsole => "--console FILE keeps what the machine printed".into(),
        Remedy::GuestMemory => "--memory SIZE gives it less".into(),
        Remedy::BootDisks => "use --boot".into(),
        Remedy::StreamFiles => "--streams writes each one as a file NAME:STREAM".into(),
        Remedy::RemoveAll => "--remove-all removes them".into(),
        Remedy::Unpin(snapshot) => {
            format!("ebsfs repository unpin {} allows it", quoted(snapshot))
        }
        Remedy::AllowWrites => "--write tries it, with objects that are deleted at the end".into(),
        Remedy::GiveRegion(option) => {
            format!(
                "use {option} REGION, AWS_REGION, or a region in ~/.aws/config (aws configure); ebsfs demo needs none"
            )
        }
        Remedy::GiveCredentials(option) => format!(
            "use {option} or AWS_PROFILE (aws configure or aws sso login makes a profile), AWS_ACCESS_KEY_ID with \
             AWS_SECRET_ACCESS_KEY, or the role of an instance, task or pod; ebsfs demo needs none"
        ),
        Remedy::Do(what) => what.clone(),
    }
}

/// A token as a shell reads it.
pub(super) fn quoted(token: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@".contains(c);
    if !token.is_empty() && token.chars().all(is_plain) {
        return token.to_owned();
    }
    format!("'{}'", token.replace('\'', "'\\''"))
}

/// Several errors as one result: the first of the lowest rank, which gives the exit code. The others are printed.
pub(super) fn all_of(mut errors: Vec<Error>) -> Result<()> {
    // A stable sort.
    errors.sort_by_key(|error| error.kind().rank());
    let mut errors = errors.into_iter();
    let first = errors.next();
    for error in errors {
        log::say_error(&format!("ebsfs: {}", in_words(&error)));
    }
    first.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_remedy_of_a_repository_is_a_whole_command() {
        let repository = "file:///srv/my replicas".to_owned();
        let said = |remedy| in_words(&Error::new(Kind::Undecided, "it").with_remedy(remedy));
        let missing = said(Remedy::AcceptMissing {
            repository: repository.clone(),
            manifest: "vol-0a/1.json".into(),
        });
        let command = "ebsfs repository prune 'file:///srv/my replicas'";
        assert!(missing.contains(&format!("{command} --accept-missing vol-0a/1.json")));
        let run = "0f".to_owned();
        let forget = said(Remedy::ForgetRun { repository, run });
        assert!(forget.contains(&format!("{command} --forget-run 0f")));
    }

    #[test]
    fn a_token_is_quoted_for_the_shell() {
        let error = Error::new(Kind::Undecided, "cannot overwrite /a b")
            .with_remedy(Remedy::Overwrite("/a b".into()));
        assert_eq!(
            in_words(&error),
            "cannot overwrite /a b: --overwrite '/a b' overwrites it"
        );
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted("wwn-0x5000c500"), "wwn-0x5000c500");
    }
}
