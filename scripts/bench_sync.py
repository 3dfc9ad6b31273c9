"""Measures `ebsfs sync` against the bare HTTP limit and coldsnap, at 15 ms; scripts/bench builds and runs it.

EBSFS_OLD=PATH runs another ebsfs beside this one, in turn, and prints the ratio of each pair.
EBSFS_BENCH_GIB (2) is the size of the image that is compared with its digests.
"""

import glob
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from bench import EBSFS, GIB, LIMIT, MIB, SIZE, UNLIMITED, Emulator

LATENCY = 15
ROUNDS = 3
# Pairs with another ebsfs: their median is worth more than one of them.
PAIRS = 5
OLD = os.environ.get("EBSFS_OLD") and os.path.abspath(os.environ["EBSFS_OLD"])
COMPARE_GIB = int(os.environ.get("EBSFS_BENCH_GIB", "2"))
PUTS = ("--set", "put_rps=1000000", "--set", "put_rps_snapshot=1000000")


def target_folder():
    """Where images go: in memory where there is room, so that programs are measured and not the disk."""
    room = os.statvfs("/dev/shm")
    in_memory = room.f_bavail * room.f_frsize > 11 * GIB
    return tempfile.mkdtemp(prefix="ebsfs-bench-", dir="/dev/shm" if in_memory else None)


def run(command, env, **more):
    """Seconds, CPU seconds and peak MiB of a command."""
    start = time.monotonic()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **more)
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{command}: {said}"
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def sync(folder, *args, program=EBSFS):
    # The two programs do not read each other's state.
    state = f"{folder}/state" if program == EBSFS else f"{folder}/state-old"
    return [program, "sync", "--progress", "none", "--state-dir", state, *UNLIMITED, *args]


def remove_image(image):
    """Removes an image and its state files."""
    for left in (image, *glob.glob(f"{glob.escape(image)}.ebsfs*")):
        if os.path.exists(left):
            os.remove(left)
    os.sync()


