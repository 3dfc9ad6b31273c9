//! Policies of users, of KMS keys and of VPC endpoints, and the decision whether they allow a call.
//!
//! A user without policies may do everything. An explicit deny wins over an allow. A call that no policy allows gets the error
//! message of AWS (<https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html>). A file with an unknown
//! operator, condition key or member is refused as a whole: a condition that is not read must not become an allow.
//!
//! | file | subject |
//! | --- | --- |
//! | [`needs`] | what each call asks for: actions, resources, the values of condition keys |
//! | [`rules`] | statements: what they match |
//! | [`condition`] | conditions: operators and keys |
//! | [`unique`] | JSON without repeated members |

mod condition;
mod needs;
mod rules;
mod unique;

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::http::request::Parts;
use serde::Deserialize;
use serde_json::Value;

use super::auth::{AccessKey, Caller};
use super::call::EmulatedCall;
use super::reply::Refusal;
use super::switches::Switches;
use super::{ACCOUNT, Emulator};
use needs::AccessRequest;
use rules::{PolicyKind, PolicyRules, PrincipalMatch};
use unique::UniqueValue;

/// The services whose endpoints can have a policy.
const ENDPOINTS: [&str; 4] = ["ebs", "ec2", "s3", "sts"];
/// Users of a file.
const MOST_USERS: usize = 1000;
/// Resources of an action that are counted apart. The callers choose their names.
const MOST_RESOURCES: usize = 10_000;

/// The members of a file of policies.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PolicyFile {
    /// By the names of users, which are profiles of the credentials file: a policy, or a list of them.
    users: BTreeMap<String, Value>,
    /// Key policies, by the ARNs of their keys.
    kms_keys: BTreeMap<String, Value>,
    /// One policy for all endpoints, or an object with one for each service.
    endpoint: Option<Value>,
}

/// The policies that are in force.
#[derive(Debug, Default)]
pub(super) struct AccessPolicies {
    users: BTreeMap<String, PolicyRules>,
    kms_keys: BTreeMap<String, PolicyRules>,
    endpoints: BTreeMap<&'static str, PolicyRules>,
}

