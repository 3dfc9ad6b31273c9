"""Large disks for scripts/oracle: a root filesystem by debootstrap, and what 100,000 files cost."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
import urllib.request

import oracle_tree
from oracle_forms import Form, ext
from oracle import (
    EBSFS,
    SEED,
    WORK,
    Check,
    check_attach,
    control,
    copy,
    differences,
    forget,
    loop,
    manifest,
    mount_words,
    mounted,
    run,
    snapshot,
    table,
)

GIB = 1 << 30


def debian():
    """A root filesystem that is in use: `files cp` as root, and rsync finds nothing to do."""
    check = Check()
    part, dirty, at = WORK / "part.raw", WORK / "dirty.raw", WORK / "mounted"
    with open(part, "wb") as file:
        file.truncate(2 * GIB)
    with loop(part) as device:
        run("mkfs.ext4", "-q", "-F", device)
        with mounted("mount", device, at):
            run("debootstrap", "--variant=minbase", os.environ.get("ORACLE_SUITE", "bookworm"), at)
        with mounted("mount", device, at):
            # A machine that writes: its journal has to be replayed.
            run(
                "chroot",
                at,
                "sh",
                "-c",
                "dpkg --remove --force-depends gpgv; adduser --disabled-password --gecos '' someone; ldconfig",
            )
            shutil.copytree(at / "usr/share/doc", at / "srv/doc", symlinks=True)
            shutil.rmtree(at / "usr/share/locale")
            run("sync", "--file-system", at)
            shutil.copytree(at / "etc", at / "srv/etc", symlinks=True)
            copy(part, dirty)
    part.unlink()
    volume = WORK / "emulator" / "volumes" / "vol-0a.raw"
    partition, _ = table("gpt", dirty, volume)
    source = snapshot("vol-0a")
    target = WORK / "copy"
    target.mkdir()
    since = time.monotonic()
    done = subprocess.run(
        [EBSFS, "files", "cp", source, "--partition", partition, "/", target], capture_output=True, check=False
    )
    took = time.monotonic() - since
    check.note("debian: files cp", [] if done.returncode == 0 else [done.stderr.decode()[-500:]])
    with loop(dirty) as device, mounted("mount", "-o", "ro", device, WORK / "oracle") as oracle:
        truth = manifest(oracle)
        left = (
            run("rsync", "--dry-run", "-aAXH", "--checksum", "--delete", "--itemize-changes", f"{oracle}/", f"{target}/")
            .decode()
            .splitlines()
        )
        # The folder that is copied into is not the root.
        check.note("debian: rsync -aAXHn --checksum --delete", [line for line in left if not line.endswith(" ./")])
        ours = manifest(target)
        kept = ("kind", "mode", "uid", "gid", "mtime", "device", "target", "size", "same", "xattrs", "bytes")
        check.note("debian: every byte", differences(ours, truth, kept, lambda path, _: path == b"/"))
    shutil.rmtree(target)
    check_attach(check, "debian", source, partition, truth, ["--overlay"])
    size = sum(one.get("size", 0) for one in truth.values())
    print(
        f"debian: {len(truth)} files, {size / 1e6:.0f} MB, cp in {took:.1f} s: "
        f"{check.passed} checks passed, {len(check.failed)} failed"
    )
    return check


def counters():
    with urllib.request.urlopen(f"{os.environ['AWS_ENDPOINT_URL']}/_emulator/counters", timeout=60) as reply:
        found = json.load(reply)
    return found.get("calls", found)


def measure(what, words, many=1):
    """Runs commands: requests and seconds."""
    control("counters/reset")
    since = time.monotonic()
    size = 0
    for one in words:
        done = subprocess.run([EBSFS, "files", *map(str, one)], capture_output=True, check=False)
        size += len(done.stdout)
        if done.returncode != 0:
            sys.exit(f"{what}: {done.stderr.decode()[-500:]}")
    took = time.monotonic() - since
    calls = {name: count for name, count in counters().items() if isinstance(count, int) and count}
    blocks = calls.get("GetSnapshotBlock", 0)
    print(f"{what}: {took:.1f} s, {blocks} blocks ({blocks * 512} KiB), {size} bytes of output; calls {calls}", flush=True)


def cost():
    """20 GiB with 100,000 small files in 1,000 folders, on each filesystem."""
    for which, form in enumerate((ext("ext4", ""), Form("ntfs", "ntfs", ["mkfs.ntfs", "-q", "-F", "-f"]))):
        rng = random.Random(SEED)
        part = WORK / "part.raw"
        with open(part, "wb") as file:
            file.truncate(20 * GIB)
        words = [word for word in form.make if word not in ("-N", "8000")]
        with loop(part) as device:
            run(*words, device)
            with mounted(*mount_words(form, "rw" if form.family == "ext" else "", device, WORK / "mounted")) as at:
                for folder in range(1000):
                    os.mkdir(f"{at}/folder-{folder}")
                    for number in range(100):
                        oracle_tree.put(f"{at}/folder-{folder}/file-{number}", rng.randbytes(rng.randrange(1, 4000)))
        volume = WORK / "emulator" / "volumes" / f"vol-0c{which}.raw"
        os.replace(part, volume)
        source = snapshot(volume.stem)
        print(f"{form.name}: {volume.stat().st_blocks * 512 >> 20} MiB of 20 GiB are allocated")
        for latency in (0, 15):
            control(f"switches?latency_ms={latency}")
            measure(f"{form.name}, {latency} ms: find over 100,000 files", [["find", source]])
            measure(f"{form.name}, {latency} ms: find --json", [["find", source, "--json"]])
            measure(f"{form.name}, {latency} ms: ls of one folder", [["ls", source, "/folder-500", "--long"]])
            chosen = [f"/folder-{number * 10 + 3}/file-{number}" for number in range(100)]
            measure(f"{form.name}, {latency} ms: 100 cat, each of another folder", [["cat", source, path] for path in chosen])
            target = WORK / "copy"
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            measure(f"{form.name}, {latency} ms: cp of a folder of 100 files", [["cp", source, "/folder-77", target]])
            print(f"  {sum(path.stat().st_size for path in target.rglob('*') if path.is_file())} bytes copied")
            shutil.rmtree(target)
        control("switches?latency_ms=0")
        volume.unlink()
        forget(source)


if __name__ == "__main__":
    if sys.argv[1:] == ["--cost"]:
        cost()
    else:
        sys.exit(bool(debian().failed))
