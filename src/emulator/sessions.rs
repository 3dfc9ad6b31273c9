//! AssumeRole of STS, and the sessions of roles: temporary keys, each with its token and its expiry.
//!
//! <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>. The policies decide before
//! whether the caller may assume the role ([`super::policy`]).

mod request;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::HeaderMap;
use hyper::http::request::Parts;

use super::Emulator;
use super::auth::{self, SigningKey};
use super::caller::{Caller, EmulatedIdentity, RoleArn};
use super::ec2::QueryForm;
use super::policy::{PolicyRules, refused_by_trust};
use super::reply::{Refusal, Reply, ec2_reply, request_id};
use super::switches::Switches;
use request::{USUAL_S, invalid};

pub(super) use request::{RoleRequest, longest_session};

/// Sessions that are kept. A new one takes the place of the oldest.
const MOST_SESSIONS: usize = 1000;
/// Session tokens whose first request is remembered.
const MOST_TOKENS: usize = 10_000;

/// A session of a role.
pub(super) struct RoleSession {
    role: RoleArn,
    name: String,
    key_id: String,
    secret: String,
    token: String,
    expires: SystemTime,
    /// The session policy: what it does not allow, the session may not do.
    limits: Option<PolicyRules>,
}

impl RoleSession {
    pub(super) fn new(request: &RoleRequest, now: SystemTime) -> Self {
        let upper = std::iter::repeat_with(|| fastrand::char('A'..='Z'));
        let random = || std::iter::repeat_with(fastrand::alphanumeric);
        Self {
            role: request.role.clone(),
            name: request.session.clone(),
            key_id: format!("ASIA{}", upper.take(16).collect::<String>()),
            secret: random().take(40).collect(),
            token: format!("FwoG{}==", random().take(300).collect::<String>()),
            expires: now + Duration::from_secs(request.seconds),
            limits: request.limits.clone(),
        }
    }

    pub(super) fn role(&self) -> &RoleArn {
        &self.role
    }

    pub(super) fn limits(&self) -> Option<&PolicyRules> {
        self.limits.as_ref()
    }

    /// `arn:aws:sts::ACCOUNT:assumed-role/NAME/SESSION`, without the path of the role.
    pub(super) fn arn(&self) -> String {
        let (account, role) = (self.role.account(), self.role.name());
        format!("arn:aws:sts::{account}:assumed-role/{role}/{}", self.name)
    }

    pub(super) fn unique_id(&self) -> String {
        format!("{}:{}", self.role.unique_id(), self.name)
    }
}

impl fmt::Debug for RoleSession {
    /// Without its secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RoleSession({})", self.arn())
    }
}

/// The sessions of roles, the oldest first.
#[derive(Debug, Default)]
pub(super) struct RoleSessions(VecDeque<Arc<RoleSession>>);

impl RoleSessions {
    fn add(&mut self, session: Arc<RoleSession>) {
        if self.0.len() >= MOST_SESSIONS {
            self.0.pop_front();
        }
        self.0.push_back(session);
    }

    fn of_key(&self, id: &str) -> Option<Arc<RoleSession>> {
        self.0.iter().find(|one| one.key_id == id).cloned()
    }

    fn is_expired(&self, token: &str, now: SystemTime) -> bool {
        let mut all = self.0.iter();
        all.any(|one| one.token == token && one.expires <= now)
    }
}

impl Emulator {
    /// Who signed a request: a user by the key in the `credentials` file, a session by its temporary key and its token.
    pub(super) fn caller(&self, parts: &Parts, body: &[u8]) -> Result<Caller, Refusal> {
        let users = self.access_keys();
        let policies = self.policies.lock().clone();
        let token = session_token(&parts.headers);
        let find = |id: &str| {
            if let Some(key) = users.iter().find(|key| key.id == id) {
                let user = policies.as_ref().and_then(|all| all.user(&key.user));
                return Some(SigningKey {
                    secret: key.secret.clone(),
                    identity: EmulatedIdentity::User(user.unwrap_or_else(|| key.user())),
                });
            }
            let session = self.role_sessions.lock().of_key(id);
            let session = session.filter(|session| token == Some(session.token.as_str()))?;
            Some(SigningKey {
                secret: session.secret.clone(),
                identity: EmulatedIdentity::Session(session),
            })
        };
        auth::verify(parts, body, find, self.now())
    }

