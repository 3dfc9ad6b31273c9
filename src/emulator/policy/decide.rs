//! The decision on one action, and the refusal in AWS's words
//! (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html>).

use super::AccessPolicies;
use super::needs::{AccessRequest, PolicyGrantor};
use super::rules::{PolicyRules, PrincipalMatch, RuleDecision};
use crate::emulator::call::EmulatedCall;
use crate::emulator::caller::{Caller, EmulatedIdentity, RoleArn};
use crate::emulator::reply::Refusal;

/// The decision on one action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AccessDecision {
    Allowed,
    /// Refused, with the reason as AWS words it.
    Refused(String),
    /// Refused by the trust policy of a role. AWS then does not name the role.
    RefusedByTrust(String),
    /// Refused by KMS, which gives no reason.
    RefusedByKey,
}

/// A role without policies, or that does not exist any more, may do nothing.
static NO_RULES: PolicyRules = PolicyRules::NONE;

/// What the policies of a caller decide.
struct OwnDecisions {
    /// None: a user without policies may do everything.
    identity: Option<RuleDecision>,
    /// That of the session policy.
    session: Option<RuleDecision>,
}

impl OwnDecisions {
    fn is_denied(&self) -> bool {
        let both = [self.identity, self.session].into_iter();
        both.flatten().any(|one| one.is_denied)
    }

    fn are_allowing(&self) -> bool {
        allows(self.identity) && allows(self.session)
    }
}

fn allows(decision: Option<RuleDecision>) -> bool {
    decision.is_none_or(|one| one.allowed.is_some())
}

/// The reason of a refusal by one of these kinds of policies: first the denies, then what nothing allows.
fn reason(action: &str, decisions: &[(Option<RuleDecision>, &str)]) -> Option<String> {
    let denying = decisions.iter();
    let mut denying = denying.filter(|(one, _)| one.is_some_and(|one| one.is_denied));
    if let Some((_, kind)) = denying.next() {
        let article = if kind.starts_with('i') { "an" } else { "a" };
        return Some(format!("with an explicit deny in {article} {kind} policy"));
    }
    let mut lacking = decisions.iter().filter(|(one, _)| !allows(*one));
    let (_, kind) = lacking.next()?;
    Some(format!(
        "because no {kind} policy allows the {action} action"
    ))
}

impl AccessPolicies {
    /// Decides on one action of a call to `service`.
    pub(super) fn decide(
        &self,
        caller: &Caller,
        service: &str,
        request: &AccessRequest,
    ) -> AccessDecision {
        let own = self.own_decisions(caller, request);
        let of_endpoint = || {
            let rules = self.endpoints.get(service);
            rules.map(|rules| rules.decide(request, caller))
        };
        match &request.grantor {
            // EBS asks KMS itself, so no endpoint policy applies.
            Some(PolicyGrantor::Key(key)) => self.decide_on_key(key, &own, caller, request),
            Some(PolicyGrantor::Role(role)) => {
                self.decide_on_role(role, &own, of_endpoint(), caller, request)
            }
            None => {
                // GetCallerIdentity needs no permission, but an endpoint policy can refuse it.
                let needs_permission = request.action != "sts:GetCallerIdentity";
                let kinds = [
                    (own.identity.filter(|_| needs_permission), "identity-based"),
                    (own.session.filter(|_| needs_permission), "session"),
                    (of_endpoint(), "VPC endpoint"),
                ];
                reason(&request.action, &kinds)
                    .map_or(AccessDecision::Allowed, AccessDecision::Refused)
            }
        }
    }

    /// What the caller's own policies decide: those of the user, or those of the role and of the session.
    fn own_decisions(&self, caller: &Caller, request: &AccessRequest) -> OwnDecisions {
        let (identity, session) = match &caller.identity {
            EmulatedIdentity::User(user) => {
                let user = self.users.get(&user.profile);
                (user.map(|user| &user.rules), None)
            }
            EmulatedIdentity::Session(session) => {
                let role = self.roles.get(session.role());
                (
                    Some(role.map_or(&NO_RULES, |role| &role.rules)),
                    session.limits(),
                )
            }
        };
        let decide = |rules: &PolicyRules| rules.decide(request, caller);
        OwnDecisions {
            identity: identity.map(decide),
            session: session.map(decide),
        }
    }

