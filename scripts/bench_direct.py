"""Measures random reads of 4 KiB with O_DIRECT at 15 ms, by threads, io_uring, libaio and loop devices; scripts/bench builds and runs it.

Each row is a fresh mount, and each ratio is to 16 threads with pread: what a mount reaches when requests come at once.
EBSFS_BENCH_SECONDS (5) is how long a row reads, EBSFS_BENCH_ROUNDS (3) how often all rows are measured in turn. Arguments
are words that a row's name must have: `scripts/bench direct loop`.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

from bench import SIZE, UNLIMITED, Emulator, Mount

LATENCY = 15
SECONDS = int(os.environ.get("EBSFS_BENCH_SECONDS", "5"))
ROUNDS = int(os.environ.get("EBSFS_BENCH_ROUNDS", "3"))
REFERENCE = "pread, 16 threads"


class Disk:
    """The image itself."""

    def __init__(self, path):
        self.path = path

    def stop(self):
        pass


class Loop(Disk):
    """A loop device of the image."""

    def __init__(self, path, *args):
        command = ["losetup", "--find", "--show", "--read-only", *args, path]
        super().__init__(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())

    def stop(self):
        subprocess.run(["losetup", "--detach", self.path], check=True)


def direct_loop(path):
    return Loop(path, "--direct-io=on")


def threads(count):
    return ["--ioengine=psync", f"--numjobs={count}"]


def queue(engine, depth):
    return [f"--ioengine={engine}", f"--iodepth={depth}"]


# Name, what is read, how fio reads it.
ROWS = [
    *((f"pread, {count} thread{'s' * (count > 1)}", Disk, threads(count)) for count in (1, 16, 64)),
    *((f"io_uring, depth {depth}", Disk, queue("io_uring", depth)) for depth in (1, 16, 64)),
    *((f"libaio, depth {depth}", Disk, queue("libaio", depth)) for depth in (1, 16, 64)),
    ("loop, 16 threads", Loop, threads(16)),
    ("loop, libaio, depth 16", Loop, queue("libaio", 16)),
    ("loop --direct-io=on, 16 threads", direct_loop, threads(16)),
    ("loop --direct-io=on, libaio, depth 16", direct_loop, queue("libaio", 16)),
]


def fio(path, how):
    """Reads a second, and median milliseconds of a read."""
    # A read that never returns must not hold up the rest. The submission counts too: it can be what waits.
    command = ["timeout", "--kill-after=5", str(SECONDS + 60), "fio", "--name=r", f"--filename={path}", "--readonly", "--rw=randread"]
    command += ["--bs=4k", "--direct=1", f"--size={SIZE}", "--time_based", f"--runtime={SECONDS}", "--randrepeat=0", "--thread"]
    command += ["--group_reporting", "--lat_percentiles=1", "--output-format=json", *how]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout[-500:]}"
    read = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]["read"]
    return read["iops"], read["lat_ns"]["percentile"]["50.000000"] / 1e6


def measure(emulator, disk, how):
    """Reads a second, median milliseconds, and fetches a second on a fresh mount."""
    mount = Mount(emulator, *UNLIMITED)
    try:
        shown = disk(mount.disk("snap-0a"))
        try:
            emulator.ask("counters/reset", post=True)
            iops, median = fio(shown.path, how)
            return iops, median, emulator.ask("counters").get("GetSnapshotBlock", 0) / SECONDS
        finally:
            shown.stop()
    finally:
        mount.stop()


def main():
    words = sys.argv[1:]
    rows = [row for row in ROWS if row[0] == REFERENCE or all(word in row[0] for word in words)]
    taken = {name: [] for name, *_ in rows}
    folder = tempfile.mkdtemp(prefix="ebsfs-bench-")
    emulator = Emulator(folder, LATENCY)
    try:
        for number in range(ROUNDS):
            for name, disk, how in rows:
                taken[name].append(measure(emulator, disk, how))
                iops, median, gets = taken[name][-1]
                print(f"round {number + 1}, {name}: {iops:,.0f} reads/s, median {median:.2f} ms, {gets:,.0f} Gets/s", flush=True)
    finally:
        emulator.stop()
        shutil.rmtree(folder)
    # The rounds of a row and of the reference are pairs: what slows one down slows the other down too.
    print(f"\n| 4 KiB at random, O_DIRECT, {LATENCY} ms | reads/s | median ms | Gets/s | of {REFERENCE} |\n| --- | --- | --- | --- | --- |")
    for name, runs in taken.items():
        iops, median, gets = (statistics.median(values) for values in zip(*runs))
        ratios = [run[0] / reference[0] for run, reference in zip(runs, taken[REFERENCE])]
        spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
        print(f"| {name} | {iops:,.0f} | {median:.2f} | {gets:,.0f} | {statistics.median(ratios):.2f}{spread} |")


if __name__ == "__main__":
    main()