def cold():
    """Empties the page cache."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def pairs(what, measure):
    """Measures the old ebsfs and this one in turn, and prints how long this one takes for each second of the old one."""
    if not OLD:
        return
    ratios = []
    for number in range(PAIRS):
        old, new = measure(OLD), measure(EBSFS)
        ratios.append(new / old)
        print(f"{what}, pair {number + 1}: old {old:.2f} s, new {new:.2f} s, ratio {new / old:.3f}", flush=True)
    print(f"{what}: new takes {statistics.median(ratios):.3f} of the old time (median of {PAIRS}; less is faster)", flush=True)


def limit(emulator, blocks):
    out = subprocess.check_output([LIMIT, emulator.url, "snap-0a", str(blocks), "128"], text=True)
    done = json.loads(out)
    return done["seconds"], done["bytes"]


def compared(what, size, commands, env, clear):
    """Runs the commands in turn, several rounds, and prints the medians; the first is ours."""
    took = [[] for _ in commands]
    for _ in range(ROUNDS):
        for number, command in enumerate(commands):
            clear()
            took[number].append(run(command, env))
    ours = None
    for command, runs in zip(commands, took):
        seconds, cpu, peak = (statistics.median(values) for values in zip(*runs))
        name = "ebsfs sync" if command[0] == EBSFS else " ".join(w for w in command if not w.startswith(("/", "http", "--endpoint")))
        ratio = "" if ours is None else f"; ebsfs is {seconds / ours:.2f} times as fast"
        ours = ours or seconds
        spread = " ".join(f"{r[0]:.2f}" for r in runs)
        print(f"{what}, {name}: {seconds:.2f} s ({spread}), {size / MIB / seconds:,.0f} MiB/s, "
              f"{cpu / (size / GIB):.2f} CPU s/GiB, {peak:.0f} MiB{ratio}", flush=True)


def copies():
    """4 GiB, 90 % full, to a file and from one."""
    folder, place = tempfile.mkdtemp(prefix="ebsfs-bench-"), target_folder()
    # Puts are checked and not kept: the emulator's disk is not what is measured.
    emulator = Emulator(folder, LATENCY, *PUTS, "--set", "keep_puts=false")
    try:
        seconds, held = limit(emulator, 8192)
        print(f"bare HTTP limit: {seconds:.2f} s, {held / MIB / seconds:,.0f} MiB/s", flush=True)
        image = f"{place}/image.raw"

        def clear():
            remove_image(image)

        def timed(*args):
            def measure(program):
                clear()
                return run(sync(folder, *args, program=program), emulator.env)[0]

            return measure

        clear()
        commands = [sync(folder, "snap-0a", image)]
        if shutil.which("coldsnap"):
            commands.append(["coldsnap", "--endpoint", emulator.url, "download", "--no-progress", "snap-0a", image])
        compared("snapshot to file", held, commands, emulator.env, clear)
        pairs("snapshot to file", timed("snap-0a", image))

        clear()
        run(sync(folder, "snap-0a", f"{place}/source.raw"), emulator.env)
        commands = [sync(folder, f"{place}/source.raw", "ebs:")]
        if shutil.which("coldsnap"):
            # Without the option it puts the holes too.
            commands.append(["coldsnap", "--endpoint", emulator.url, "upload", "--no-progress", "--omit-zero-blocks", f"{place}/source.raw"])
        compared("file to new snapshot", held, commands, emulator.env, os.sync)
        pairs("file to new snapshot", timed(f"{place}/source.raw", "ebs:"))
        # The same command twice makes one snapshot: --restart makes another.
        again = ("snap-0b", "ebs:", "--restart")
        compared("snapshot to new snapshot", held, [sync(folder, *again)], emulator.env, os.sync)
        pairs("snapshot to new snapshot", timed(*again))
    finally:
        emulator.stop()
        shutil.rmtree(folder)
        shutil.rmtree(place)


def delta():
    """1 % of 1 TiB changed, into an image."""
    folder, place = tempfile.mkdtemp(prefix="ebsfs-bench-"), target_folder()
    emulator = Emulator(folder, LATENCY, "--synthetic", "snap-1a:1024:0", "--synthetic-child", "snap-1b:snap-1a:10000")
    try:
        image = f"{place}/image.raw"

        def measure(program):
            remove_image(image)
            run(sync(folder, "snap-1a", image, program=program), emulator.env)
            emulator.ask("counters/reset", post=True)
            return run(sync(folder, "snap-1b", image, "--base", "snap-1a", "--in-place", program=program), emulator.env)

        seconds, _, peak = measure(EBSFS)
        gets = emulator.ask("counters")["GetSnapshotBlock"]
        report = json.load(open(f"{image}.ebsfs.json"))["report"]
        bare = sum(limit(emulator, 8192)[0] for _ in range(3)) * gets / (3 * 8192 * 0.9)
        print(f"1 % of 1 TiB: {report['blocks_written']} blocks changed, {gets} Gets, {seconds:.2f} s, {peak:.0f} MiB; "
              f"the bare limit takes {bare:.2f} s for as many: {bare / seconds:.2f} of it", flush=True)
        pairs("1 % of 1 TiB", lambda program: measure(program)[0])
    finally:
        emulator.stop()
        shutil.rmtree(folder)
        shutil.rmtree(place)


def compare():
    """An image whose mark has changed, compared with its digests, beside two sha256sum that read half of it each; cold cache."""
    # On a disk: in memory there is no cache to read past.
    folder, place = tempfile.mkdtemp(prefix="ebsfs-bench-"), tempfile.mkdtemp(prefix="ebsfs-bench-")
    emulator = Emulator(folder, 0, "--synthetic", f"snap-2a:{COMPARE_GIB}:1000000")
    try:
        image, halves = f"{place}/image.raw", [f"{place}/half-{number}.raw" for number in (0, 1)]
        size = COMPARE_GIB * GIB
        run(sync(folder, "snap-2a", image), emulator.env)
        for number, half in enumerate(halves):
            subprocess.check_call(["dd", f"if={image}", f"of={half}", "bs=1M", "status=none", f"skip={number * size // 2}",
                                   f"count={size // 2}", "iflag=skip_bytes,count_bytes"])

        def sums():
            cold()
            start = time.monotonic()
            processes = [subprocess.Popen(["sha256sum", half], stdout=subprocess.DEVNULL) for half in halves]
            assert [process.wait() for process in processes] == [0, 0]
            return time.monotonic() - start

        def comparison():
            os.utime(image)
            cold()
            emulator.ask("counters/reset", post=True)
            seconds, _, peak = run(sync(folder, "snap-2a", image, "--base", "auto"), emulator.env)
            gets = emulator.ask("counters").get("GetSnapshotBlock", 0)
            assert gets == 0, f"{gets} Gets for a comparison"
            return seconds, peak

        rounds = [(sums(), *comparison()) for _ in range(ROUNDS)]
        reading, comparing, peak = (statistics.median(values) for values in zip(*rounds))
        print(f"compare {COMPARE_GIB} GiB: {comparing:.2f} s ({' '.join(f'{r[1]:.2f}' for r in rounds)}), {size / MIB / comparing:,.0f} MiB/s, "
              f"{peak:.0f} MiB; two sha256sum {reading:.2f} s ({' '.join(f'{r[0]:.2f}' for r in rounds)}): "
              f"{statistics.median(r[0] / r[1] for r in rounds):.2f} of their speed", flush=True)
    finally:
        emulator.stop()
        shutil.rmtree(folder)
        shutil.rmtree(place)


def huge():
    """16 TiB, 0.6 % held, to a new snapshot, killed 100,000 blocks in and resumed."""
    folder = tempfile.mkdtemp(prefix="ebsfs-bench-")
    emulator = Emulator(folder, 0, "--synthetic", "snap-1a:16384:6000", "--set", "keep_puts=false", *PUTS)
    try:
        command = sync(folder, "snap-1a", "ebs:")
        process = subprocess.Popen(command, env=emulator.env, stderr=subprocess.DEVNULL)
        while emulator.ask("counters").get("PutSnapshotBlock", 0) < 100_000:
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        _, _, usage = os.wait4(process.pid, 0)
        before = emulator.ask("counters")
        seconds, _, peak = run(command, emulator.env)
        after = emulator.ask("counters")
        gets = after["GetSnapshotBlock"] - before["GetSnapshotBlock"]
        report = json.load(open([f"{d}/{n}" for d, _, names in os.walk(f"{folder}/state") for n in names if n.endswith(".json")][0]))["report"]
        print(f"16 TiB to a new snapshot: {report['blocks_written']} blocks; killed after {before['PutSnapshotBlock']} puts with "
              f"{usage.ru_maxrss / 1024:.0f} MiB; resumed, {gets} more Gets, {after['PutSnapshotBlock'] - report['blocks_written']} puts twice, "
              f"{seconds:.0f} s, {peak:.0f} MiB", flush=True)
    finally:
        emulator.stop()
        shutil.rmtree(folder)


if __name__ == "__main__":
    for part in [globals()[name] for name in sys.argv[1:]] or [copies, delta, compare, huge]:
        part()
