//! The three requests about a bucket, and what lifecycle rules mean for the objects below a prefix.

use std::error::Error as StdError;
use std::sync::Arc;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::types::{
    BucketVersioningStatus, DefaultRetention, ExpirationStatus, LifecycleRule,
    LifecycleRuleAndOperator, LifecycleRuleFilter, ObjectLockEnabled, ObjectLockRule,
    TransitionStorageClass,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::S3Backend;
use super::watch::Watch;
use crate::error::Kind;
use crate::repository::store::backend::{FaultAction, StoreAnswer, StoreFault};
use crate::repository::store::bucket::{
    BucketSettings, BucketVersions, LifecycleEffects, ObjectLock,
};
use crate::repository::store::transfer::Transfer;

const VERSIONING: &str = "get the versioning of";
const LIFECYCLE: &str = "get the lifecycle rules of";
const LOCK: &str = "get the Object Lock of";
/// The most characters of a rule's ID (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_LifecycleRule.html>). Other servers
/// can send more.
const MOST_NAME: usize = 255;

#[async_trait::async_trait]
impl BucketSettings for S3Backend {
    async fn versions(&self, transfer: &Arc<Transfer>) -> StoreAnswer<BucketVersions> {
        let call = self.sdk.get_bucket_versioning().bucket(&self.bucket);
        let call = call.customize().interceptor(Watch::short(transfer));
        let reply = call.send().await;
        let reply = reply.map_err(|error| self.no_answer(VERSIONING, error))?;
        match reply.status() {
            None => Ok(BucketVersions::Off),
            Some(BucketVersioningStatus::Enabled) => Ok(BucketVersions::On),
            Some(BucketVersioningStatus::Suspended) => Ok(BucketVersions::Suspended),
            Some(_) => {
                let what = "the reply has a status that ebsfs does not know";
                Err(self.wrong(FaultAction::Final, VERSIONING, "", what))
            }
        }
    }

    async fn lifecycle(
        &self,
        prefix: &str,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<LifecycleEffects> {
        let call = self.sdk.get_bucket_lifecycle_configuration();
        let call = call.bucket(&self.bucket).customize();
        match call.interceptor(Watch::short(transfer)).send().await {
            Ok(reply) => Ok(effects(reply.rules(), prefix)),
            Err(error) if has_code(&error, "NoSuchLifecycleConfiguration") => {
                Ok(LifecycleEffects::default())
            }
            Err(error) => Err(self.no_answer(LIFECYCLE, error)),
        }
    }

    async fn object_lock(&self, transfer: &Arc<Transfer>) -> StoreAnswer<ObjectLock> {
        let call = self.sdk.get_object_lock_configuration();
        let call = call.bucket(&self.bucket).customize();
        let reply = match call.interceptor(Watch::short(transfer)).send().await {
            Ok(reply) => reply,
            Err(error) if has_code(&error, "ObjectLockConfigurationNotFoundError") => {
                return Ok(ObjectLock::Off);
            }
            Err(error) => return Err(self.no_answer(LOCK, error)),
        };
        let Some(lock) = reply.object_lock_configuration() else {
            return Err(self.wrong(FaultAction::Final, LOCK, "", "the reply is empty"));
        };
        if lock.object_lock_enabled() != Some(&ObjectLockEnabled::Enabled) {
            return Ok(ObjectLock::Off);
        }
        let default = lock.rule().and_then(ObjectLockRule::default_retention);
        Ok(default.map_or(ObjectLock::WithoutDefault, default_lock))
    }
}

impl S3Backend {
    /// A request that failed. A server that ignores the query answers with a listing, and would do so again.
    fn no_answer<E>(&self, verb: &str, error: SdkError<E, HttpResponse>) -> StoreFault
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let fault = self.fault(verb, "", error, false);
        match fault.error.kind() {
            Kind::Corrupt => StoreFault::new(FaultAction::Final, fault.error),
            _ => fault,
        }
    }
}

/// The lock that each new object gets.
fn default_lock(default: &DefaultRetention) -> ObjectLock {
    let time = |days: Option<i32>, years: Option<i32>| match (days, years) {
        (Some(days), _) => Some(counted(days, "day")),
        (None, years) => years.map(|years| counted(years, "year")),
    };
    if let (Some(mode), Some(time)) = (default.mode(), time(default.days(), default.years())) {
        return ObjectLock::Default(short(mode.as_str()), time);
    }
    let hold = default.default_event_hold();
    match hold.and_then(|hold| time(hold.days(), hold.years())) {
        Some(time) => {
            ObjectLock::Default("event hold".into(), format!("{time} from its release on"))
        }
        None => ObjectLock::WithoutDefault,
    }
}

/// A name from a server, not longer than AWS allows.
fn short(name: &str) -> String {
    name.chars().take(MOST_NAME).collect()
}

fn counted(count: i32, unit: &str) -> String {
    let end = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{end}")
}

fn has_code<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>, code: &str) -> bool {
    let found = error
        .as_service_error()
        .and_then(ProvideErrorMetadata::code);
    found == Some(code)
}

