use super::*;

fn job(bus: DiskBus) -> BootJob {
    BootJob {
        wait_for: "login:".into(),
        timeout: Duration::from_secs(1),
        memory: 512 << 20,
        firmware: None,
        bus,
        console: None,
    }
}

#[test]
fn a_text_is_found_wherever_the_reads_cut_it() {
    let stream = b"[ OK ] Started getty\r\ndrilled logout login: ";
    for size in 1..stream.len() {
        let mut search = TextSearch::new("login:");
        let found: Vec<bool> = stream
            .chunks(size)
            .map(|bytes| search.push(bytes))
            .collect();
        assert!(found.contains(&true), "{size}");
        assert!(search.tail.len() <= 6);
        let mut other = TextSearch::new("login;");
        assert!(!stream.chunks(size).any(|bytes| other.push(bytes)));
    }
}

#[test]
fn a_machine_is_started_without_kvm_only_if_it_ended_without_a_sign_of_life() {
    for (booted, has_ended, console_bytes, expected) in [
        (false, true, 0, true),
        (false, true, 1, false),
        (false, false, 0, false),
        (true, true, 10, false),
    ] {
        let report = BootReport {
            booted,
            has_ended,
            lacks_memory: false,
            wait_for: String::new(),
            reason: None,
            firmware: String::new(),
            accelerator: String::new(),
            seconds: 0.0,
            console_bytes,
            console: Vec::new(),
        };
        assert_eq!(is_broken_kvm(&report), expected, "{report:?}");
    }
}

#[test]
fn too_little_memory_is_recognized_in_the_output_of_qemu() {
    for (line, expected) in [
        (
            "qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory",
            true,
        ),
        (
            "qemu-system-x86_64: -blockdev x: Could not open 'x': Permission denied",
            false,
        ),
        ("", false),
    ] {
        assert_eq!(lacks_memory(line), expected, "{line}");
    }
}

#[test]
fn the_firmware_is_that_of_the_instance_then_that_of_the_disk() {
    use Firmware::{Bios, Uefi};
    let facts = |current: Option<&str>, mode: Option<&str>| MachineFacts {
        architecture: None,
        current_boot_mode: current.map(str::to_owned),
        boot_mode: mode.map(str::to_owned),
    };
    for (asked, current, mode, has_efi, has_code, expected) in [
        (Some(Bios), Some("uefi"), None, true, false, Bios),
        (None, Some("uefi"), Some("legacy-bios"), false, true, Uefi),
        (
            None,
            Some("legacy-bios"),
            Some("uefi-preferred"),
            true,
            true,
            Bios,
        ),
        (None, None, Some("uefi-preferred"), true, true, Uefi),
        (None, None, Some("uefi-preferred"), false, true, Bios),
        (None, None, None, true, true, Bios),
        (None, None, None, true, false, Uefi),
        (None, None, None, false, false, Bios),
    ] {
        let found = firmware_of(asked, &facts(current, mode), has_efi, has_code);
        assert_eq!(found, expected, "{current:?} {mode:?} {has_efi} {has_code}");
    }
}

#[test]
fn a_machine_has_no_network_and_writes_to_overlays_alone() {
    let disks = [
        ("/b/0".into(), "/o/0".into()),
        ("/b/1".into(), "/o/1".into()),
    ];
    for (bus, driver) in [
        (DiskBus::Nvme, "\"nvme\""),
        (DiskBus::Virtio, "\"virtio-blk-pci\""),
        (DiskBus::Sata, "\"ide-hd\""),
    ] {
        let args = machine_args(&job(bus), &disks, None, false, 2);
        let args: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
        let after = |name: &str| {
            let found = args.windows(2).filter(|pair| pair[0] == name);
            found.map(|pair| pair[1]).collect::<Vec<_>>()
        };
        assert_eq!(after("-nic"), ["none"]);
        assert_eq!(after("-machine"), ["q35,accel=tcg"]);
        assert_eq!(after("-m"), ["512M"]);
        assert!(args.contains(&"-no-reboot") && after("-sandbox").len() == 1);
        let nodes = after("-blockdev");
        assert_eq!(nodes.len(), 2);
        for (number, node) in nodes.iter().enumerate() {
            let node: serde_json::Value = serde_json::from_str(node).unwrap();
            assert_eq!(node["backing"]["file"]["filename"], format!("/b/{number}"));
            assert_eq!(node["backing"]["read-only"], true);
            assert_eq!(node["backing"]["file"]["read-only"], true);
            assert_eq!(node["file"]["filename"], format!("/o/{number}"));
        }
        let devices = after("-device");
        let devices: Vec<&&str> = devices.iter().filter(|one| one.contains(driver)).collect();
        assert!(
            devices[0].contains("\"bootindex\":0") && devices.len() == 2,
            "{devices:?}"
        );
    }
    let pflash = ("/code".into(), "/a,b".into());
    let args = machine_args(&job(DiskBus::Nvme), &disks, Some(&pflash), true, 1);
    let args: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
    assert!(args.contains(&"q35,accel=kvm:tcg"));
    assert!(args.contains(&"if=pflash,unit=0,format=raw,readonly=on,file=/code"));
    assert!(args.contains(&"if=pflash,unit=1,format=raw,readonly=off,file=/a,,b"));
}
