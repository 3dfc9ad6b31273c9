//! Who calls: a user with a key of its own, or a session of a role. Each belongs to an account.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::ACCOUNT;
use super::sessions::RoleSession;

/// The profile that the emulator itself makes, and the name of its user in IAM.
const FIRST: (&str, &str) = ("default", "emulator");
/// Characters of the name of a role, with its path.
const MOST_ROLE: usize = 512;

/// Who signed a request, for which Region and service.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) region: String,
    pub(super) service: String,
    pub(super) identity: EmulatedIdentity,
}

/// A user or a session of a role.
#[derive(Clone, Debug)]
pub(super) enum EmulatedIdentity {
    User(UserId),
    Session(Arc<RoleSession>),
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UserId {
    pub(super) account: String,
    /// The profile of its key in the `credentials` file, which is also its name in IAM, except for the first one.
    pub(super) profile: String,
}

/// The ARN of a role: `arn:aws:iam::ACCOUNT:role/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RoleArn {
    account: String,
    /// With its path, as in `operations/reader`.
    name: String,
}

/// The letters and digits of a name, as the emulator puts them into unique ids.
fn id_letters(name: &str) -> String {
    let letters = name.chars().filter(char::is_ascii_alphanumeric);
    letters.collect::<String>().to_ascii_uppercase()
}

/// The account and the rest of an ARN of IAM.
fn parts_of_iam(arn: &str) -> Option<(&str, &str)> {
    let (account, rest) = arn.strip_prefix("arn:aws:iam::")?.split_once(':')?;
    is_account(account).then_some((account, rest))
}

/// Whether a text is the number of an account.
pub(super) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// Whether a text can be the name of a profile: a reader of the `credentials` file must find it again.
fn is_profile(name: &str) -> bool {
    let is_one = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && name.len() <= 64 && name.chars().all(is_one)
}

impl UserId {
    /// A user of the emulator's own account.
    pub(super) fn own(profile: &str) -> Self {
        Self {
            account: ACCOUNT.to_owned(),
            profile: profile.to_owned(),
        }
    }

    fn name(&self) -> &str {
        match self.profile == FIRST.0 {
            true => FIRST.1,
            false => &self.profile,
        }
    }

    fn arn(&self) -> String {
        format!("arn:aws:iam::{}:user/{}", self.account, self.name())
    }
}

impl FromStr for UserId {
    type Err = String;

    /// A name, or the ARN of a user of any account.
    fn from_str(text: &str) -> Result<Self, String> {
        let of_account = parts_of_iam(text)
            .and_then(|(account, rest)| Some((account, rest.strip_prefix("user/")?)));
        let (account, name) = of_account.unwrap_or((ACCOUNT, text));
        // Messages and GetCallerIdentity name the first user as in IAM.
        let profile = if name == FIRST.1 { FIRST.0 } else { name };
        match is_profile(profile) {
            true => Ok(Self {
                account: account.to_owned(),
                profile: profile.to_owned(),
            }),
            false => Err(format!(
                "{text:?} is neither a name of letters, digits, -, _ and . nor the ARN of a user"
            )),
        }
    }
}

impl RoleArn {
    pub(super) fn account(&self) -> &str {
        &self.account
    }

    /// The name without its path.
    pub(super) fn name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or_default()
    }

    /// The role of this name in the emulator's own account, or the one of this ARN.
    pub(super) fn of_key(text: &str) -> Option<Self> {
        text.parse()
            .ok()
            .or_else(|| Self::new(ACCOUNT, text).filter(|role| !role.name.contains('/')))
    }

    fn new(account: &str, name: &str) -> Option<Self> {
        let is_one = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-/".contains(c);
        let steps = || name.split('/');
        let is_name = name.len() <= MOST_ROLE
            && name.chars().all(is_one)
            && steps().all(|step| !step.is_empty());
        is_name.then(|| Self {
            account: account.to_owned(),
            name: name.to_owned(),
        })
    }

    /// The unique id of the role.
    pub(super) fn unique_id(&self) -> String {
        format!("AROA{}", id_letters(self.name()))
    }
}

