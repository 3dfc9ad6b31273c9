"""Compares `ebsfs files` and `ebsfs attach` with other readers of the same disks, as root, for scripts/oracle.

A form is a filesystem with options. It is filled, mounted again, changed, and its device is copied while it is mounted, with a
dirty journal. That partition is put into each kind of partition table. The disk is a volume of the emulator; ebsfs reads a
snapshot of it. The oracle is the kernel (ext, XFS, btrfs), ntfs-3g (NTFS) or mtools (FAT) on a copy of the partition.
"""

import contextlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

import oracle_second
import oracle_tree
from oracle_forms import FORMS, TABLES
from oracle_tree import differences, listed, manifest

MIB = 1 << 20
EBSFS = os.environ["EBSFS"]
WORK = pathlib.Path(os.environ["ORACLE_WORK"])
SEED = int(os.environ.get("ORACLE_SEED") or time.time())
WANTED_TABLES = os.environ.get("ORACLE_TABLES", "").split()
FULL = (
    "kind",
    "mode",
    "uid",
    "gid",
    "inode",
    "mtime",
    "atime",
    "ctime",
    "device",
    "target",
    "links",
    "size",
    "same",
    "xattrs",
    "bytes",
    "error",
)


def run(*words, codes=(0,), **more):
    """Runs a program: its output."""
    done = subprocess.run([str(word) for word in words], capture_output=True, check=False, timeout=900, **more)
    if done.returncode not in codes:
        raise RuntimeError(
            f"{' '.join(map(str, words))[:300]}: {done.returncode}: {done.stderr.decode(errors='replace')[-600:]}"
        )
    return done.stdout


@contextlib.contextmanager
def loop(path, sector=512, offset=0, size=0, writable=True):
    """A loop device of a range of a file."""
    words = ["losetup", "--find", "--show", "--sector-size", sector, "--offset", offset]
    words += ["--sizelimit", size] if size else []
    words += [] if writable else ["--read-only"]
    device = run(*words, path).decode().strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(*words):
    """A mount at a folder, the last word."""
    at = pathlib.Path(words[-1])
    at.mkdir(exist_ok=True)
    run(*words)
    try:
        yield at
    finally:
        os.chdir(WORK)
        for left in range(20, -1, -1):
            if subprocess.run(["umount", at], check=False, capture_output=left > 0).returncode == 0:
                break
            time.sleep(0.2)


def mount_words(form, options, device, at):
    if form.family == "ntfs":
        return ["ntfs-3g", "-o", ",".join(filter(None, ["streams_interface=xattr", options])), device, at]
    kind = "ext4" if form.family == "ext" else form.family
    return ["mount", "-t", kind, "-o", options or "rw", device, at]


def copy(source, target):
    """A copy of a file that is not written meanwhile: two copies that are equal."""
    for _ in range(20):
        run("cp", "--sparse=always", source, target)
        if subprocess.run(["cmp", "-s", source, target], check=False).returncode == 0:
            return
        time.sleep(0.5)
    raise RuntimeError(f"{source} does not stand still")


