//! [`DenyingPolicy`]: the kind of policy that has denied a request, as far as the message of AWS names it.

/// A kind of policy that can deny a request. The names are those of
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DenyingPolicy {
    /// A policy of the user or role.
    Identity,
    /// A service control policy of the organization.
    ServiceControl,
    /// A resource control policy of the organization.
    ResourceControl,
    /// The policy of a VPC endpoint.
    VpcEndpoint,
    /// The permissions boundary of the user or role.
    Boundary,
    /// The policy that was given when the role was assumed.
    Session,
    /// The policy of a bucket or key.
    Resource,
    /// The policy that states who may take a role.
    RoleTrust,
}

impl DenyingPolicy {
    /// All of them.
    pub(crate) const ALL: [Self; 8] = [
        Self::Identity,
        Self::ServiceControl,
        Self::ResourceControl,
        Self::VpcEndpoint,
        Self::Boundary,
        Self::Session,
        Self::Resource,
        Self::RoleTrust,
    ];

    /// The kind that a message names as the one that denies: "because no KIND allows", "with an explicit deny in a KIND".
    pub(crate) fn of(message: &str) -> Option<Self> {
        let denies = |kind: &Self| {
            let name = kind.name();
            let phrases = [
                format!("no {name} allows"),
                format!("deny in a {name}"),
                format!("deny in an {name}"),
                format!("deny in the {name}"),
            ];
            phrases.iter().any(|phrase| message.contains(phrase))
        };
        Self::ALL.into_iter().find(denies)
    }

    /// Its name in the messages of AWS.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity-based policy",
            Self::ServiceControl => "service control policy",
            Self::ResourceControl => "resource control policy",
            Self::VpcEndpoint => "VPC endpoint policy",
            Self::Boundary => "permissions boundary",
            Self::Session => "session policy",
            Self::Resource => "resource-based policy",
            Self::RoleTrust => "role trust policy",
        }
    }

    /// Which policy "must allow" an action; none where the caller lacks the permission itself.
    pub(super) const fn owner(self) -> Option<&'static str> {
        match self {
            Self::VpcEndpoint => Some("the policy of the VPC endpoint"),
            Self::ServiceControl => Some("a service control policy of the organization"),
            Self::ResourceControl => Some("a resource control policy of the organization"),
            Self::Boundary => Some("the permissions boundary of the caller"),
            Self::Session => Some("the session policy of the caller"),
            Self::RoleTrust => Some("the trust policy of the role"),
            Self::Identity | Self::Resource => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_the_kind_that_denies_and_no_other() {
        for kind in DenyingPolicy::ALL {
            let name = kind.name();
            for text in [
                format!("because no {name} allows the ebs:GetSnapshotBlock action"),
                format!("with an explicit deny in a {name}"),
                format!("with an explicit deny in the {name}"),
                format!("with an explicit deny in an {name}: arn:aws:iam::1:policy/a"),
            ] {
                assert_eq!(DenyingPolicy::of(&text), Some(kind), "{text}");
            }
            let other = format!("the {name} is attached");
            assert_eq!(DenyingPolicy::of(&other), None, "{other}");
        }
    }
}
