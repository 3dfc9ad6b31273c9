//! Policies of users, of roles, of KMS keys and of VPC endpoints, and the decision whether they allow a call.
//!
//! A user without policies may do everything, a role without policies nothing. An explicit deny wins over an allow. A call that
//! no policy allows gets the error message of AWS
//! (<https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html>). A file with an unknown operator, condition
//! key or member is refused as a whole: a condition that is not read must not become an allow.
//!
//! | file | subject |
//! | --- | --- |
//! | [`needs`] | what each call asks for: actions, resources, the values of condition keys |
//! | [`decide`] | the decision on one action, and the refusal in AWS's words |
//! | [`rules`] | statements: what they match |
//! | [`condition`] | conditions: operators and keys |
//! | [`unique`] | JSON without repeated members |

mod condition;
mod decide;
mod needs;
mod rules;
mod unique;

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::http::request::Parts;
use serde::Deserialize;
use serde_json::Value;

use super::Emulator;
use super::auth::AccessKey;
use super::call::EmulatedCall;
use super::caller::{Caller, RoleArn, UserId};
use super::reply::Refusal;
use super::sessions::longest_session;
use super::switches::Switches;
use decide::{refusal, refused};
use unique::UniqueValue;

pub(super) use decide::refused_by_trust;
pub(super) use rules::{PolicyKind, PolicyRules};

/// The services whose endpoints can have a policy.
const ENDPOINTS: [&str; 4] = ["ebs", "ec2", "s3", "sts"];
/// Users of a file, and roles.
const MOST_USERS: usize = 1000;
/// Resources of an action that are counted apart. The callers choose their names.
const MOST_RESOURCES: usize = 10_000;

/// The members of a file of policies.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PolicyFile {
    /// By the names of users, which are profiles of the credentials file, or by their ARNs: a policy, or a list of them.
    users: BTreeMap<String, Value>,
    /// By their names or ARNs.
    roles: BTreeMap<String, RoleText>,
    /// Key policies, by the ARNs of their keys.
    kms_keys: BTreeMap<String, Value>,
    /// One policy for all endpoints, or an object with one for each service.
    endpoint: Option<Value>,
}

/// A role in a file of policies.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RoleText {
    /// Who may assume it: statements with a `Principal` and without a `Resource`.
    trust: Value,
    /// What its sessions may do: a policy, or a list of them.
    policies: Value,
    /// Seconds of its longest session.
    max_session_s: Option<u64>,
}

/// A user with policies.
#[derive(Debug)]
struct EmulatedUser {
    id: UserId,
    rules: PolicyRules,
}

/// A role.
#[derive(Debug)]
struct EmulatedRole {
    trust: PolicyRules,
    rules: PolicyRules,
    longest_s: u64,
}

/// The policies that are in force.
#[derive(Debug, Default)]
pub(super) struct AccessPolicies {
    /// By their profiles.
    users: BTreeMap<String, EmulatedUser>,
    roles: BTreeMap<RoleArn, EmulatedRole>,
    kms_keys: BTreeMap<String, PolicyRules>,
    endpoints: BTreeMap<&'static str, PolicyRules>,
}

impl AccessPolicies {
    /// Reads a file of policies.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let file = serde_json::from_slice::<UniqueValue>(text);
        let UniqueValue(file) = file.map_err(|error| error.to_string())?;
        if !file.is_object() {
            return Err("it is not a JSON object".into());
        }
        let file: PolicyFile = serde_json::from_value(file).map_err(|error| error.to_string())?;
        if file.users.len().max(file.roles.len()) > MOST_USERS {
            return Err(format!("more than {MOST_USERS} users or roles"));
        }
        let mut policies = Self::default();
        for (name, value) in file.users {
            let id: UserId = name.parse().map_err(|why| format!("users: {why}"))?;
            let rules = identity(value).map_err(|why| format!("users: {name}: {why}"))?;
            let profile = id.profile.clone();
            if policies
                .users
                .insert(profile, EmulatedUser { id, rules })
                .is_some()
            {
                return Err(format!("users: two users have the profile of {name}"));
            }
        }
        for (name, text) in file.roles {
            let arn = RoleArn::of_key(&name).ok_or_else(|| {
                format!("roles: {name:?} is neither the name nor the ARN of a role")
            })?;
            let role = EmulatedRole::parse(text).map_err(|why| format!("roles: {name}: {why}"))?;
            if policies.roles.insert(arn, role).is_some() {
                return Err(format!("roles: {name} is there twice"));
            }
        }
        for (arn, value) in file.kms_keys {
            if !arn.starts_with("arn:") || !arn.contains(":key/") {
                return Err(format!("kms_keys: {arn:?} is not the ARN of a key"));
            }
            let rules = PolicyRules::parse(value, PolicyKind::Granting);
            let rules = rules.map_err(|why| format!("kms_keys: {arn}: {why}"))?;
            policies.kms_keys.insert(arn, rules);
        }
        if let Some(value) = file.endpoint {
            policies.endpoints = endpoints(value).map_err(|why| format!("endpoint: {why}"))?;
        }
        Ok(policies)
    }

    /// The profiles of the users that have policies.
    fn profiles(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }

    /// The user of a profile, if it has policies.
    pub(super) fn user(&self, profile: &str) -> Option<UserId> {
        self.users.get(profile).map(|user| user.id.clone())
    }

    /// The seconds of the longest session of a role; none if there is no such role.
    pub(super) fn longest_session(&self, role: &RoleArn) -> Option<u64> {
        self.roles.get(role).map(|role| role.longest_s)
    }
}

