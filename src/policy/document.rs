//! Documents as IAM reads them: members in the order in which people write them, one value or a list.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html>

use std::collections::BTreeMap;

use serde::Serialize;

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct PolicyDocument {
    version: &'static str,
    statement: Vec<PolicyStatement>,
}

impl PolicyDocument {
    pub(super) fn new(statement: Vec<PolicyStatement>) -> Self {
        Self {
            version: "2012-10-17",
            statement,
        }
    }
}

/// One statement, which allows something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PolicyStatement {
    effect: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) principal: Option<PolicyPrincipal>,
    action: PolicyValues,
    resource: PolicyValues,
    #[serde(skip_serializing_if = "Conditions::is_empty")]
    condition: Conditions,
}

impl PolicyStatement {
    pub(super) fn allow(
        actions: Vec<&'static str>,
        resources: Vec<String>,
        condition: Conditions,
    ) -> Self {
        Self {
            effect: "Allow",
            principal: None,
            action: values_of(actions.into_iter().map(str::to_owned).collect()),
            resource: values_of(resources),
            condition,
        }
    }

    /// Allows one more action.
    pub(super) fn add(&mut self, action: &str) {
        let mut all = match std::mem::take(&mut self.action) {
            PolicyValues::One(one) => vec![one],
            PolicyValues::Many(many) => many,
        };
        if !all.iter().any(|known| known == action) {
            all.push(action.to_owned());
        }
        self.action = values_of(all);
    }
}

/// Who a statement is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PolicyPrincipal {
    /// Everyone.
    All,
    /// The user, role or account of this ARN.
    Aws(String),
}

impl Serialize for PolicyPrincipal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("*"),
            Self::Aws(arn) => BTreeMap::from([("AWS", arn)]).serialize(serializer),
        }
    }
}

/// One value, or a list of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum PolicyValues {
    One(String),
    Many(Vec<String>),
}

impl Default for PolicyValues {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

/// Values as a policy has them.
pub(super) fn values_of(mut values: Vec<String>) -> PolicyValues {
    match (values.len(), values.pop()) {
        (1, Some(one)) => PolicyValues::One(one),
        (_, last) => {
            values.extend(last);
            PolicyValues::Many(values)
        }
    }
}

/// Conditions: by operator and key, the values of which one must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Conditions(BTreeMap<String, BTreeMap<String, PolicyValues>>);

impl Conditions {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, operator: &str, key: &str, value: &impl ToString) {
        self.add_all(operator, key, PolicyValues::One(value.to_string()));
    }

    pub(super) fn add_all(&mut self, operator: &str, key: &str, values: PolicyValues) {
        let keys = self.0.entry(operator.to_owned()).or_default();
        keys.insert(key.to_owned(), values);
    }
}
