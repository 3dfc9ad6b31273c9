//! The FUSE session of a mount: it starts the threads that serve the tree, and waits for the end of the connection.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use fuser::{BackgroundSession, Config, Filesystem, Session, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::Ebsfs;
use crate::error::{Error, Kind, Result};
use crate::fs::activity::Activity;
use crate::fs::mount_table::MountIdentity;
use crate::fs::mounted::{Mounted, raise_readahead};
use crate::fs::mounting::mount_at;
use crate::fs::tree::Tree;
use crate::fs::unmount::unmount;

/// Event-loop threads. More threads cost 16 MiB each and gain nothing: a request that waits is a task.
const THREADS: usize = 2;
/// How long after the tree's timeout the session ends a request with EIO.
const GRACE: Duration = Duration::from_secs(2);

/// Which users may reach the mount; file modes then decide what they may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// The user that mounted it.
    Owner,
    /// The user that mounted it, and root. A user other than root needs `user_allow_other` in /etc/fuse.conf to grant it.
    Root,
    /// All users. A user other than root needs `user_allow_other` in /etc/fuse.conf to grant it.
    AllUsers,
}

/// Mounts `tree` at `mountpoint`, with `source` in the mount table; the mount answers when this returns. Requests run on the current tokio runtime. None waits
/// longer than the tree's timeout and 2 s, in which the lower layers fail with their own reason.
///
/// # Errors
/// `Io` when `mountpoint` is not an empty folder, or the system refuses the mount or a thread.
pub(crate) fn mount(
    tree: Tree,
    mountpoint: &Path,
    source: &str,
    access: Access,
) -> Result<Mounted> {
    let (draining, drain) = watch::channel(false);
    let activity = Arc::default();
    let filesystem = Ebsfs {
        request_timeout: tree.timeout() + GRACE,
        tree: Arc::new(tree),
        runtime: Handle::current(),
        draining: drain,
        folders: Arc::default(),
        files: Arc::default(),
        next_handle: AtomicU64::new(1),
        log: Arc::default(),
        activity: Arc::clone(&activity),
    };
    serve(filesystem, mountpoint, source, access, draining, activity)
}

/// Mounts a filesystem: see [`mount`].
///
/// # Errors
/// As for [`mount`].
pub(super) fn serve(
    filesystem: impl Filesystem,
    mountpoint: &Path,
    source: &str,
    access: Access,
    draining: watch::Sender<bool>,
    activity: Arc<Activity>,
) -> Result<Mounted> {
    let mountpoint = mountpoint.canonicalize().map_err(|error| {
        let what = format!("cannot mount at {}", mountpoint.display());
        Error::with_source(Kind::Io, what, error)
    })?;
    let mut config = Config::default();
    config.acl = match access {
        Access::Owner => SessionACL::Owner,
        Access::Root => SessionACL::RootAndOwner,
        Access::AllUsers => SessionACL::All,
    };
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let (end, ended) = watch::channel(None);
    // Before the mount: if the thread cannot start, nothing is mounted.
    let (hand, handed) = mpsc::channel();
    let waiting = std::thread::Builder::new().spawn(move || {
        if let Ok((session, identity)) = handed.recv() {
            await_end(session, &identity, &end);
        }
    });
    waiting.map_err(|error| Error::with_source(Kind::Io, "cannot start a thread", error))?;
    let (connection, identity) = mount_at(&mountpoint, source, access != Access::Owner)?;
    let acl = config.acl;
    let session = Session::from_fd(filesystem, connection, acl, config).and_then(Session::spawn);
    let session = session.map_err(|error| {
        // The descriptor is closed by now, and the mount answers ENOTCONN.
        let _ = unmount(&identity, true);
        let what = format!("cannot serve {}", mountpoint.display());
        Error::with_source(Kind::Io, what, error)
    })?;
    raise_readahead(&identity);
    // The thread waits for this message.
    let _ = hand.send((session, identity.clone()));
    Ok(Mounted {
        mountpoint,
        identity,
        draining,
        ended,
        activity,
    })
}

fn await_end(
    session: BackgroundSession,
    identity: &MountIdentity,
    end: &watch::Sender<Option<Result<()>>>,
) {
    let ended = session.join().map_err(|error| {
        // No thread serves the mount any more.
        let _ = unmount(identity, true);
        Error::with_source(Kind::Io, "the FUSE session broke", error)
    });
    end.send_replace(Some(ended));
}
