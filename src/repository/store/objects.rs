//! [`ForeignBackend`]: Azure and Google, by object_store.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::HttpConnector;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{
    ClientOptions, Error as LibraryError, GetOptions, GetRange, ObjectStore, ObjectStoreExt,
    PutMode, PutPayload, RetryConfig,
};

use super::address::{Address, Scheme};
use super::backend::{
    Backend, FaultAction, ListCursor, ListedKey, MOST_BYTES, ObjectHead, StoreAnswer, StoreFault,
    StorePage, Upload,
};
use super::bandwidth::Direction;
use super::connector::PooledConnector;
use super::foreign_text::refusal;
use super::reach::Connection;
use super::transfer::Transfer;
use crate::error::{Error, Kind, Result};

/// Keys of a page.
const PAGE: usize = 10_000;

/// One bucket or container.
pub(super) struct ForeignBackend {
    inner: Box<dyn ObjectStore>,
    /// Scheme and bucket, for people.
    place: String,
}

/// The client of the library, with the settings of the environment. `is_unsigned`: its requests have no credentials, and no token
/// is fetched for them.
pub(super) fn client(
    address: &Address,
    connector: impl HttpConnector,
    is_unsigned: bool,
) -> Result<Box<dyn ObjectStore>> {
    let client = ClientOptions::new().with_allow_http(true);
    // The loop of the store covers retries, and asks for fresh credentials each time.
    let retry = RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    };
    let bucket = &address.bucket;
    let built: object_store::Result<Box<dyn ObjectStore>> = match address.scheme {
        Scheme::Azure => {
            let mut builder = MicrosoftAzureBuilder::from_env()
                .with_container_name(bucket)
                .with_client_options(client)
                .with_http_connector(connector)
                .with_retry(retry);
            if is_unsigned {
                builder = builder.with_skip_signature(true);
            }
            builder.build().map(|built| Box::new(built) as _)
        }
        _ => {
            let mut builder = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(bucket)
                .with_client_options(client)
                .with_http_connector(connector)
                .with_retry(retry);
            if is_unsigned {
                builder = builder.with_skip_signature(true);
            }
            builder.build().map(|built| Box::new(built) as _)
        }
    };
    built.map_err(|error| {
        Error::with_source(Kind::Invalid, format!("cannot reach {address}"), error)
    })
}

impl ForeignBackend {
    pub(super) fn new(address: &Address, connection: &Connection) -> Result<Self> {
        let Some(http) = &connection.http else {
            let what = format!("cannot reach {address}: no settings of HTTP");
            return Err(Error::new(Kind::Invalid, what));
        };
        let inner = client(address, PooledConnector(http.clone()), false)?;
        let scheme = match address.scheme {
            Scheme::Azure => "az",
            _ => "gs",
        };
        let bucket = &address.bucket;
        let place = format!("{scheme}://{bucket}");
        Ok(Self { inner, place })
    }

    fn fault(
        &self,
        verb: &str,
        key: &str,
        error: &LibraryError,
        is_conditional: bool,
    ) -> StoreFault {
        let (refusal, next) = refusal(error);
        let mut class = refusal.classify(is_conditional);
        if let Some((kind, next)) = next.filter(|_| refusal.status.is_none()) {
            (class.kind, class.next) = (kind, next);
        }
        let mut line = refusal.line();
        if !class.need.is_empty() {
            line = format!("{line}; {}", class.need);
        }
        StoreFault::new(class.next, self.error(class.kind, verb, key, &line))
    }
}

#[async_trait::async_trait]
impl Backend for ForeignBackend {
    async fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<Bytes> {
        let failed = |error: LibraryError| self.fault("get", key, &error, false);
        let options = GetOptions {
            range: range.map(GetRange::Bounded),
            ..GetOptions::default()
        };
        let got = self
            .inner
            .get_opts(&Path::from(key), options)
            .await
            .map_err(failed)?;
        let size = got.range.end.saturating_sub(got.range.start);
        if size > MOST_BYTES {
            let what = format!("it has {size} bytes, more than any object of a repository");
            return Err(StoreFault::new(
                FaultAction::Final,
                self.error(Kind::Corrupt, "get", key, &what),
            ));
        }
        let mut stream = got.into_stream();
        let mut bytes = BytesMut::new();
        while let Some(part) = stream.try_next().await.map_err(failed)? {
            transfer.received(part.len());
            transfer.pay(Direction::Down, part.len() as u64).await;
            bytes.extend_from_slice(&part);
            if bytes.len() as u64 > MOST_BYTES {
                let error = self.error(Kind::Corrupt, "get", key, "the reply does not end");
                return Err(StoreFault::new(FaultAction::Final, error));
            }
        }
        Ok(bytes.freeze())
    }

