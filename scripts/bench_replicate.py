"""Measures `ebsfs replicate` as a service on a small machine: many volumes, in 512 MiB; scripts/bench builds and runs it.

The volumes are computed by the emulator, and sparse: DENSITY of their blocks are held, CHANGED of them are other ones in each snapshot.
Their blocks repeat one page, so the repository stays small. The plan is the emulator's own count of blocks that snapshots have written.
Each minute has a row; at the end memory, requests and recovery points are checked, and the exit code says whether they are right.

EBSFS_SECONDS (900), EBSFS_VOLUMES (200), EBSFS_GIB (8), EBSFS_EVERY (60s), EBSFS=PATH of another ebsfs.
"""

import collections
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import bench
from bench import GIB, MIB, Emulator, Memory

EBSFS = os.path.abspath(os.environ.get("EBSFS") or bench.EBSFS)
# The class starts it.
bench.EBSFS = EBSFS
SECONDS = int(os.environ.get("EBSFS_SECONDS", "900"))
VOLUMES = int(os.environ.get("EBSFS_VOLUMES", "200"))
SIZE_GIB = int(os.environ.get("EBSFS_GIB", "8"))
EVERY = os.environ.get("EBSFS_EVERY", "60s")
LIMIT = 512 * MIB
# In a million.
DENSITY, CHANGED = 20_000, 10_000
REPETITIVE = 1 << 63
# A list of changes has one page here, and one empty request after it. The first copy of a volume lists its blocks, with one request more.
LISTS_A_COPY, LISTS_A_VOLUME = 2, 1
# Volumes of an instance.
DISKS = 4


class Service:
    """`ebsfs replicate` of a job, in the cgroup of 512 MiB where there is one."""

    def __init__(self, folder, env, memory):
        self.folder, self.env, self.memory = folder, env, memory
        self.job, self.state, self.log = f"{folder}/job.toml", f"{folder}/state", f"{folder}/log"
        ids = ", ".join(f'"{volume(number)}"' for number in range(VOLUMES))
        with open(self.job, "w") as file:
            file.write(f'name = "bench"\nvolumes = [{ids}]\nevery = "{EVERY}"\n'
                       f'[[target]]\nto = "file://{folder}/repository"\nkeep = {{ last = 2 }}\n')
        self.process = None

    def command(self, *more):
        return [EBSFS, "replicate", self.job, "--state-dir", self.state, "--max-rps", "100000", "--max-snapshot-rps", "100000", *more]

    def start(self):
        self.process = subprocess.Popen(self.command(), env=self.env, stderr=open(self.log, "a"), preexec_fn=self.memory.join)

    def memory_now(self):
        """RSS and peak RSS in MiB."""
        text = open(f"/proc/{self.process.pid}/status").read()
        return [int(re.search(rf"{name}:\s+(\d+)", text).group(1)) / 1024 for name in ("VmRSS", "VmHWM")]

    def cycles(self):
        """Cycles that have ended."""
        return open(self.log).read().count(" ended after ")

    def status(self):
        """The status of the job."""
        command = [EBSFS, "status", "bench", "--json", "--state-dir", self.state]
        shown = subprocess.run(command, capture_output=True, text=True)
        return json.loads(shown.stdout)["jobs"][0]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait()
        assert code == 0, f"exit code {code}: {open(self.log).read()[-2000:]}"

    def finish(self):
        """Ends the copies under way, if there are some, and runs one cycle more: what a stopped cycle has left is deleted. Returns how
        many copies were under way."""
        busy = sum(one["under_way"] is not None for one in self.status()["volumes"])
        for _ in range(2 if busy else 1):
            subprocess.run(self.command("--once"), env=self.env, check=True, stdout=subprocess.DEVNULL, stderr=open(self.log, "a"),
                           preexec_fn=self.memory.join)
        return busy


def volume(number):
    return f"vol-{number + 1:08x}"


def held(job):
    """Volumes with a usable recovery point, and with a current one."""
    targets = [target for one in job["volumes"] for target in one["targets"]]
    return sum(one["is_usable"] for one in targets), sum(one["state"] == "current" for one in targets)


def cgroup(memory):
    """The most memory of the cgroup so far in MiB, page cache included; none without one."""
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        path = f"{memory.path}/{name}"
        if memory.path and os.path.exists(path):
            return int(open(path).read()) / MIB
    return None


def size_of(folder):
    return sum(os.lstat(f"{where}/{name}").st_blocks * 512 for where, _, names in os.walk(folder) for name in names)


def plan(emulator):
    return emulator.ask("synthetic")


