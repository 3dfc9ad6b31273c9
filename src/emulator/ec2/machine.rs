//! The surroundings of instances: DescribeInstanceTypes, DescribeVpcs, DescribeSubnets, DescribeSecurityGroups, DescribeImages,
//! and the part of DescribeInstances that is not their disks. All instances are alike and in one subnet.

use super::super::reply::Refusal;
use super::super::{ACCOUNT, Emulator};
use super::QueryForm;

const TYPE: &str = "m5.large";
const IMAGE: &str = "ami-0123456789abcdef0";
const VPC: &str = "vpc-0123456789abcdef0";
const SUBNET: &str = "subnet-0123456789abcdef0";
const GROUP: &str = "sg-0123456789abcdef0";
/// The group that may reach the first one.
const OTHER_GROUP: &str = "sg-0fedcba9876543210";

/// The members of an instance that are not its disks.
pub(super) fn instance_fields(instance: &str, region: &str) -> String {
    let digits = instance.trim_start_matches("i-");
    format!(
        "<imageId>{IMAGE}</imageId><instanceType>{TYPE}</instanceType><keyName>admin</keyName>\
         <launchTime>2026-06-30T12:00:00.000Z</launchTime><placement><availabilityZone>{region}a</availabilityZone>\
         <groupName/><tenancy>default</tenancy></placement><platformDetails>Linux/UNIX</platformDetails>\
         <vpcId>{VPC}</vpcId><subnetId>{SUBNET}</subnetId><privateIpAddress>10.0.1.10</privateIpAddress>\
         <architecture>x86_64</architecture><rootDeviceType>ebs</rootDeviceType>\
         <virtualizationType>hvm</virtualizationType><hypervisor>xen</hypervisor><ebsOptimized>true</ebsOptimized>\
         <enaSupport>true</enaSupport><bootMode>uefi-preferred</bootMode>\
         <currentInstanceBootMode>uefi</currentInstanceBootMode>\
         <cpuOptions><coreCount>1</coreCount><threadsPerCore>2</threadsPerCore></cpuOptions>\
         <iamInstanceProfile><arn>arn:aws:iam::{ACCOUNT}:instance-profile/web</arn><id>AIPA0</id></iamInstanceProfile>\
         <tagSet><item><key>Name</key><value>web</value></item></tagSet>\
         <networkInterfaceSet><item><networkInterfaceId>eni-{digits}</networkInterfaceId><subnetId>{SUBNET}</subnetId>\
         <vpcId>{VPC}</vpcId><description/><ownerId>{ACCOUNT}</ownerId><status>in-use</status>\
         <macAddress>0a:1b:2c:3d:4e:5f</macAddress><privateIpAddress>10.0.1.10</privateIpAddress>\
         <sourceDestCheck>true</sourceDestCheck><interfaceType>interface</interfaceType>\
         <groupSet><item><groupId>{GROUP}</groupId><groupName>web</groupName></item></groupSet>\
         <attachment><attachmentId>eni-attach-{digits}</attachmentId><deviceIndex>0</deviceIndex>\
         <status>attached</status><deleteOnTermination>true</deleteOnTermination></attachment>\
         <privateIpAddressesSet>\
         <item><privateIpAddress>10.0.1.11</privateIpAddress><primary>false</primary></item>\
         <item><privateIpAddress>10.0.1.10</privateIpAddress><privateDnsName>ip-10-0-1-10.ec2.internal</privateDnsName>\
         <primary>true</primary><association><publicIp>203.0.113.10</publicIp><publicDnsName/>\
         <ipOwnerId>{ACCOUNT}</ipOwnerId></association></item></privateIpAddressesSet>\
         <ipv6AddressesSet><item><ipv6Address>2001:db8::10</ipv6Address></item></ipv6AddressesSet>\
         </item></networkInterfaceSet>"
    )
}

/// The values of a parameter, all of which must be known.
fn asked<'a>(
    form: &'a QueryForm,
    parameter: &str,
    known: &[&str],
    code: &'static str,
) -> Result<Vec<&'a str>, Refusal> {
    let ids = form.list(parameter);
    match ids.iter().find(|id| !known.contains(id)) {
        Some(id) => {
            let message = format!("The value '{id}' of {parameter} does not exist");
            Err(Refusal::new(400, code, None, message))
        }
        None => Ok(ids),
    }
}

