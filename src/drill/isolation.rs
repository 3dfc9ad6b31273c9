//! [`Isolation`]: how programs that read a foreign disk are kept from this machine. A namespace without a network, a user id that
//! owns nothing, no capabilities, no dump of memory; they end when ebsfs does. `setpriv`, `unshare` and `prlimit` of util-linux do it.
//!
//! What a system does not allow is left out: [`Isolation::probe`] tries the strongest form first, and the report says what was done.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use serde::Serialize;
use tracing::{debug, warn};

use super::program::{find_program, run_program};
use super::scratch::Scratch;
use crate::error::{Error, Result};

/// The least user id that is tried, and how many: no system and no container engine hands these out.
const FIRST_USER: u32 = 0x7000_0000;
const USERS: u32 = 0x0f00_0000;
/// The user id that stands for all that do not exist: in a user namespace the ids above may not.
const OVERFLOW_USER: u32 = 65_534;
/// A probe that takes longer has failed.
const PROBE: Duration = Duration::from_secs(10);

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProgramRole {
    /// It reads a filesystem or runs a machine: the least rights. The group id is one more that it gets.
    Parser {
        /// A group that it needs: that of `/dev/kvm`.
        group: Option<u32>,
    },
    /// It mounts, and reads nothing of a filesystem: the rights of ebsfs, without a network.
    Mounter,
}

/// How programs are isolated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Isolation {
    /// Whether the mounts of the drill are in a namespace of their own: no other program sees them, and they end with it.
    pub(crate) own_mounts: bool,
    /// Whether programs have no network.
    pub(crate) no_network: bool,
    /// The user id that parsers have; none: that of ebsfs.
    pub(crate) user: Option<u32>,
    /// Whether parsers have no capabilities and cannot get any.
    pub(crate) no_privileges: bool,
    /// Whether this is root.
    #[serde(skip)]
    is_root: bool,
}

/// Moves this process into a mount namespace of its own, whose mounts do not show outside. Call it before threads are started: they
/// inherit it. `false` where the system refuses: then the drill's mounts are visible.
pub(crate) fn enter_own_mounts() -> bool {
    let entered = unshare(CloneFlags::CLONE_NEWNS).and_then(|()| {
        let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
    });
    if let Err(error) = entered {
        debug!("no mount namespace of its own: {error}");
    }
    entered.is_ok()
}

impl Isolation {
    /// No isolation at all: for what runs no program.
    pub(crate) fn none() -> Self {
        Self {
            own_mounts: false,
            no_network: false,
            user: None,
            no_privileges: false,
            is_root: false,
        }
    }

    /// The strongest form that works here: parsers can read and write a file that is given to their user in `scratch`.
    ///
    /// # Errors
    /// What the system says of the file.
    pub(super) async fn probe(own_mounts: bool, scratch: &Scratch) -> Result<Self> {
        let file = scratch.path().join("probe");
        File::create_new(&file).map_err(|error| Error::of_file(&file, "cannot make", error))?;
        let is_root = geteuid().is_root();
        for candidate in candidates(is_root, own_mounts, FIRST_USER + fastrand::u32(..USERS)) {
            if candidate.give(&file).is_ok() && candidate.works(&file).await {
                debug!("{candidate:?}");
                if is_root && candidate.user.is_none() {
                    warn!(
                        "the programs of the drill run as root: other users cannot go through {}",
                        scratch.path().display()
                    );
                }
                return Ok(candidate);
            }
        }
        warn!(
            "the programs of the drill are not isolated: setpriv and unshare (package util-linux) do not work here"
        );
        Ok(Self {
            own_mounts,
            no_network: false,
            user: None,
            no_privileges: false,
            is_root,
        })
    }

    /// Whether ebsfs runs as root.
    pub(super) fn is_root(&self) -> bool {
        self.is_root
    }

    async fn works(&self, file: &Path) -> bool {
        let Some(test) = find_program("test") else {
            return false;
        };
        let file = file.as_os_str().to_owned();
        let args = ["-r".into(), file.clone(), "-a".into(), "-w".into(), file];
        let Some(words) = self.wrap(ProgramRole::Parser { group: None }, &test, args, None) else {
            return false;
        };
        let end = run_program("test", &words, PROBE, || None).await;
        end.is_ok_and(|end| end.code == Some(0))
    }

