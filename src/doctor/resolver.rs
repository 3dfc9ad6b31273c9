//! Which servers resolve names here, by the files that the system's resolver reads.

use std::path::Path;

/// The file of resolv.conf(5).
const FILE: &str = "/etc/resolv.conf";
/// The servers that systemd-resolved asks, when the other file names only its stub.
const UPLINKS: &str = "/run/systemd/resolve/resolv.conf";
/// Addresses of the stub (systemd-resolved(8)).
const STUBS: [&str; 2] = ["127.0.0.53", "127.0.0.54"];
/// A resolver reads no more of them (resolv.conf(5), MAXNS).
const MOST: usize = 3;

/// Where names are resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ResolverFacts {
    /// The servers of resolv.conf.
    pub(super) servers: Vec<String>,
    /// The servers behind the stub of systemd-resolved.
    pub(super) uplinks: Vec<String>,
}

impl ResolverFacts {
    /// Reads the files of this machine.
    pub(super) fn observe() -> Self {
        let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
        Self::of(&read(FILE), &read(UPLINKS))
    }

    fn of(file: &str, uplinks: &str) -> Self {
        let servers = servers(file);
        let is_stub = servers
            .iter()
            .any(|server| STUBS.contains(&server.as_str()));
        let uplinks = if is_stub {
            self::servers(uplinks)
        } else {
            Vec::new()
        };
        Self { servers, uplinks }
    }

    /// Whether systemd-resolved resolves names, by rules for each link.
    pub(super) fn is_stub(&self) -> bool {
        self.servers
            .iter()
            .any(|server| STUBS.contains(&server.as_str()))
    }

    /// In words, behind "by".
    pub(super) fn in_words(&self) -> String {
        let all = |servers: &[String]| servers.join(", ");
        match (
            self.servers.is_empty(),
            self.is_stub(),
            self.uplinks.is_empty(),
        ) {
            (true, _, _) => format!("no server: {FILE} names none"),
            (_, false, _) => all(&self.servers),
            (_, true, true) => format!("{} (systemd-resolved)", all(&self.servers)),
            (_, true, false) => format!(
                "{} (systemd-resolved, which asks {})",
                all(&self.servers),
                all(&self.uplinks)
            ),
        }
    }
}

fn servers(file: &str) -> Vec<String> {
    let lines = file.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver")
            .then(|| words.next())
            .flatten()
    });
    let address = |text: &str| text.split('%').next()?.parse::<std::net::IpAddr>().ok();
    let lines = lines.filter(|text| address(text).is_some());
    lines.take(MOST).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_those_behind_the_stub_are_named() {
        for (file, uplinks, words) in [
            ("", "", "no server: /etc/resolv.conf names none"),
            (
                "# nameserver 1.1.1.1\nsearch x\n",
                "",
                "no server: /etc/resolv.conf names none",
            ),
            (
                "nameserver 10.0.0.2\nnameserver fe80::1%eth0\n",
                "nameserver 9.9.9.9\n",
                "10.0.0.2, fe80::1%eth0",
            ),
            (
                "nameserver 127.0.0.53\noptions edns0\n",
                "",
                "127.0.0.53 (systemd-resolved)",
            ),
            (
                "nameserver 127.0.0.53\n",
                "nameserver 10.0.0.2\nnameserver nonsense\n",
                "127.0.0.53 (systemd-resolved, which asks 10.0.0.2)",
            ),
        ] {
            let facts = ResolverFacts::of(file, uplinks);
            assert_eq!(facts.in_words(), words, "{file}");
            assert_eq!(facts.is_stub(), words.contains("systemd"), "{file}");
        }
    }
}