/// The objects that a rule is about.
struct RuleScope<'a> {
    prefix: &'a str,
    /// Only objects with tags, which those of a repository do not have.
    has_tags: bool,
    /// Only objects of some sizes.
    has_sizes: bool,
}

impl<'a> RuleScope<'a> {
    fn of(rule: &'a LifecycleRule) -> Self {
        let filter = rule.filter();
        let and = filter.and_then(LifecycleRuleFilter::and);
        // A prefix without a filter is of the first version of these rules, and still valid.
        #[expect(deprecated, reason = "buckets still have such rules")]
        let old = rule.prefix();
        let prefix = filter
            .and_then(LifecycleRuleFilter::prefix)
            .or_else(|| and.and_then(LifecycleRuleAndOperator::prefix))
            .or(old);
        let sizes = [
            filter.and_then(LifecycleRuleFilter::object_size_greater_than),
            filter.and_then(LifecycleRuleFilter::object_size_less_than),
            and.and_then(LifecycleRuleAndOperator::object_size_greater_than),
            and.and_then(LifecycleRuleAndOperator::object_size_less_than),
        ];
        Self {
            prefix: prefix.unwrap_or_default(),
            has_tags: filter.is_some_and(|filter| filter.tag().is_some())
                || and.is_some_and(|and| !and.tags().is_empty()),
            has_sizes: sizes.iter().any(Option::is_some),
        }
    }

    /// Whether it is about all objects below a prefix.
    fn has_all(&self, prefix: &str) -> bool {
        !self.has_tags && !self.has_sizes && prefix.starts_with(self.prefix)
    }

    /// Whether it is about some object below a prefix.
    fn has_some(&self, prefix: &str) -> bool {
        !self.has_tags && (prefix.starts_with(self.prefix) || self.prefix.starts_with(prefix))
    }
}