    /// Gives a file to the user of parsers.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn give(&self, file: &Path) -> std::io::Result<()> {
        match self.user {
            Some(user) => chown(file, Some(user), Some(user)),
            None => Ok(()),
        }
    }

    /// The words that start a program in its role, at most with files of `file_limit` bytes. None where a program of util-linux that
    /// this form needs is missing.
    pub(super) fn wrap(
        &self,
        role: ProgramRole,
        program: &Path,
        args: impl IntoIterator<Item = OsString>,
        file_limit: Option<u64>,
    ) -> Option<Vec<OsString>> {
        let mut words = Vec::new();
        for (name, options) in self.layers(role, file_limit) {
            words.push(find_program(name)?.into_os_string());
            words.extend(options.into_iter().map(OsString::from));
            words.push("--".into());
        }
        words.push(program.as_os_str().to_owned());
        words.extend(args);
        Some(words)
    }

    /// The programs before the program, the outermost first, and their options.
    fn layers(
        &self,
        role: ProgramRole,
        file_limit: Option<u64>,
    ) -> Vec<(&'static str, Vec<String>)> {
        let mut layers = Vec::new();
        if self.no_network {
            let mut options = vec!["--net".to_owned(), "--ipc".to_owned()];
            if !self.is_root {
                options.splice(..0, ["--user".to_owned(), "--map-current-user".to_owned()]);
            }
            // A user other than root mounts by fusermount3, which a user namespace would take its rights.
            if self.is_root || role != ProgramRole::Mounter {
                layers.push(("unshare", options));
            }
        }
        let mut rights = Vec::new();
        if let ProgramRole::Parser { group } = role {
            if let Some(user) = self.user {
                rights.extend([format!("--reuid={user}"), format!("--regid={user}")]);
                rights.push(match group {
                    Some(group) => format!("--groups={group}"),
                    None => "--clear-groups".to_owned(),
                });
            }
            if self.no_privileges {
                rights.extend(["--no-new-privs".to_owned(), "--inh-caps=-all".to_owned()]);
                if self.is_root {
                    rights.push("--bounding-set=-all".to_owned());
                }
            }
        }
        // The last one: a change of the user would take it back.
        rights.push("--pdeathsig=KILL".to_owned());
        layers.push(("setpriv", rights));
        let mut limits = vec!["--core=0".to_owned()];
        limits.extend(file_limit.map(|bytes| format!("--fsize={bytes}")));
        layers.push(("prlimit", limits));
        layers
    }

    /// Whether parsers may use a device, and the group that they need for it.
    pub(super) fn reaches(&self, device: &Path) -> Option<Option<u32>> {
        let found = std::fs::metadata(device).ok()?;
        let mode = found.mode();
        if mode & 0o006 == 0o006 {
            return Some(None);
        }
        match self.user {
            Some(_) => (mode & 0o060 == 0o060 && found.gid() != 0).then_some(Some(found.gid())),
            None => {
                let opened = File::options().read(true).write(true).open(device);
                opened.is_ok().then_some(None)
            }
        }
    }
}

/// The forms that are tried, the strongest first.
fn candidates(is_root: bool, own_mounts: bool, unused: u32) -> Vec<Isolation> {
    let users: &[Option<u32>] = match is_root && own_mounts {
        true => &[Some(unused), Some(OVERFLOW_USER), None],
        false => &[None],
    };
    let form = |user: Option<u32>, no_network| Isolation {
        own_mounts,
        no_network,
        user,
        no_privileges: true,
        is_root,
    };
    let with = users.iter().map(|user| form(*user, true));
    with.chain(users.iter().map(|user| form(*user, false)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(isolation: &Isolation, role: ProgramRole) -> String {
        let layers = isolation.layers(role, Some(7));
        let words = layers
            .iter()
            .map(|(name, options)| format!("{name} {}", options.join(" ")));
        words.collect::<Vec<_>>().join(" | ")
    }

    #[test]
    fn the_strongest_form_is_tried_first() {
        let forms = candidates(true, true, 5);
        let order: Vec<_> = forms
            .iter()
            .map(|form| (form.user, form.no_network))
            .collect();
        let expected = [
            (Some(5), true),
            (Some(OVERFLOW_USER), true),
            (None, true),
            (Some(5), false),
            (Some(OVERFLOW_USER), false),
            (None, false),
        ];
        assert_eq!(order, expected);
        // Without mounts of its own another user would reach the disks by them.
        assert!(
            candidates(true, false, 5)
                .iter()
                .all(|form| form.user.is_none())
        );
        assert!(
            candidates(false, true, 5)
                .iter()
                .all(|form| form.user.is_none())
        );
    }

    #[test]
    fn a_parser_has_no_rights_and_a_mounter_no_network() {
        let forms = candidates(true, true, 5);
        let parser = ProgramRole::Parser { group: None };
        assert_eq!(
            text(&forms[0], parser),
            "unshare --net --ipc | setpriv --reuid=5 --regid=5 --clear-groups --no-new-privs --inh-caps=-all \
             --bounding-set=-all --pdeathsig=KILL | prlimit --core=0 --fsize=7"
        );
        assert_eq!(
            text(&forms[0], ProgramRole::Mounter),
            "unshare --net --ipc | setpriv --pdeathsig=KILL | prlimit --core=0 --fsize=7"
        );
        assert!(text(&forms[0], ProgramRole::Parser { group: Some(9) }).contains("--groups=9"));
        let user = &candidates(false, true, 5)[0];
        assert_eq!(
            text(user, parser),
            "unshare --user --map-current-user --net --ipc | setpriv --no-new-privs --inh-caps=-all --pdeathsig=KILL | \
             prlimit --core=0 --fsize=7"
        );
        assert!(!text(user, ProgramRole::Mounter).contains("unshare"));
    }
}