    /// A KMS key: its policy grants access to the caller, or leaves it to the account, whose identity policies then must
    /// (<https://docs.aws.amazon.com/kms/latest/developerguide/key-policy-overview.html>). A key without a policy here has the
    /// default one, which leaves it to the account.
    fn decide_on_key(
        &self,
        key: &str,
        own: &OwnDecisions,
        caller: &Caller,
        request: &AccessRequest,
    ) -> AccessDecision {
        let by_key = self.kms_keys.get(key);
        let by_key = by_key.map(|rules| rules.decide(request, caller));
        if own.is_denied() || by_key.is_some_and(|one| one.is_denied) {
            return AccessDecision::RefusedByKey;
        }
        let granted = by_key.map_or(Some(PrincipalMatch::Account), |one| one.allowed);
        match granted {
            Some(PrincipalMatch::Caller) if allows(own.session) => AccessDecision::Allowed,
            Some(PrincipalMatch::Account) if own.are_allowing() => AccessDecision::Allowed,
            _ => AccessDecision::RefusedByKey,
        }
    }

    /// A role: its trust policy must name the caller or the account of the caller. If it names the account, or if the role is
    /// of another account, the policies of the caller must allow it too
    /// (<https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>). A role that does not exist trusts no caller.
    fn decide_on_role(
        &self,
        role: &RoleArn,
        own: &OwnDecisions,
        endpoint: Option<RuleDecision>,
        caller: &Caller,
        request: &AccessRequest,
    ) -> AccessDecision {
        let known = self.roles.get(role);
        let trust = known.map(|known| known.trust.decide(request, caller));
        let trusted = trust.and_then(|trust| trust.allowed);
        let is_named =
            trusted == Some(PrincipalMatch::Caller) && role.account() == caller.account();
        let action = &request.action;
        let own_kinds = [(own.identity, "identity-based"), (own.session, "session")];
        if own.is_denied() {
            return AccessDecision::Refused(reason(action, &own_kinds).unwrap_or_default());
        }
        if trust.is_some_and(|trust| trust.is_denied) {
            let why = "with an explicit deny in the role trust policy";
            return AccessDecision::RefusedByTrust(why.into());
        }
        if let Some(why) = reason(action, &[(endpoint, "VPC endpoint")]) {
            return AccessDecision::Refused(why);
        }
        if trusted.is_none() {
            return AccessDecision::RefusedByTrust(no_trust());
        }
        let [identity, session] = own_kinds;
        let needed = [(identity.0.filter(|_| !is_named), identity.1), session];
        reason(action, &needed).map_or(AccessDecision::Allowed, AccessDecision::Refused)
    }
}

fn no_trust() -> String {
    "because no role trust policy allows the sts:AssumeRole action".to_owned()
}

/// The refusal of AssumeRole by the trust policy of a role, or because the role does not exist.
pub(in crate::emulator) fn refused_by_trust(caller: &Caller) -> Refusal {
    trust_refusal(caller, &no_trust())
}

fn trust_refusal(caller: &Caller, why: &str) -> Refusal {
    let arn = caller.arn();
    let message = format!("User: {arn} is not authorized to perform: sts:AssumeRole {why}");
    Refusal::new(403, "AccessDenied", None, message)
}

/// The refusal of a decision; none where it allows the action.
pub(super) fn refused(
    decision: AccessDecision,
    caller: &Caller,
    call: &EmulatedCall,
    request: &AccessRequest,
) -> Option<Refusal> {
    match decision {
        AccessDecision::Allowed => None,
        AccessDecision::Refused(why) => Some(refusal(caller, call, request, &why)),
        AccessDecision::RefusedByTrust(why) => Some(trust_refusal(caller, &why)),
        AccessDecision::RefusedByKey => Some(refusal_by_kms(call)),
    }
}

/// The refusal as the service words it. It names the resource only if the action can be limited to one.
pub(super) fn refusal(
    caller: &Caller,
    call: &EmulatedCall,
    request: &AccessRequest,
    why: &str,
) -> Refusal {
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
