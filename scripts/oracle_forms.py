"""The filesystems and partition tables of scripts/oracle."""

import dataclasses


@dataclasses.dataclass
class Form:
    """A filesystem with options."""

    name: str
    family: str  # ext, xfs, btrfs, ntfs, fat
    make: list
    mib: int = 160
    mount: str = ""
    # The sectors of devices that it can be on.
    sectors: tuple = (512, 4096)
    large_values: int = 700
    large_files: bool = True
    entries: int = 5000
    # Forms that differ from a form with all tables in what is on the disk have one.
    tables: tuple = ("none", "gpt", "gpt-4096", "mbr", "mbr-logical", "lvm", "lvm-two-pieces")
    is_compressing: bool = False


VARIANT = ("gpt", "gpt-4096")


def ext(name, options, **more):
    words = options.split()
    if "-" in name:
        more = {"tables": VARIANT, **more}
    if "-t" not in words:
        words += ["-t", "ext4"]
    # mke2fs takes blocks of 1 KiB for what is smaller than 512 MiB.
    if "-b" not in words:
        words += ["-b", "4096"]
    return Form(name, "ext", ["mkfs.ext4", "-q", "-F", "-N", "8000", *words], **more)


FORMS = [
    ext("ext4", ""),
    ext("ext4-1k", "-b 1024 -I 256", sectors=(512,)),
    ext("ext4-2k", "-b 2048 -I 512", sectors=(512,)),
    ext("ext4-inline", "-O inline_data -I 512"),
    ext("ext4-inline-1k", "-b 1024 -I 256 -O inline_data,^64bit", sectors=(512,)),
    ext("ext4-bigalloc", "-O bigalloc -C 65536", mib=400),
    ext("ext4-bigalloc-1k", "-b 1024 -O bigalloc -C 16384", mib=400, sectors=(512,)),
    ext("ext4-metabg", "-O meta_bg,^resize_inode,^metadata_csum,ea_inode", large_values=30_000),
    ext("ext4-metabg-1k", "-b 1024 -O meta_bg,^resize_inode -g 1024", sectors=(512,)),
    ext("ext4-metabg-all-super", "-b 1024 -O meta_bg,^resize_inode,^sparse_super -g 1024", sectors=(512,)),
    ext("ext4-sparse-super2", "-b 1024 -O meta_bg,sparse_super2,^sparse_super,^resize_inode -g 1024", sectors=(512,)),
    ext("ext4-ea-inode", "-O ea_inode,large_dir,metadata_csum_seed", large_values=60_000),
    ext("ext4-plain", "-O ^has_journal,^extent,^64bit,^flex_bg,^metadata_csum,^dir_index,^huge_file", large_files=False),
    ext("ext4-old", "-O ^64bit,^metadata_csum,uninit_bg,mmp -I 128"),
    ext("ext4-data-journal", "-J size=32", mount="data=journal"),
    ext("ext4-async-commit", "", mount="data=writeback,journal_async_commit"),
    ext("ext4-orphan-file", "-O orphan_file,fast_commit,stable_inodes"),
    ext("ext4-indexed", "-O large_dir -b 1024 -N 30000", entries=20_000, sectors=(512,), mib=220),
    ext("ext3", "-t ext3"),
    ext("ext3-1k", "-t ext3 -b 1024 -I 128", sectors=(512,), large_files=False),
    ext("ext2", "-t ext2"),
    ext("ext2-1k", "-t ext2 -b 1024 -I 128", sectors=(512,), large_files=False),
    ext("ext2-old", "-t ext2 -r 0 -O none", large_files=False),
    Form("xfs", "xfs", ["mkfs.xfs", "-q", "-f"], 300, large_values=60_000),
    Form(
        "xfs-1k",
        "xfs",
        ["mkfs.xfs", "-q", "-f", "-b", "size=1024", "-n", "size=4096"],
        300,
        sectors=(512,),
        large_values=60_000,
        tables=VARIANT,
    ),
    Form("btrfs", "btrfs", ["mkfs.btrfs", "-q", "-f"], 300, "compress=zstd", large_values=3000),
    Form("btrfs-mixed", "btrfs", ["mkfs.btrfs", "-q", "-f", "--mixed"], 300, sectors=(512,), large_values=1000, tables=VARIANT),
    Form("ntfs", "ntfs", ["mkfs.ntfs", "-q", "-F", "-f"], 160, "compression", is_compressing=True),
    Form(
        "ntfs-512",
        "ntfs",
        ["mkfs.ntfs", "-q", "-F", "-f", "-c", "512"],
        160,
        "compression",
        sectors=(512,),
        is_compressing=True,
        tables=VARIANT,
    ),
    Form("ntfs-64k", "ntfs", ["mkfs.ntfs", "-q", "-F", "-f", "-c", "65536"], 700, "special_files=wsl", tables=VARIANT),
    Form("fat12", "fat", ["mkfs.fat", "-F", "12"], 16, entries=300, sectors=(512,)),
    Form("fat16", "fat", ["mkfs.fat", "-F", "16"], 100, entries=700),
    Form("fat32", "fat", ["mkfs.fat", "-F", "32", "-s", "1"], 300, entries=300),
    # FAT32 by its length of 32 bits, with fewer clusters than Microsoft allows, as mkfs.fat -F 32 makes of small partitions.
    Form("fat32-few", "fat", ["mkfs.fat", "-F", "32", "-s", "1"], 34, sectors=(512,), entries=300),
]
# Kinds of partition tables, each with the sectors of its disk.
TABLES = {"none": 512, "gpt": 512, "gpt-4096": 4096, "mbr": 512, "mbr-logical": 512, "lvm": 512, "lvm-two-pieces": 512}
