//! Roles by moto's STS, which this project did not write, used with moto's EC2: each account has snapshots of its own.

use std::path::PathBuf;
use std::process::{Child, Stdio};

use super::*;

/// moto's server, and Python with boto3.
struct Moto {
    process: Child,
    url: String,
}

fn client(program: &str) -> PathBuf {
    let release = PathBuf::from(EBSFS);
    let own = release
        .with_file_name("")
        .join("../clients/bin")
        .join(program);
    if own.exists() { own } else { program.into() }
}

impl Moto {
    fn start() -> Self {
        // It is free again at the end of this line.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr();
        let port = port.unwrap().port();
        let process = Command::new(client("moto_server"))
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("moto", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        let url = format!("http://127.0.0.1:{port}");
        Self { process, url }
    }

    /// Makes a snapshot in the account of a role, or in the callers' own; its id.
    fn snapshot(&self, account: Option<&str>) -> String {
        let role = account.map_or("None".to_owned(), |account| {
            format!("'arn:aws:iam::{account}:role/r'")
        });
        let script = format!(
            "import boto3\n\
             make = lambda service, **more: boto3.client(service, region_name='us-east-1', endpoint_url='{}', **more)\n\
             keys = dict(aws_access_key_id='AKIAIOSFODNN7EXAMPLE', aws_secret_access_key='x')\n\
             role = {role}\n\
             if role:\n\
             \x20 given = make('sts', **keys).assume_role(RoleArn=role, RoleSessionName='test')['Credentials']\n\
             \x20 keys = dict(aws_access_key_id=given['AccessKeyId'], aws_secret_access_key=given['SecretAccessKey'], aws_session_token=given['SessionToken'])\n\
             ec2 = make('ec2', **keys)\n\
             volume = ec2.create_volume(Size=1, AvailabilityZone='us-east-1a')['VolumeId']\n\
             print(ec2.create_snapshot(VolumeId=volume)['SnapshotId'])",
            self.url
        );
        let made = run(Command::new(client("python3")).args(["-c", &script]));
        made.trim().to_owned()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn roles_of_another_sts_reach_their_accounts() {
    let moto = Moto::start();
    let person = Person::new();
    let (first, second) = ("111122223333", "444455556666");
    let made = [None, Some(first), Some(second)].map(|account| moto.snapshot(account));
    person.write("token", "x.y.z");
    let token = person.home.path().join("token");
    person.write(
        ".aws/config",
        &format!(
            "[profile own]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = x\n\
             [profile role]\nrole_arn = arn:aws:iam::{first}:role/r\nsource_profile = own\nexternal_id = e\nduration_seconds = 900\n\
             [profile chained]\nrole_arn = arn:aws:iam::{second}:role/r\nsource_profile = role\nrole_session_name = night\n\
             [profile web]\nrole_arn = arn:aws:iam::{first}:role/r\nweb_identity_token_file = {}\n",
            token.display()
        ),
    );
    for (profile, snapshot) in [
        ("own", &made[0]),
        ("role", &made[1]),
        ("chained", &made[2]),
        ("web", &made[1]),
    ] {
        for by_option in [false, true] {
            let mut command = person.ebsfs(&["ls", "--json"]);
            command.env("AWS_ENDPOINT_URL_EC2", &moto.url);
            command.env("AWS_ENDPOINT_URL_STS", &moto.url);
            if by_option {
                command.args(["--profile", profile]);
            } else {
                command.env("AWS_PROFILE", profile);
            }
            let listed = run(&mut command);
            for id in &made {
                let is_listed = listed.contains(&**id);
                assert_eq!(is_listed, id == snapshot, "{profile}: {listed}");
            }
        }
    }
}