def make_in_use(form, sector):
    """The partition of a form as it is in use."""
    part, dirty = WORK / "part.raw", WORK / "dirty.raw"
    part.unlink(missing_ok=True)
    with open(part, "wb") as file:
        file.truncate(form.mib * MIB)
    if form.family == "fat":
        # mtools waits for the disk after each file.
        with tempfile.NamedTemporaryFile(dir="/dev/shm") as fast:
            fast.truncate(form.mib * MIB)
            make_fat(form, sector, pathlib.Path(fast.name))
            run("cp", "--sparse=always", fast.name, dirty)
        return dirty
    with loop(part, sector) as device:
        run(*form.make, *(["-s", sector] if form.family == "ntfs" and sector != 512 else []), device)
        if form.family == "ext":
            run("tune2fs", "-o", "user_xattr,acl", device)
        with mounted(*mount_words(form, form.mount, device, WORK / "mounted")) as at:
            if form.family == "ntfs":
                # The numbers of devices of WSL are not read.
                has_devices = "wsl" not in form.mount
                oracle_tree.fill_ntfs(at, SEED, form.entries, form.is_compressing, has_devices)
            else:
                oracle_tree.fill_posix(at, SEED, form.large_values, form.large_files, form.entries)
        with mounted(*mount_words(form, form.mount, device, WORK / "mounted")) as at:
            if form.family == "ntfs":
                handles = oracle_tree.use_ntfs(at, SEED, form.is_compressing)
            else:
                handles = oracle_tree.use_posix(at, SEED)
            if form.name.startswith("ext2") or form.name == "ext4-plain":
                # Without a journal the kernel promises nothing before a sync: then only the counts of free blocks are wrong.
                run("sync", "--file-system", at)
            copy(part, dirty)
            for handle in handles:
                os.close(handle)
    part.unlink()
    return dirty


def make_fat(form, sector, part):
    """mtools fills it; removed files leave gaps that others then fill. The volume says that it is in use."""
    tree = WORK / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    oracle_tree.fill_fat(tree, SEED, form.entries)
    os.chdir(WORK)
    run(*form.make, *(["-S", sector] if sector != 512 else []), part)
    run("mcopy", "-s", "-m", "-Q", "-i", part, *sorted(tree.iterdir()), "::/")
    run("mdel", "-i", part, *(f"::/gaps/file-{number}" for number in range(0, 60, 2)))
    run("mcopy", "-m", "-Q", "-i", part, tree / "large.bin", "::/gaps/in-pieces.bin")
    run("mattrib", "+r", "+h", "-i", part, "::/README.TXT")
    run("mlabel", "-i", part, "::A LABEL")
    shutil.rmtree(tree)
    is_32 = "32" in form.make
    with open(part, "r+b") as file:
        file.seek(0x41 if is_32 else 0x25)
        file.write(b"\1")


def take_clusters(image):
    """Makes the volume smaller, behind its last file. mtools and the Sleuth Kit refuse it then, the kernel and fsck.fat do not."""
    with open(image, "r+b") as file:
        file.seek(32)
        file.write((60_000).to_bytes(4, "little"))
    run("fsck.fat", "-n", image, codes=(0, 1))


class Oracle:
    """What other readers see of a partition in use."""

    def __init__(self, form, sector, dirty):
        self.replayed, self.as_it_is = None, None
        at, image = WORK / "oracle", WORK / "clean.raw"
        run("cp", "--sparse=always", dirty, image)
        if form.family == "fat":
            at.mkdir(exist_ok=True)
            run("mcopy", "-s", "-m", "-n", "-Q", "-i", image, "::/", at)
            self.replayed = manifest(at)
            shutil.rmtree(at)
            if form.name == "fat32-few":
                take_clusters(dirty)
            return
        with loop(image, sector) as device:
            # On a device that can be written, a mount that only reads replays the journal.
            options = {"ntfs": "ro,norecover", "xfs": "ro,nouuid"}.get(form.family, "ro")
            with mounted(*mount_words(form, options, device, at)):
                self.replayed = manifest(at)
            # Nothing is left to be replayed.
            with mounted(*mount_words(form, "rw,noatime", device, at)):
                self.clean = manifest(at)
        if form.family == "ntfs":
            return
        with loop(dirty, sector, writable=False) as device:
            options = {"ext": "ro,noload", "xfs": "ro,norecovery,nouuid", "btrfs": "ro,rescue=nologreplay"}[form.family]
            with mounted(*mount_words(form, options, device, at)):
                self.as_it_is = manifest(at)


def lvm(devices, *words):
    return run(
        "lvm",
        *words,
        "--driverloaded",
        "n",
        "--devices",
        ",".join(devices),
        "--config",
        "devices { use_devicesfile = 0 } activation { udev_sync = 0 udev_rules = 0 } backup { backup = 0 archive = 0 }",
    ).decode()


