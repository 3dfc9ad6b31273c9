//! The contract of targets and sinks over a repository in a folder.

use super::*;
use crate::target::contract;

impl contract::ContractFixture for RepositoryFixture {
    fn target(&self) -> BoxFuture<'_, Arc<dyn Target>> {
        async {
            let target = RepositoryFixture::target(self, &source(1)).await;
            Arc::new(target) as Arc<dyn Target>
        }
        .boxed()
    }

    fn source(&self) -> SourceInfo {
        source(1)
    }

    fn reads_back(&self) -> bool {
        false
    }

    fn renew(&self) {
        let _ = std::fs::remove_dir_all(self.path(""));
    }
}

/// A test of the contract.
macro_rules! contract {
    ($($rule:ident),* $(,)?) => {$(
        #[test]
        fn $rule() {
            contract::run(contract::$rule(&RepositoryFixture::new()));
        }
    )*};
}

contract![
    names_first_and_publishes_every_byte,
    survives_a_crash_between_any_two_calls,
    resumes_after_a_drop_at_any_await,
    publishes_twice_with_a_mark_that_tells_foreign_writes,
];

#[tokio::test]
async fn without_room_no_snapshot_is_published() {
    let place = RepositoryFixture::new();
    std::fs::create_dir_all(place.path("")).unwrap();
    let mount = |args: &[&str]| {
        let mut mount = std::process::Command::new("mount");
        mount.args(args).arg(place.path("")).status().unwrap()
    };
    if !nix::unistd::geteuid().is_root()
        || !mount(&["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).success()
    {
        return;
    }
    let target = contract::ContractFixture::target(&place).await;
    drop(target);
    let kinds = [Kind::NoSpace, Kind::Io];
    let failed = contract::fails_before_it_is_published(&place, &kinds);
    failed.await;
    let published = place.objects("snapshots").len();
    let unmounted = std::process::Command::new("umount")
        .arg(place.path(""))
        .status();
    assert!(unmounted.unwrap().success());
    assert_eq!(published, 0);
}
