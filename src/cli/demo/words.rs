//! What a demo prints, and the variables of its environment file.

use std::path::Path;

use super::DemoSnapshots;
use super::disk::{DemoDisk, PARTITION, VOLUME};
use super::folder::DemoFolder;
use crate::cli::remedy::quoted;
use crate::drill::find_program;

/// What there is to show.
pub(super) struct DemoText<'a> {
    pub(super) disk: &'a DemoDisk,
    pub(super) snapshots: &'a DemoSnapshots,
    pub(super) mountpoint: &'a Path,
    pub(super) folder: &'a DemoFolder,
    pub(super) url: &'a str,
}

impl DemoText<'_> {
    /// Variables for scripts, beside those of AWS. They are not exported.
    pub(super) fn variables(&self) -> String {
        let path = |path: &Path| quoted(&path.display().to_string());
        let DemoSnapshots { first, second } = self.snapshots;
        format!(
            "demo_first={first} demo_second={second} demo_mount={} demo_volume={} demo_before={}\n",
            path(self.mountpoint),
            path(self.disk.path()),
            path(&self.folder.before()),
        )
    }

    pub(super) fn text(&self) -> String {
        let DemoSnapshots { first, second } = self.snapshots;
        let content = match self.disk.has_filesystem() {
            true => "a GPT and one ext4 partition",
            false => {
                "a pattern (a filesystem needs mkfs.ext4 and debugfs of the package e2fsprogs, and sfdisk of fdisk)"
            }
        };
        let commands = self.commands().into_iter();
        let commands: String = commands.map(|line| format!("  {line}\n")).collect();
        format!(
            "volume     {VOLUME}: 1 GiB with {content}\n\
             snapshots  {first}, and {second} after a change\n\
             mounted at {}\n\
             emulator   {}\n\
             files      {}\n\n\
             Try in another terminal:\n{commands}\n\
             Ctrl-C ends the demo and removes its files.\n",
            self.mountpoint.display(),
            self.url,
            self.folder.path().display(),
        )
    }

    /// Commands to try, in this order in one shell.
    fn commands(&self) -> Vec<String> {
        let DemoSnapshots { first, second } = self.snapshots;
        let ebsfs = program();
        let path = |path: &Path| quoted(&path.display().to_string());
        let disk = self.mountpoint.join(format!("snapshots/{second}/disk.raw"));
        let read = match self.disk.has_filesystem() {
            true => {
                let device = format!("{}?offset={PARTITION}", disk.display());
                format!(
                    "/usr/sbin/debugfs -R 'cat /home/news.txt' {}",
                    quoted(&device)
                )
            }
            false => format!("head -n 1 {}", path(&disk)),
        };
        let list = match cfg!(feature = "ec2") {
            true => format!("{ebsfs} ls"),
            // EC2 lists the snapshots of an account.
            false => format!("{ebsfs} blocks {first}"),
        };
        vec![
            format!(". {}", path(&self.folder.environment())),
            list,
            format!("ls -lR {}", path(&self.mountpoint.join("snapshots"))),
            read,
            format!("{ebsfs} changes {first} {second}"),
            format!(
                "{ebsfs} sync {first} copy.raw && {ebsfs} sync {second} copy.raw --base auto --verify"
            ),
        ]
    }
}

/// This program as a shell finds it.
fn program() -> String {
    let own = std::env::current_exe().ok();
    let own = own.and_then(|own| own.canonicalize().ok());
    let found = find_program("ebsfs").and_then(|found| found.canonicalize().ok());
    match own {
        Some(own) if found.as_ref() != Some(&own) => quoted(&own.display().to_string()),
        _ => "ebsfs".into(),
    }
}
