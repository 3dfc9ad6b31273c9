"""Damaged disks for scripts/oracle, through the real processes of `ebsfs files`: how each run ends, in how much time and memory.

The case is a function of the seed, the image and its number: `--fuzz 1 --from CASE --image NAME` with ORACLE_SEED repeats it.
"""

import argparse
import collections
import os
import random
import re
import shutil
import subprocess
import sys
import time

from oracle import EBSFS, SEED, WORK, loop, mounted, run

MIB = 1 << 20
# An answer may take 5 s of the processor's time; a run has many, and all of a small image ends sooner.
SLOWEST = 5
# The limit of the parser, and what the other process may have: its buffers and a program of 30 MB.
MOST_MEMORY = 768 * MIB
IMAGES = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-b", "1024", "-I", "256"],
    "ext4-inline": ["mkfs.ext4", "-q", "-F", "-b", "1024", "-I", "256", "-O", "inline_data,ea_inode"],
    "ext4-dirty": ["mkfs.ext4", "-q", "-F", "-b", "1024", "-J", "size=1"],
    "ext3": ["mkfs.ext3", "-q", "-F", "-b", "1024", "-J", "size=1"],
    "ext2": ["mkfs.ext2", "-q", "-F", "-b", "1024"],
    "ntfs": ["mkfs.ntfs", "-q", "-F", "-f"],
    "fat12": ["mkfs.fat", "-F", "12"],
    "fat16": ["mkfs.fat", "-F", "16", "-s", "1"],
    "fat32": ["mkfs.fat", "-F", "32", "-s", "1"],
}


def content(at):
    """Few files, of each kind that has a form of its own on the disk."""
    rng = random.Random(SEED)
    for folder in ("a/b", "many"):
        os.makedirs(f"{at}/{folder}")
    files = {"hello": b"hello\n", "a/b/data": rng.randbytes(100_000)}
    files |= {f"a/file-{number}": b"%d\n" % number for number in range(60)}
    files |= {f"many/a long name of a file in a folder {number}": b"" for number in range(150)}
    for name, data in files.items():
        with open(f"{at}/{name}", "wb") as file:
            file.write(data)


def make(name, words):
    """A small image."""
    image, at = WORK / f"{name}.raw", WORK / "mounted"
    size = {"ntfs": 8, "fat12": 2, "fat16": 12, "fat32": 36}.get(name, 6) * MIB
    with open(image, "wb") as file:
        file.truncate(size)
    run(*words, image)
    if name.startswith("fat"):
        tree = WORK / "tree"
        tree.mkdir()
        content(tree)
        run("mcopy", "-s", "-Q", "-i", image, *sorted(tree.iterdir()), "::/")
        run("mdel", "-i", image, *(f"::/a/file-{number}" for number in range(0, 60, 2)))
        run("mcopy", "-Q", "-i", image, tree / "a/b/data", "::/many/in pieces")
        shutil.rmtree(tree)
        return image
    with loop(image) as device:
        mount = (
            ["ntfs-3g", "-o", "compression,streams_interface=xattr", device, at] if name == "ntfs" else ["mount", device, at]
        )
        with mounted(*mount):
            content(at)
            for number in range(8):
                with open(f"{at}/pieces", "r+b" if number else "wb") as file:
                    file.seek(number * 5120)
                    file.write(b"piece")
            os.link(f"{at}/hello", f"{at}/hard")
            os.symlink("hello", f"{at}/link")
            os.symlink("x" * 200, f"{at}/long-link")
            os.setxattr(f"{at}/hello", "user.small", b"value")
            os.setxattr(f"{at}/hello", "user.large", b"v" * 600)
            if name == "ntfs":
                os.setxattr(f"{at}/a", "system.ntfs_attrib_be", bytes.fromhex("00000810"))
                with open(f"{at}/a/packed", "wb") as file:
                    file.write(b"".join(b"%d\n" % number for number in range(20_000)))
                for number in range(40):
                    os.link(f"{at}/hello", f"{at}/many/a name more of the same file {number}")
            os.sync() if name != "ext4-dirty" else None
        if name == "ext4-dirty":
            with mounted("mount", "-o", "data=journal", device, at):
                shutil.copytree(at / "a", at / "again")
                os.unlink(at / "hard")
                run("sync", "--file-system", at)
                run("cp", "--sparse=always", image, WORK / "journal.raw")
    if name == "ext4-dirty":
        os.replace(WORK / "journal.raw", image)
    return image


