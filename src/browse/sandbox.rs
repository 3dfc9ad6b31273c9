//! What the parser gives up before it reads the first byte of a foreign disk.
//!
//! It keeps one socket. Everything else is taken by layers, so that a kernel without one of them still has the others: no other
//! descriptor, an empty environment, no files (landlock, Linux 5.13), no TCP (landlock, 6.7), no network at all (a namespace of its
//! own, where the system allows one), no user id of this machine and no capability (root only), no new rights, no dump of memory,
//! and limits on memory, files, descriptors and processes.

use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus,
    Scope,
};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, close, geteuid, getppid, setgroups, setresgid, setresuid};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

/// Bytes of address space: the program itself, 16 MiB of image, and what a parser allocates.
const MEMORY: u64 = 768 << 20;
/// Descriptors: the socket is 0; 1 and 2 are /dev/null and a pipe for the last words. None can be opened.
const DESCRIPTORS: u64 = 3;
/// The user id that owns nothing: no system and no container engine hands out ids from here on.
const FIRST_USER: u32 = 0x7000_0000;
const USERS: u32 = 0x0f00_0000;
/// The user id that stands for all that do not exist.
const OVERFLOW_USER: u32 = 65_534;

/// Gives up the rights. Returns what the system did not allow, a sentence each.
///
/// # Errors
/// When a limit that holds everywhere could not be set: then nothing may be parsed.
pub(super) fn enter() -> io::Result<Vec<String>> {
    let mut missing = Vec::new();
    let parent = getppid();
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    close_others();
    leave(&mut missing);
    // The kernel clears it when the user id or the capabilities change. A parent that ended in between sends no signal.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != parent {
        return Err(io::Error::other("the process that started it has ended"));
    }
    prctl::set_no_new_privs()?;
    prctl::set_dumpable(false)?;
    if let Err(reason) = landlock_all() {
        missing.push(format!("the parser is not confined by landlock: {reason}"));
    }
    let limits = [
        (Resource::As, MEMORY),
        (Resource::Fsize, 0),
        (Resource::Core, 0),
        (Resource::Nofile, DESCRIPTORS),
        (Resource::Nproc, 0),
    ];
    for (resource, limit) in limits {
        let limit = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        setrlimit(resource, limit)?;
    }
    // A user namespace gives all capabilities within it, and with them much of the kernel.
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)?;
    Ok(missing)
}

/// Closes what the parent had inherited itself from a shell or a service manager.
fn close_others() {
    let Ok(names) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<i32> = names
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in open {
        if descriptor > 2 {
            // That of the listing itself is closed already.
            let _ = close(descriptor);
        }
    }
}

/// Moves this process where there is no network, a namespace of its own, and drops the user id of root. Without the right to make
/// such a namespace it is made inside a user namespace: after root was dropped, whose id would stay the same outside of it.
fn leave(missing: &mut Vec<String>) {
    // No namespace of mounts: a copy of the mounts of this machine would keep each of them busy.
    let all = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC;
    let plain = unshare(all);
    if geteuid().is_root()
        && let Err(reason) = drop_root()
    {
        missing.push(format!("the parser keeps the user id of root: {reason}"));
    }
    if let Err(reason) = plain.or_else(|_| unshare(all | CloneFlags::CLONE_NEWUSER)) {
        missing.push(format!(
            "the parser shares the network of this machine: {reason}"
        ));
    }
}

/// Becomes a user that owns nothing; the capabilities go with the user id.
fn drop_root() -> nix::Result<()> {
    let unused = FIRST_USER + std::process::id() % USERS;
    // In a user namespace with one id there is no other: what root of it may do, landlock and the limits take.
    become_user(unused).or_else(|_| become_user(OVERFLOW_USER))
}

fn become_user(id: u32) -> nix::Result<()> {
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    // A user namespace may forbid it; the groups of root are left then, and landlock has the files.
    let _ = setgroups(&[]);
    setresgid(group, group, group)?;
    setresuid(user, user, user)
}

/// No file may be opened, no TCP port used, no process outside signalled.
fn landlock_all() -> Result<(), String> {
    let newest = ABI::V6;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(newest))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(newest)))
        .and_then(|rules| rules.scope(Scope::from_all(newest)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(|error| error.to_string())?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err("this kernel has no landlock (Linux 5.13)".to_owned()),
        _ => Ok(()),
    }
}

/// What the parser can still do, for tests: each line is an attempt and its result.
pub(super) fn attempts() -> Vec<String> {
    use std::net::{TcpStream, UdpSocket};
    // Room for a descriptor: the limit alone is not what is shown.
    let _ = close(2);
    let result = |done: io::Result<()>| match done {
        Ok(()) => "allowed".to_owned(),
        Err(error) => format!("refused ({error})"),
    };
    let read = std::fs::File::open("/etc/passwd").map(drop);
    let list = std::fs::read_dir("/").map(drop);
    let write = std::fs::File::create("/tmp/ebsfs-parser").map(drop);
    let tcp = TcpStream::connect("127.0.0.1:1").map(drop);
    let udp = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.send_to(b"x", "127.0.0.1:9")?;
        Ok(())
    });
    let process = std::process::Command::new("/bin/true").status().map(drop);
    let thread = std::thread::Builder::new()
        .spawn(|| ())
        .map(|thread| drop(thread.join()));
    let environment = std::env::vars_os().count();
    vec![
        format!("read a file: {}", result(read)),
        format!("list a folder: {}", result(list)),
        format!("write a file: {}", result(write)),
        format!("connect by TCP: {}", result(tcp)),
        format!("send by UDP: {}", result(udp)),
        format!("start a program: {}", result(process)),
        format!("start a thread: {}", result(thread)),
        format!("variables: {environment}"),
        format!("is root: {}", geteuid().is_root()),
    ]
}
