//! Conditions of a statement: the operators and keys that are known.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html>

use std::collections::BTreeMap;

use serde_json::Value;

/// Keys with one name.
const KEYS: [&str; 11] = [
    "aws:requestedregion",
    "aws:tagkeys",
    "aws:principalarn",
    "aws:principalaccount",
    "ec2:createaction",
    "ec2:parentvolume",
    "ebs:parentsnapshot",
    "kms:viaservice",
    "kms:calleraccount",
    "sts:externalid",
    "sts:rolesessionname",
];
/// Condition keys that end with a slash and the key of a tag.
const TAG_KEYS: [&str; 3] = ["aws:resourcetag", "ec2:resourcetag", "aws:requesttag"];

/// The values of condition keys in a request, by the names that [`key_name`] returns.
#[derive(Clone, Debug, Default)]
pub(super) struct AccessContext(BTreeMap<String, Vec<String>>);

impl AccessContext {
    /// Adds a value.
    pub(super) fn add(&mut self, key: &str, value: &str) {
        let key = key_name(key).unwrap_or_else(|| key.to_owned());
        self.0.entry(key).or_default().push(value.to_owned());
    }
}

/// The name of a condition key in lower case, with the key of a tag as it is: only there case matters. None for an unknown key.
fn key_name(key: &str) -> Option<String> {
    let (head, tag) = match key.split_once('/') {
        Some((head, tag)) => (head, Some(tag)),
        None => (key, None),
    };
    let head = head.to_ascii_lowercase();
    match tag {
        Some(tag) if TAG_KEYS.contains(&&*head) && !tag.is_empty() => Some(format!("{head}/{tag}")),
        None if KEYS.contains(&&*head) => Some(head),
        _ => None,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ValueComparison {
    Equals,
    EqualsIgnoreCase,
    Like,
    /// As for a resource.
    ArnLike,
    /// `true`: the request lacks the key. `false`: it has it.
    Null,
}

/// How many values of a key must match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ValueQuantity {
    One,
    Any,
    All,
}

/// One key of a condition with its operator.
#[derive(Clone, Debug)]
pub(super) struct PolicyCondition {
    key: String,
    comparison: ValueComparison,
    is_negated: bool,
    /// Whether it holds if the request lacks the key.
    is_if_exists: bool,
    quantity: ValueQuantity,
    values: Vec<String>,
}

impl PolicyCondition {
    /// Reads the conditions of a statement, all of which must hold.
    pub(super) fn parse(
        all: &BTreeMap<String, BTreeMap<String, Value>>,
    ) -> Result<Vec<Self>, String> {
        let mut conditions = Vec::new();
        for (operator, keys) in all {
            let (quantity, name) = match operator.split_once(':') {
                Some(("ForAllValues", name)) => (ValueQuantity::All, name),
                Some(("ForAnyValue", name)) => (ValueQuantity::Any, name),
                Some(_) | None => (ValueQuantity::One, operator.as_str()),
            };
            let (name, is_if_exists) = match name.strip_suffix("IfExists") {
                Some("Null") | None => (name, false),
                Some(name) => (name, true),
            };
            let (comparison, is_negated) = match name {
                "StringEquals" | "Bool" => (ValueComparison::Equals, false),
                "StringNotEquals" => (ValueComparison::Equals, true),
                "StringEqualsIgnoreCase" => (ValueComparison::EqualsIgnoreCase, false),
                "StringLike" => (ValueComparison::Like, false),
                // AWS compares both in the same way.
                "ArnLike" | "ArnEquals" => (ValueComparison::ArnLike, false),
                "Null" if quantity == ValueQuantity::One => (ValueComparison::Null, false),
                "StringNotLike" => (ValueComparison::Like, true),
                _ => {
                    return Err(format!(
                        "the emulator does not know the operator {operator}"
                    ));
                }
            };
            for (key, values) in keys {
                let known = key_name(key);
                let unknown = || format!("the emulator does not know the condition key {key}");
                let values = texts(values).ok_or_else(|| format!("{key} has no value"))?;
                let is_known = |value: &String| match comparison {
                    ValueComparison::ArnLike => is_arn(value),
                    ValueComparison::Null => ["true", "false"].contains(&value.as_str()),
                    _ => true,
                };
                if let Some(wrong) = values.iter().find(|value| !is_known(value)) {
                    return Err(format!("{operator} of {key} cannot be {wrong:?}"));
                }
                conditions.push(Self {
                    key: known.ok_or_else(unknown)?,
                    comparison,
                    is_negated,
                    is_if_exists,
                    quantity,
                    values,
                });
            }
        }
        Ok(conditions)
    }

    /// Whether it holds. If the request lacks the key, a negated operator, `IfExists` and `ForAllValues` hold.
    pub(super) fn holds(&self, context: &AccessContext) -> bool {
        let found = context.0.get(&self.key).map_or(&[][..], Vec::as_slice);
        if self.comparison == ValueComparison::Null {
            let is_null = found.is_empty().to_string();
            return self.values.contains(&is_null);
        }
        match self.quantity {
            _ if found.is_empty() && self.is_if_exists => true,
            ValueQuantity::One if found.is_empty() => self.is_negated,
            ValueQuantity::One | ValueQuantity::Any => {
                found.iter().any(|value| self.matches(value))
            }
            ValueQuantity::All => found.iter().all(|value| self.matches(value)),
        }
    }

    fn matches(&self, value: &str) -> bool {
        let is_it = |wanted: &String| match self.comparison {
            ValueComparison::Equals => wanted == value,
            ValueComparison::EqualsIgnoreCase => wanted.eq_ignore_ascii_case(value),
            ValueComparison::Like => is_like(wanted, value),
            ValueComparison::ArnLike => is_arn_like(wanted, value),
            // It compares no value.
            ValueComparison::Null => false,
        };
        self.values.iter().any(is_it) != self.is_negated
    }
}

/// One value or several, as text. None if there is no value, or one that is not a string, a number or a boolean.
fn texts(value: &Value) -> Option<Vec<String>> {
    let one = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(yes) => Some(yes.to_string()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let all = match value {
        Value::Array(all) => all.iter().map(one).collect::<Option<Vec<_>>>()?,
        value => vec![one(value)?],
    };
    (!all.is_empty()).then_some(all)
}

/// Whether a text has the parts of an ARN.
pub(super) fn is_arn(text: &str) -> bool {
    text.splitn(6, ':').count() == 6
}

/// Whether an ARN matches a pattern: part by part, so that a `*` does not match a colon before the last part.
pub(super) fn is_arn_like(pattern: &str, arn: &str) -> bool {
    let mut parts = pattern.splitn(6, ':').zip(arn.splitn(6, ':'));
    is_arn(pattern) && is_arn(arn) && parts.all(|(pattern, part)| is_like(pattern, part))
}

/// Whether a text matches a pattern: `*` is any text, `?` any character. Takes time in the product of both lengths.
pub(super) fn is_like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut from) = (0, 0);
    // The last star, and how much of the text it stands for.
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(c) if *c == '?' || Some(c) == text.get(from) => {
                at += 1;
                from += 1;
            }
            _ => match star {
                Some((place, taken)) => {
                    star = Some((place, taken + 1));
                    at = place + 1;
                    from = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(at).all(|c| *c == '*')
}