impl FromStr for RoleArn {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (account, rest) = parts_of_iam(text).ok_or(())?;
        let name = rest.strip_prefix("role/").ok_or(())?;
        Self::new(account, name).ok_or(())
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arn:aws:iam::{}:role/{}", self.account, self.name)
    }
}

impl Caller {
    /// The account that it belongs to.
    pub(super) fn account(&self) -> &str {
        match &self.identity {
            EmulatedIdentity::User(user) => &user.account,
            EmulatedIdentity::Session(session) => session.role().account(),
        }
    }

    /// Its ARN in messages and in GetCallerIdentity.
    pub(super) fn arn(&self) -> String {
        match &self.identity {
            EmulatedIdentity::User(user) => user.arn(),
            EmulatedIdentity::Session(session) => session.arn(),
        }
    }

    /// `aws:PrincipalArn`: of a session, the ARN of its role
    /// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-keys.html#condition-keys-principalarn>).
    pub(super) fn principal_arn(&self) -> String {
        match &self.identity {
            EmulatedIdentity::User(user) => user.arn(),
            EmulatedIdentity::Session(session) => session.role().to_string(),
        }
    }

    /// Whether a principal with this ARN is it. A session is named by its own ARN or by that of its role.
    pub(super) fn has_arn(&self, arn: &str) -> bool {
        arn == self.arn() || arn == self.principal_arn()
    }

    /// Its unique id.
    pub(super) fn unique_id(&self) -> String {
        match &self.identity {
            EmulatedIdentity::User(user) => format!("AIDA{}", id_letters(user.name())),
            EmulatedIdentity::Session(session) => session.unique_id(),
        }
    }

    /// Its name among the counted actions. The name of a profile has neither a slash nor a colon.
    pub(super) fn counted_as(&self) -> String {
        match &self.identity {
            EmulatedIdentity::User(user) => user.profile.clone(),
            EmulatedIdentity::Session(session) => {
                let role = session.role();
                match role.account() == ACCOUNT {
                    true => format!("role/{}", role.name),
                    false => role.to_string(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_roles_are_named_by_name_or_by_arn() {
        let user: UserId = "web".parse().unwrap();
        assert_eq!(user, UserId::own("web"));
        let other: UserId = "arn:aws:iam::444455556666:user/audit".parse().unwrap();
        assert_eq!(other.arn(), "arn:aws:iam::444455556666:user/audit");
        assert_eq!(other.profile, "audit");
        assert_eq!(
            UserId::own("default").arn(),
            "arn:aws:iam::111122223333:user/emulator"
        );
        let own_arn = UserId::own("default").arn();
        assert_eq!(own_arn.parse::<UserId>().unwrap(), UserId::own("default"));
        for wrong in [
            "",
            "a b",
            "a/b",
            "arn:aws:iam::4:user/a",
            "arn:aws:iam::444455556666:role/a",
        ] {
            assert!(wrong.parse::<UserId>().is_err(), "{wrong}");
        }
        let arn = |text: &str| RoleArn::of_key(text).map(|role| role.to_string());
        let own = "arn:aws:iam::111122223333:role/r";
        assert_eq!(arn("r").as_deref(), Some(own));
        for whole in [own, "arn:aws:iam::444455556666:role/path/to/r"] {
            assert_eq!(arn(whole).as_deref(), Some(whole));
            assert_eq!(RoleArn::of_key(whole).unwrap().unique_id(), "AROAR");
        }
        for wrong in [
            "",
            "path/r",
            "r r",
            "arn:aws:iam::444455556666:role/",
            "arn:aws:iam::444455556666:role//r",
            "arn:aws:iam::444455556666:user/r",
            "arn:aws-cn:iam::444455556666:role/r",
        ] {
            assert_eq!(arn(wrong), None, "{wrong}");
        }
    }
}
