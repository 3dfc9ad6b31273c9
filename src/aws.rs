//! The border to AWS. [`config`] settles Region, profile, endpoints, certificate authorities and proxies, once a run, and
//! every client of EBS, EC2, STS, SSO and S3 is made from it; [`endpoints`] chooses URLs; [`credentials`] finds, keeps and
//! renews credentials; [`http`] makes connections; [`actions`] is the table of IAM actions; [`mod@classify`] turns a failed call
//! into an error class; [`quotas`] asks for quotas; [`requests`] counts requests, [`observer`] passes each one to an observer.

mod actions;
mod caller;
mod classify;
mod config;
mod credentials;
mod endpoints;
mod environment;
mod facts;
mod http;
mod observer;
mod quotas;
mod requests;

pub(crate) use actions::{
    ActionNeed, ActionResource, ActionService, AwsVerb, IamAction, all_needs,
};
pub(crate) use caller::CallerIdentity;
pub(crate) use classify::{Action, ErrorClass, classify, classify_reply, classify_sending, skew};
pub(crate) use classify::{DenyingPolicy, causes_of, presentable, refused_action};
pub use config::{Aws, ServiceConfig, Settings};
pub(crate) use credentials::{Credentials, Generation};
pub(crate) use endpoints::{Given, Service};
pub(crate) use facts::{CredentialOrigin, no_url, service_url};
pub use http::Http;
pub(crate) use http::{
    CertificateFacts, ConnectionTrace, Proxies, TraceFailure, TraceFailureKind, TraceStep,
    Unreachable,
};
pub(crate) use observer::{ObservedRequest, Observer, RequestObserver};
pub(crate) use requests::{ActionCounts, RequestCounts};