impl EmulatedRole {
    fn parse(text: RoleText) -> Result<Self, String> {
        let trust = PolicyRules::parse(text.trust, PolicyKind::Trust);
        Ok(Self {
            trust: trust.map_err(|why| format!("trust: {why}"))?,
            rules: identity(text.policies).map_err(|why| format!("policies: {why}"))?,
            longest_s: longest_session(text.max_session_s)?,
        })
    }
}

/// The policy of a user or a role, or a list of them.
fn identity(value: Value) -> Result<PolicyRules, String> {
    let one = |value| PolicyRules::parse(value, PolicyKind::Identity);
    let rules = match value {
        Value::Array(all) => all.into_iter().map(one).collect::<Result<_, _>>()?,
        value => vec![one(value)?],
    };
    Ok(PolicyRules::merged(rules))
}

/// One policy for all endpoints, or one for each service.
fn endpoints(value: Value) -> Result<BTreeMap<&'static str, PolicyRules>, String> {
    let one = |value| PolicyRules::parse(value, PolicyKind::Granting);
    if value.get("Statement").is_some() {
        let rules = one(value)?;
        return Ok(ENDPOINTS.map(|service| (service, rules.clone())).into());
    }
    let Value::Object(by_service) = value else {
        return Err("it is neither a policy nor an object of policies by service".into());
    };
    let of_service = |(name, value): (String, Value)| {
        let known = ENDPOINTS.into_iter().find(|service| *service == name);
        let service =
            known.ok_or_else(|| format!("{name:?} is not one of {}", ENDPOINTS.join(", ")))?;
        let rules = one(value).map_err(|why| format!("{name}: {why}"))?;
        Ok((service, rules))
    };
    by_service.into_iter().map(of_service).collect()
}

impl Emulator {
    /// Puts policies in force, and gives each of their users an access key, a profile of the credentials file.
    ///
    /// # Errors
    /// What is wrong with the text. The policies in force then stay.
    pub(super) fn set_policies(&self, text: &[u8]) -> Result<(), String> {
        let policies = AccessPolicies::parse(text)?;
        let mut keys = self.access_keys.lock();
        let mut all = keys.to_vec();
        for user in policies.profiles() {
            if !all.iter().any(|key| key.user == user) {
                let key = AccessKey::add(&self.folder, user);
                all.push(key.map_err(|error| format!("credentials of {user}: {error}"))?);
            }
        }
        *keys = Arc::new(all);
        drop(keys);
        *self.policies.lock() = Some(Arc::new(policies));
        Ok(())
    }

    /// Refuses a call that the switches or the policies deny, and counts its actions if policies are in force.
    pub(super) fn authorize(
        &self,
        caller: &Caller,
        call: &EmulatedCall,
        parts: &Parts,
        body: &[u8],
        switches: &Switches,
    ) -> Result<(), Refusal> {
        let policies = self.policies.lock().clone();
        if policies.is_none() && switches.deny.is_empty() {
            return Ok(());
        }
        let requests = self.access_requests(caller, call, parts, body)?;
        let own = format!("{}:{}", call.service(), call.name());
        if let Some(first) = requests.first().filter(|_| switches.deny.contains(&own)) {
            let why = "with an explicit deny in an identity-based policy";
            return Err(refusal(caller, call, first, why));
        }
        let Some(policies) = policies else {
            return Ok(());
        };
        let counted_as = caller.counted_as();
        for request in &requests {
            let mut actions = self.actions.lock();
            let of_caller = actions.entry(counted_as.clone()).or_default();
            let on = of_caller.entry(request.action.clone()).or_default();
            let is_apart = on.len() < MOST_RESOURCES || on.contains_key(&request.resource);
            let resource = if is_apart {
                &*request.resource
            } else {
                "others"
            };
            *on.entry(resource.to_owned()).or_default() += 1;
            drop(actions);
            let decision = policies.decide(caller, call.service(), request);
            if let Some(refusal) = refused(decision, caller, call, request) {
                return Err(refusal);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