    async fn put(
        &self,
        key: &str,
        upload: &Upload,
        create: bool,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<()> {
        transfer.pay(Direction::Up, upload.len).await;
        transfer.opaque(upload.len);
        let payload = PutPayload::from_iter(upload.pieces.iter().cloned());
        let mode = if create {
            PutMode::Create
        } else {
            PutMode::Overwrite
        };
        let put = self
            .inner
            .put_opts(&Path::from(key), payload, mode.into())
            .await;
        transfer.answered(put.is_ok());
        put.map(drop)
            .map_err(|error| self.fault("put", key, &error, create))
    }

    async fn head(&self, key: &str, _: bool, transfer: &Arc<Transfer>) -> StoreAnswer<ObjectHead> {
        let found = self.inner.head(&Path::from(key)).await;
        let found = found.map_err(|error| self.fault("look at", key, &error, false))?;
        transfer.received(0);
        Ok(ObjectHead {
            size: Some(found.size),
            modified: Some(found.last_modified.into()),
            etag: found.e_tag,
            checksums: Vec::new(),
        })
    }

    async fn page(
        &self,
        prefix: &str,
        from: &ListCursor,
        transfer: &Arc<Transfer>,
    ) -> StoreAnswer<StorePage> {
        let folder = Path::from(prefix);
        let mut found = match from {
            ListCursor::Start => self.inner.list(Some(&folder)),
            ListCursor::After(key) | ListCursor::Token(key) => self
                .inner
                .list_with_offset(Some(&folder), &Path::from(key.as_str())),
        };
        let mut keys = Vec::new();
        while keys.len() < PAGE {
            let Some(meta) = found.next().await else {
                return Ok(StorePage { keys, next: None });
            };
            let meta = meta.map_err(|error| self.fault("list", prefix, &error, false))?;
            transfer.received(1);
            keys.push(ListedKey {
                key: meta.location.as_ref().to_owned(),
                size: meta.size,
                modified: meta.last_modified.into(),
            });
        }
        let next = keys.last().map(|last| ListCursor::After(last.key.clone()));
        Ok(StorePage { keys, next })
    }

    async fn delete(&self, key: &str, _: &Arc<Transfer>) -> StoreAnswer<()> {
        let deleted = self.inner.delete(&Path::from(key)).await;
        match deleted.map_err(|error| self.fault("delete", key, &error, false)) {
            Err(fault) if !fault.is_absent() => Err(fault),
            _ => Ok(()),
        }
    }

    fn error(&self, kind: Kind, verb: &str, key: &str, what: &str) -> Error {
        Error::new(kind, format!("cannot {verb} {}/{key}: {what}", self.place))
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::repository::store::bandwidth::Bandwidth;

    #[tokio::test]
    async fn the_library_gets_the_settings_that_a_store_needs() {
        let backend = ForeignBackend {
            inner: Box::new(InMemory::new()),
            place: "gs://bucket".into(),
        };
        let transfer = &Transfer::new(&Arc::default(), &Bandwidth::default());
        let put = async |key: &str, create| {
            let upload = Upload::new(&[Bytes::from("by"), Bytes::from("tes")], true).await;
            backend.put(key, &upload.unwrap(), create, transfer).await
        };
        for key in ["p/packs/b", "p/packs/a", "p/packs2/c"] {
            put(key, true).await.unwrap();
        }
        assert_eq!(
            put("p/packs/a", true).await.unwrap_err().next,
            FaultAction::Exists
        );
        put("p/packs/a", false).await.unwrap();
        let part = backend.get("p/packs/a", Some(1..3), transfer).await;
        assert_eq!(part.unwrap(), "yt");
        let head = backend.head("p/packs/a", false, transfer).await.unwrap();
        assert_eq!(head.size, Some(5));
        let keys = async |from| {
            let page = backend.page("p/packs/", &from, transfer).await.unwrap();
            assert!(page.next.is_none());
            page.keys
                .into_iter()
                .map(|listed| listed.key)
                .collect::<Vec<_>>()
        };
        assert_eq!(keys(ListCursor::Start).await, ["p/packs/a", "p/packs/b"]);
        let after = ListCursor::After("p/packs/a".into());
        assert_eq!(keys(after).await, ["p/packs/b"]);
        for _ in 0..2 {
            backend.delete("p/packs/a", transfer).await.unwrap();
        }
        let absent = backend.get("p/packs/a", None, transfer).await.unwrap_err();
        assert!(absent.is_absent());
        assert!(
            absent
                .error
                .chain()
                .contains("cannot get gs://bucket/p/packs/a")
        );
    }
}
