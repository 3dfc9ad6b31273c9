//! Destinations that keep less than ext4: a copy has all bytes, and counts the rest.

use super::*;

#[test]
fn on_exfat_all_bytes_are_copied_and_what_it_lacks_is_counted() {
    let images = Images::new();
    images.sh("mkdir -p content/folder
         for name in one two folder/three; do head -c 70000 /dev/urandom > content/$name; done
         chmod 600 content/one; chmod 4755 content/two; chmod 1777 content/folder
         ln content/one content/again; ln content/one content/folder/again
         setfattr -n user.a -v b content/one; chown 4242:4242 content/folder/three
         truncate -s 32M image.raw; mkfs.ext4 -q -d content image.raw
         mkdir to; truncate -s 64M exfat.raw; mkfs.exfat exfat.raw > /dev/null");
    let (image, to) = (images.at("exfat.raw"), images.at("to"));
    let device = sh(&format!("losetup --find --show {}", image.display()));
    let (device, at) = (device.trim(), to.display());
    // By FUSE where the kernel does not know it.
    sh(&format!(
        "mount -i -t exfat {device} {at} 2>/dev/null || mount.exfat-fuse {device} {at} > /dev/null"
    ));
    let (code, said) = ends(&mut images.files(&["cp", "image.raw", "/", "to"]));
    assert_eq!(code, 0, "{said}");
    for line in [
        "copied 5 files",
        "2 files with several names were copied more than once",
        "3 extended attributes were not kept",
        "modes were not kept: the destination does not hold them",
        "owners were not kept",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    for name in ["one", "two", "again", "folder/three", "folder/again"] {
        assert_same(&to.join(name), &images.at("content").join(name));
    }
    // The second copy replaces nothing, and no temporary file stays.
    let (code, said) = ends(&mut images.files(&["cp", "image.raw", "/", "to"]));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("/one: something is there already"), "{said}");
    let names: Vec<_> = tree(&to).into_keys().collect();
    assert_eq!(
        names.len(),
        tree(&images.at("content")).len() + 1,
        "{names:?}"
    );
    images.run(&["cp", "image.raw", "/", "to", "--overwrite"]);
    sh(&format!("umount {at}"));
}
