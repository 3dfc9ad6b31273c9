//! [`S3Backend`]: S3 and servers that speak its protocol, by aws-sdk-s3.
//!
//! The SDK's retries, time-outs, checksums and clock correction are off: the loop of [`super::Store`] covers sending, the reply
//! and its body; each PUT carries Content-MD5, which every server of S3 accepts; the clock is corrected only after a refusal.

mod bucket;
mod faults;
mod place;
mod reply;
mod watch;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    Builder, RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
};
use aws_sdk_s3::primitives::{ByteStream, DateTime, SdkBody};
use aws_sdk_s3::types::{ChecksumMode, ChecksumType, ServerSideEncryption, StorageClass};
use aws_smithy_async::time::TimeSource;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tracing::info;

use self::faults::{causes, is_endless};
use self::watch::Watch;
use super::backend::{
    Backend, FaultAction, ListCursor, ListedKey, MOST_BYTES, ObjectHead, StoreAnswer, StoreFault,
    StorePage, Upload,
};
use super::bandwidth::Direction;
use super::bucket::BucketSettings;
use super::reach::{BucketStyle, S3Options};
use super::transfer::{Transfer, UploadBody};
use crate::aws::{Credentials, ErrorClass, Generation, Http, ServiceConfig};
use crate::error::{Error, Kind};

pub(crate) use self::place::url;

/// A body up to this size is hashed for the signature; larger ones are signed by their Content-MD5 alone.
const SIGNED_WHOLE: u64 = 64 << 10;

/// One bucket.
pub(super) struct S3Backend {
    sdk: Client,
    bucket: String,
    /// Where requests go, for people.
    endpoint: String,
    credentials: Credentials,
    http: Http,
    clock: StoreClock,
    options: S3Options,
    /// Whether listings ask version 1 of ListObjects.
    is_version_1: AtomicBool,
    /// The version of ListObjects that the last page was answered by; 0 before the first.
    answered_version: AtomicU8,
}

/// The clock of this machine, corrected by the store's clock; clones share the correction.
#[derive(Clone, Debug, Default)]
struct StoreClock {
    /// Milliseconds by which the store is ahead.
    ahead: Arc<AtomicI64>,
}

impl TimeSource for StoreClock {
    fn now(&self) -> SystemTime {
        let now = SystemTime::now();
        let ahead = self.ahead.load(Ordering::Relaxed);
        let by = Duration::from_millis(ahead.unsigned_abs());
        let corrected = if ahead < 0 {
            now.checked_sub(by)
        } else {
            now.checked_add(by)
        };
        corrected.unwrap_or(now)
    }
}

impl S3Backend {
    pub(super) fn new(
        service: &ServiceConfig,
        bucket: &str,
        style: Option<BucketStyle>,
        options: S3Options,
    ) -> Self {
        let clock = StoreClock::default();
        let time_outs = TimeoutConfig::builder()
            .disable_read_timeout()
            .disable_operation_timeout()
            .disable_operation_attempt_timeout()
            .build();
        let config = Builder::from(&service.sdk)
            .retry_config(RetryConfig::disabled())
            .timeout_config(time_outs)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .disable_clock_skew_correction(true)
            .time_source(clock.clone())
            .force_path_style(wants_path(style, service.url.as_deref()))
            .build();
        Self {
            sdk: Client::from_conf(config),
            bucket: bucket.to_owned(),
            endpoint: service.endpoint("S3"),
            credentials: service.credentials.clone(),
            http: service.http.clone(),
            clock,
            is_version_1: AtomicBool::new(options.is_list_version_1),
            answered_version: AtomicU8::new(0),
            options,
        }
    }

    fn target(&self, key: &str) -> String {
        format!("s3://{}/{key} at {}", self.bucket, self.endpoint)
    }

