"""Measures the mount against the bare HTTP limit and its peers; scripts/bench builds and runs it."""

import glob
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request

TARGET = os.environ.get("CARGO_TARGET_DIR", "target") + "/release"
EBSFS = os.path.abspath(f"{TARGET}/ebsfs")


def built(bench):
    """The program of one of benches/."""
    found = (p for p in glob.glob(f"{TARGET}/deps/{bench}-*") if os.access(p, os.X_OK) and "." not in os.path.basename(p))
    return max(found, key=os.path.getmtime, default=None)


LIMIT = built("limit")
TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20
GIB = 1 << 30
SIZE = 4 * GIB
IDS = ["snap-0a", "snap-0b", "snap-0c", "snap-0d"]
UNLIMITED = ("--max-rps", "100000", "--max-snapshot-rps", "100000")
# A program built with the feature sha-ni-masked, where scripts/bench could build one.
MASKED = os.path.abspath(f"{TARGET}/ebsfs-sha-ni-masked")
rows = []


class Memory:
    """A cgroup of 512 MiB for those who read, as on a small proxy: its pages are used again and again, where this machine
    would take fresh ones from its host at several times their price. Without cgroups nothing is held down."""

    def __init__(self):
        self.path = None
        for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
            if self.path is None and os.path.exists(f"{root}/cgroup.procs"):
                path = f"{root}/ebsfs-bench-{os.getpid()}"
                try:
                    os.mkdir(path)
                    open(f"{path}/{limit}", "w").write(str(512 * MIB))
                    self.path = path
                except OSError:
                    if os.path.isdir(path):
                        os.rmdir(path)

    def join(self):
        if self.path:
            open(f"{self.path}/cgroup.procs", "w").write(str(os.getpid()))

    def stop(self):
        if self.path:
            try:
                os.rmdir(self.path)
            except OSError as error:
                print(f"{self.path} stays: {error}", file=sys.stderr)


class Emulator:
    """An emulator with four snapshots of 4 GiB, 90 % full, quotas out of the way unless asked for."""

    def __init__(self, folder, latency, *more, quotas=False):
        args = [EBSFS, "emulator", folder, "--listen", "127.0.0.1:0", "--unsigned-blocks", "--set", f"latency_ms={latency}", *more]
        if not quotas:
            args += ["--set", "get_rps=1000000", "--set", "get_rps_snapshot=1000000", "--set", "list_rps=1000"]
        for snapshot in IDS:
            args += ["--synthetic", f"{snapshot}:4:900000"]
        self.process = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline().removeprefix("export ")
        self.env = dict(os.environ, **{k: v.strip("'") for k, v in (word.split("=", 1) for word in line.split())})
        for name in self.process.stdout.readline().removeprefix("unset ").split():
            self.env.pop(name, None)
        self.url = self.env["AWS_ENDPOINT_URL"]

    def ask(self, path, post=False):
        request = urllib.request.Request(f"{self.url}/_emulator/{path}", data=b"" if post else None)
        trust = ssl.create_default_context(cafile=self.env["AWS_CA_BUNDLE"]) if self.url.startswith("https") else None
        return json.load(urllib.request.urlopen(request, context=trust))

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Mount:
    def __init__(self, emulator, *args, program=EBSFS, within=None):
        self.point = tempfile.mkdtemp(prefix="ebsfs-bench-")
        self.process = subprocess.Popen([program, "mount", *args, self.point, *IDS], env=emulator.env, stderr=subprocess.DEVNULL,
                                        preexec_fn=within and within.join)
        while not os.path.ismount(self.point):
            assert self.process.poll() is None, "the mount has ended"
            time.sleep(0.02)

    def disk(self, snapshot):
        return f"{self.point}/snapshots/{snapshot}/disk.raw"

    def cpu(self):
        fields = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def peak(self):
        return int(re.search(r"VmHWM:\s+(\d+)", open(f"/proc/{self.process.pid}/status").read()).group(1)) / 1024

    def stop(self):
        self.process.terminate()
        self.process.wait()
        os.rmdir(self.point)


def row(latency, what, seconds, size, gets="", throttled="", cpu=None, peak=None, note=""):
    rate = size / MIB / seconds
    cells = [f"{latency} ms", what, f"{rate:,.0f}", str(gets), str(throttled)]
    cells += [f"{cpu / (size / GIB):.2f}" if cpu is not None else "", f"{peak:.0f}" if peak else "", note]
    rows.append(cells)
    print("  ".join(cells), flush=True)
    return rate


def timed(*commands, within=None):
    """Seconds that the commands take, run at once."""
    start = time.monotonic()
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=within and within.join)
               for command in commands]
    for process in running:
        _, said = process.communicate()
        assert process.returncode == 0, said
    return time.monotonic() - start


def dd(disk, size="1M", **more):
    return ["dd", f"if={disk}", "of=/dev/null", f"bs={size}", "status=none", *[f"{k}={v}" for k, v in more.items()]]