    /// Whether the session token of a request is expired.
    pub(super) fn is_expired(&self, headers: &HeaderMap, switches: &Switches) -> bool {
        let Some(token) = session_token(headers) else {
            return false;
        };
        let now = self.now();
        if switches.expired_sessions.iter().any(|s| s == token)
            || self.role_sessions.lock().is_expired(token, now)
        {
            return true;
        }
        let mut first_seen = self.sessions.lock();
        if first_seen.len() >= MOST_TOKENS && !first_seen.contains_key(token) {
            first_seen.clear();
        }
        let first = *first_seen.entry(token.to_owned()).or_insert(now);
        let age = now.duration_since(first).unwrap_or_default();
        switches.session_life_s > 0 && age >= Duration::from_secs(switches.session_life_s)
    }

    /// Returns the keys of a new session, after [`Self::authorize`] has allowed the role.
    pub(super) fn assume_role(&self, caller: &Caller, form: &QueryForm) -> Result<Reply, Refusal> {
        let request = RoleRequest::parse(form)?;
        let policies = self.policies.lock().clone();
        let longest = policies.and_then(|all| all.longest_session(request.role()));
        // Without policies no role exists, and no decision was made.
        let longest = longest.ok_or_else(|| refused_by_trust(caller))?;
        let is_chained = matches!(caller.identity, EmulatedIdentity::Session(_));
        if is_chained && request.seconds > USUAL_S {
            return Err(invalid(
                "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.",
            ));
        }
        if request.seconds > longest {
            return Err(invalid(
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
            ));
        }
        let session = Arc::new(RoleSession::new(&request, self.now()));
        self.role_sessions.lock().add(Arc::clone(&session));
        Ok(assumed(&session, &request))
    }
}

/// The reply of AssumeRole.
fn assumed(session: &RoleSession, request: &RoleRequest) -> Reply {
    let id = request_id();
    let expiration = humantime::format_rfc3339_seconds(session.expires);
    let text = format!(
        "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  <AssumeRoleResult>\n    \
         <AssumedRoleUser>\n      <AssumedRoleId>{}</AssumedRoleId>\n      <Arn>{}</Arn>\n    </AssumedRoleUser>\n    \
         <Credentials>\n      <AccessKeyId>{}</AccessKeyId>\n      <SecretAccessKey>{}</SecretAccessKey>\n      \
         <SessionToken>{}</SessionToken>\n      <Expiration>{expiration}</Expiration>\n    </Credentials>{}\n  \
         </AssumeRoleResult>\n  <ResponseMetadata>\n    <RequestId>{id}</RequestId>\n  </ResponseMetadata>\n\
         </AssumeRoleResponse>\n",
        session.unique_id(),
        session.arn(),
        session.key_id,
        session.secret,
        session.token,
        request.packed(),
    );
    ec2_reply(200, &id, text)
}

fn session_token(headers: &HeaderMap) -> Option<&str> {
    headers.get("x-amz-security-token")?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::request::tests::{ROLE, form};
    use super::*;

    #[test]
    fn a_new_session_takes_the_place_of_the_oldest() {
        let request = RoleRequest::parse(&form(&[("RoleArn", ROLE), ("RoleSessionName", "night")]));
        let (request, now) = (request.unwrap(), SystemTime::UNIX_EPOCH);
        let mut all = RoleSessions::default();
        let made: Vec<_> = (0..=MOST_SESSIONS)
            .map(|_| Arc::new(RoleSession::new(&request, now)))
            .collect();
        for session in &made {
            all.add(Arc::clone(session));
        }
        assert_eq!(all.0.len(), MOST_SESSIONS);
        assert!(all.of_key(&made[0].key_id).is_none());
        let last = &made[MOST_SESSIONS];
        assert!(all.of_key(&last.key_id).is_some());
        assert!(last.key_id.starts_with("ASIA") && last.key_id.len() == 20);
        assert_eq!(
            last.arn(),
            "arn:aws:sts::111122223333:assumed-role/reader/night"
        );
        assert_eq!(last.unique_id(), "AROAREADER:night");
        for (after, expected) in [(3599, false), (3600, true)] {
            let then = now + Duration::from_secs(after);
            assert_eq!(all.is_expired(&last.token, then), expected, "{after}");
        }
        assert!(!all.is_expired("other", now + Duration::from_secs(7200)));
    }
}
