use super::*;

/// What the arguments of mount(8) become: the arguments of `ebsfs mount --background`, then `NAME=VALUE` of variables.
fn called(given: &[&str]) -> std::result::Result<Vec<String>, String> {
    let helper = MountHelperArgs::try_parse_from([&[NAME], given].concat()).unwrap();
    let call = call(&helper, &Args::command()).map_err(|error| error.chain())?;
    let mut arguments = call
        .arguments
        .iter()
        .map(|text| text.to_str().unwrap().to_owned());
    assert_eq!(arguments.next().as_deref(), Some("mount"));
    assert_eq!(arguments.next().as_deref(), Some("--background"));
    let mut all: Vec<String> = arguments.collect();
    // What it becomes is what the program takes.
    let given = [&["ebsfs".into(), "mount".into()], &all[..]].concat();
    if let Err(error) = Args::command().try_get_matches_from(&given) {
        return Err(first_line(&error));
    }
    let variables = call.variables.iter();
    all.extend(variables.map(|(name, value)| format!("{name}={value}")));
    Ok(all)
}

#[test]
fn arguments_of_mount_become_those_of_ebsfs_mount() {
    const SNAPSHOT: &str = "snap-0123456789abcdef0";
    let table: &[(&[&str], &[&str])] = &[
        (&[SNAPSHOT, "/mnt"], &["--", "/mnt", SNAPSHOT]),
        (&["vol-0a", "/a b", "-o", "rw"], &["--", "/a b", "vol-0a"]),
        (&["ebsfs", "/mnt", "-n"], &["--", "/mnt"]),
        (
            &["tag:a,b=c=d", "/mnt", "-t", "ebsfs"],
            &["--", "/mnt", "tag:a,b=c=d"],
        ),
        (
            &["s3://b/p", "/mnt", "-v"],
            &["--verbose", "--", "s3://b/p", "/mnt"],
        ),
        (
            &[
                SNAPSHOT,
                "/mnt",
                "-o",
                "rw,region=eu-central-1,_netdev,allow_other,mode=0444,noauto,x-systemd.automount,nofail",
            ],
            &[
                "--region=eu-central-1",
                "--allow-other",
                "--mode=0444",
                "--",
                "/mnt",
                SNAPSHOT,
            ],
        ),
        // mount(8) puts the options of fstab before its own.
        (
            &[
                SNAPSHOT,
                "/mnt",
                "-o",
                "mode=0444,allow_other,region=a,mode=0400,allow-other,verbose,verbose",
            ],
            &[
                "--region=a",
                "--mode=0400",
                "--allow-other",
                "--verbose",
                "--verbose",
                "--",
                "/mnt",
                SNAPSHOT,
            ],
        ),
        // Both spellings, several -o, options of the program itself.
        (
            &[
                "-o",
                "cache_dir=/c,cache-size=1GiB",
                SNAPSHOT,
                "/mnt",
                "-o",
                "memory=64MiB,log_file=/l",
            ],
            &[
                "--cache-dir=/c",
                "--cache-size=1GiB",
                "--memory=64MiB",
                "--log-file=/l",
                "--",
                "/mnt",
                SNAPSHOT,
            ],
        ),
        // Quotes and backslashes; an empty option; a value with an equals sign.
        (
            &[SNAPSHOT, "/mnt", "-o", r#",profile="a,b=c",,region=x\,y"#],
            &["--profile=a,b=c", "--region=x,y", "--", "/mnt", SNAPSHOT],
        ),
        (
            &[SNAPSHOT, "/mnt", "-o", "endpoint-url=http://h/?a=b"],
            &["--endpoint-url=http://h/?a=b", "--", "/mnt", SNAPSHOT],
        ),
        (
            &[SNAPSHOT, "/mnt", "-o", "region=--lazy"],
            &["--region=--lazy", "--", "/mnt", SNAPSHOT],
        ),
        (
            &[
                SNAPSHOT,
                "/mnt",
                "-o",
                "config_file=/etc/ebsfs/aws,credentials-file=/etc/ebsfs/keys",
            ],
            &[
                "--",
                "/mnt",
                SNAPSHOT,
                "AWS_CONFIG_FILE=/etc/ebsfs/aws",
                "AWS_SHARED_CREDENTIALS_FILE=/etc/ebsfs/keys",
            ],
        ),
        // A person who mounts passes as user=NAME.
        (
            &[SNAPSHOT, "/mnt", "-o", "user=ann,noexec,nosuid,nodev"],
            &["--", "/mnt", SNAPSHOT],
        ),
        (
            &[SNAPSHOT, "/mnt", "-s", "-o", "zzz,lazy"],
            &["--lazy", "--", "/mnt", SNAPSHOT],
        ),
    ];
    for (given, wanted) in table {
        assert_eq!(
            called(given).as_deref(),
            Ok(&wanted
                .iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()[..]),
            "{given:?}"
        );
    }
}

#[test]
fn what_a_mount_cannot_be_is_refused_with_the_reason() {
    for (given, why) in [
        (&["-o", "zzz"][..], "the option zzz is unknown"),
        (&["-o", "zzz=1"], "the option zzz is unknown"),
        (&["-o", "=1"], "a name is missing"),
        (
            &["-o", "remount,ro"],
            "remount is not possible: a mount of ebsfs does not change",
        ),
        (&["-o", "exec"], "exec is not possible"),
        (&["-s", "-o", "suid"], "suid is not possible"),
        (&["-o", "background"], "background is not possible"),
        (
            &["-o", "region"],
            "the option region needs a value: region=VALUE",
        ),
        (
            &["-o", "config_file"],
            "the option config_file needs a value",
        ),
        (&["-o", "lazy=1"], "the option lazy takes no value"),
        (&["-o", "profile=\"a,ro"], "a quotation mark is missing"),
        (
            &["-o", "mode=0777"],
            "invalid value '0777' for '--mode <MODE>'",
        ),
        (&["-N", "/proc/1/ns/mnt"], "-N is not possible"),
        (&["-t", "ext4"], "mounts the type ebsfs, not ext4"),
    ] {
        let given = [&["vol-0a", "/mnt"], given].concat();
        let refused = called(&given).unwrap_err();
        assert!(
            refused.contains(why) && !refused.contains('\n'),
            "{given:?}: {refused}"
        );
    }
}

#[test]
fn the_program_is_the_helper_by_its_name_alone() {
    for (program, is_it) in [
        ("/sbin/mount.ebsfs", true),
        ("mount.ebsfs", true),
        ("/usr/bin/ebsfs", false),
        ("/mount.ebsfs/ebsfs", false),
        ("", false),
    ] {
        assert_eq!(is_called(OsStr::new(program)), is_it, "{program}");
    }
    for (code, wanted) in [(0, 0), (2, 1), (130, 8), (1, 32), (3, 32), (13, 32)] {
        assert_eq!(mount_code(code), wanted, "{code}");
    }
}

#[test]
fn options_of_the_helper_hide_none_of_ebsfs_mount() {
    let command = Args::command();
    let refused = REFUSED.iter().map(|(name, _)| *name);
    for name in WITHOUT_EFFECT
        .iter()
        .copied()
        .chain(VARIABLES.iter().map(|(name, _)| *name))
        .chain(refused)
    {
        let is_meant = ["background", "help"].contains(&name);
        assert!(is_meant || takes_value(&command, name).is_none(), "{name}");
    }
}
