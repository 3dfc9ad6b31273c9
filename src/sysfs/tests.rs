use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use super::*;

/// A sysfs of a test.
pub(crate) struct Fake {
    folder: tempfile::TempDir,
    disks: u64,
}

impl Fake {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["block", "dev/block", "devices"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        Self { folder, disks: 0 }
    }

    pub(crate) fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.folder.path())
    }

    /// A disk with files in its folder.
    pub(crate) fn disk(&mut self, name: &str, files: &[(&str, &str)]) -> BlockDevice {
        let folder = self.folder.path().join("devices").join(name);
        self.disks += 1;
        let node = self.add(&folder, &format!("8:{}", 16 * self.disks), files);
        symlink(&folder, self.folder.path().join("block").join(name)).unwrap();
        node
    }

    /// A partition of a disk: its number, first sector and sectors.
    pub(crate) fn partition(
        &self,
        disk: &BlockDevice,
        (number, start, size): (u64, u64, u64),
        files: &[(&str, &str)],
    ) -> BlockDevice {
        let name = format!("{}{number}", disk.name());
        let dev = format!("8:{}", minor(disk.rdev().unwrap()) + number);
        let (number, start) = (number.to_string(), start.to_string());
        let size = size.to_string();
        let own = [
            ("partition", number.as_str()),
            ("start", &start),
            ("size", &size),
        ];
        self.add(&disk.folder.join(name), &dev, &[&own, files].concat())
    }

    /// Puts `holder` on `node`.
    pub(crate) fn hold(&self, node: &BlockDevice, holder: &BlockDevice) {
        for (at, what, of) in [(node, "holders", holder), (holder, "slaves", node)] {
            let folder = at.folder.join(what);
            std::fs::create_dir_all(&folder).unwrap();
            symlink(&of.folder, folder.join(of.name())).unwrap();
        }
    }

    /// Writes a file of a node, or changes it.
    pub(crate) fn set(&self, node: &BlockDevice, file: &str, text: &str) {
        let path = node.folder.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{text}\n")).unwrap();
    }

    fn add(&self, folder: &Path, dev: &str, files: &[(&str, &str)]) -> BlockDevice {
        std::fs::create_dir_all(folder).unwrap();
        let link = self.folder.path().join("dev/block").join(dev);
        symlink(folder, link).unwrap();
        let node = BlockDevice::at(folder).unwrap();
        for (file, text) in files.iter().chain(&[("dev", dev)]) {
            self.set(&node, file, text);
        }
        node
    }
}

/// A loop device of a test, detached at its end.
pub(crate) struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// A device over a file, which is made if it is not there; none where there are no loop devices for this user.
    pub(crate) fn new(image: &Path, size: u64, options: &[&str]) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        if !image.exists() {
            File::create(image).unwrap().set_len(size).unwrap();
        }
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show"]).args(options).arg(image);
        let output = losetup.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let path = String::from_utf8(output.stdout).unwrap();
        let device = Self {
            path: path.trim().into(),
        };
        if options.is_empty() {
            // Partitions that a killed test has left on it.
            device.delete_partitions();
        }
        Some(device)
    }

    fn delete_partitions(&self) {
        let mut partx = Command::new("partx");
        let _ = partx
            .arg("-d")
            .arg(&self.path)
            .stderr(Stdio::null())
            .status();
    }

    /// The same with two partitions of 1 MiB, at 1 MiB and 2 MiB of 4 MiB.
    pub(crate) fn partitioned(image: &Path) -> Option<Self> {
        let device = Self::new(image, 4 << 20, &["--partscan"])?;
        let mut sfdisk = Command::new("sfdisk")
            .arg("--quiet")
            .arg(&device.path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let table = b"label: gpt\n2048,2048\n4096,2048\n";
        sfdisk.stdin.take().unwrap().write_all(table).unwrap();
        assert!(sfdisk.wait().unwrap().success());
        // Not every kernel reads partition tables itself.
        if !device.partition(2).exists() {
            let mut partx = Command::new("partx");
            assert!(
                partx
                    .arg("-a")
                    .arg(&device.path)
                    .status()
                    .unwrap()
                    .success()
            );
        }
        assert!(device.partition(2).exists());
        Some(device)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn partition(&self, number: u32) -> PathBuf {
        format!("{}p{number}", self.path.display()).into()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        self.delete_partitions();
        let _ = Command::new("losetup").arg("-d").arg(&self.path).status();
    }
}

#[test]
fn partitions_share_bytes_with_their_disk_and_not_with_their_siblings() {
    let mut fake = Fake::new();
    let disk = fake.disk("sda", &[("serial", "  \0\n")]);
    let other = fake.disk("sdb", &[]);
    let one = fake.partition(&disk, (1, 2048, 2048), &[]);
    let two = fake.partition(&disk, (2, 4096, 2048), &[]);
    let around = fake.partition(&disk, (3, 5000, 9000), &[]);
    let far = fake.partition(&other, (1, 2048, 2048), &[]);
    assert_eq!(fake.sysfs().node(two.rdev().unwrap()), Some(two.clone()));
    assert_eq!(fake.sysfs().disks(), [disk.clone(), other]);
    assert_eq!((two.disk(), disk.disk()), (disk.clone(), disk.clone()));
    assert_eq!(disk.read("serial"), None);
    assert!(disk.overlaps(&one) && one.overlaps(&disk) && two.overlaps(&around));
    assert!(!one.overlaps(&two) && !one.overlaps(&far));
    assert_eq!(one.sharing(), [one.clone(), disk.clone()]);
    assert_eq!(two.sharing(), [two.clone(), around, disk.clone()]);
    assert_eq!(disk.sharing().len(), 4);
    assert_eq!(fake.sysfs().node(makedev(99, 1)), None);
}
