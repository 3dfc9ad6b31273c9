//! The parameters of AssumeRole, and the refusals of STS for wrong ones.

use crate::emulator::caller::RoleArn;
use crate::emulator::ec2::QueryForm;
use crate::emulator::policy::{PolicyKind, PolicyRules};
use crate::emulator::reply::Refusal;

/// Seconds of a session: the least, those without `DurationSeconds`, the most.
const LEAST_S: u64 = 900;
pub(super) const USUAL_S: u64 = 3600;
const MOST_S: u64 = 43_200;
/// Characters of a session policy.
const MOST_POLICY: usize = 2048;
/// Parameters of AssumeRole that the emulator reads. One that it does not read would change what the session may do.
const PARAMETERS: [&str; 7] = [
    "Action",
    "Version",
    "RoleArn",
    "RoleSessionName",
    "DurationSeconds",
    "ExternalId",
    "Policy",
];

/// The parameters of AssumeRole.
#[derive(Debug)]
pub(in crate::emulator) struct RoleRequest {
    pub(super) role: RoleArn,
    pub(super) session: String,
    pub(super) seconds: u64,
    external: Option<String>,
    pub(super) limits: Option<PolicyRules>,
    /// Characters of the session policy.
    policy_length: usize,
}

/// The refusal of a parameter.
pub(super) fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(400, "ValidationError", None, message)
}

/// The refusal of a value that breaks a constraint, in the words of the front end.
fn breaks(name: &str, value: &str, must: &str) -> Refusal {
    invalid(format!(
        "1 validation error detected: Value '{value}' at '{name}' failed to satisfy constraint: Member must {must}"
    ))
}

/// The constraints of a text.
struct TextRule {
    parameter: &'static str,
    /// Its name in messages.
    member: &'static str,
    least: usize,
    most: usize,
    pattern: &'static str,
    /// Characters besides letters, digits and `_`.
    more: &'static str,
}

const SESSION_NAME: TextRule = TextRule {
    parameter: "RoleSessionName",
    member: "roleSessionName",
    least: 2,
    most: 64,
    pattern: "[\\w+=,.@-]*",
    more: "+=,.@-",
};
const EXTERNAL_ID: TextRule = TextRule {
    parameter: "ExternalId",
    member: "externalId",
    least: 2,
    most: 1224,
    pattern: "[\\w+=,.@:\\/-]*",
    more: "+=,.@:/-",
};

impl TextRule {
    /// The parameter, if the request has it.
    fn read(&self, form: &QueryForm) -> Result<Option<String>, Refusal> {
        let Some(value) = form.get(self.parameter) else {
            return Ok(None);
        };
        let length = value.chars().count();
        let is_known = |c: char| c.is_ascii_alphanumeric() || c == '_' || self.more.contains(c);
        let must = if length < self.least {
            format!("have length greater than or equal to {}", self.least)
        } else if length > self.most {
            format!("have length less than or equal to {}", self.most)
        } else if !value.chars().all(is_known) {
            format!("satisfy regular expression pattern: {}", self.pattern)
        } else {
            return Ok(Some(value.to_owned()));
        };
        Err(breaks(self.member, value, &must))
    }
}

/// The refusal of a parameter that is missing.
fn missing(member: &str) -> Refusal {
    invalid(format!(
        "1 validation error detected: Value null at '{member}' failed to satisfy constraint: Member must not be null"
    ))
}

impl RoleRequest {
    pub(in crate::emulator) fn parse(form: &QueryForm) -> Result<Self, Refusal> {
        if let Some(unknown) = form.names().find(|name| !PARAMETERS.contains(name)) {
            return Err(invalid(format!(
                "the emulator does not know the parameter {unknown} of AssumeRole"
            )));
        }
        let arn = form.get("RoleArn").ok_or_else(|| missing("roleArn"))?;
        if arn.chars().count() < 20 {
            let must = "have length greater than or equal to 20";
            return Err(breaks("roleArn", arn, must));
        }
        let role: RoleArn = arn
            .parse()
            .map_err(|()| invalid(format!("{arn} is invalid")))?;
        let (limits, policy_length) = session_policy(form.get("Policy"))?;
        Ok(Self {
            role,
            session: SESSION_NAME
                .read(form)?
                .ok_or_else(|| missing(SESSION_NAME.member))?,
            seconds: duration(form.get("DurationSeconds"))?,
            external: EXTERNAL_ID.read(form)?,
            limits,
            policy_length,
        })
    }

    pub(in crate::emulator) fn role(&self) -> &RoleArn {
        &self.role
    }

    pub(in crate::emulator) fn session(&self) -> &str {
        &self.session
    }

    pub(in crate::emulator) fn external(&self) -> Option<&str> {
        self.external.as_deref()
    }

    /// The element that AWS puts out with a session policy: the share of the most characters, in percent.
    pub(super) fn packed(&self) -> String {
        match self.limits {
            Some(_) => {
                let percent = (self.policy_length * 100).div_ceil(MOST_POLICY);
                format!("<PackedPolicySize>{percent}</PackedPolicySize>")
            }
            None => String::new(),
        }
    }
}

