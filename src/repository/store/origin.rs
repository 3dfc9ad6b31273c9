//! [`StoreOrigin`]: where the store of a repository in Azure or Google is, by the settings that its client reads.
//!
//! object_store has no accessor for it. Therefore a client whose connections only note the URL of a request asks for an object.

use std::sync::Arc;

use async_trait::async_trait;
use hyper::Uri;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStoreExt};
use parking_lot::Mutex;

use super::address::{Address, Scheme};
use super::objects::client;
use crate::error::Result;

/// The host that Google's client asks where nothing else is set.
const GOOGLE: &str = "storage.googleapis.com";

/// A cloud whose stores are reached without settings of AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreCloud {
    /// Azure Blob Storage.
    Azure,
    /// Google Cloud Storage.
    Google,
}

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoreOrigin {
    /// Whose protocol it speaks.
    pub(crate) cloud: StoreCloud,
    /// Scheme, host and port.
    pub(crate) url: Uri,
    /// The setting that gives the host; none for the cloud's own.
    pub(crate) from: Option<&'static str>,
}

/// Notes the URL of the first request, and sends none.
#[derive(Clone, Debug, Default)]
struct UrlNote(Arc<Mutex<Option<Uri>>>);

impl HttpConnector for UrlNote {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for UrlNote {
    async fn call(&self, request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        self.0.lock().get_or_insert_with(|| request.uri().clone());
        let why = std::io::Error::other("the URL is noted");
        Err(HttpError::new(HttpErrorKind::Unknown, why))
    }
}

/// A switch of the client for Azure, and what the client takes as no.
const EMULATOR: &str = "AZURE_STORAGE_USE_EMULATOR";
const NO: [&str; 6] = ["", "0", "false", "off", "no", "n"];

/// Where the store of an address is; none for S3 and folders. Nothing is sent, and no token is fetched; Google's client reads the
/// key file of its service account.
///
/// # Errors
/// `Invalid` when the settings of the environment make no client.
pub(crate) async fn store_origin(address: &Address) -> Result<Option<StoreOrigin>> {
    let cloud = match address.scheme {
        Scheme::Azure => StoreCloud::Azure,
        Scheme::Google => StoreCloud::Google,
        Scheme::S3 | Scheme::Folder => return Ok(None),
    };
    let note = UrlNote::default();
    let store = client(address, note.clone(), true)?;
    // It always fails; only the URL of its request matters.
    let _ = store.head(&Path::from("repository.json")).await;
    let asked = note.0.lock().take();
    let origin = asked.as_ref().and_then(origin_of);
    let is_set = |name: &str| {
        std::env::var_os(name).is_some_and(|value| match name == EMULATOR {
            true => !NO.iter().any(|no| value.eq_ignore_ascii_case(no)),
            false => !value.is_empty(),
        })
    };
    Ok(origin.map(|url| StoreOrigin {
        cloud,
        from: setting(cloud, url.host().unwrap_or_default(), &is_set),
        url,
    }))
}

/// Scheme, host and port of a URL, without a user and password in it.
fn origin_of(url: &Uri) -> Option<Uri> {
    let authority = url.authority()?.as_str();
    let host_port = authority
        .rsplit_once('@')
        .map_or(authority, |found| found.1);
    let origin = Uri::builder()
        .scheme(url.scheme()?.clone())
        .authority(host_port)
        .path_and_query("/");
    origin.build().ok()
}

/// The setting that gives a host, in the order in which the clients read them.
fn setting(cloud: StoreCloud, host: &str, is_set: &dyn Fn(&str) -> bool) -> Option<&'static str> {
    match cloud {
        StoreCloud::Azure if is_set(EMULATOR) => {
            let names = ["AZURITE_BLOB_STORAGE_URL", EMULATOR];
            names.into_iter().find(|name| is_set(name))
        }
        StoreCloud::Azure => {
            let names = [
                "AZURE_STORAGE_ENDPOINT",
                "AZURE_ENDPOINT",
                "AZURE_STORAGE_ACCOUNT_NAME",
            ];
            names.into_iter().find(|name| is_set(name))
        }
        StoreCloud::Google if is_set("GOOGLE_BASE_URL") => Some("GOOGLE_BASE_URL"),
        StoreCloud::Google => {
            (host != GOOGLE).then_some("gcs_base_url of the key of the service account")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_that_gives_a_host_is_named() {
        for (cloud, host, set, from) in [
            (
                StoreCloud::Azure,
                "a.blob.core.windows.net",
                &["AZURE_STORAGE_ACCOUNT_NAME"][..],
                Some("AZURE_STORAGE_ACCOUNT_NAME"),
            ),
            (
                StoreCloud::Azure,
                "blob.corp",
                &["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT"],
                Some("AZURE_STORAGE_ENDPOINT"),
            ),
            (
                StoreCloud::Azure,
                "127.0.0.1",
                &[
                    "AZURE_STORAGE_USE_EMULATOR",
                    "AZURITE_BLOB_STORAGE_URL",
                    "AZURE_STORAGE_ACCOUNT_NAME",
                ],
                Some("AZURITE_BLOB_STORAGE_URL"),
            ),
            (
                StoreCloud::Azure,
                "127.0.0.1",
                &["AZURE_STORAGE_USE_EMULATOR"],
                Some("AZURE_STORAGE_USE_EMULATOR"),
            ),
            (StoreCloud::Google, GOOGLE, &[], None),
            (
                StoreCloud::Google,
                "gcs.corp",
                &["GOOGLE_BASE_URL"],
                Some("GOOGLE_BASE_URL"),
            ),
            (
                StoreCloud::Google,
                "gcs.corp",
                &[],
                Some("gcs_base_url of the key of the service account"),
            ),
        ] {
            let found = setting(cloud, host, &|name| set.contains(&name));
            assert_eq!(found, from, "{host} {set:?}");
        }
    }

    #[tokio::test]
    async fn the_origin_of_s3_and_of_a_folder_is_not_asked_here() {
        for address in ["s3://b/p", "file:///b"] {
            let address = address.parse().unwrap();
            assert_eq!(store_origin(&address).await.unwrap(), None);
        }
        for url in [
            "https://a.example:8443/b/c?d=e",
            "https://u:hush@a.example:8443/b",
        ] {
            let origin = origin_of(&url.parse().unwrap()).unwrap();
            assert_eq!(origin.to_string(), "https://a.example:8443/");
        }
        assert_eq!(origin_of(&"/b".parse().unwrap()), None);
    }
}