def table(kind, part, disk):
    """Puts a partition into a disk. Returns its name for ebsfs, and where its pieces are in the disk."""
    size = part.stat().st_size
    disk.unlink(missing_ok=True)
    if kind == "none":
        run("cp", "--sparse=always", part, disk)
        return None, [(0, size)]
    mib = size // MIB
    with open(disk, "wb") as file:
        file.truncate(size + 64 * MIB)
    wanted = {
        "gpt": f"label: gpt\nsize=3M,type=uefi\nsize={mib}M,name=oracle\nsize=1M\n",
        "gpt-4096": f"label: gpt\nsize=3M,type=uefi\nsize={mib}M,name=oracle\nsize=1M\n",
        "mbr": f"label: dos\nsize=3M,type=82\nsize={mib}M,type=83\nsize=1M,type=83\n",
        "mbr-logical": f"label: dos\nsize=3M,type=82\ntype=5\nsize=2M,type=82\nsize={mib}M,type=83\nsize=1M,type=83\n",
        "lvm": f"label: gpt\nsize=3M,type=uefi\nsize={mib + 40}M,type=lvm\n",
        "lvm-two-pieces": f"label: gpt\nsize=3M,type=uefi\nsize={mib + 40}M,type=lvm\n",
    }[kind]
    number = 6 if kind == "mbr-logical" else 2
    with loop(disk, TABLES[kind]) as device:
        run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", device, input=wanted.encode())
        found = json.loads(run("sfdisk", "--json", device))["partitiontable"]
    one = next(one for one in found["partitions"] if one["node"].endswith(f"p{number}"))
    start, length = one["start"] * found.get("sectorsize", 512), one["size"] * found.get("sectorsize", 512)
    name, pieces = str(number), [(start, size)]
    if kind.startswith("lvm"):
        group = f"oracle-{os.getpid()}"
        with loop(disk, 512, start, length) as device:
            lvm([device], "pvcreate", "-qq", device)
            lvm([device], "vgcreate", "-qq", "-s", "1M", group, device)
            first = mib if kind == "lvm" else mib // 2
            for volume, extents in (("other", 3), ("root", first), ("between", 4)):
                lvm([device], "lvcreate", "-qq", "-y", "-an", "-Zn", "-Wn", "-l", str(extents), "-n", volume, group)
            if first < mib:
                lvm([device], "lvextend", "-qq", "-l", f"+{mib - first}", f"{group}/root")
            at = int(lvm([device], "pvs", "--noheadings", "--nosuffix", "--units", "b", "-o", "pe_start", device))
            ranges = lvm([device], "lvs", "--noheadings", "--segments", "-o", "seg_pe_ranges", f"{group}/root").split()
        name, pieces = f"{group}/root", []
        for one in ranges:
            begin, end = map(int, one.rsplit(":", 1)[1].split("-"))
            pieces.append((start + at + begin * MIB, (end + 1 - begin) * MIB))
    done = 0
    for at, length in pieces:
        run(
            "dd",
            f"if={part}",
            f"of={disk}",
            "bs=1M",
            f"skip={done}",
            f"count={length}",
            f"seek={at}",
            "conv=notrunc,sparse",
            "status=none",
            "iflag=skip_bytes,count_bytes",
            "oflag=seek_bytes",
        )
        done += length
    return name, pieces


def control(path):
    """A call of the emulator's own endpoint."""
    request = urllib.request.Request(f"{os.environ['AWS_ENDPOINT_URL']}/_emulator/{path}", data=b"", method="POST")
    with urllib.request.urlopen(request, timeout=300) as reply:
        return json.load(reply)


def snapshot(volume):
    return control(f"volumes/{volume}/snapshot")["snapshot_id"]


