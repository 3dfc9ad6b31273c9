//! Checks the limits of the process before a mount: without threads or descriptors a mount exists and does not answer.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use bytesize::ByteSize;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::error::{Error, Kind, Result};

/// Resources that a mount needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// Threads, besides those that run already.
    pub(crate) threads: usize,
    /// File descriptors, besides those that are open already.
    pub(crate) descriptors: u64,
    /// Memory for blocks, in bytes.
    pub(crate) memory: u64,
}

/// Checks that the process can get the resources. It raises the soft limit of descriptors if needed, starts and ends the threads,
/// and reserves and frees the memory.
///
/// # Errors
/// `Io` with the limit that is too low.
pub(crate) fn reserve(needs: Needs) -> Result<()> {
    reserve_descriptors(needs.descriptors)?;
    reserve_threads(needs.threads)?;
    reserve_memory(needs.memory)
}

fn lacking(what: String) -> Error {
    Error::new(Kind::Io, what)
}

fn reserve_descriptors(more: u64) -> Result<()> {
    // Reading the folder opens one of them.
    let open = std::fs::read_dir("/proc/self/fd").map_or(8, |open| open.count() as u64);
    let needed = open.saturating_add(more);
    let limit = getrlimit(Resource::Nofile);
    let allows = |limit: Option<u64>| limit.is_none_or(|limit| limit >= needed);
    if allows(limit.current) {
        return Ok(());
    }
    let mut raised = limit;
    raised.current = Some(needed);
    if allows(limit.maximum) && setrlimit(Resource::Nofile, raised).is_ok() {
        return Ok(());
    }
    let limit = limit.maximum.or(limit.current).unwrap_or_default();
    Err(lacking(format!(
        "cannot mount: the process needs {needed} file descriptors, the limit is {limit} (ulimit -Hn, LimitNOFILE)"
    )))
}

fn reserve_threads(count: usize) -> Result<()> {
    // All at once: each thread waits until the last one has started.
    let mut waiting = Vec::with_capacity(count);
    for _ in 0..count {
        let (release, released) = mpsc::channel::<()>();
        let spawned = thread::Builder::new().spawn(move || {
            let _ = released.recv();
        });
        match spawned {
            Ok(thread) => waiting.push((release, thread)),
            Err(error) => {
                let what = format!(
                    "cannot mount: cannot start {count} threads (ulimit -u, ulimit -v, pids.max of the cgroup)"
                );
                return Err(Error::with_source(Kind::Io, what, error));
            }
        }
    }
    for (release, thread) in waiting {
        drop(release);
        let _ = thread.join();
    }
    Ok(())
}

fn reserve_memory(bytes: u64) -> Result<()> {
    let size = ByteSize(bytes);
    let mut probe: Vec<u8> = Vec::new();
    let fits = usize::try_from(bytes).is_ok_and(|bytes| probe.try_reserve_exact(bytes).is_ok());
    if !fits {
        return Err(lacking(format!(
            "cannot mount: cannot reserve {size} of memory (ulimit -v, the machine's memory)"
        )));
    }
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for limit in cgroups(&groups).map(|group| group.join("memory.max")) {
        let text = std::fs::read_to_string(&limit).unwrap_or_default();
        if let Ok(most) = text.trim().parse::<u64>()
            && most < bytes
        {
            return Err(lacking(format!(
                "cannot mount: blocks need {size} of memory, {} allows {}",
                limit.display(),
                ByteSize(most)
            )));
        }
    }
    Ok(())
}

/// The folders of the process's cgroup (version 2) and of all above it.
fn cgroups(text: &str) -> impl Iterator<Item = PathBuf> {
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let root = Path::new("/sys/fs/cgroup");
    let folder = own.map(|own| root.join(own));
    folder.into_iter().flat_map(move |folder| {
        let above = folder.ancestors().take_while(|at| at.starts_with(root));
        above.map(Path::to_path_buf).collect::<Vec<_>>()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_all_cgroups_above_count() {
        let folders = |text| cgroups(text).collect::<Vec<_>>();
        let expected = ["a/b", "a", ""].map(|part| Path::new("/sys/fs/cgroup").join(part));
        assert_eq!(folders("1:x:/y\n0::/a/b\n"), expected);
        assert!(folders("1:memory:/a\n").is_empty());
        assert!(folders("").is_empty());
    }

    #[test]
    fn needs_that_no_process_has_are_refused_and_small_ones_are_met() {
        let needs = Needs {
            threads: 4,
            descriptors: 16,
            memory: 1 << 20,
        };
        reserve(needs).unwrap();
        let descriptors = u64::MAX;
        let memory = u64::MAX;
        for (needs, named) in [
            (
                Needs {
                    descriptors,
                    ..needs
                },
                "descriptors",
            ),
            (Needs { memory, ..needs }, "memory"),
        ] {
            let error = reserve(needs).unwrap_err();
            assert_eq!(error.kind(), Kind::Io);
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}