def row(start, service, emulator, before):
    """Prints a row; returns the counters."""
    counts, planned, job = emulator.ask("counters"), plan(emulator), service.status()
    rss, peak = service.memory_now()
    usable, current = held(job)
    counts.pop("most_at_once", None)
    calls = ", ".join(f"{name} {number - before.get(name, 0):,}" for name, number in counts.items() if number > before.get(name, 0))
    print(f"{time.monotonic() - start:4.0f} s  {rss:.0f} MiB (peak {peak:.0f})  {service.cycles()} cycles  blocks {counts.get('GetSnapshotBlock', 0):,} "
          f"fetched of {planned['written']:,}  {usable} usable, {current} current  requests: {calls}", flush=True)
    return counts, rss


def check(what, is_so):
    print(f"{'ok  ' if is_so else 'FAIL'} {what}", flush=True)
    return is_so


def main():
    folder = tempfile.mkdtemp(prefix="ebsfs-bench-")
    memory = Memory()
    emulator = Emulator(folder, 0)
    service = Service(folder, emulator.env, memory)
    print(f"{VOLUMES} volumes of {SIZE_GIB} GiB, {DENSITY / 1e4:g} % held, {CHANGED / 1e4:g} % changed a cycle, a cycle each {EVERY}, for {SECONDS} s; "
          f"{'cgroup of 512 MiB' if memory.path else 'no cgroup: memory is only measured'}", flush=True)
    samples, counts = [], {}
    try:
        for number in range(VOLUMES):
            emulator.ask(f"synthetic?id={volume(number)}&gib={SIZE_GIB}&density={DENSITY}&changed={CHANGED}&seed={REPETITIVE | number + 1}", post=True)
            emulator.ask(f"volumes/{volume(number)}?instance=i-{number // DISKS + 1:08x}", post=True)
        subprocess.run([EBSFS, "repository", "init", f"file://{folder}/repository"], check=True, stdout=subprocess.DEVNULL)
        start = time.monotonic()
        service.start()
        while time.monotonic() - start < SECONDS:
            time.sleep(min(60, max(1, start + SECONDS - time.monotonic())))
            assert service.process.poll() is None, f"the service has ended: {open(service.log).read()[-2000:]}"
            counts, rss = row(start, service, emulator, counts)
            samples.append(rss)
        _, peak = service.memory_now()
        service.stop()
        left = service.finish()
        counts, planned, job = emulator.ask("counters"), plan(emulator), service.status()
        usable, current = held(job)
        log = open(service.log).read()
        gets = counts.get("GetSnapshotBlock", 0)
        lists = counts.get("ListChangedBlocks", 0) + counts.get("ListSnapshotBlocks", 0)
        warnings = [line for line in log.splitlines() if " WARN " in line]
        print(f"{service.cycles()} cycles, {planned['snapshots']:,} snapshots, {gets:,} blocks ({gets * 0.5 / 1024:.1f} GiB) fetched, {lists:,} lists, "
              f"repository {size_of(f'{folder}/repository') / GIB:.2f} GiB, {left} copies were stopped and continued, {len(warnings)} warnings", flush=True)
        kinds = collections.Counter(re.sub(r"^\S+ +WARN |vol-\w+|snap-\w+|\d{4}-\S+Z", "", line) for line in warnings)
        for kind, count in kinds.most_common(5):
            print(f"{count} warnings: {kind}")
        of_cgroup = cgroup(memory)
        if of_cgroup:
            print(f"the cgroup has used up to {of_cgroup:.0f} MiB, page cache included")
        half = len(samples) // 2
        early, late = max(samples[:half] or [0]), max(samples[half:])
        copies, deleted = planned["snapshots"], counts.get("DeleteSnapshot", 0)
        lists_planned = LISTS_A_COPY * copies + LISTS_A_VOLUME * VOLUMES
        # What was in flight when the service was stopped is fetched again, and a copy that had its list may need none.
        again = 64 * left
        return all([
            check(f"peak RSS {peak:.0f} MiB is below 512 MiB", peak < LIMIT / MIB),
            check(f"RSS is flat: at most {late:.0f} MiB in the second half, {early:.0f} MiB in the first", half == 0 or late < 1.2 * early + 16),
            check(f"{usable} of {VOLUMES} recovery points are usable, {current} current", usable == VOLUMES),
            check(f"{gets:,} blocks fetched, {planned['written']:,} written by the snapshots", planned["written"] <= gets <= planned["written"] + again),
            check(f"{lists:,} lists, {lists_planned:,} planned", abs(lists - lists_planned) <= LISTS_A_COPY * left),
            check(f"{copies:,} snapshots made, {deleted:,} deleted", copies == deleted + VOLUMES),
        ])
    finally:
        if service.process and service.process.poll() is None:
            service.process.kill()
            service.process.wait()
        emulator.stop()
        memory.stop()
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
