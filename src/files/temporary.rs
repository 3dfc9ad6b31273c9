//! Folders for temporary files, in which this program makes folders and files by name.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{getegid, geteuid};

use crate::error::{Error, Kind, Result};

/// The folder for temporary files: `TMPDIR`, else `/tmp`. An empty `TMPDIR` counts as none.
pub(crate) fn temporary_folder() -> PathBuf {
    let named = std::env::var_os("TMPDIR").filter(|named| !named.is_empty());
    named.map_or_else(|| "/tmp".into(), PathBuf::from)
}

/// Resolves a folder, and checks that no other user can replace what this program makes in it. A user that may rename a new folder
/// could put a link in its place, and this program would write where the link leads to.
///
/// # Errors
/// `Invalid` when another user than root could; what the system says.
pub(crate) fn safe_parent(folder: &Path) -> Result<PathBuf> {
    let cannot = |error| Error::of_file(folder, "cannot use", error);
    let resolved = folder.canonicalize().map_err(cannot)?;
    for at in resolved.ancestors() {
        let found = at.symlink_metadata().map_err(cannot)?;
        if let Some(why) = replaceable(&FolderRights::of(&found), &FolderRights::own()) {
            let what = format!(
                "cannot make private files in {}: {why}: {}",
                folder.display(),
                at.display()
            );
            return Err(Error::new(Kind::Invalid, what));
        }
    }
    Ok(resolved)
}

/// The owner, group and mode of a folder, or of this process.
#[derive(Clone, Copy, Debug)]
struct FolderRights {
    user: u32,
    group: u32,
    mode: u32,
}

impl FolderRights {
    fn of(found: &Metadata) -> Self {
        Self {
            user: found.uid(),
            group: found.gid(),
            mode: found.mode(),
        }
    }

    fn own() -> Self {
        Self {
            user: geteuid().as_raw(),
            group: getegid().as_raw(),
            mode: 0,
        }
    }
}

/// Why others could rename what is in a folder; none: they cannot. A group is trusted if it is root's or the process's own, as
/// that of a user's home often is.
fn replaceable(folder: &FolderRights, own: &FolderRights) -> Option<&'static str> {
    const STICKY: u32 = 0o1000;
    if ![0, own.user].contains(&folder.user) {
        return Some("it belongs to another user");
    }
    let others = folder.mode & 0o002 != 0;
    let group = folder.mode & 0o020 != 0 && ![0, own.group].contains(&folder.group);
    let is_sticky = folder.mode & STICKY != 0;
    ((others || group) && !is_sticky).then_some("other users can write it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{DirBuilder, Permissions, set_permissions};
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};

    #[test]
    fn a_folder_is_safe_if_no_other_user_can_rename_what_is_in_it() {
        let rights = |user, group, mode| FolderRights { user, group, mode };
        for (folder, own, is_safe) in [
            (rights(0, 0, 0o755), rights(1000, 1000, 0), true),
            (rights(1000, 1000, 0o775), rights(1000, 1000, 0), true),
            (rights(1000, 50, 0o775), rights(1000, 1000, 0), false),
            (rights(0, 0, 0o1777), rights(1000, 1000, 0), true),
            (rights(0, 0, 0o777), rights(0, 0, 0), false),
            (rights(0, 50, 0o2775), rights(0, 0, 0), false),
            (rights(0, 0, 0o775), rights(1000, 1000, 0), true),
            (rights(1000, 1000, 0o755), rights(0, 0, 0), false),
            (rights(1000, 1000, 0o1777), rights(0, 0, 0), false),
            (rights(1001, 1001, 0o700), rights(1000, 1000, 0), false),
        ] {
            let why = replaceable(&folder, &own);
            assert_eq!(why.is_none(), is_safe, "{folder:?} {own:?} {why:?}");
        }
    }

    #[test]
    fn folders_above_count_too() {
        let above = tempfile::tempdir().unwrap();
        let inner = above.path().join("inner");
        DirBuilder::new().mode(0o700).create(&inner).unwrap();
        assert_eq!(safe_parent(&inner).unwrap(), inner.canonicalize().unwrap());
        set_permissions(above.path(), Permissions::from_mode(0o777)).unwrap();
        let said = safe_parent(&inner).unwrap_err();
        assert_eq!(said.kind(), Kind::Invalid);
        assert!(
            said.chain().contains("other users can write it"),
            "{said:?}"
        );
        let absent = safe_parent(&above.path().join("absent")).unwrap_err();
        assert_eq!(absent.kind(), Kind::NotFound);
    }
}