/// What rules do with the objects whose keys begin with `prefix`.
fn effects(rules: &[LifecycleRule], prefix: &str) -> LifecycleEffects {
    let mut found = LifecycleEffects::default();
    let in_force = rules
        .iter()
        .filter(|rule| rule.status() == &ExpirationStatus::Enabled);
    for rule in in_force {
        let scope = RuleScope::of(rule);
        let name = || short(rule.id().unwrap_or("without a name"));
        if scope.has_all(prefix)
            && let Some(expiry) = rule.noncurrent_version_expiration()
            // Else the newest old versions stay for ever.
            && expiry.newer_noncurrent_versions().unwrap_or(0) == 0
            && let Some(days) = expiry.noncurrent_days().and_then(|days| u32::try_from(days).ok())
        {
            let least = found.old_versions.map_or(days, |known| known.min(days));
            found.old_versions = Some(least);
        }
        if !scope.has_some(prefix) {
            continue;
        }
        let deletes = rule
            .expiration()
            .is_some_and(|expiry| expiry.days().is_some() || expiry.date().is_some());
        if deletes {
            found.deletes.get_or_insert_with(name);
        }
        let is_archive = |class: Option<&TransitionStorageClass>| {
            matches!(
                class,
                Some(TransitionStorageClass::Glacier | TransitionStorageClass::DeepArchive)
            )
        };
        let mut moves = rule.transitions().iter();
        if moves.any(|to| is_archive(to.storage_class())) {
            found.archives.get_or_insert_with(name);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::primitives::DateTime;
    use aws_sdk_s3::types::builders::LifecycleRuleBuilder;
    use aws_sdk_s3::types::{
        EventHoldDuration, LifecycleExpiration, NoncurrentVersionExpiration,
        ObjectLockRetentionMode, Tag, Transition,
    };

    use super::*;

    fn rule(name: &str, filter: Option<LifecycleRuleFilter>) -> LifecycleRuleBuilder {
        LifecycleRule::builder()
            .id(name)
            .set_filter(filter)
            .status(ExpirationStatus::Enabled)
    }

    fn below(prefix: &str) -> Option<LifecycleRuleFilter> {
        Some(LifecycleRuleFilter::builder().prefix(prefix).build())
    }

    fn old(days: i32) -> NoncurrentVersionExpiration {
        NoncurrentVersionExpiration::builder()
            .noncurrent_days(days)
            .build()
    }

    fn found(rule: LifecycleRuleBuilder) -> LifecycleEffects {
        effects(&[rule.build().unwrap()], "dr/web/")
    }

    #[test]
    fn old_versions_are_deleted_only_by_a_rule_for_the_whole_repository() {
        let tag = Tag::builder().key("a").value("b").build().unwrap();
        let tagged = LifecycleRuleFilter::builder().tag(tag.clone()).build();
        let both = LifecycleRuleAndOperator::builder().prefix("dr/");
        let both = both.tags(tag).build();
        let both = LifecycleRuleFilter::builder().and(both).build();
        let large = LifecycleRuleFilter::builder()
            .object_size_greater_than(1)
            .build();
        for (filter, days) in [
            (None, Some(30)),
            (below(""), Some(30)),
            (below("dr/"), Some(30)),
            (below("dr/web/"), Some(30)),
            (below("dr/web/packs/"), None),
            (below("other/"), None),
            (Some(tagged), None),
            (Some(both), None),
            (Some(large), None),
        ] {
            let shown = format!("{filter:?}");
            let rule = rule("a", filter).noncurrent_version_expiration(old(30));
            assert_eq!(found(rule).old_versions, days, "{shown}");
        }
        let some = NoncurrentVersionExpiration::builder()
            .noncurrent_days(1)
            .newer_noncurrent_versions(2)
            .build();
        let kept = rule("a", None).noncurrent_version_expiration(some);
        assert_eq!(found(kept), LifecycleEffects::default());
        let idle = rule("a", None).noncurrent_version_expiration(old(1));
        let idle = idle.status(ExpirationStatus::Disabled);
        assert_eq!(found(idle), LifecycleEffects::default());
        let two = [old(9), old(3)].map(|expiry| {
            let rule = rule("a", None).noncurrent_version_expiration(expiry);
            rule.build().unwrap()
        });
        assert_eq!(effects(&two, "").old_versions, Some(3));
    }

    #[test]
    fn the_default_retention_has_its_mode_and_time() {
        let builder = DefaultRetention::builder;
        let hold = EventHoldDuration::builder().days(3).build();
        for (default, expected) in [
            (
                builder().mode(ObjectLockRetentionMode::Compliance).days(1),
                Some(("COMPLIANCE", "1 day")),
            ),
            (
                builder().mode(ObjectLockRetentionMode::Governance).years(2),
                Some(("GOVERNANCE", "2 years")),
            ),
            (
                builder().default_event_hold(hold),
                Some(("event hold", "3 days from its release on")),
            ),
            (builder().days(5), None),
            (builder(), None),
        ] {
            let expected = expected.map_or(ObjectLock::WithoutDefault, |(mode, time)| {
                ObjectLock::Default(mode.into(), time.into())
            });
            assert_eq!(default_lock(&default.build()), expected);
        }
    }

    #[test]
    fn a_rule_that_deletes_or_archives_any_object_of_the_repository_is_named() {
        let days = LifecycleExpiration::builder().days(30).build();
        let date = DateTime::from_secs(1_900_000_000);
        let date = LifecycleExpiration::builder().date(date).build();
        let markers = LifecycleExpiration::builder()
            .expired_object_delete_marker(true)
            .build();
        for (prefix, expiry, is_named) in [
            ("", &days, true),
            ("dr/web/packs/", &days, true),
            ("dr/web/", &date, true),
            ("other/", &days, false),
            ("", &markers, false),
        ] {
            let rule = rule("clean", below(prefix)).expiration(expiry.clone());
            let named = found(rule).deletes;
            assert_eq!(named.as_deref(), is_named.then_some("clean"), "{prefix}");
        }
        for (class, is_named) in [
            (TransitionStorageClass::Glacier, true),
            (TransitionStorageClass::DeepArchive, true),
            (TransitionStorageClass::GlacierIr, false),
            (TransitionStorageClass::StandardIa, false),
        ] {
            let to = Transition::builder().days(1).storage_class(class).build();
            let named = found(rule("cold", None).transitions(to)).archives;
            assert_eq!(named.is_some(), is_named, "{named:?}");
        }
    }
}
