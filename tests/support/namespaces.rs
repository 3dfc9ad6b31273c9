//! Two network namespaces with a line between them.

use std::process::Command;

use super::sh;

/// A namespace whose only neighbour is another one. The names hold this process's number, so that tests can run at once.
pub struct NamespacePair {
    pub near: String,
    pub far: String,
    /// The ends of the line.
    pub near_link: String,
    pub far_link: String,
}

impl NamespacePair {
    /// `network`: three numbers of its addresses; near is .1 and far is .2. `name`: at most three letters, unique in the tests.
    pub fn new(name: &str, network: &str) -> Self {
        let id = std::process::id();
        let [near, far] = ["near", "far"].map(|end| format!("ebsfs-{name}-{end}-{id}"));
        let [near_link, far_link] = ["n", "f"].map(|end| format!("{name}{end}{id}"));
        sh(&format!(
            "ip netns add {near}; ip netns add {far}
             ip link add {near_link} netns {near} type veth peer name {far_link} netns {far}
             ip -n {near} addr add {network}.1/24 dev {near_link}; ip -n {near} link set {near_link} up
             ip -n {far} addr add {network}.2/24 dev {far_link}; ip -n {far} link set {far_link} up
             ip -n {near} link set lo up; ip -n {far} link set lo up"
        ));
        Self {
            near,
            far,
            near_link,
            far_link,
        }
    }

    /// A program in one of the namespaces. `ip netns exec` would give it a mount namespace of its own.
    pub fn within(namespace: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{namespace}"))
            .arg(program);
        command
    }
}

impl Drop for NamespacePair {
    fn drop(&mut self) {
        for namespace in [&self.near, &self.far] {
            let _ = Command::new("ip")
                .args(["netns", "del", namespace])
                .status();
        }
    }
}
