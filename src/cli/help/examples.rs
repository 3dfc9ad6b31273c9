//! Examples of each verb, as `--help` and the man pages show them. A test parses each command.

/// A verb (`repository check`), and for each example what it does and its command.
pub(super) const EXAMPLES: &[(&str, &[(&str, &str)])] = &[
    (
        "",
        &[
            ("Try it without an AWS account", "ebsfs demo"),
            (
                "Show the snapshots of a volume as disk images",
                "ebsfs mount /mnt/ebs vol-0123456789abcdef0",
            ),
            (
                "Copy a snapshot to an image",
                "ebsfs sync snap-0123456789abcdef0 disk.raw",
            ),
        ],
    ),
    (
        "demo",
        &[
            ("Show the demo in a new folder, until Ctrl-C", "ebsfs demo"),
            ("Mount it at an empty folder", "ebsfs demo /mnt/ebs"),
        ],
    ),
    (
        "doctor",
        &[
            (
                "Check the way to AWS, credentials, and whether this machine can mount",
                "ebsfs doctor",
            ),
            (
                "Check a mount that fails",
                "ebsfs doctor mount /mnt/ebs snap-0123456789abcdef0",
            ),
            (
                "Check a sync with its arguments, and try writes to the bucket",
                "ebsfs doctor --write sync snap-0123456789abcdef0 s3://backups/ebs",
            ),
        ],
    ),
    (
        "mount",
        &[
            ("Show all snapshots of the account", "ebsfs mount /mnt/ebs"),
            (
                "Show one volume's snapshots, in the background, with a cache on disk",
                "ebsfs mount --background --cache-dir /var/cache/ebsfs /mnt/ebs vol-0123456789abcdef0",
            ),
            (
                "Show the snapshots of a repository",
                "ebsfs mount s3://backups/ebs /mnt/ebs",
            ),
        ],
    ),
    (
        "umount",
        &[
            ("Unmount", "ebsfs umount /mnt/ebs"),
            (
                "Detach a mount that is in use",
                "ebsfs umount --lazy /mnt/ebs",
            ),
        ],
    ),
    (
        "attach",
        &[
            (
                "Mount the only filesystem of a snapshot, in the background",
                "ebsfs attach --background snap-0123456789abcdef0 /mnt/files",
            ),
            (
                "Mount a partition with its journal replayed",
                "ebsfs attach --overlay snap-0123456789abcdef0 2 /mnt/files",
            ),
            (
                "Mount a volume of LVM",
                "ebsfs attach snap-0123456789abcdef0 rhel/root /mnt/files",
            ),
        ],
    ),
    (
        "detach",
        &[
            ("Unmount", "ebsfs detach /mnt/files"),
            (
                "Detach a filesystem that is in use",
                "ebsfs detach --lazy /mnt/files",
            ),
        ],
    ),
    (
        "warm",
        &[(
            "Fill a cache of at most 64 GiB with a snapshot",
            "ebsfs warm --cache-dir /var/cache/ebsfs --cache-size 64GiB snap-0123456789abcdef0",
        )],
    ),
    (
        "ls",
        &[
            ("List the snapshots of the account", "ebsfs ls"),
            (
                "List those with a tag, in another Region, as JSON",
                "ebsfs ls --region eu-west-2 --json tag:Backup=yes",
            ),
        ],
    ),
    (
        "snapshot",
        &[
            (
                "Snapshot all volumes of an instance at one instant",
                "ebsfs snapshot --instance i-0123456789abcdef0",
            ),
            (
                "Snapshot a volume while its filesystem is frozen",
                "ebsfs snapshot --volume vol-0123456789abcdef0 --pre 'fsfreeze -f /data' --post 'fsfreeze -u /data'",
            ),
            (
                "Snapshot each tagged volume once per cycle, however often this is run",
                "ebsfs snapshot --tag Backup=yes --cycle nightly/2026-06-30T12:00:00Z",
            ),
        ],
    ),
    (
        "inventory",
        &[(
            "Describe an instance",
            "ebsfs inventory i-0123456789abcdef0",
        )],
    ),
    (
        "files",
        &[
            (
                "Copy a folder out of a snapshot",
                "ebsfs files cp snap-0123456789abcdef0 /etc .",
            ),
            (
                "List the files that changed between two snapshots",
                "ebsfs files changes snap-0123456789abcdef0 snap-0fedcba9876543210",
            ),
        ],
    ),
    (
        "files ls",
        &[(
            "List a folder of the second partition",
            "ebsfs files ls snap-0123456789abcdef0 --partition 2 --long /var/log",
        )],
    ),
    (
        "files tree",
        &[(
            "Show three levels",
            "ebsfs files tree snap-0123456789abcdef0 --depth 3",
        )],
    ),
    (
        "files stat",
        &[(
            "Show all metadata of a file as JSON",
            "ebsfs files stat snap-0123456789abcdef0 /etc/shadow --json",
        )],
    ),
    (
        "files cat",
        &[(
            "Print a file of the newest snapshot of a volume",
            "ebsfs files cat vol-0123456789abcdef0 /etc/fstab",
        )],
    ),
    (
        "files cp",
        &[(
            "Restore a folder from a repository, with its owners, as root",
            "ebsfs files cp s3://backups/ebs#latest /srv/data /srv",
        )],
    ),
    (
        "files find",
        &[(
            "Find the databases",
            "ebsfs files find snap-0123456789abcdef0 --name '*.sqlite' --type file",
        )],
    ),
    (
        "files timeline",
        &[(
            "Make a timeline for mactime",
            "ebsfs files timeline snap-0123456789abcdef0",
        )],
    ),
    (
        "files changes",
        &[(
            "List what changed below /etc",
            "ebsfs files changes snap-0123456789abcdef0 snap-0fedcba9876543210 /etc",
        )],
    ),
    (
        "files mount",
        &[(
            "Show the files of a snapshot",
            "ebsfs files mount snap-0123456789abcdef0 /mnt/files",
        )],
    ),
    (
        "changes",
        &[
            (
                "Show how much differs between two snapshots",
                "ebsfs changes snap-0123456789abcdef0 snap-0fedcba9876543210",
            ),
            (
                "Write the changed blocks as CSV",
                "ebsfs changes snap-0123456789abcdef0 snap-0fedcba9876543210 --format csv --output changes.csv",
            ),
            (
                "Show each step of a volume",
                "ebsfs changes --volume vol-0123456789abcdef0",
            ),
        ],
    ),
    (
        "blocks",
        &[
            (
                "Show how many blocks a snapshot holds",
                "ebsfs blocks snap-0123456789abcdef0",
            ),
            (
                "Draw where they are",
                "ebsfs blocks snap-0123456789abcdef0 --format svg --output blocks.svg",
            ),
        ],
    ),
    (
        "sync",
        &[
            (
                "Copy a snapshot to an image",
                "ebsfs sync snap-0123456789abcdef0 disk.raw",
            ),
            (
                "Bring the image to a newer snapshot, by what changed, and read it back",
                "ebsfs sync snap-0fedcba9876543210 disk.raw --base auto --verify",
            ),
            (
                "Copy to a new snapshot in another Region",
                "ebsfs sync snap-0123456789abcdef0 ebs:eu-west-2",
            ),
            (
                "Copy the newest snapshot of a volume to a repository",
                "ebsfs sync vol-0123456789abcdef0 s3://backups/ebs --base auto --wait",
            ),
        ],
    ),
    (
        "restore",
        &[
            (
                "Restore the newest set of an instance to images",
                "ebsfs restore s3://backups/ebs#i-0123456789abcdef0 --to /srv/restored",
            ),
            (
                "Restore it as of a time to new snapshots",
                "ebsfs restore s3://backups/ebs#i-0123456789abcdef0@2026-06-30T12:00Z --to ebs:eu-west-2",
            ),
        ],
    ),
    (
        "drill",
        &[
            (
                "Check the filesystems of all disks of an instance",
                "ebsfs drill s3://backups/ebs#i-0123456789abcdef0",
            ),
            (
                "Check an image, and boot it",
                "ebsfs drill disk.raw --boot --wait-for login:",
            ),
        ],
    ),
    (
        "replicate",
        &[
            ("Run a job until it is stopped", "ebsfs replicate job.toml"),
            (
                "Run one cycle of it, for cron and timers",
                "ebsfs replicate job.toml --once",
            ),
            (
                "Copy a volume to an image every 15 minutes, without a job file",
                "ebsfs replicate --volume vol-0123456789abcdef0 --to /srv/disk.raw --every 15m",
            ),
        ],
    ),
    (
        "status",
        &[
            ("Show all jobs of this machine", "ebsfs status"),
            (
                "Check that a job's recovery points are at most 30 minutes old",
                "ebsfs status web --max-age 30m",
            ),
        ],
    ),
    (
        "verify",
        &[
            (
                "Compare an image with the digests of its last copy",
                "ebsfs verify disk.raw",
            ),
            (
                "Compare a device with a snapshot",
                "ebsfs verify /dev/nvme1n1 snap-0123456789abcdef0 --fetch",
            ),
        ],
    ),
    (
        "evidence",
        &[
            (
                "Write signed evidence of a snapshot",
                "ebsfs evidence snap-0123456789abcdef0 -o case-7 --key ~/.ssh/id_ed25519",
            ),
            (
                "The same with the image itself",
                "ebsfs evidence snap-0123456789abcdef0 -o case-7 --image",
            ),
        ],
    ),
    (
        "evidence verify",
        &[
            (
                "Check the files and the signature",
                "ebsfs evidence verify case-7",
            ),
            (
                "Check an image against evidence that a known person signed",
                "ebsfs evidence verify case-7 copy.raw --allowed-signers investigators",
            ),
        ],
    ),
    (
        "digest",
        &[
            (
                "Print the SHA-256 of a snapshot",
                "ebsfs digest snap-0123456789abcdef0",
            ),
            (
                "Print SHA-256 and MD5 of an image, and the SHA-256 of each block",
                "ebsfs digest disk.raw --md5 --blocks blocks.csv",
            ),
        ],
    ),
    (
        "record",
        &[
            ("Show what a target holds", "ebsfs record show /dev/nvme1n1"),
            (
                "Keep its record elsewhere",
                "ebsfs record export /dev/nvme1n1 --output record.json --digests record.digests",
            ),
        ],
    ),
    (
        "record show",
        &[("Show what a target holds", "ebsfs record show disk.raw")],
    ),
    (
        "record export",
        &[(
            "Keep the record and the digests of a device elsewhere",
            "ebsfs record export /dev/nvme1n1 --output record.json --digests record.digests",
        )],
    ),
    (
        "record import",
        &[(
            "Use them on a machine that has lost its own",
            "ebsfs record import /dev/nvme1n1 record.json --digests record.digests",
        )],
    ),
    (
        "repository",
        &[
            (
                "Make a repository",
                "ebsfs repository init s3://backups/ebs",
            ),
            ("List its snapshots", "ebsfs repository ls s3://backups/ebs"),
            (
                "Check that all of them can be read",
                "ebsfs repository check s3://backups/ebs",
            ),
        ],
    ),
    (
        "repository init",
        &[
            (
                "Make a repository in a bucket",
                "ebsfs repository init s3://backups/ebs",
            ),
            (
                "Make one in a folder",
                "ebsfs repository init file:///srv/backups",
            ),
        ],
    ),
    (
        "repository ls",
        &[
            ("List the snapshots", "ebsfs repository ls s3://backups/ebs"),
            (
                "List the runs that have not ended",
                "ebsfs repository ls s3://backups/ebs --runs",
            ),
        ],
    ),
    (
        "repository show",
        &[(
            "Print the metadata of a snapshot",
            "ebsfs repository show s3://backups/ebs#snap-0123456789abcdef0",
        )],
    ),
    (
        "repository instances",
        &[
            (
                "List the sets that can be restored",
                "ebsfs repository instances s3://backups/ebs",
            ),
            (
                "Add a set by the inventory of its instance",
                "ebsfs repository instances s3://backups/ebs --add instance.json",
            ),
        ],
    ),
    (
        "repository stats",
        &[(
            "Print what each volume takes",
            "ebsfs repository stats s3://backups/ebs",
        )],
    ),
    (
        "repository check",
        &[
            (
                "Check that everything is there",
                "ebsfs repository check s3://backups/ebs",
            ),
            (
                "Read a thirtieth of the data, another one each day",
                "ebsfs repository check s3://backups/ebs --read-data-subset 1/30",
            ),
            (
                "Repair damage from the snapshot in EBS",
                "ebsfs repository check s3://backups/ebs --repair --from snap-0123456789abcdef0",
            ),
        ],
    ),
    (
        "repository prune",
        &[
            (
                "Show what a retention would remove",
                "ebsfs repository prune s3://backups/ebs --keep-daily 7 --keep-weekly 5 --dry-run",
            ),
            (
                "Remove it, and sweep what no snapshot needs",
                "ebsfs repository prune s3://backups/ebs --keep-daily 7 --keep-weekly 5",
            ),
        ],
    ),
    (
        "repository pin",
        &[(
            "Keep a snapshot, whatever the retention",
            "ebsfs repository pin s3://backups/ebs#snap-0123456789abcdef0 --note 'before the upgrade'",
        )],
    ),
    (
        "repository unpin",
        &[(
            "Leave it to the retention again",
            "ebsfs repository unpin s3://backups/ebs#snap-0123456789abcdef0",
        )],
    ),
    (
        "repository rm",
        &[(
            "Remove a snapshot",
            "ebsfs repository rm s3://backups/ebs#snap-0123456789abcdef0",
        )],
    ),
    (
        "repository undelete",
        &[(
            "Restore it, before a prune has removed its data",
            "ebsfs repository undelete s3://backups/ebs#snap-0123456789abcdef0",
        )],
    ),
    (
        "policy",
        &[
            (
                "Print the policy of a user that copies to new EBS snapshots",
                "ebsfs policy sync upload",
            ),
            (
                "Limit reading to snapshots with a tag, encrypted with one key",
                "ebsfs policy mount --tag team=a --kms arn:aws:kms:eu-west-1:111122223333:key/0a",
            ),
            (
                "Print the policies of the VPC endpoints, by service",
                "ebsfs policy replicate --bucket backups/ebs --endpoint",
            ),
            (
                "Show what each action is for",
                "ebsfs policy replicate --explain",
            ),
        ],
    ),
    (
        "emulator",
        &[
            (
                "Serve the images of a folder at a free port",
                "ebsfs emulator folder --listen 127.0.0.1:0",
            ),
            (
                "Serve a snapshot of 64 TiB whose bytes are computed, 15 ms away",
                "ebsfs emulator folder --synthetic snap-0a:65536:10000 --set latency_ms=15",
            ),
        ],
    ),
];