    /// The parts of a page that both versions of the call have.
    fn listed(
        &self,
        prefix: &str,
        contents: &[aws_sdk_s3::types::Object],
    ) -> StoreAnswer<Vec<ListedKey>> {
        let listed = contents.iter().map(|object| {
            let size = object.size().and_then(|size| u64::try_from(size).ok());
            Some(ListedKey {
                key: object.key()?.to_owned(),
                size: size?,
                modified: time_of(object.last_modified()?)?,
            })
        });
        listed.collect::<Option<_>>().ok_or_else(|| {
            let what = "the reply is not a listing: an entry has no key, size or time";
            self.wrong(FaultAction::Final, "list", prefix, what)
        })
    }

    /// Whether a page is the last one.
    fn is_last(&self, prefix: &str, is_truncated: Option<bool>) -> StoreAnswer<bool> {
        let missing = || {
            let what =
                "the reply is not a listing: it does not say whether it is whole (IsTruncated)";
            self.wrong(FaultAction::Final, "list", prefix, what)
        };
        is_truncated
            .map(|is_truncated| !is_truncated)
            .ok_or_else(missing)
    }

    async fn page_of_version_1(
        &self,
        prefix: &str,
        marker: Option<String>,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<StorePage> {
        let watch = Watch::listing(transfer);
        let call = self.sdk.list_objects().bucket(&self.bucket).prefix(prefix);
        let call = call
            .set_marker(marker)
            .customize()
            .interceptor(watch.clone());
        let reply = self.checked(prefix, &watch, call.send().await)?;
        self.answered_version.store(1, Ordering::Relaxed);
        let keys = self.listed(prefix, reply.contents())?;
        if self.is_last(prefix, reply.is_truncated())? {
            return Ok(StorePage { keys, next: None });
        }
        let last = keys.last().map(|last| last.key.clone());
        let marker = last.or_else(|| reply.next_marker().map(str::to_owned));
        let next = marker.filter(|marker| !marker.is_empty());
        let next = next.ok_or_else(|| self.no_way_on(prefix))?;
        Ok(StorePage {
            keys,
            next: Some(ListCursor::After(next)),
        })
    }

    fn no_way_on(&self, prefix: &str) -> StoreFault {
        let what = "the reply is not a listing: it is truncated, and nothing says where it goes on";
        self.wrong(FaultAction::Final, "list", prefix, what)
    }
}

#[async_trait::async_trait]
impl Backend for S3Backend {
    async fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<Bytes> {
        let watch = Watch::object(transfer, MOST_BYTES);
        let call = self.sdk.get_object().bucket(&self.bucket).key(key);
        let bytes = range.as_ref();
        let bytes =
            bytes.map(|range| format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        let sent = call
            .set_range(bytes)
            .customize()
            .interceptor(watch)
            .send()
            .await;
        let reply = sent.map_err(|error| self.fault("get", key, error, false))?;
        let size = reply
            .content_length()
            .and_then(|size| u64::try_from(size).ok());
        if let Some(size) = size.filter(|size| *size > MOST_BYTES) {
            let what = format!("it has {size} bytes, more than any object of a repository");
            return Err(self.wrong(FaultAction::Final, "get", key, &what));
        }
        let is_part = reply.content_range().is_some();
        let body = reply.body.collect().await.map_err(|error| {
            if is_endless(&error) {
                return self.wrong(FaultAction::Final, "get", key, "the reply does not end");
            }
            let what = format!("broken reply: {}", causes(&error));
            StoreFault::new(
                FaultAction::Retry,
                self.error(Kind::Unavailable, "get", key, &what),
            )
        })?;
        let body = body.into_bytes();
        let Some(range) = range.filter(|_| !is_part) else {
            return Ok(body);
        };
        // The server ignores ranges and sends the whole object.
        let ends = [range.start, range.end]
            .map(|end| usize::try_from(end).unwrap_or(usize::MAX).min(body.len()));
        Ok(body.slice(ends[0]..ends[1]))
    }

    async fn put(
        &self,
        key: &str,
        upload: &Upload,
        create: bool,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<()> {
        let watch = Watch::short(transfer);
        let body = if upload.len <= SIGNED_WHOLE {
            transfer.pay(Direction::Up, upload.len).await;
            SdkBody::from(Bytes::from(upload.pieces.concat()))
        } else {
            SdkBody::from_body_1_x(UploadBody::new(&upload.pieces, transfer))
        };
        let options = &self.options;
        let encryption = options
            .encryption
            .as_deref()
            .map(ServerSideEncryption::from);
        let class = options.storage_class.as_deref().map(StorageClass::from);
        let sent = self
            .sdk
            .put_object()
            .bucket(&self.bucket)
            .key(key)
            .set_content_md5(upload.md5.map(|md5| BASE64_STANDARD.encode(md5)))
            .content_length(i64::try_from(upload.len).unwrap_or(i64::MAX))
            .set_if_none_match(create.then(|| "*".to_owned()))
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(options.kms_key.clone())
            .set_storage_class(class)
            .body(ByteStream::new(body))
            .customize()
            .interceptor(watch)
            .send()
            .await;
        match sent {
            Ok(_) => Ok(()),
            Err(error) => Err(self.fault("put", key, error, create)),
        }
    }

    async fn head(
        &self,
        key: &str,
        checksums: bool,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<ObjectHead> {
        let call = self.sdk.head_object().bucket(&self.bucket).key(key);
        let call = call.set_checksum_mode(checksums.then_some(ChecksumMode::Enabled));
        let sent = call
            .customize()
            .interceptor(Watch::short(transfer))
            .send()
            .await;
        let reply = sent.map_err(|error| self.fault("look at", key, error, false))?;
        let is_whole = reply.checksum_type() != Some(&ChecksumType::Composite);
        let checksums = [
            ("crc64nvme", reply.checksum_crc64_nvme()),
            ("crc32c", reply.checksum_crc32_c()),
            ("crc32", reply.checksum_crc32()),
            ("sha256", reply.checksum_sha256()),
            ("sha1", reply.checksum_sha1()),
        ];
        let checksums = checksums.into_iter().filter(|_| is_whole);
        Ok(ObjectHead {
            size: reply
                .content_length()
                .and_then(|size| u64::try_from(size).ok()),
            modified: reply.last_modified().and_then(time_of),
            etag: reply.e_tag().map(str::to_owned),
            checksums: checksums
                .filter_map(|(name, value)| Some((name, value?.to_owned())))
                .collect(),
        })
    }

    async fn page(
        &self,
        prefix: &str,
        from: &ListCursor,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<StorePage> {
        let token = match from {
            ListCursor::After(marker) => {
                return self
                    .page_of_version_1(prefix, Some(marker.clone()), transfer)
                    .await;
            }
            ListCursor::Start if self.is_version_1.load(Ordering::Relaxed) => {
                return self.page_of_version_1(prefix, None, transfer).await;
            }
            ListCursor::Start => None,
            ListCursor::Token(token) => Some(token.clone()),
        };
        let watch = Watch::listing(transfer);
        let call = self
            .sdk
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(prefix);
        let call = call
            .set_continuation_token(token)
            .customize()
            .interceptor(watch.clone());
        let reply = self.checked(prefix, &watch, call.send().await)?;
        // Only replies of version 2 count their keys.
        let version = if reply.key_count().is_some() { 2 } else { 1 };
        self.answered_version.store(version, Ordering::Relaxed);
        let keys = self.listed(prefix, reply.contents())?;
        if self.is_last(prefix, reply.is_truncated())? {
            return Ok(StorePage { keys, next: None });
        }
        let token = reply
            .next_continuation_token()
            .filter(|token| !token.is_empty());
        let next = match (token, keys.last()) {
            (Some(token), _) => ListCursor::Token(token.to_owned()),
            (None, Some(last)) => {
                if !self.is_version_1.swap(true, Ordering::Relaxed) {
                    info!("{} answers version 1 of ListObjects", self.endpoint);
                }
                ListCursor::After(last.key.clone())
            }
            (None, None) => return Err(self.no_way_on(prefix)),
        };
        Ok(StorePage {
            keys,
            next: Some(next),
        })
    }

    async fn delete(&self, key: &str, transfer: &Arc<Transfer>) -> StoreAnswer<()> {
        let call = self.sdk.delete_object().bucket(&self.bucket).key(key);
        let sent = call
            .customize()
            .interceptor(Watch::short(transfer))
            .send()
            .await;
        match sent.map_err(|error| self.fault("delete", key, error, false)) {
            Err(fault) if !fault.is_absent() => Err(fault),
            _ => Ok(()),
        }
    }

    fn error(&self, kind: Kind, verb: &str, key: &str, what: &str) -> Error {
        Error::new(kind, format!("cannot {verb} {}: {what}", self.target(key)))
    }

    fn listing_version(&self) -> Option<u8> {
        let version = self.answered_version.load(Ordering::Relaxed);
        (version > 0).then_some(version)
    }

    fn settings(&self) -> Option<&dyn BucketSettings> {
        Some(self)
    }

    fn ready(&self) -> BoxFuture<'_, StoreAnswer<()>> {
        Box::pin(async {
            let loaded = self.credentials.current().await.map(drop);
            loaded.map_err(|error| match ErrorClass::without_credentials(error) {
                ErrorClass::Retry(error) => StoreFault::new(FaultAction::Retry, error),
                class => StoreFault::new(FaultAction::Final, class.into_error()),
            })
        })
    }

    fn generation(&self) -> Generation {
        self.credentials.generation()
    }

    fn refused(&self, used: Generation) -> bool {
        self.credentials.refused(used)
    }

    fn forget_idle(&self) {
        self.http.forget_idle();
    }
}

/// Whether the bucket goes into the path. No name can precede an IP address; the SDK itself keeps names out of the host
/// that cannot be a part of one, or that no wildcard certificate covers (dots, over https).
fn wants_path(style: Option<BucketStyle>, url: Option<&str>) -> bool {
    let is_address = |url: &str| {
        let uri = url.parse::<hyper::Uri>().ok();
        let host = uri.as_ref().and_then(hyper::Uri::host).unwrap_or_default();
        host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok()
    };
    match (style, url) {
        (Some(BucketStyle::Path), _) | (None, Some(_)) => true,
        (Some(BucketStyle::Host), Some(url)) => is_address(url),
        (_, None) => false,
    }
}

fn time_of(time: &DateTime) -> Option<SystemTime> {
    SystemTime::try_from(*time).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bucket_stands_before_an_address() {
        let host = Some(BucketStyle::Host);
        for (style, url, is_path) in [
            (None, None, false),
            (host, None, false),
            (None, Some("https://obs.example"), true),
            (host, Some("https://obs.example"), false),
            (host, Some("http://127.0.0.1:9000"), true),
            (host, Some("http://[::1]:9000"), true),
            (Some(BucketStyle::Path), None, true),
        ] {
            assert_eq!(wants_path(style, url), is_path, "{style:?} {url:?}");
        }
    }

    #[test]
    fn a_clock_is_corrected_in_both_directions() {
        let clock = StoreClock::default();
        for ahead in [1_200_000, -1_200_000] {
            clock.ahead.store(ahead, Ordering::Relaxed);
            let off = match clock.now().duration_since(SystemTime::now()) {
                Ok(ahead) => i64::try_from(ahead.as_millis()).unwrap(),
                Err(behind) => -i64::try_from(behind.duration().as_millis()).unwrap(),
            };
            assert!((off - ahead).abs() < 1000, "{off} {ahead}");
        }
        clock.ahead.store(i64::MIN, Ordering::Relaxed);
        clock.now();
    }
}
