//! The contract over images of other formats.

use super::*;
use crate::formats::ImageFormat;

/// An image that a new one replaces, by the ending of its name.
struct Formatted {
    folder: TempDir,
    ending: &'static str,
}

impl Formatted {
    fn new(ending: &'static str) -> Self {
        let place = Self {
            folder: tempfile::tempdir().unwrap(),
            ending,
        };
        place.renew();
        place
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(format!("image.{}", self.ending))
    }

    /// The file with the blocks.
    fn data(&self) -> PathBuf {
        match ImageFormat::of(&self.path()) {
            ImageFormat::Vmdk => self.folder.path().join("image-flat.vmdk"),
            _ => self.path(),
        }
    }
}

impl ContractFixture for Formatted {
    fn target(&self) -> BoxFuture<'_, Arc<dyn Target>> {
        let mut target = ImageTarget::new(&self.path(), false).unwrap();
        if self.ending == "zstd.qcow2" {
            target = target.compressed();
        }
        std::future::ready(Arc::new(target) as Arc<dyn Target>).boxed()
    }

    fn source(&self) -> SourceInfo {
        source()
    }

    fn write(&self, at: u64, bytes: &[u8]) -> bool {
        write(&self.data(), at, bytes);
        true
    }

    fn renew(&self) {
        let _ = std::fs::remove_file(self.path());
        std::fs::write(self.data(), vec![0xa5; 5 << 20]).unwrap();
    }
}

/// A test of the contract over some formats.
macro_rules! formatted {
    ($($rule:ident: $endings:expr),* $(,)?) => {$(
        #[test]
        fn $rule() {
            contract::run(async {
                for ending in $endings {
                    contract::$rule(&Formatted::new(ending)).await;
                }
            });
        }
    )*};
}

// The long ones over the format whose blocks are not at their own offsets.
formatted![
    names_first_and_publishes_every_byte: ["vhd", "vmdk", "qcow2", "zstd.qcow2"],
    survives_a_crash_between_any_two_calls: ["qcow2", "zstd.qcow2"],
    resumes_after_a_drop_at_any_await: ["zstd.qcow2"],
    publishes_twice_with_a_mark_that_tells_foreign_writes: ["vhd", "vmdk", "qcow2", "zstd.qcow2"],
    refuses_what_was_written_after_the_decision: ["vmdk", "qcow2"],
    zeroes_what_was_written: ["vhd", "vmdk", "qcow2", "zstd.qcow2"],
];

#[test]
fn only_a_raw_image_is_written_in_place_and_a_descriptor_can_name_its_file() {
    let folder = tempfile::tempdir().unwrap();
    for (name, in_place, why) in [
        ("a.qcow2", true, "only a raw image is written in place"),
        ("a.vhd", true, "only a raw image is written in place"),
        ("a.vmdk", true, "only a raw image is written in place"),
        ("json:{}.vmdk", false, "cannot name a file with ':'"),
        ("a\"b.vmdk", false, "cannot name a file with '\"'"),
        ("a\nb.vmdk", false, "cannot name a file with '\\n'"),
    ] {
        let path = folder.path().join(name);
        if in_place {
            std::fs::write(&path, b"there").unwrap();
        }
        let refused = ImageTarget::new(&path, in_place).unwrap_err();
        assert_eq!(refused.kind(), Kind::Invalid, "{name}");
        assert!(refused.chain().contains(why), "{}", refused.chain());
    }
}

#[test]
fn an_image_of_another_format_is_another_target() {
    let folder = tempfile::tempdir().unwrap();
    let id = |name: &str| {
        let target = ImageTarget::new(&folder.path().join(name), false).unwrap();
        let target: &dyn Target = &target;
        target.id().to_owned()
    };
    let at = folder.path().canonicalize().unwrap();
    assert_eq!(id("a.raw"), format!("file:{}/a.raw", at.display()));
    assert_eq!(id("a.qcow2"), format!("qcow2:{}/a.qcow2", at.display()));
}