def forget(source):
    """Frees the space of a snapshot."""
    control(f"snapshots/{source}?deleted=true")
    for path in (WORK / "emulator" / "snapshots").glob(f"{source}*"):
        path.unlink()


class Check:
    """The verdicts of a run."""

    volumes = 0

    def __init__(self):
        self.failed = []
        self.passed = 0

    def note(self, what, lines):
        if not lines:
            self.passed += 1
            return
        self.failed.append(what)
        print(f"  FAILED {what}: {len(lines)} differences", flush=True)
        for line in lines[:8]:
            print(f"    {line}", flush=True)


def ebsfs(*words):
    """Runs ebsfs: its output, and what it reports."""
    done = subprocess.run([EBSFS, *map(str, words)], capture_output=True, check=False, timeout=600)
    errors = done.stderr.decode(errors="replace").strip()
    return done.stdout, [] if done.returncode == 0 else [f"exit code {done.returncode}: {errors[-700:]}"]


def members_of(form):
    """What `files find` and `files cp` must keep. FAT and NTFS have no owners and modes."""
    if form.family == "fat":
        return ("kind", "mtime", "size"), ("kind", "mtime", "size", "bytes")
    if form.family == "ntfs":
        return (
            ("kind", "mtime", "atime", "ctime", "size", "target", "device"),
            ("kind", "mtime", "size", "target", "device", "same", "xattrs", "bytes"),
        )
    return (
        ("kind", "mode", "uid", "gid", "inode", "mtime", "atime", "ctime", "device", "target", "links", "size"),
        ("kind", "mode", "uid", "gid", "mtime", "device", "target", "size", "same", "xattrs", "bytes"),
    )


def left_out(form):
    """What cannot be equal.

    FAT has no times of its root. An empty file of NTFS that belongs to the system is a pipe for ntfs-3g alone.
    """
    if form.family == "fat":
        return lambda path, member: path == b"/" and member == "mtime"
    return lambda path, member: form.family == "ntfs" and path == b"/pipe" and member is not None


def check_files(check, form, what, source, partition, oracle):
    """`files find` and `files cp` against the oracle."""
    at = WORK / "copy"
    shutil.rmtree(at, ignore_errors=True)
    at.mkdir()
    choice = ["--partition", partition] if partition else []
    find, kept = members_of(form)
    out, problems = ebsfs("files", "find", source, *choice, "--json")
    check.note(f"{what}: find", problems or differences(listed(out), oracle, find, left_out(form)))
    _, problems = ebsfs("files", "cp", source, *choice, "/", at)
    ours = {} if problems else manifest(at)
    # The folder that is copied into is not the root of the copy. ext4 on this machine may have no room for large values.
    is_large = {path for path, one in oracle.items() if any(len(value) > 6000 for value in one.get("xattrs", {}).values())}
    is_out = left_out(form)
    check.note(
        f"{what}: cp",
        problems
        or differences(
            ours,
            oracle,
            kept,
            lambda path, member: path == b"/" or is_out(path, member) or (member == "xattrs" and path in is_large),
        ),
    )
    for path in is_large:
        out, problems = ebsfs("files", "stat", source, *choice, os.fsdecode(path), "--json")
        found = json.loads(out)["xattrs_hex"] if not problems else {}
        theirs = {bytes.fromhex(name).decode(): value for name, value in oracle[path]["xattrs"].items()}
        check.note(
            f"{what}: stat {path!r}",
            problems or ([] if found == theirs else [f"{str(found)[:200]} is {str(theirs)[:200]} in the oracle"]),
        )
    shutil.rmtree(at)


