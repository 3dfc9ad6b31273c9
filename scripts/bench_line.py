#!/usr/bin/env python3
"""How much of a slow or long line a sync into a repository in S3, and out of it, reaches.

A line is two TUN devices in network namespaces of their own, and a relay between them with a rate, a delay and a queue:
the TCP stacks at both ends are the kernel's. The server is rclone's S3 server behind the line. It needs root;
`scripts/bench line` builds ebsfs and runs it.

    scripts/bench_line.py [--mbit 200] [--rtt 300] [--mib 300] [--congestion cubic] [--read] [--bare N] [-- SYNC OPTIONS]
"""

import argparse
import fcntl
import json
import multiprocessing
import os
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001
MTU = 1500
NEAR, FAR = "10.77.31.1", "10.77.31.2"
KEY, SECRET = "EXAMPLEKEYID", "example/secret/of/a/test"


def call(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, **options)


def tun(name):
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN_NO_PI))
    return device


def carry(source, to, rate, delay, queue_time, counts, index):
    """Carries packets one way: `rate` bytes a second, `delay` seconds, `queue_time` seconds of packets waiting."""
    waiting, free = deque(), 0.0
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            try:
                os.write(to, waiting.popleft()[1])
            except OSError:
                pass
        timeout = max(0.0, waiting[0][0] - now) if waiting else None
        ready, _, _ = select.select([source], [], [], timeout)
        if not ready:
            continue
        for _ in range(64):
            try:
                packet = os.read(source, 65536)
            except BlockingIOError:
                break
            now = time.monotonic()
            free = max(free, now)
            if free - now > queue_time:
                counts[index + 2] += 1
                continue
            free += len(packet) / rate
            counts[index] += len(packet)
            waiting.append((free + delay, packet))


class Line:
    def __init__(self, rate, rtt, congestion):
        self.names = [f"ebsfs-near-{os.getpid()}", f"ebsfs-far-{os.getpid()}"]
        # Bytes up and down, packets dropped up and down.
        self.counts = multiprocessing.Array("Q", 4, lock=False)
        devices = []
        for number, name in enumerate(self.names):
            device = f"ebsl{os.getpid() % 100000}{number}"
            call("ip", "netns", "add", name)
            devices.append(tun(device))
            call("ip", "link", "set", device, "netns", name)
            own, other = (NEAR, FAR) if number == 0 else (FAR, NEAR)
            inside = f"""ip link set lo up
                ip addr add {own}/32 dev {device}
                ip link set {device} mtu {MTU} txqueuelen 20000 up
                ip route add {other} dev {device} src {own} congctl {congestion}"""
            call(*self.within(number), "sh", "-ec", inside)
        # What a router holds: as much as the line carries in a round trip, but not less than a few packets.
        queue_time = max(rtt, 16 * MTU / rate)
        ways = [(devices[0], devices[1], 0), (devices[1], devices[0], 1)]
        self.ways = [
            multiprocessing.Process(
                target=carry, args=(source, to, rate, rtt / 2, queue_time, self.counts, index), daemon=True
            )
            for source, to, index in ways
        ]
        for way in self.ways:
            way.start()

    def within(self, number):
        return ["nsenter", f"--net=/run/netns/{self.names[number]}"]

    def close(self):
        for way in self.ways:
            way.terminate()
        for name in self.names:
            call("ip", "netns", "del", name)


RECEIVE = """
import socket, threading
server = socket.create_server(("%s", 9001))
def drain(connection):
    while connection.recv(1 << 20):
        pass
    connection.sendall(b"1")
while True:
    threading.Thread(target=drain, args=(server.accept()[0],), daemon=True).start()
""" % FAR
SEND = """
import socket, sys, threading
bytes_each = int(sys.argv[2])
def send():
    connection = socket.create_connection(("%s", 9001))
    left = bytes_each
    while left:
        left -= connection.send(bytes(min(left, 1 << 18)))
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
threads = [threading.Thread(target=send) for _ in range(int(sys.argv[1]))]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
""" % FAR


