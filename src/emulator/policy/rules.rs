//! Statements of policies, and the requests that they match.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::condition::{PolicyCondition, is_arn, is_arn_like, is_like};
use super::needs::AccessRequest;
use super::unique::UniqueValue;
use crate::emulator::caller::{Caller, is_account};

/// What a policy is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::emulator) enum PolicyKind {
    /// A user, a role or a session: it names no principal.
    Identity,
    /// A role, as its trust policy: each statement names its principal, and no resource.
    Trust,
    /// A key or an endpoint: each statement names its principal.
    Granting,
}

/// A policy as text.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct PolicyText {
    version: String,
    #[serde(rename = "Id")]
    _id: Option<String>,
    statement: TextList<StatementText>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct StatementText {
    #[serde(rename = "Sid")]
    _sid: Option<String>,
    effect: EffectText,
    principal: Option<Value>,
    action: TextList<String>,
    resource: Option<TextList<String>>,
    #[serde(default)]
    condition: BTreeMap<String, BTreeMap<String, Value>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum EffectText {
    Allow,
    Deny,
}

/// One thing, or a list of them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TextList<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> TextList<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// Who a statement is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum PrincipalPattern {
    Everyone,
    /// The account of this number: those of its users and roles that identity policies allow.
    Account(String),
    /// The user, the role or the session of this ARN.
    Arn(String),
}

/// How a principal matches a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PrincipalMatch {
    /// As a user or a role of the account.
    Account,
    /// As itself.
    Caller,
}

/// One statement.
#[derive(Clone, Debug)]
struct PolicyRule {
    effect: EffectText,
    principals: Vec<PrincipalPattern>,
    actions: Vec<String>,
    resources: Vec<String>,
    conditions: Vec<PolicyCondition>,
}

/// The statements of one or more policies.
#[derive(Clone, Debug, Default)]
pub(in crate::emulator) struct PolicyRules(Vec<PolicyRule>);

/// What statements decide about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RuleDecision {
    pub(super) is_denied: bool,
    /// The nearest principal that is allowed; none where nothing allows it.
    pub(super) allowed: Option<PrincipalMatch>,
}

impl PolicyRules {
    /// Rules that allow and deny nothing.
    pub(super) const NONE: Self = Self(Vec::new());

    /// Reads the text of a policy.
    pub(in crate::emulator) fn parse_text(text: &[u8], kind: PolicyKind) -> Result<Self, String> {
        let value = serde_json::from_slice::<UniqueValue>(text);
        let UniqueValue(value) = value.map_err(|error| error.to_string())?;
        Self::parse(value, kind)
    }

    /// Reads a policy.
    pub(super) fn parse(value: Value, kind: PolicyKind) -> Result<Self, String> {
        // The message of serde for an untagged enum does not name the member.
        let text: PolicyText = serde_json::from_value(value).map_err(|error| {
            format!("the emulator does not know this policy: {error} (NotAction, NotResource and NotPrincipal are not known)")
        })?;
        if text.version != "2012-10-17" {
            return Err(format!("Version is {:?}, not 2012-10-17", text.version));
        }
        let statements = text.statement.into_vec();
        if statements.is_empty() {
            return Err("no statement".into());
        }
        let rules = (1..).zip(statements).map(|(number, statement)| {
            PolicyRule::parse(statement, kind).map_err(|why| format!("statement {number}: {why}"))
        });
        rules.collect::<Result<_, _>>().map(Self)
    }

    /// Several policies as one.
    pub(super) fn merged(all: Vec<Self>) -> Self {
        Self(all.into_iter().flat_map(|rules| rules.0).collect())
    }

    /// Decides on a request of a caller.
    pub(super) fn decide(&self, request: &AccessRequest, caller: &Caller) -> RuleDecision {
        let matching = self.0.iter();
        let matching: Vec<_> = matching
            .filter_map(|rule| Some((rule.effect, rule.matches(request, caller)?)))
            .collect();
        let allowed = matching
            .iter()
            .filter(|(effect, _)| *effect == EffectText::Allow);
        RuleDecision {
            is_denied: matching
                .iter()
                .any(|(effect, _)| *effect == EffectText::Deny),
            allowed: allowed.map(|(_, principal)| *principal).max(),
        }
    }
}

