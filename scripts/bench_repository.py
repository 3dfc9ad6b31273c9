"""Measures repositories: sync to an S3 server and a mount of it at 30 ms beside the server's own GET; 16 TiB in a folder."""

import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from bench import EBSFS, GIB, MIB, TARGET, Emulator, built
from bench_sync import run, sync, target_folder

LATENCY = 30
STORE = built("store")
CLIENTS = os.path.abspath(f"{TARGET}/../clients/bin")


class Server:
    """rclone's S3 server over a folder, and the same later by LATENCY."""

    def __init__(self, folder):
        os.makedirs(f"{folder}/bucket")
        program = shutil.which("rclone", path=f"{CLIENTS}:{os.environ['PATH']}")
        assert program, "rclone is not installed: scripts/test does that"
        self.process = subprocess.Popen([program, "serve", "s3", "--config", "/dev/null", "--addr", "127.0.0.1:0", folder],
                                        stderr=subprocess.PIPE, text=True)
        found = None
        while not found:
            found = re.search(r"http://([0-9.:]+)", self.process.stderr.readline())
        self.near = found[1]
        self.proxy = subprocess.Popen([STORE, "delay", self.near, str(LATENCY)], stdout=subprocess.PIPE, text=True)
        self.far = self.proxy.stdout.readline().strip()

    def stop(self):
        for process in (self.proxy, self.process):
            process.kill()
            process.wait()


