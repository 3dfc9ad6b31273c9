//! The sbatch script of `scripts/packaging`, run by Slurm itself: one controller and one node on this machine.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Child;

use super::shards::{LOOSE, assert_images, loose_site};
use super::*;

/// Slurm on this machine, in a folder of its own, with a key of its own.
struct Cluster {
    folder: TempDir,
    daemons: Vec<Child>,
}

impl Cluster {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let key: Vec<u8> = (0..1024).map(|_| fastrand::u8(..)).collect();
        std::fs::write(at("key"), key).unwrap();
        std::fs::set_permissions(at("key"), PermissionsExt::from_mode(0o400)).unwrap();
        for name in ["controller", "node"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let host = host.trim().split('.').next().unwrap();
        // Free until the daemons take them.
        let ports = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let [controller, node] = ports.map(|port| port.local_addr().unwrap().port());
        let conf = format!(
            "ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={controller}\nSlurmdPort={node}\n\
             SlurmUser=root\nSlurmdUser=root\nAuthType=auth/munge\nCredType=cred/munge\n\
             AuthInfo=socket={0}/munge.socket,cred_expire=5\n\
             StateSaveLocation={0}/controller\nSlurmdSpoolDir={0}/node\n\
             SlurmctldPidFile={0}/controller.pid\nSlurmdPidFile={0}/node.pid\n\
             SlurmctldLogFile={0}/controller.log\nSlurmdLogFile={0}/node.log\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMailProg=/bin/true\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\nSlurmdParameters=config_overrides\n\
             SchedulerParameters=sched_interval=1,batch_sched_delay=0\nReturnToService=2\n\
             NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=8192\n\
             PartitionName=main Nodes=node1 Default=YES MaxTime=INFINITE State=UP\n",
            folder.path().display()
        );
        std::fs::write(at("slurm.conf"), conf).unwrap();
        let mut cluster = Self {
            folder,
            daemons: Vec::new(),
        };
        let at = |name: &str| cluster.folder.path().join(name).display().to_string();
        let munged = [
            "--foreground".to_owned(),
            // The folder of the test is below one that everybody writes.
            "--force".to_owned(),
            format!("--key-file={}", at("key")),
            format!("--socket={}", at("munge.socket")),
            format!("--pid-file={}", at("munge.pid")),
            format!("--log-file={}", at("munge.log")),
            format!("--seed-file={}", at("munge.seed")),
        ];
        let socket = at("munge.socket");
        cluster.daemon("munged", &munged);
        wait_for("munge", || Path::new(&socket).exists());
        cluster.daemon("slurmctld", &["-D".into(), "-c".into()]);
        cluster.daemon("slurmd", &["-D".into(), "-N".into(), "node1".into()]);
        wait_for("the node", || {
            let state = cluster.command("sinfo").args(["-h", "-o", "%t"]).output();
            state.unwrap().stdout.starts_with(b"idle")
        });
        cluster
    }

    fn daemon(&mut self, name: &str, args: &[String]) {
        let log = std::fs::File::create(self.folder.path().join(format!("{name}.out"))).unwrap();
        let mut command = self.command(&format!("/usr/sbin/{name}"));
        command
            .args(args)
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.daemons.push(command.spawn().unwrap());
    }

    /// A command that speaks to this cluster.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SLURM_CONF", self.folder.path().join("slurm.conf"));
        command
    }

    /// Submits the script as it is shipped. Returns the id of the array.
    fn submit(&self, site: &Site, job: &Path) -> String {
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/packaging/slurm/replicate.sbatch");
        let mut command = site.emulator.command("sbatch");
        command
            .env("SLURM_CONF", self.folder.path().join("slurm.conf"))
            .env("EBSFS", EBSFS)
            .env("EBSFS_JOB_FILE", job)
            .env("EBSFS_STATE_DIR", site.at("state"))
            .args(["--parsable", "--chdir"])
            .arg(self.folder.path())
            .arg(format!(
                "--output={}/out-%A-%a",
                self.folder.path().display()
            ))
            .arg(script);
        run(&mut command).trim().to_owned()
    }

    /// Waits until all tasks of an array have ended. Each must have ended well; what they printed to both streams.
    fn finish(&self, array: &str) -> String {
        wait_for("the tasks", || {
            let left = self.command("squeue").args(["-h", "-j", array]).output();
            left.unwrap().stdout.is_empty()
        });
        let shown = run(self.command("scontrol").args(["show", "job", "-o", array]));
        let mut printed = String::new();
        for index in 0..4 {
            let path = self.folder.path().join(format!("out-{array}-{index}"));
            printed += &std::fs::read_to_string(path).unwrap();
        }
        let ended = shown.matches("JobState=COMPLETED").count();
        assert_eq!(ended, 4, "{shown}\n{printed}");
        printed
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // No task outlives a test that has failed.
        let _ = self.command("scancel").args(["--user=root"]).status();
        for daemon in self.daemons.iter_mut().rev() {
            let id = daemon.id().to_string();
            let _ = Command::new("kill").args(["-TERM", &id]).status();
            let _ = daemon.wait();
        }
    }
}

/// The volumes of the lines `VOLUME SNAPSHOT TARGET`, sorted.
fn printed_volumes(printed: &str) -> Vec<&str> {
    let lines = printed.lines().filter(|line| line.contains(" snap-"));
    let volumes = lines.filter_map(|line| line.split(' ').next());
    let mut volumes: Vec<&str> = volumes.filter(|word| word.starts_with("vol-")).collect();
    volumes.sort_unstable();
    volumes
}

#[test]
fn four_tasks_of_slurm_leave_no_volume_out_and_take_none_twice_when_one_is_requeued() {
    let (mut site, job) = loose_site("");
    let cluster = Cluster::start();
    for id in LOOSE {
        let disk = writable(&site.emulator.volume(id));
        for index in 20..80 {
            disk.write_all_at(&content(id, index), index * BLOCK)
                .unwrap();
        }
    }
    // The copies take a while: one is interrupted.
    site.emulator.set("latency_ms=400");
    let array = cluster.submit(&site, &job);
    let state = site.at("state/job-web@3-of-4.json");
    wait_for("a copy of the fourth task", || {
        let state = std::fs::read(&state).unwrap_or_default();
        let state: Value = serde_json::from_slice(&state).unwrap_or_default();
        let volumes = state["volumes"].as_object();
        volumes.is_some_and(|all| all.values().any(|one| !one["under_way"].is_null()))
    });
    run(cluster
        .command("scontrol")
        .args(["requeue", &format!("{array}_3")]));
    site.emulator.set("latency_ms=0");
    let printed = cluster.finish(&array);
    assert!(printed.contains("DUE TO JOB REQUEUE"), "{printed}");
    assert_eq!(printed_volumes(&printed), LOOSE, "{printed}");
    assert_eq!(site.emulator.count("CreateSnapshot"), 8, "one each");
    assert_images(&site, &LOOSE);
    // The next cycle copies what has changed since.
    let changed = site.write_to(&LOOSE);
    site.emulator.reset();
    let array = cluster.submit(&site, &job);
    let printed = cluster.finish(&array);
    assert_eq!(printed_volumes(&printed), LOOSE, "{printed}");
    assert_eq!(site.emulator.gets(), changed);
    assert_images(&site, &LOOSE);
}
