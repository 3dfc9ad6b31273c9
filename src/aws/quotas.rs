//! GetServiceQuota of Service Quotas, without a client of the SDK: one signed request in JSON 1.1
//! (<https://docs.aws.amazon.com/servicequotas/2019-06-24/apireference/API_GetServiceQuota.html>).

use std::time::SystemTime;

use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::identity::Identity;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use http_body_util::{BodyExt, Collected, Limited};
use serde::Deserialize;
use serde_json::json;

use super::actions::IamAction;
use super::classify::{Action, classify_reply, classify_sending};
use super::config::Aws;
use super::endpoints::{Service, partition_of};
use crate::error::{Error, Kind, Result};

/// The name that requests are signed for.
const NAME: &str = "servicequotas";
/// The most bytes of a reply.
const MOST: usize = 64 << 10;
/// Headers of each request.
const HEADERS: [(&str, &str); 2] = [
    ("content-type", "application/x-amz-json-1.1"),
    ("x-amz-target", "ServiceQuotasV20190624.GetServiceQuota"),
];

/// The reply, as far as it is read.
#[derive(Debug, Deserialize)]
struct QuotaReply {
    #[serde(rename = "Quota")]
    quota: QuotaValue,
}

#[derive(Debug, Deserialize)]
struct QuotaValue {
    #[serde(rename = "Value")]
    value: f64,
}

impl Aws {
    /// The value of a quota of EBS that holds for this account and Region, by its code.
    ///
    /// # Errors
    /// `Denied` without `servicequotas:GetServiceQuota`; `Unavailable` where the service cannot be reached, as from a private
    /// network without an endpoint of it; `Invalid` without a Region, and where FIPS is asked for.
    pub(crate) async fn ebs_quota(&self, code: &str) -> Result<f64> {
        let Some(region) = self.region() else {
            return Err(Error::new(
                Kind::Invalid,
                "cannot ask Service Quotas: no Region",
            ));
        };
        let given = self.url_given(Service::Quotas)?;
        if let (None, Some(from)) = (&given, self.settled.fips()) {
            let what = format!(
                "cannot ask Service Quotas: {from} asks for FIPS, and ebsfs knows no FIPS endpoint of it"
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        let url = match given {
            Some(given) => given.value,
            None => quotas_url(region),
        };
        let action = Action::in_region(IamAction::GetServiceQuota.name(), region);
        let now = SystemTime::now();
        let request = self.quota_request(&url, region, code, now).await?;
        let sent = self.http().send(request).await;
        let mut reply = sent.map_err(|error| classify_sending(error, action, code).into_error())?;
        let body = Limited::new(reply.take_body(), MOST).collect().await;
        let body = body.map(Collected::to_bytes).map_err(|error| {
            let what = format!("cannot read the reply of Service Quotas: {error}");
            Error::new(Kind::Unavailable, what)
        })?;
        if !reply.status().is_success() {
            return Err(classify_reply(&reply, &body, now, action, code).into_error());
        }
        value_of(&body)
    }

    /// A signed request.
    async fn quota_request(
        &self,
        url: &str,
        region: &str,
        code: &str,
        now: SystemTime,
    ) -> Result<HttpRequest> {
        let identity = Identity::from(self.credentials.current().await?);
        let unsigned = |error: BoxError| {
            let what = format!("cannot sign a request to Service Quotas: {error}");
            Error::new(Kind::Invalid, what)
        };
        let body = json!({ "ServiceCode": "ebs", "QuotaCode": code }).to_string();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name(NAME)
            .time(now)
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| unsigned(error.into()))?;
        let uri = format!("{}/", url.trim_end_matches('/'));
        let signable = SignableBody::Bytes(body.as_bytes());
        let request = SignableRequest::new("POST", &*uri, HEADERS.into_iter(), signable);
        let signed = request
            .and_then(|request| sign(request, &params.into()))
            .map_err(|error| unsigned(error.into()))?;
        let mut request = HttpRequest::new(SdkBody::from(body));
        request
            .set_method("POST")
            .map_err(|error| unsigned(error.into()))?;
        request
            .set_uri(uri)
            .map_err(|error| unsigned(error.into()))?;
        let headers = request.headers_mut();
        headers.insert("user-agent", concat!("ebsfs/", env!("CARGO_PKG_VERSION")));
        for (name, value) in HEADERS {
            headers.insert(name, value);
        }
        for (name, value) in signed.output().headers() {
            headers.insert(name.to_owned(), value.to_owned());
        }
        Ok(request)
    }
}

/// Where Service Quotas is in a Region.
fn quotas_url(region: &str) -> String {
    format!("https://{NAME}.{region}.{}", partition_of(region).suffix)
}

/// The value in a reply.
fn value_of(body: &[u8]) -> Result<f64> {
    let reply: Option<QuotaReply> = serde_json::from_slice(body).ok();
    let value = reply.map(|reply| reply.quota.value);
    value
        .filter(|value| value.is_finite() && *value >= 0.0)
        .ok_or_else(|| {
            Error::new(
                Kind::Unavailable,
                "the reply of Service Quotas has no value",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_has_its_own_host_of_its_partition() {
        for (region, url) in [
            ("eu-west-1", "https://servicequotas.eu-west-1.amazonaws.com"),
            (
                "cn-north-1",
                "https://servicequotas.cn-north-1.amazonaws.com.cn",
            ),
            (
                "us-gov-west-1",
                "https://servicequotas.us-gov-west-1.amazonaws.com",
            ),
            (
                "eusc-de-east-1",
                "https://servicequotas.eusc-de-east-1.amazonaws.eu",
            ),
        ] {
            assert_eq!(quotas_url(region), url);
        }
    }

    #[test]
    fn only_a_number_is_a_value() {
        assert_eq!(
            value_of(br#"{"Quota":{"QuotaCode":"L-1","Value":1000.0}}"#).unwrap(),
            1000.0
        );
        for other in [
            "",
            "<html></html>",
            "{}",
            r#"{"Quota":{}}"#,
            r#"{"Quota":{"Value":"many"}}"#,
            r#"{"Quota":{"Value":-1}}"#,
        ] {
            let error = value_of(other.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable, "{other}");
        }
    }
}