def check_attach(check, what, source, partition, oracle, words):
    """`attach` against the kernel on a copy."""
    at, scratch = WORK / "attached", WORK / "scratch"
    at.mkdir(exist_ok=True)
    scratch.mkdir(exist_ok=True)
    choice = [partition] if partition else []
    _, problems = ebsfs("attach", "--background", *words, "--scratch", scratch, source, *choice, at)
    if not problems:
        problems = differences(manifest(at), oracle, FULL)
        _, ended = ebsfs("detach", at)
        problems += ended
    check.note(f"{what}: attach {' '.join(words)}", problems)
    if os.path.ismount(at):
        ebsfs("detach", "--lazy", at)
    # Its process removes its files after the end of the mount.
    for _ in range(300):
        if not any(scratch.iterdir()):
            return
        time.sleep(0.1)
    check.note(f"{what}: attach leaves nothing", [str(left) for left in scratch.iterdir()])


def check_ntfs_oracle(oracle):
    """What ntfs-3g adds to attributes is not on the disk as a stream."""
    for one in oracle.values():
        if "xattrs" in one:
            one["xattrs"] = {name: value for name, value in one["xattrs"].items() if bytes.fromhex(name).startswith(b"user.")}


def check_form(check, form, sector):
    if sector in form.sectors:
        since = time.monotonic()
        dirty = make_in_use(form, sector)
        oracle = Oracle(form, sector, dirty)
        if form.family == "ntfs":
            check_ntfs_oracle(oracle.replayed)
            check_ntfs_oracle(oracle.clean)
        before = check.passed + len(check.failed)
        for kind, needed in TABLES.items():
            is_wanted = kind in (WANTED_TABLES or form.tables)
            if not is_wanted or (needed != sector and not (kind == "none" and sector == 4096)):
                continue
            what = f"{form.name} in {kind}, sectors of {sector}"
            # The snapshots of one volume share data: each disk is a volume of its own.
            Check.volumes += 1
            volume = WORK / "emulator" / "volumes" / f"vol-{Check.volumes:04x}.raw"
            partition, pieces = table(kind, dirty, volume)
            if (found := oracle_second.ranges(volume, TABLES[kind])) is not None and len(pieces) == 1:
                check.note(
                    f"{what}: ranges", [] if pieces[0][0] in found or kind in ("none", "lvm") else [f"{pieces} not in {found}"]
                )
            source = snapshot(volume.stem)
            if form.family in ("ext", "fat", "ntfs") and kind != "lvm-two-pieces":
                check_files(check, form, what, source, partition, oracle.replayed)
            if form.family in ("ext", "xfs", "btrfs"):
                check_attach(check, what, source, partition, oracle.replayed, ["--overlay"])
                check_attach(check, what, source, partition, oracle.as_it_is, [])
            volume.unlink()
            forget(source)
        clean = WORK / "clean.raw"
        image = clean if form.family != "fat" else dirty
        truth = oracle.replayed if form.family == "fat" else oracle.clean
        if form.family in ("ext", "ntfs"):
            check_files(check, form, f"{form.name} clean, sectors of {sector}", image, None, truth)
        print(
            f"{form.name}, sectors of {sector}: {len(oracle.replayed)} files, {check.passed + len(check.failed) - before} checks, "
            f"{time.monotonic() - since:.0f} s",
            flush=True,
        )
        for opinion in oracle_second.opinions(form, image, truth):
            for line in opinion.lines():
                print(f"  {line}", flush=True)
            check.note(f"{form.name}, sectors of {sector}: {opinion.tool}", opinion.unexplained())
        for path in (dirty, clean):
            path.unlink(missing_ok=True)


def main(names):
    check = Check()
    print(f"seed {SEED}", flush=True)
    unknown = set(names) - {form.name for form in FORMS}
    if unknown:
        sys.exit(f"unknown forms: {', '.join(sorted(unknown))}; known: {', '.join(form.name for form in FORMS)}")
    for sector, form in itertools.product((512, 4096), FORMS):
        if names and form.name not in names:
            continue
        try:
            check_form(check, form, sector)
        except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            check.note(f"{form.name}", [f"not made: {error}"])
    print(f"{check.passed} checks passed, {len(check.failed)} failed")
    sys.exit(bool(check.failed))


if __name__ == "__main__":
    main(sys.argv[1:])
