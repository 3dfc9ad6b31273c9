//! A gateway that applies what a proxy has put into an object store to devices, one for each volume.

use super::frozen::Frozen;
use super::gateway::UnaskedEndpoint;
use super::*;
use crate::repository::Objects;
use crate::sync::Loop;

/// A device of the size of a volume, and the file below it.
struct Disk {
    file: PathBuf,
    device: Loop,
}

/// A second `ebsfs replicate`, whose source is the repository of a site.
pub struct Standby {
    folder: TempDir,
    disks: BTreeMap<&'static str, Disk>,
    aws: UnaskedEndpoint,
    credentials: PathBuf,
}

impl Standby {
    pub fn of(site: &Site, store: &Objects) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut disks = BTreeMap::new();
        for volume in VOLUMES {
            let file = folder.path().join(volume);
            let made = std::fs::File::create(&file).unwrap();
            made.set_len(BLOCKS * BLOCK).unwrap();
            let device = Loop::over(&file);
            disks.insert(volume, Disk { file, device });
        }
        let devices: Vec<&str> = disks.values().map(|disk| disk.device.0.as_str()).collect();
        let mut text = format!(
            "name = 'standby'\nfrom = '{}'\nstage = '{}/stage'\noverwrite = {devices:?}\n\
             [source]\nendpoint_url = '{}'\nprofile = 'store'\nregion = 'us-east-1'\n",
            store.url(),
            folder.path().display(),
            store.to()[1],
        );
        for (volume, disk) in &disks {
            let device = &disk.device.0;
            text += &format!("[[target]]\nto = '{device}'\nvolumes = ['{volume}']\n");
        }
        std::fs::write(folder.path().join("standby.toml"), text).unwrap();
        Self {
            disks,
            aws: UnaskedEndpoint::new(),
            credentials: store.credentials(&site.emulator),
            folder,
        }
    }

    /// A cycle, which must succeed and must not call AWS; its report.
    pub fn apply(&self) -> Value {
        let mut command = Command::new(EBSFS);
        command
            .args(["replicate", "--once", "--json", "--state-dir"])
            .args(["state", "standby.toml"].map(|name| self.folder.path().join(name)))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_CONFIG_FILE", "/nonexistent")
            .env("AWS_SHARED_CREDENTIALS_FILE", &self.credentials)
            .env("AWS_ENDPOINT_URL", self.aws.url());
        let report: Value = serde_json::from_str(&run(&mut command)).unwrap();
        self.aws.assert_unasked();
        assert_eq!(report["failures"].as_array().unwrap().len(), 0, "{report}");
        report
    }

    /// Where the device of a volume differs from a snapshot, if it does.
    pub fn difference(&self, volume: &str, snapshot: &Frozen) -> Option<String> {
        let disk = &self.disks[volume];
        snapshot.difference_of_device(&disk.device.0, &disk.file)
    }
}