def s3():
    """4 GiB, 90 % full: into the server, and read from a mount of it."""
    folder, place = tempfile.mkdtemp(prefix="ebsfs-bench-"), target_folder()
    emulator, server = Emulator(folder, 15), Server(f"{place}/s3")
    point = tempfile.mkdtemp(prefix="ebsfs-bench-")
    try:
        url = "s3://bucket/replicas"
        subprocess.check_call([EBSFS, "repository", "init", url, "--endpoint-url", f"http://{server.near}"], env=emulator.env,
                              stdout=subprocess.DEVNULL)
        seconds, cpu, peak = run(sync(folder, "snap-0a", url, "--to-endpoint-url", f"http://{server.far}"), emulator.env)
        shown = json.loads(subprocess.check_output([EBSFS, "repository", "show", f"{url}#latest", "--endpoint-url",
                                                    f"http://{server.near}"], env=emulator.env))
        size = shown["sent_bytes"]
        print(f"sync to a repository at {LATENCY} ms: {seconds:.2f} s, {size / MIB / seconds:,.0f} MiB/s, "
              f"{cpu / (size / GIB):.2f} CPU s/GiB, {peak:.0f} MiB; stored {shown['stored_bytes'] / size:.2f} of it", flush=True)
        packs = [os.path.relpath(f"{d}/{n}", f"{place}/s3") for d, _, names in os.walk(f"{place}/s3/bucket/replicas/packs") for n in names]
        listed = "".join(f"/{pack}\n" for pack in sorted(packs))
        ratios = []
        for _ in range(3):
            got = subprocess.run([STORE, "get", server.far, "64"], input=listed, text=True, capture_output=True, check=True)
            bare = json.loads(got.stdout)
            process = subprocess.Popen([EBSFS, "mount", url, point, "--endpoint-url", f"http://{server.far}"], env=emulator.env,
                                       stderr=subprocess.DEVNULL)
            while not os.path.ismount(point):
                assert process.poll() is None
                time.sleep(0.02)
            disk = f"{point}/snapshots/snap-0a/disk.raw"
            start = time.monotonic()
            subprocess.run(["dd", f"if={disk}", "of=/dev/null", "bs=1M", "status=none"], check=True)
            seconds = time.monotonic() - start
            took = []
            subprocess.run(["sh", "-c", "echo 1 > /proc/sys/vm/drop_caches"], check=False)
            peak = int(re.search(r"VmHWM:\s+(\d+)", open(f"/proc/{process.pid}/status").read()).group(1)) / 1024
            process.terminate()
            process.wait()
            process = subprocess.Popen([EBSFS, "mount", url, point, "--endpoint-url", f"http://{server.far}"], env=emulator.env,
                                       stderr=subprocess.DEVNULL)
            while not os.path.ismount(point):
                time.sleep(0.02)
            with open(disk, "rb", buffering=0) as file:
                for _ in range(100):
                    start = time.monotonic()
                    os.pread(file.fileno(), 4096, random.randrange(4 * GIB // 4096) * 4096)
                    took.append(time.monotonic() - start)
            process.terminate()
            process.wait()
            ours, theirs = size / MIB / seconds, bare["bytes"] / MIB / bare["seconds"]
            ratios.append(ours / theirs)
            print(f"mount at {LATENCY} ms: dd {ours:,.0f} MiB/s, GET over 64 connections {theirs:,.0f} MiB/s: {ours / theirs:.2f}; random "
                  f"4 KiB median {statistics.median(took) * 1000:.1f} ms; {peak:.0f} MiB", flush=True)
        print(f"median of the ratios: {statistics.median(ratios):.2f}")
    finally:
        server.stop()
        emulator.stop()
        for left in (folder, place, point):
            shutil.rmtree(left)


def huge_s3():
    """The same in the S3 server, without any latency."""
    place = target_folder()
    server = Server(f"{place}/s3")
    try:
        huge("s3://bucket/replicas", "--endpoint-url", f"http://{server.near}")
    finally:
        server.stop()
        shutil.rmtree(place)


def huge(url=None, *reach):
    """16 TiB, 1 % held, and a second snapshot with 0.1 % changed: in with --dedup, checked, read from a mount."""
    folder = tempfile.mkdtemp(prefix="ebsfs-bench-")
    to = [option.replace("--", "--to-") for option in reach]
    emulator = Emulator(folder, 0, "--repetitive", "--synthetic", "snap-1a:16384:10000", "--synthetic-child", "snap-1b:snap-1a:1000")
    url = url or f"file://{folder}/replicas"
    point = tempfile.mkdtemp(prefix="ebsfs-bench-")
    try:
        subprocess.check_call([EBSFS, "repository", "init", url, *reach], env=emulator.env, stdout=subprocess.DEVNULL)
        for snapshot, more in (("snap-1a", ("--dedup",)), ("snap-1b", ("--base", "snap-1a", "--dedup"))):
            seconds, cpu, peak = run(sync(folder, snapshot, url, *more, *to), emulator.env)
            shown = json.loads(subprocess.check_output([EBSFS, "repository", "show", f"{url}#{snapshot}", *reach], env=emulator.env))
            print(f"16 TiB {' '.join((snapshot, *more))}: {shown['sent_blocks']} blocks sent, {seconds:.0f} s, {peak:.0f} MiB", flush=True)
        for more in ((), ("--read-data",)):
            seconds, cpu, peak = run([EBSFS, "repository", "check", url, *more, *reach], emulator.env)
            print(f"check {' '.join(more)}: {seconds:.1f} s, {peak:.0f} MiB", flush=True)
        process = subprocess.Popen([EBSFS, "mount", "--memory", "64MiB", url, point, *reach], env=emulator.env, stderr=subprocess.DEVNULL)
        while not os.path.ismount(point):
            time.sleep(0.02)
        with open(f"{point}/snapshots/snap-1b/disk.raw", "rb", buffering=0) as file:
            for _ in range(5000):
                os.pread(file.fileno(), 4096, random.randrange(16384 * GIB // 4096) * 4096)
        subprocess.run(["cat", f"{point}/changes/snap-1a..snap-1b/changes.csv"], stdout=subprocess.DEVNULL, check=True)
        peak = int(re.search(r"VmHWM:\s+(\d+)", open(f"/proc/{process.pid}/status").read()).group(1)) / 1024
        process.terminate()
        process.wait()
        print(f"mount with --memory 64MiB, 5,000 random reads and its changes: {peak:.0f} MiB", flush=True)
    finally:
        emulator.stop()
        shutil.rmtree(folder)
        shutil.rmtree(point)


if __name__ == "__main__":
    for part in [globals()[name] for name in sys.argv[1:]] or [s3, huge]:
        part()