def damage(rng, data, used):
    """Places and bytes of one case. Damage where all is zero changes nothing, so it is where something is."""
    changes = []
    for _ in range(rng.randint(1, 16)):
        # The first parts of an image have most of its metadata.
        near = rng.choice((len(used), min(len(used), 600), min(len(used), 60)))
        at = min(used[rng.randrange(near)] + rng.randrange(16), len(data) - 8)
        kind = rng.randrange(7)
        if kind == 0:
            new = bytes([data[at] ^ 1 << rng.randrange(8)])
        elif kind == 1:
            new = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))])
        elif kind in (2, 3):
            width = rng.choice((2, 4, 8))
            at -= at % width
            value = rng.choice(
                (
                    0,
                    1,
                    (1 << 8 * width) - 1,
                    1 << 8 * width - 1,
                    (1 << 8 * width - 1) - 1,
                    rng.getrandbits(8 * width),
                    max(0, int.from_bytes(data[at : at + width], "little") + rng.choice((-1, 1, 8, 1024))),
                )
            )
            new = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        elif kind == 4:
            # A field takes the value of another one: pointers that lead into each other.
            other = used[rng.randrange(near)]
            new = data[other : other + 4]
        elif kind == 5:
            other = used[rng.randrange(len(used))] // 1024 * 1024
            at = at // 1024 * 1024
            new = data[other : other + 1024]
        else:
            new = rng.randbytes(rng.choice((4, 16, 64)))
        changes.append((at, bytes(new[: len(data) - at])))
    return changes


class Results:
    def __init__(self):
        self.codes, self.parser, self.bad = collections.Counter(), collections.Counter(), []
        self.slowest, self.largest, self.cases = 0.0, 0, 0


def one_case(results, name, case, image, data, used, words):
    rng = random.Random(f"{SEED} {name} {case}")
    changes = damage(rng, data, used)
    verb = rng.choice((["find", "--json"], ["timeline"], ["cp"]))
    handle = os.open(image, os.O_WRONLY)
    for at, new in changes:
        os.pwrite(handle, new, at)
    target = WORK / "copy"
    command = [EBSFS, "files", verb[0], str(image), *verb[1:]] + (["/", str(target)] if verb == ["cp"] else [])
    since = time.monotonic()
    with open(WORK / "fuzz.err", "w+b") as errors:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=words)
        try:
            _, status, usage = os.wait4(child.pid, 0)
        finally:
            child.returncode = 0
        errors.seek(0)
        said = errors.read(1 << 16).decode(errors="replace")
    took = time.monotonic() - since
    code = os.waitstatus_to_exitcode(status)
    # In KiB: the largest of the process and of the parser.
    memory = usage.ru_maxrss * 1024
    results.cases += 1
    results.codes[code] += 1
    results.slowest, results.largest = max(results.slowest, took), max(results.largest, memory)
    for line in said.splitlines():
        if "parser" in line or "panicked" in line:
            results.parser[re.sub(r"[0-9]+", "N", line.split(" files")[-1])[-160:]] += 1
    if code < 0 or code == 101 or "panicked at" in said and "parser" not in said or took > SLOWEST or memory > MOST_MEMORY:
        results.bad.append(
            f"{name} case {case}: {' '.join(command[1:3])}: exit code {code}, {took:.1f} s, {memory >> 20} MiB: {said[-300:]}"
        )
        print(f"  {results.bad[-1]}", flush=True)
    for at, new in changes:
        os.pwrite(handle, data[at : at + len(new)], at)
    os.close(handle)
    shutil.rmtree(target, ignore_errors=True)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--fuzz", type=int, required=True, metavar="CASES")
    options.add_argument("--from", type=int, default=0, dest="first")
    options.add_argument("--image", choices=IMAGES, action="append")
    options.add_argument("--seconds", type=float, default=1e9, help="of each image, at most")
    chosen = options.parse_args()
    os.chdir(WORK)
    words = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    words["EBSFS_STATE_DIR"] = str(WORK / "state")
    failed = False
    print(f"ORACLE_SEED={SEED}", flush=True)
    for name in chosen.image or IMAGES:
        image = make(name, IMAGES[name])
        data = image.read_bytes()
        used = [at for at in range(0, len(data), 16) if data.count(0, at, at + 16) != min(16, len(data) - at)]
        results, since = Results(), time.monotonic()
        (WORK / "copy").mkdir(exist_ok=True)
        for case in range(chosen.first, chosen.first + chosen.fuzz):
            if time.monotonic() - since > chosen.seconds:
                break
            (WORK / "copy").mkdir(exist_ok=True)
            one_case(results, name, case, image, data, used, words)
        if image.read_bytes() != data:
            results.bad.append(f"{name}: the image was written")
        failed |= bool(results.bad)
        print(
            f"{name}: {results.cases} cases in {time.monotonic() - since:.0f} s, exit codes {dict(results.codes)}, slowest "
            f"{results.slowest:.2f} s, at most {results.largest >> 20} MiB, {len(results.bad)} bad",
            flush=True,
        )
        for line, count in results.parser.most_common(6):
            print(f"  {count} times: {line}", flush=True)
        image.unlink()
    sys.exit(failed)


if __name__ == "__main__":
    main()