impl Emulator {
    /// A call of this module; none where it is another one.
    pub(super) fn describe_surroundings(
        &self,
        action: &str,
        form: &QueryForm,
        here: bool,
    ) -> Option<Result<String, Refusal>> {
        let known = |ids: &'static [&'static str]| if here { ids } else { &[] };
        Some(match action {
            "DescribeInstanceTypes" => {
                let found = asked(form, "InstanceType", &[TYPE], "InvalidInstanceType");
                found.map(|_| instance_type())
            }
            "DescribeVpcs" => {
                asked(form, "VpcId", known(&[VPC]), "InvalidVpcID.NotFound").map(|_| vpc())
            }
            "DescribeSubnets" => {
                let found = asked(
                    form,
                    "SubnetId",
                    known(&[SUBNET]),
                    "InvalidSubnetID.NotFound",
                );
                found.map(|_| subnet(&self.region()))
            }
            "DescribeSecurityGroups" => {
                let found = asked(form, "GroupId", known(&[GROUP]), "InvalidGroup.NotFound");
                found.map(|_| group())
            }
            "DescribeImages" => {
                let is_there = !self.switches().image_deregistered;
                let images: &[&str] = if is_there { known(&[IMAGE]) } else { &[] };
                asked(form, "ImageId", images, "InvalidAMIID.NotFound").map(|_| image())
            }
            _ => return None,
        })
    }
}

fn instance_type() -> String {
    format!(
        "<instanceTypeSet><item><instanceType>{TYPE}</instanceType><currentGeneration>true</currentGeneration>\
         <bareMetal>false</bareMetal><hypervisor>nitro</hypervisor>\
         <processorInfo><supportedArchitectures><item>x86_64</item></supportedArchitectures></processorInfo>\
         <vCpuInfo><defaultVCpus>2</defaultVCpus><defaultCores>1</defaultCores>\
         <defaultThreadsPerCore>2</defaultThreadsPerCore></vCpuInfo><memoryInfo><sizeInMiB>8192</sizeInMiB></memoryInfo>\
         <instanceStorageSupported>false</instanceStorageSupported>\
         <supportedBootModes><item>legacy-bios</item><item>uefi</item></supportedBootModes></item></instanceTypeSet>"
    )
}

fn vpc() -> String {
    format!(
        "<vpcSet><item><vpcId>{VPC}</vpcId><ownerId>{ACCOUNT}</ownerId><state>available</state>\
         <cidrBlock>10.0.0.0/16</cidrBlock><isDefault>false</isDefault><cidrBlockAssociationSet>\
         <item><cidrBlock>10.0.0.0/16</cidrBlock></item><item><cidrBlock>10.1.0.0/16</cidrBlock></item>\
         </cidrBlockAssociationSet><ipv6CidrBlockAssociationSet><item><ipv6CidrBlock>2001:db8::/56</ipv6CidrBlock></item>\
         </ipv6CidrBlockAssociationSet></item></vpcSet>"
    )
}

fn subnet(region: &str) -> String {
    format!(
        "<subnetSet><item><subnetId>{SUBNET}</subnetId><vpcId>{VPC}</vpcId><state>available</state>\
         <cidrBlock>10.0.1.0/24</cidrBlock><availabilityZone>{region}a</availabilityZone>\
         <mapPublicIpOnLaunch>false</mapPublicIpOnLaunch><ipv6CidrBlockAssociationSet>\
         <item><ipv6CidrBlock>2001:db8::/64</ipv6CidrBlock></item></ipv6CidrBlockAssociationSet></item></subnetSet>"
    )
}

fn group() -> String {
    format!(
        "<securityGroupInfo><item><groupId>{GROUP}</groupId><groupName>web</groupName>\
         <groupDescription>what the web may reach</groupDescription><vpcId>{VPC}</vpcId><ownerId>{ACCOUNT}</ownerId>\
         <ipPermissions><item><ipProtocol>tcp</ipProtocol><fromPort>443</fromPort><toPort>443</toPort><groups/>\
         <ipRanges><item><cidrIp>0.0.0.0/0</cidrIp><description>all</description></item></ipRanges>\
         <ipv6Ranges><item><cidrIpv6>::/0</cidrIpv6></item></ipv6Ranges><prefixListIds/></item>\
         <item><ipProtocol>tcp</ipProtocol><fromPort>22</fromPort><toPort>22</toPort>\
         <groups><item><userId>{ACCOUNT}</userId><groupId>{OTHER_GROUP}</groupId></item></groups><ipRanges/></item>\
         </ipPermissions><ipPermissionsEgress><item><ipProtocol>-1</ipProtocol><groups/>\
         <ipRanges><item><cidrIp>0.0.0.0/0</cidrIp></item></ipRanges></item></ipPermissionsEgress></item>\
         </securityGroupInfo>"
    )
}

fn image() -> String {
    format!(
        "<imagesSet><item><imageId>{IMAGE}</imageId><imageState>available</imageState><imageOwnerId>{ACCOUNT}</imageOwnerId>\
         <isPublic>false</isPublic><architecture>x86_64</architecture><imageType>machine</imageType><name>debian-13</name>\
         <description>Debian 13</description><rootDeviceType>ebs</rootDeviceType><rootDeviceName>/dev/xvda</rootDeviceName>\
         <platformDetails>Linux/UNIX</platformDetails><bootMode>uefi-preferred</bootMode>\
         <creationDate>2026-01-01T00:00:00.000Z</creationDate></item></imagesSet>"
    )
}
