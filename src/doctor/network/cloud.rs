//! [`OriginCloud`]: what differs between clouds in the words of the rows of a connection.

use crate::repository::StoreCloud;

/// The cloud that an origin belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OriginCloud {
    /// AWS, or a server with the APIs of AWS.
    Aws,
    /// Azure Blob Storage.
    Azure,
    /// Google Cloud Storage.
    Google,
}

impl From<StoreCloud> for OriginCloud {
    fn from(cloud: StoreCloud) -> Self {
        match cloud {
            StoreCloud::Azure => Self::Azure,
            StoreCloud::Google => Self::Google,
        }
    }
}

impl OriginCloud {
    /// Where a private address leads.
    pub(super) fn private(self) -> &'static str {
        match self {
            Self::Aws => "a VPC endpoint, or a network behind a VPN",
            Self::Azure => "a private endpoint, or a network behind a VPN",
            Self::Google => "Private Service Connect, or a network behind a VPN",
        }
    }

    /// Where a public address leads.
    pub(super) fn public(self) -> &'static str {
        match self {
            Self::Aws => "the internet, or a gateway endpoint of S3",
            Self::Azure => "the internet, or a service endpoint",
            Self::Google => "the internet, or Private Google Access",
        }
    }

    /// The resolver that knows private names, for a machine outside.
    pub(super) fn resolver(self) -> &'static str {
        match self {
            Self::Aws => {
                "of a VPC its network address plus two, reached through the VPN or a Route 53 inbound endpoint"
            }
            Self::Azure => {
                "the inbound endpoint of an Azure DNS Private Resolver, reached through the VPN"
            }
            Self::Google => {
                "the entry point of an inbound server policy of Cloud DNS, reached through the VPN"
            }
        }
    }

    /// What must let packets to a private address pass.
    pub(super) fn filters(self) -> &'static str {
        match self {
            Self::Aws => {
                "in the security group of the VPC endpoint (VPC console > Endpoints > Security groups) and in the network ACLs"
            }
            Self::Azure => "in the network security group of the subnet of the private endpoint",
            Self::Google => "in the firewall rules of the network of Private Service Connect",
        }
    }

    /// Another way than the internet. `variable` gives the service another URL.
    pub(super) fn other_way(self, variable: &str) -> String {
        match self {
            Self::Aws => format!(
                "a VPC endpoint: {variable}=https://vpce-ID.SERVICE.REGION.vpce.amazonaws.com, or the private DNS of the endpoint \
                 through the resolver of the VPC"
            ),
            Self::Azure => format!(
                "a private endpoint: the private DNS zone privatelink.blob.core.windows.net through the VPN, or \
                 {variable}=https://HOST"
            ),
            Self::Google => format!(
                "Private Google Access: private.googleapis.com (199.36.153.8/30) through the VPN, or {variable}=https://HOST"
            ),
        }
    }
}