def bare(line, connections, mib):
    """Seconds for the same bytes on bare connections: what the line and TCP allow."""
    receiver = subprocess.Popen([*line.within(1), sys.executable, "-c", RECEIVE])
    time.sleep(1)
    began = time.monotonic()
    call(*line.within(0), sys.executable, "-c", SEND, connections, (mib << 20) // connections)
    took = time.monotonic() - began
    receiver.kill()
    receiver.wait()
    return took


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ebsfs", default="target/release/ebsfs")
    parser.add_argument("--rclone", default="target/clients/bin/rclone")
    parser.add_argument("--mbit", type=float, default=200)
    parser.add_argument("--rtt", type=float, default=300, help="milliseconds")
    parser.add_argument("--mib", type=int, default=300)
    parser.add_argument("--congestion", default="cubic")
    parser.add_argument("--read", action="store_true", help="read it back too")
    parser.add_argument("--bare", type=int, metavar="N", help="first send the same bytes on N bare connections")
    parser.add_argument("options", nargs="*", help="further options of the sync")
    args = parser.parse_args()
    rate = args.mbit * 1e6 / 8
    line = Line(rate, args.rtt / 1000, args.congestion)
    with tempfile.TemporaryDirectory() as folder:
        server = None
        try:
            if args.bare:
                took = bare(line, args.bare, args.mib)
                share = round((args.mib << 20) / took / rate, 3)
                way = f"{args.bare} bare connections"
                print(json.dumps({"way": way, "seconds": round(took, 1), "share_of_line": share}), flush=True)
            os.makedirs(f"{folder}/objects/bucket/replicas")
            server = subprocess.Popen(
                [*line.within(1), args.rclone, "serve", "s3", "--config", "/dev/null", "--auth-key", f"{KEY},{SECRET}"]
                + ["--addr", f"{FAR}:9000", f"{folder}/objects"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(2)
            image = f"{folder}/image.raw"
            with open("/dev/urandom", "rb") as random, open(image, "wb") as out:
                for _ in range(args.mib):
                    out.write(random.read(1 << 20))
            environment = dict(
                os.environ,
                AWS_ACCESS_KEY_ID=KEY,
                AWS_SECRET_ACCESS_KEY=SECRET,
                AWS_REGION="us-east-1",
                AWS_ENDPOINT_URL_S3=f"http://{FAR}:9000",
                AWS_EC2_METADATA_DISABLED="true",
                EBSFS_STATE_DIR=f"{folder}/state",
            )
            repository = "s3://bucket/replicas"

            def ebsfs(*command):
                before = list(line.counts)
                began, cpu = time.monotonic(), os.times()
                call(*line.within(0), args.ebsfs, *command, env=environment)
                took, cpu_after = time.monotonic() - began, os.times()
                used = cpu_after.children_user + cpu_after.children_system - cpu.children_user - cpu.children_system
                moved = [after - before for after, before in zip(line.counts, before)]
                return took, used, moved

            ebsfs("repository", "init", f"file://{folder}/objects/bucket/replicas")
            runs = [("into", ["sync", image, repository, "--volume", "v", "--progress", "none", *args.options])]
            if args.read:
                back = [f"{repository}#latest", f"{folder}/back.raw", "--progress", "none", *args.options]
                runs.append(("out of", ["sync", *back]))
            for what, command in runs:
                took, used, moved = ebsfs(*command)
                reached = (args.mib << 20) / took
                print(
                    json.dumps(
                        {
                            "way": what,
                            "mbit": args.mbit,
                            "rtt_ms": args.rtt,
                            "mib": args.mib,
                            "congestion": args.congestion,
                            "seconds": round(took, 1),
                            "bytes_a_second": round(reached),
                            "share_of_line": round(reached / rate, 3),
                            "ebsfs_cpu_seconds": round(used, 1),
                            "bytes_up_down": moved[:2],
                            "dropped_up_down": moved[2:],
                        }
                    ),
                    flush=True,
                )
            if args.read:
                call("cmp", image, f"{folder}/back.raw")
        finally:
            if server:
                server.terminate()
                server.wait()
            line.close()


if __name__ == "__main__":
    sys.exit(main())