/// The seconds of a session.
fn duration(text: Option<&str>) -> Result<u64, Refusal> {
    let Some(text) = text else {
        return Ok(USUAL_S);
    };
    let refuse = |must: String| Err(breaks("durationSeconds", text, &must));
    match text.parse::<u64>() {
        Ok(seconds) if seconds < LEAST_S => {
            refuse(format!("have value greater than or equal to {LEAST_S}"))
        }
        Ok(seconds) if seconds > MOST_S => {
            refuse(format!("have value less than or equal to {MOST_S}"))
        }
        Ok(seconds) => Ok(seconds),
        Err(_) => refuse("be an integer".into()),
    }
}

/// The session policy and its characters.
fn session_policy(text: Option<&str>) -> Result<(Option<PolicyRules>, usize), Refusal> {
    let Some(text) = text else {
        return Ok((None, 0));
    };
    let length = text.chars().count();
    if length > MOST_POLICY {
        let must = format!("have length less than or equal to {MOST_POLICY}");
        return Err(breaks("policy", text, &must));
    }
    let malformed = |why: String| {
        let message = format!("The policy is not valid: {why}");
        Refusal::new(400, "MalformedPolicyDocument", None, message)
    };
    let rules = PolicyRules::parse_text(text.as_bytes(), PolicyKind::Identity);
    Ok((Some(rules.map_err(malformed)?), length))
}

/// Whether a number of seconds can be the longest session of a role.
pub(in crate::emulator) fn longest_session(seconds: Option<u64>) -> Result<u64, String> {
    match seconds {
        None => Ok(USUAL_S),
        Some(seconds) if (LEAST_S..=MOST_S).contains(&seconds) => Ok(seconds),
        Some(seconds) => Err(format!(
            "max_session_s is {seconds}, not between {LEAST_S} and {MOST_S}"
        )),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const ROLE: &str = "arn:aws:iam::111122223333:role/reader";

    /// The parameters of AssumeRole with these.
    pub(in super::super) fn form(more: &[(&str, &str)]) -> QueryForm {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("Action", "AssumeRole")
            .append_pair("Version", "2011-06-15")
            .extend_pairs(more);
        QueryForm::parse(form.finish().as_bytes())
    }

    #[test]
    fn parameters_that_break_a_constraint_get_the_words_of_sts() {
        let ok = [("RoleArn", ROLE), ("RoleSessionName", "night")];
        let parsed = RoleRequest::parse(&form(&ok)).unwrap();
        assert_eq!(
            (parsed.seconds, parsed.role().to_string().as_str()),
            (3600, ROLE)
        );
        let long = "x".repeat(65);
        let policy = "{}".repeat(1025);
        for (name, value, code, words) in [
            (
                "RoleArn",
                "arn:x",
                "ValidationError",
                "greater than or equal to 20",
            ),
            (
                "RoleArn",
                "arn:aws:iam::1:role/reader",
                "ValidationError",
                "arn:aws:iam::1:role/reader is invalid",
            ),
            (
                "RoleSessionName",
                "x",
                "ValidationError",
                "'roleSessionName' failed to satisfy constraint",
            ),
            (
                "RoleSessionName",
                &long,
                "ValidationError",
                "less than or equal to 64",
            ),
            (
                "RoleSessionName",
                "a b",
                "ValidationError",
                "pattern: [\\w+=,.@-]*",
            ),
            (
                "DurationSeconds",
                "899",
                "ValidationError",
                "greater than or equal to 900",
            ),
            (
                "DurationSeconds",
                "43201",
                "ValidationError",
                "less than or equal to 43200",
            ),
            (
                "DurationSeconds",
                "1h",
                "ValidationError",
                "durationSeconds",
            ),
            ("ExternalId", "a", "ValidationError", "'externalId'"),
            ("ExternalId", "a b", "ValidationError", "regular expression"),
            ("Policy", "{", "MalformedPolicyDocument", "EOF"),
            (
                "Policy",
                &policy,
                "ValidationError",
                "less than or equal to 2048",
            ),
            ("SourceIdentity", "me", "ValidationError", "SourceIdentity"),
            (
                "PolicyArns.member.1.arn",
                "arn:aws:iam::aws:policy/x",
                "ValidationError",
                "PolicyArns",
            ),
        ] {
            let mut with: Vec<_> = ok.into_iter().filter(|(other, _)| *other != name).collect();
            with.push((name, value));
            let refusal = RoleRequest::parse(&form(&with)).unwrap_err();
            assert_eq!(
                (refusal.status, refusal.code),
                (400, code),
                "{name}={value}"
            );
            assert!(refusal.message.contains(words), "{}", refusal.message);
        }
        for member in ["RoleArn", "RoleSessionName"] {
            let with: Vec<_> = ok
                .into_iter()
                .filter(|(other, _)| *other != member)
                .collect();
            let refusal = RoleRequest::parse(&form(&with)).unwrap_err();
            assert!(
                refusal.message.contains("Member must not be null"),
                "{member}"
            );
        }
        for (text, seconds) in [("900", 900), ("43200", 43_200)] {
            let with = [ok[0], ok[1], ("DurationSeconds", text)];
            assert_eq!(RoleRequest::parse(&form(&with)).unwrap().seconds, seconds);
        }
    }
}