/// The decision on one action.
#[derive(Clone, Debug, PartialEq, Eq)]
enum AccessDecision {
    Allowed,
    /// Refused, with the reason as AWS words it.
    Refused(String),
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
        if file.users.len() > MOST_USERS {
            return Err(format!("more than {MOST_USERS} users"));
        }
        let mut policies = Self::default();
        for (user, value) in file.users {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if user.is_empty() || user.len() > 64 || !user.chars().all(is_name) {
                return Err(format!(
                    "users: {user:?} is not a name of letters, digits, -, _ and ."
                ));
            }
            let one = |value| PolicyRules::parse(value, PolicyKind::Identity);
            let rules = match value {
                Value::Array(all) => all.into_iter().map(one).collect::<Result<_, _>>(),
                value => one(value).map(|rules| vec![rules]),
            };
            let rules = rules.map_err(|why| format!("users: {user}: {why}"))?;
            policies.users.insert(user, PolicyRules::merged(rules));
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

    /// The names of the users that have policies.
    pub(super) fn users(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }

    /// Decides on one action of a call to `service`.
    fn decide(
        &self,
        user: &str,
        arn: &str,
        service: &str,
        request: &AccessRequest,
    ) -> AccessDecision {
        let action = &request.action;
        let identity = self.users.get(user).map(|rules| rules.decide(request, arn));
        if let Some(key) = &request.key {
            return self.decide_on_key(key, identity.as_ref(), arn, request);
        }
        let endpoint = self
            .endpoints
            .get(service)
            .map(|rules| rules.decide(request, arn));
        // GetCallerIdentity needs no permission, but an endpoint policy can refuse it.
        let identity = identity.filter(|_| action != "sts:GetCallerIdentity");
        for (decision, kind) in [(&identity, "identity-based"), (&endpoint, "VPC endpoint")] {
            if decision.as_ref().is_some_and(|decision| decision.is_denied) {
                let article = if kind.starts_with('i') { "an" } else { "a" };
                return AccessDecision::Refused(format!(
                    "with an explicit deny in {article} {kind} policy"
                ));
            }
        }
        for (decision, kind) in [(&identity, "identity-based"), (&endpoint, "VPC endpoint")] {
            if decision
                .as_ref()
                .is_some_and(|decision| decision.allowed.is_none())
            {
                let why = format!("because no {kind} policy allows the {action} action");
                return AccessDecision::Refused(why);
            }
        }
        AccessDecision::Allowed
    }

    /// A KMS key: its policy grants access to the caller, or leaves it to the account, whose identity policies then must
    /// (<https://docs.aws.amazon.com/kms/latest/developerguide/key-policy-overview.html>). A key without a policy here has the
    /// default one, which leaves it to the account. EBS asks KMS itself, so no endpoint policy applies.
    fn decide_on_key(
        &self,
        key: &str,
        identity: Option<&rules::RuleDecision>,
        arn: &str,
        request: &AccessRequest,
    ) -> AccessDecision {
        let refused = || AccessDecision::Refused("by KMS".into());
        let by_key = self
            .kms_keys
            .get(key)
            .map(|rules| rules.decide(request, arn));
        let is_denied =
            |decision: Option<&rules::RuleDecision>| decision.is_some_and(|v| v.is_denied);
        if is_denied(identity) || is_denied(by_key.as_ref()) {
            return refused();
        }
        let by_identity = identity.is_none_or(|decision| decision.allowed.is_some());
        let granted = by_key.map_or(Some(PrincipalMatch::Account), |decision| decision.allowed);
        match granted {
            Some(PrincipalMatch::Caller) => AccessDecision::Allowed,
            Some(PrincipalMatch::Account) if by_identity => AccessDecision::Allowed,
            _ => refused(),
        }
    }
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
        for user in policies.users() {
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
        let arn = caller.arn();
        for request in &requests {
            let mut actions = self.actions.lock();
            let of_user = actions.entry(caller.user.clone()).or_default();
            let on = of_user.entry(request.action.clone()).or_default();
            let is_apart = on.len() < MOST_RESOURCES || on.contains_key(&request.resource);
            let resource = if is_apart {
                &*request.resource
            } else {
                "others"
            };
            *on.entry(resource.to_owned()).or_default() += 1;
            drop(actions);
            let decision = policies.decide(&caller.user, &arn, call.service(), request);
            if let AccessDecision::Refused(why) = decision {
                return Err(match &request.key {
                    Some(_) => refusal_by_kms(call),
                    None => refusal(caller, call, request, &why),
                });
            }
        }
        Ok(())
    }
}

/// The refusal as the service words it. It names the resource only if the action can be limited to one.
fn refusal(caller: &Caller, call: &EmulatedCall, request: &AccessRequest, why: &str) -> Refusal {
    let (arn, action) = (caller.arn(), &request.action);
    let on = match &*request.resource {
        "*" => String::new(),
        resource => format!(" on resource: {resource}"),
    };
    let said = format!("User: {arn} is not authorized to perform: {action}{on} {why}");
    match call {
        EmulatedCall::Ec2(_) if call.service() == "ec2" => {
            let message = format!("You are not authorized to perform this operation. {said}");
            Refusal::new(403, "UnauthorizedOperation", None, message)
        }
        EmulatedCall::Ec2(_) => Refusal::new(403, "AccessDenied", None, said),
        _ => Refusal::new(403, "AccessDeniedException", None, said),
    }
}

/// In recordings of AWS, a refused key looks like one that does not exist.
fn refusal_by_kms(call: &EmulatedCall) -> Refusal {
    match call {
        EmulatedCall::StartSnapshot => Refusal::invalid(
            "INVALID_DEPENDENCY_REQUEST",
            "The KMS key cannot be used for this request",
        ),
        _ => Refusal::new(
            404,
            "ResourceNotFoundException",
            Some("DEPENDENCY_RESOURCE_NOT_FOUND"),
            "KMS key not found",
        ),
    }
}

/// The ARN of the account itself.
fn root() -> String {
    format!("arn:aws:iam::{ACCOUNT}:root")
}

#[cfg(test)]
mod tests;