impl PolicyRule {
    fn parse(text: StatementText, kind: PolicyKind) -> Result<Self, String> {
        let principals = match (text.principal, kind) {
            (None, PolicyKind::Identity) => vec![PrincipalPattern::Everyone],
            (Some(value), PolicyKind::Granting | PolicyKind::Trust) => principals(&value)?,
            (Some(_), PolicyKind::Identity) => {
                return Err("the policy of a user or a role names a Principal".into());
            }
            (None, PolicyKind::Granting | PolicyKind::Trust) => {
                return Err("it names no Principal".into());
            }
        };
        let resources = match (text.resource, kind) {
            (Some(_), PolicyKind::Trust) => return Err("a trust policy names a Resource".into()),
            (None, PolicyKind::Trust) => vec!["*".to_owned()],
            (named, _) => named.map_or_else(Vec::new, TextList::into_vec),
        };
        let actions = text.action.into_vec();
        if actions.is_empty() || resources.is_empty() {
            return Err("it has no Action or no Resource".into());
        }
        if let Some(wrong) = actions
            .iter()
            .find(|action| *action != "*" && !action.contains(':'))
        {
            return Err(format!(
                "{wrong:?} is not an action: it must look like ebs:GetSnapshotBlock"
            ));
        }
        if let Some(wrong) = resources.iter().find(|one| *one != "*" && !is_arn(one)) {
            return Err(format!(
                "{wrong:?} is not a resource: it must be * or an ARN"
            ));
        }
        let conditions = PolicyCondition::parse(&text.condition)?;
        let values = text.condition.values().flat_map(BTreeMap::values);
        let mut all = values
            .map(Value::to_string)
            .chain(resources.iter().cloned());
        if let Some(wrong) = all.find(|text| text.contains("${")) {
            return Err(format!("the emulator does not know variables: {wrong}"));
        }
        Ok(Self {
            effect: text.effect,
            principals,
            actions,
            resources,
            conditions,
        })
    }

    /// How it matches a request of this caller; none where it does not.
    fn matches(&self, request: &AccessRequest, caller: &Caller) -> Option<PrincipalMatch> {
        // Names of actions have no case.
        let action = request.action.to_ascii_lowercase();
        let is_action = |pattern: &String| is_like(&pattern.to_ascii_lowercase(), &action);
        let is_resource =
            |pattern: &String| pattern == "*" || is_arn_like(pattern, &request.resource);
        let applies = self.actions.iter().any(is_action)
            && self.resources.iter().any(is_resource)
            && self
                .conditions
                .iter()
                .all(|one| one.holds(&request.context));
        let principal = |pattern: &PrincipalPattern| {
            let (is_its, as_what) = match pattern {
                PrincipalPattern::Everyone => (true, PrincipalMatch::Caller),
                PrincipalPattern::Arn(arn) => (caller.has_arn(arn), PrincipalMatch::Caller),
                PrincipalPattern::Account(id) => (id == caller.account(), PrincipalMatch::Account),
            };
            is_its.then_some(as_what)
        };
        let nearest = self.principals.iter().filter_map(principal).max();
        nearest.filter(|_| applies)
    }
}

/// The account that a principal names as a whole: by its number or by the ARN of its root.
fn account_of(text: &str) -> Option<&str> {
    let of_root = text
        .strip_prefix("arn:aws:iam::")
        .and_then(|rest| rest.strip_suffix(":root"));
    Some(of_root.unwrap_or(text)).filter(|account| is_account(account))
}

/// `"*"`, or an object with `AWS` alone.
fn principals(value: &Value) -> Result<Vec<PrincipalPattern>, String> {
    let unknown = || format!("the emulator does not know the Principal {value}");
    let one = |value: &Value| match value.as_str() {
        Some("*") => Ok(PrincipalPattern::Everyone),
        Some(text) => match account_of(text) {
            Some(account) => Ok(PrincipalPattern::Account(account.to_owned())),
            None if text.starts_with("arn:") => Ok(PrincipalPattern::Arn(text.to_owned())),
            None => Err(unknown()),
        },
        None => Err(unknown()),
    };
    let aws = match value {
        Value::String(_) => value,
        Value::Object(members) if members.len() == 1 => members.get("AWS").ok_or_else(unknown)?,
        _ => return Err(unknown()),
    };
    match aws {
        Value::Array(all) => all.iter().map(one).collect(),
        aws => Ok(vec![one(aws)?]),
    }
}