def forget_pages():
    open("/proc/sys/vm/drop_caches", "w").write("1")


def on_mount(emulator, latency, what, size, run, args=UNLIMITED, warm=None, **more):
    """Runs something on a fresh mount and adds its row."""
    mount = Mount(emulator, *args, **more)
    try:
        if warm:
            warm(mount)
            # What was on its way ahead of it comes to rest.
            time.sleep(1)
        emulator.ask("counters/reset", post=True)
        before = mount.cpu()
        seconds = run(mount)
        note = ""
        if isinstance(seconds, tuple):
            seconds, note = seconds
        counts = emulator.ask("counters")
        return row(latency, what, seconds, size, counts.get("GetSnapshotBlock", 0), counts.get("throttled", 0),
                   mount.cpu() - before, mount.peak(), note)
    finally:
        mount.stop()


def fio(mount, depth):
    """Random reads of 4 KiB; the rate of bytes is theirs, the latency is what counts."""
    count = 320 // depth
    out = subprocess.run(
        ["fio", "--name=r", f"--filename={mount.disk('snap-0a')}", "--readonly", "--rw=randread", "--bs=4k", f"--size={SIZE}",
         f"--number_ios={count}", "--ioengine=psync", f"--numjobs={depth}", "--thread", "--group_reporting", "--output-format=json",
         "--randrepeat=0"],
        capture_output=True, text=True, check=True).stdout
    read = json.loads(out[out.index("{"):])["jobs"][0]["read"]
    median = read["clat_ns"]["percentile"]["50.000000"] / 1e6
    return read["total_ios"] * 4096 / (read["bw_bytes"] or 1), f"median {median:.2f} ms"


def bench(latency, memory):
    folder = tempfile.mkdtemp(prefix="ebsfs-bench-")
    emulator = Emulator(folder, latency)
    try:
        before = os.times()
        done = json.loads(subprocess.run([LIMIT, emulator.url, "snap-0a", "8192", "128"], capture_output=True, text=True, check=True).stdout)
        after = os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        limit = row(latency, "bare HTTP limit, 128 connections", done["seconds"], done["bytes"], cpu=cpu)
        held = done["bytes"]
        alone = json.loads(subprocess.run([LIMIT, emulator.url, "snap-0b", "200", "1"], capture_output=True, text=True, check=True).stdout)
        row(latency, "bare HTTP limit, 1 connection", alone["seconds"], alone["bytes"],
            note=f"mean {alone['seconds'] / 200 * 1e3:.2f} ms")
        peers = None
        if shutil.which("coldsnap"):
            before = os.times()
            seconds = time.monotonic()
            subprocess.run(["coldsnap", "--endpoint", emulator.url, "download", "--no-progress", "snap-0a", f"{folder}/out.raw"], env=emulator.env, check=True)
            seconds = time.monotonic() - seconds
            after = os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            peers = row(latency, "coldsnap download to a file", seconds, held, cpu=cpu)
            os.remove(f"{folder}/out.raw")
        rate = on_mount(emulator, latency, "dd bs=1M, cold", held, lambda m: timed(dd(m.disk("snap-0a")), within=memory))
        print(f"    dd is {rate / limit:.2f} of the bare limit" + (f", {rate / peers:.2f} of coldsnap" if peers else ""))
        small = on_mount(emulator, latency, "dd bs=4k, cold", held, lambda m: timed(dd(m.disk("snap-0b"), "4k"), within=memory))
        print(f"    bs=4k is {small / rate:.2f} of bs=1M")
        on_mount(emulator, latency, "four dd on four snapshots, 1 GiB each", held,
                 lambda m: timed(*[dd(m.disk(s), count=1024) for s in IDS], within=memory))
        on_mount(emulator, latency, "two cursors on one snapshot", held,
                 lambda m: timed(dd(m.disk("snap-0c"), count=2048), dd(m.disk("snap-0c"), skip=2048), within=memory))
        for depth in (1, 16):
            on_mount(emulator, latency, f"random 4 KiB, {depth} at once, cold", 320 * 4096, lambda m: fio(m, depth))
    finally:
        emulator.stop()
        shutil.rmtree(folder)


def at_the_quota(memory):
    """What a proxy sees: 1,000 blocks a second and no more, TLS, with SHA extensions and without."""
    programs = [("", EBSFS)] + ([(", SHA-NI masked", MASKED)] if os.path.exists(MASKED) else [])
    for scheme, more in (("", ()), (", TLS", ("--tls",))):
        folder = tempfile.mkdtemp(prefix="ebsfs-bench-")
        emulator = Emulator(folder, 15, *more, quotas=True)
        try:
            for name, program in programs:
                run = lambda m: timed(dd(m.disk("snap-0a")), within=memory)
                rate = on_mount(emulator, 15, f"dd bs=1M, 1,000 a second{scheme}{name}", SIZE * 0.9, run, args=(), program=program)
                print(f"    {rate * 2:.0f} blocks a second")
        finally:
            emulator.stop()
            shutil.rmtree(folder)


