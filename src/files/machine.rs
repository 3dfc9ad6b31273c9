//! The id and the name of this machine, and its user.

/// Files that hold the id of this machine (man 5 machine-id).
const MACHINE_IDS: &[&str] = &["/etc/machine-id", "/var/lib/dbus/machine-id"];

/// This machine's id, 32 hexadecimal digits; none where it is not set.
pub(crate) fn machine_id() -> Option<String> {
    let read = |file: &&str| read_id(&std::fs::read_to_string(file).ok()?);
    MACHINE_IDS.iter().find_map(read)
}

/// This host's name.
pub(crate) fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    name.map(|name| name.trim().to_owned())
}

/// The name of the user that this process acts as; none where the user database has none.
pub(crate) fn user_name() -> Option<String> {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
    user.ok().flatten().map(|user| user.name)
}

fn read_id(text: &str) -> Option<String> {
    let id = text.trim();
    let is_id = id.len() == 32 && id.chars().all(|c| c.is_ascii_hexdigit());
    (is_id && id.chars().any(|c| c != '0')).then(|| id.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_id_that_is_not_set_is_none() {
        let id = "3D1219c7c4c5404aaa1f6d2a48adfda4";
        assert_eq!(read_id(&format!("{id}\n")), Some(id.to_ascii_lowercase()));
        for none in ["", "uninitialized\n", "0", &"0".repeat(32)] {
            assert_eq!(read_id(none), None, "{none}");
        }
    }
}
