"""Measures copies by `ebsfs files` beside those by the kernel on `ebsfs attach`, of one snapshot in the same run; scripts/bench runs it.

A copy goes to tmpfs: what a disk costs is the same for both. EBSFS_OLD=PATH: that ebsfs too.
"""

import os
import pathlib
import random
import shutil
import subprocess
import tempfile
import time

import bench

# The emulator is of that program too.
bench.EBSFS = os.environ.get("EBSFS", bench.EBSFS)
PROGRAMS = {"ebsfs": bench.EBSFS}
if "EBSFS_OLD" in os.environ:
    PROGRAMS["old ebsfs"] = os.environ["EBSFS_OLD"]
UNLIMITED = ["--max-rps", "100000", "--max-snapshot-rps", "100000"]
LARGE = 800 << 20
TREE = {"files": 8000, "mean": 24_000}


def make_volume(folder):
    """An ext4 with a large file, and a tree whose folders have five files each."""
    chance = random.Random(1)
    content = folder / "content"
    for number in range(TREE["files"]):
        place = content / "tree" / f"folder-{number // 5}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"file-{number}").write_bytes(chance.randbytes(min(int(chance.expovariate(1 / TREE["mean"])), 1 << 20)))
    with open(content / "large", "wb") as large:
        for _ in range(LARGE >> 20):
            large.write(chance.randbytes(1 << 20))
    disk = folder / "volumes" / "vol-1.raw"
    disk.parent.mkdir()
    with open(disk, "wb") as file:
        file.truncate(4 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", content, disk], check=True)
    return content


def copied(command, source, environment):
    """Seconds of a copy, which must be equal to its source."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as target:
        since = time.monotonic()
        subprocess.run([*command, target], check=True, env=environment, stderr=subprocess.DEVNULL)
        seconds = time.monotonic() - since
        subprocess.run(["diff", "-r", source, f"{target}/{source.name}"], check=True)
    return seconds


def by_kernel(program, snapshot, name, source, environment):
    """The same by the kernel's driver: the attachment itself is not counted."""
    with tempfile.TemporaryDirectory() as point:
        attach = [program, "attach", "--background", *UNLIMITED, snapshot, point]
        subprocess.run(attach, check=True, env=environment, stderr=subprocess.DEVNULL)
        try:
            return copied(["cp", "-r", f"{point}/{name}"], source, environment)
        finally:
            subprocess.run([program, "detach", point], check=True, env=environment)


def main():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="ebsfs-bench-"))
    try:
        content = make_volume(folder)
        emulator = bench.Emulator(str(folder), 0)
        try:
            snapshot = emulator.ask("volumes/vol-1/snapshot", post=True)["snapshot_id"]
            for latency in (0, 30, 100):
                emulator.ask(f"switches?latency_ms={latency}", post=True)
                for name in ("tree", "large"):
                    source = content / name
                    kernel = by_kernel(PROGRAMS["ebsfs"], snapshot, name, source, emulator.env)
                    said = [f"{latency} ms, {name}: cp on ebsfs attach {kernel:.2f} s"]
                    for what, program in PROGRAMS.items():
                        command = [program, "files", "cp", *UNLIMITED, snapshot, f"/{name}"]
                        seconds = copied(command, source, emulator.env)
                        said.append(f"{what} files cp {seconds:.2f} s, {kernel / seconds:.2f} times as fast")
                    print("; ".join(said), flush=True)
        finally:
            emulator.stop()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