def large(memory):
    """100 GiB in sequence of a 64 TiB snapshot, the mount itself in 512 MiB."""
    folder = tempfile.mkdtemp(prefix="ebsfs-bench-")
    emulator = Emulator(folder, 0, "--synthetic", "snap-0e:65536:1000000")
    try:
        run = lambda m: timed(dd(m.disk("snap-0e"), count=100 * 1024), within=memory)
        on_mount(emulator, 0, "100 GiB of 64 TiB, mount in 512 MiB", 100 * GIB, run, within=memory)
    finally:
        emulator.stop()
        shutil.rmtree(folder)


def changes():
    """What differs between two snapshots of 64 TiB, 1 % at random, within AWS's 50 list requests a second."""
    folder = tempfile.mkdtemp(prefix="ebsfs-bench-")
    pair = ("--synthetic", "snap-1a:65536:1000000", "--synthetic-child", "snap-1b:snap-1a:10000")
    emulator = Emulator(folder, 0, *pair, quotas=True)
    try:
        for latency in (0, 20, 100):
            emulator.ask(f"switches?latency_ms={latency}", post=True)
            paged = json.loads(subprocess.check_output([built("pages"), "snap-1a", "snap-1b"], env=emulator.env))
            emulator.ask("counters/reset", post=True)
            start = time.monotonic()
            process = subprocess.Popen([EBSFS, "changes", "snap-1a", "snap-1b", "--format", "csv", "-o", f"{folder}/csv"],
                                       env=emulator.env)
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0
            seconds, requests = time.monotonic() - start, emulator.ask("counters")["ListChangedBlocks"]
            print(f"{latency} ms: one page after another {paged['pages']} requests, {paged['seconds']:.2f} s; ebsfs changes {requests} "
                  f"requests, {seconds:.2f} s, {usage.ru_maxrss / 1024:.0f} MiB; {paged['seconds'] / seconds:.2f} times as fast", flush=True)
    finally:
        emulator.stop()
        shutil.rmtree(folder)


def warm_reads():
    folder = tempfile.mkdtemp(prefix="ebsfs-bench-")
    emulator = Emulator(folder, 0)
    try:
        part = {"count": 1024}
        size = GIB

        def warm(mount):
            timed(dd(mount.disk("snap-0a"), **part))

        def from_memory(mount):
            forget_pages()
            return timed(dd(mount.disk("snap-0a"), **part))

        # FUSE keeps pages of 4 KiB, as tmpfs does; ext4 and xfs keep larger ones where the kernel is new.
        for name, place in (("a file in tmpfs", tempfile.mkdtemp(prefix="ebsfs-bench-", dir="/dev/shm")), ("a local file", folder)):
            local = f"{place}/local.raw"
            subprocess.run(["dd", "if=/dev/urandom", f"of={local}", "bs=1M", "count=1024", "status=none"], check=True)
            timed(dd(local))
            row(0, f"{name}, from the page cache", timed(dd(local)), size)
            if place != folder:
                shutil.rmtree(place)
        on_mount(emulator, 0, "again, from the page cache", size, lambda m: timed(dd(m.disk("snap-0a"), **part)), warm=warm)
        on_mount(emulator, 0, "again, from memory (--memory 2GiB)", size, from_memory, args=(*UNLIMITED, "--memory", "2GiB"), warm=warm)
        if shutil.which("nbdkit") and shutil.which("nbdfuse"):
            point = f"{folder}/nbd"
            os.mkdir(point)
            server = subprocess.Popen(["nbdfuse", point, "--command", "nbdkit", "-s", "file", f"{folder}/local.raw"])
            while not os.path.exists(f"{point}/nbd"):
                time.sleep(0.05)
            row(0, "peer: nbdkit + nbdfuse on a local file", timed(dd(f"{point}/nbd")), size)
            subprocess.run(["fusermount3", "-u", point], check=True)
            server.wait()
    finally:
        emulator.stop()
        shutil.rmtree(folder)


def main():
    if sys.argv[1:] == ["changes"]:
        changes()
        return
    memory = Memory()
    try:
        if sys.argv[1:] == ["large"]:
            large(memory)
        else:
            for latency in [int(text) for text in sys.argv[1:]] or [0, 15, 50]:
                bench(latency, memory)
            at_the_quota(memory)
            warm_reads()
    finally:
        memory.stop()
    table()


def table():
    heads = ["latency", "what", "MiB/s", "Gets", "throttled", "CPU s/GiB", "peak MiB", ""]
    widths = [max(len(row[n]) for row in [heads, *rows]) for n in range(len(heads))]
    print()
    for cells in [heads, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |")


if __name__ == "__main__":
    main()
