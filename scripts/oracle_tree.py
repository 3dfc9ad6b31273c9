"""Trees of files for scripts/oracle: how they are filled, what is recorded of each file, how two records are compared."""

import contextlib
import datetime
import errno
import hashlib
import json
import os
import random
import socket
import stat
import struct
import subprocess

PIECE = 4096


def acl(*entries):
    """An access control list as the kernel takes it: tag, permissions, id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def put(path, data, at=0):
    """Writes bytes into a file at a position, and leaves the rest of it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(handle, data, at)
    finally:
        os.close(handle)


def fragment(folder, pieces, stride=3):
    """Two files whose pieces alternate on the disk, each with more extents than fit into an inode."""
    handles = [os.open(f"{folder}/fragments-{name}", os.O_WRONLY | os.O_CREAT, 0o644) for name in "ab"]
    for number in range(pieces):
        for which, handle in enumerate(handles):
            os.pwrite(handle, bytes([number % 251 + 1, which]) * (PIECE // 2), number * stride * PIECE)
        if number % 50 == 0:
            os.fsync(handles[0])
    for handle in handles:
        os.close(handle)


def fill_posix(root, seed, large_values, large_files, entries):
    """Everything that a filesystem of the kernel can hold."""
    rng = random.Random(seed)
    os.umask(0o022)
    os.chdir(root)
    put("hello.txt", b"hello\n")
    put("empty.txt", b"")
    put("small.bin", rng.randbytes(61))
    put("one-block.bin", rng.randbytes(4096))
    os.makedirs("deep/a/b/c")
    os.mkdir("empty-folder")
    put("deep/a/large.bin", rng.randbytes(3 << 20))
    # Holes at the start, in the middle, at the end.
    last = (5 << 30) if large_files else (70 << 20)
    put("sparse.bin", b"start", 1 << 20)
    put("sparse.bin", b"middle", last // 2 + 13)
    put("sparse.bin", b"end", last - 3)
    os.truncate("sparse.bin", last + 12345)
    put("hole.bin", b"")
    os.truncate("hole.bin", 3 << 20)
    handle = os.open("unwritten.bin", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.posix_fallocate(handle, 0, 1 << 20)
        os.pwrite(handle, b"within", 500_000)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    os.close(handle)
    # Blocks behind the end of the file are no part of it.
    put("kept-size.bin", b"short")
    subprocess.run(
        ["fallocate", "--keep-size", "--offset", "8192", "--length", "65536", "kept-size.bin"],
        check=False,
        stderr=subprocess.DEVNULL,
    )
    fragment(".", 1500)
    os.link("hello.txt", "deep/a/b/hard.txt")
    for number in range(70):
        os.link("small.bin", f"deep/a/b/c/name-{number}")
    os.symlink("hello.txt", "short-link")
    os.symlink("/etc/passwd", "absolute-link")
    os.symlink("../../../../../outside", "up-link")
    for length in (58, 59, 60, 61, 255, 1000):
        os.symlink("t" * min(length, 200) + "/y" * ((length - min(length, 200)) // 2), f"link-{length}")
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod("disk", stat.S_IFBLK | 0o660, os.makedev(259, 70000))
    # XFS refuses it.
    with contextlib.suppress(OSError):
        os.mknod("huge-device", stat.S_IFCHR | 0o600, os.makedev(4095, (1 << 20) - 1))
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
    for name in (
        b"name-\xff\xfe",
        b"two\nlines",
        b"n" * 255,
        b" ",
        b"back\\slash",
        b"-dash",
        "\u00fcml\u00e4ut \u0416 \U0001f600".encode(),
        b"\x01control",
        b"...",
        b"trailing ",
    ):
        put(name, b"of " + name)
    path = "chain"
    for number in range(60):
        path += f"/{number:02}-{'d' * 25}"
    os.makedirs(path)
    put(path + "/bottom", b"bottom")
    os.mkdir("many")
    for number in range(entries):
        put(
            f"many/{'file with a rather long name to fill blocks' if number % 3 else 'f'} {number}",
            b"" if number % 7 else b"%d" % number,
        )
    put("setuid", rng.randbytes(9000))
    os.chown("hello.txt", 1234, 70000)
    os.chown("short-link", 5, 6, follow_symlinks=False)
    os.chown("deep/a/large.bin", 0xFFFFFFFE, 65536)
    os.chmod("setuid", 0o6755)
    os.chmod("empty-folder", 0o3777)
    os.chmod("empty.txt", 0)
    os.setxattr("hello.txt", "user.small", b"value")
    os.setxattr("hello.txt", "user.empty", b"")
    os.setxattr("hello.txt", b"user.\xc3\xbc\xff", b"name of other bytes")
    os.setxattr("hello.txt", "trusted.bytes", b"\0\xff\0")
    os.setxattr("setuid", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.setxattr("deep", "user.large", rng.randbytes(large_values))
    for number in range(5):
        os.setxattr("deep/a/b", f"user.number-{number}", rng.randbytes(20 + number * 25))
    # Files that share a block of attributes.
    for number in range(4):
        put(f"shared-{number}", b"")
        os.setxattr(f"shared-{number}", "user.shared", b"s" * 500)
    none = 0xFFFFFFFF
    os.setxattr(
        "deep/a/large.bin",
        "system.posix_acl_access",
        acl((1, 6, none), (2, 4, 1000), (4, 4, none), (8, 5, 70000), (16, 6, none), (32, 0, none)),
    )
    os.setxattr("deep", "system.posix_acl_default", acl((1, 7, none), (4, 5, none), (8, 7, 77), (16, 7, none), (32, 5, none)))
    times(".")


def times(folder):
    """Times before 1970, after 2038, with nanoseconds."""
    for number, seconds in enumerate((-(1 << 31), -1, 0, (1 << 31) - 1, 1 << 31, (1 << 32) + 5, 0x37FFFFFFF)):
        path = f"{folder}/time-{number}"
        put(path, b"t")
        os.utime(path, ns=(seconds * 10**9 + 123456789, seconds * 10**9 + 999999999 * (number % 2)))


def use_posix(root, seed):
    """Changes some files and syncs them, and then others without a sync. Returns what must stay open."""
    rng = random.Random(seed + 1)
    os.chdir(root)
    for number in range(0, 200, 3):
        os.unlink(f"many/{'file with a rather long name to fill blocks' if number % 3 else 'f'} {number}")
    for number in range(300):
        os.makedirs(f"new/{number}")
        put(f"new/{number}/file", b"%d" % number)
    os.rename("deep/a/b/c", "moved")
    os.unlink("fragments-b")
    for number in range(20):
        put(f"again-{number}", rng.randbytes(100_000))
    os.truncate("one-block.bin", 100)
    put("hello.txt", b"a line more\n", 6)
    os.setxattr("hello.txt", "user.late", b"l" * 300)
    # Removed while it is open: its inode is an orphan in the snapshot.
    put("orphan", rng.randbytes(50_000))
    orphan = os.open("orphan", os.O_RDONLY)
    os.unlink("orphan")
    put("appended", b"x" * 10_000)
    handle = os.open("appended", os.O_WRONLY | os.O_APPEND)
    os.write(handle, b"synced")
    os.fsync(handle)
    subprocess.run(["sync", "--file-system", "."], check=True)
    for number in range(100):
        put(f"fsynced-{number}", rng.randbytes(3000))
        if number % 5 == 0:
            one = os.open(f"fsynced-{number}", os.O_RDONLY)
            os.fsync(one)
            os.close(one)
    os.write(handle, b"never synced" * 1000)
    for number in range(100):
        put(f"new/{number}/late", b"late %d" % number)
    os.rename("new/299", "renamed-late")
    os.truncate("deep/a/large.bin", 1_000_000)
    one = os.open("new", os.O_RDONLY)
    os.fsync(one)
    os.close(one)
    return [orphan, handle]


def fill_ntfs(root, seed, entries, is_compressing, has_devices):
    """What ntfs-3g can make."""
    rng = random.Random(seed)
    os.chdir(root)
    put("hello.txt", b"hello\n")
    put("empty.txt", b"")
    put("resident.bin", rng.randbytes(600))
    put("two-clusters.bin", rng.randbytes(8000))
    os.makedirs("deep/a/b")
    os.mkdir("empty-folder")
    put("deep/a/large.bin", rng.randbytes(3 << 20))
    put("sparse.bin", b"start", 1 << 20)
    put("sparse.bin", b"middle", 20_000_013)
    put("sparse.bin", b"end", (40 << 20) - 3)
    os.truncate("sparse.bin", (40 << 20) + 12345)
    put("hole.bin", b"")
    os.truncate("hole.bin", 3 << 20)
    # Their lists of runs need several records.
    fragment(".", 900)
    os.link("hello.txt", "deep/a/hard.txt")
    for number in range(60):
        os.link("resident.bin", f"deep/a/b/a rather long name of the same file {number}")
    os.symlink("hello.txt", "link")
    os.symlink("/etc/passwd", "absolute-link")
    os.symlink("x" * 200 + "/y", "long-link")
    if has_devices:
        os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod("disk", stat.S_IFBLK | 0o660, os.makedev(8, 17))
    os.mkfifo("pipe")
    for name in ("with blanks.text", "\u00fcml\u00e4ut", "\u0416\U0001f600", "n" * 255, "two\nlines", "...", "Upper", "UPPER2"):
        put(name, name.encode())
    path = "chain"
    for number in range(40):
        path += f"/{number:02}-{'d' * 20}"
    os.makedirs(path)
    put(path + "/bottom", b"bottom")
    os.mkdir("many")
    for number in range(entries):
        put(f"many/{'file with a rather long name' if number % 3 else 'f'} {number}", b"" if number % 7 else b"%d" % number)
    os.setxattr("hello.txt", "user.stream", b"an alternate stream")
    for number in range(20):
        os.setxattr("deep/a/large.bin", f"user.stream-{number}", rng.randbytes(150))
        # The index of a large folder gets into another record.
        os.setxattr("many", f"user.stream-{number}", rng.randbytes(140))
    # ntfs-3g loses fractions before 1970.
    for number, nanoseconds in enumerate((-1_500_000_000 * 10**9, 0, 100, (1 << 32) * 10**9 + 500)):
        put(f"time-{number}", b"t")
        os.utime(f"time-{number}", ns=(10**18, nanoseconds))
    if not is_compressing:
        return
    os.mkdir("packed")
    # New files in a folder with the flag are compressed.
    os.setxattr("packed", "system.ntfs_attrib_be", struct.pack(">I", 0x810))
    text = b"".join(b"%d\n" % number for number in range(200_000))
    put("packed/text", text)
    put("packed/random", rng.randbytes(300_000))
    put("packed/zeroes", bytes(1_000_000))
    put("packed/mixed", text[:60_000] + bytes(200_000) + rng.randbytes(70_000) + text[:50_000])
    for size in (1, 700, 4095, 4096, 4097, 65_535, 65_536, 65_537):
        put(f"packed/size-{size}", (text * 2)[:size])
    put("packed/sparse", text[:10_000], 5_000_000)
    put("packed/sparse", text[:10_000], 20_000_000)
    put("packed/cut", text)
    os.truncate("packed/cut", 777_777)
    for number in range(60):
        for which in "ab":
            put(f"packed/pieces-{which}", text[number * 100 : number * 100 + 30_000], number * 65_536)


def use_ntfs(root, seed, is_compressing):
    """Changes files of a mounted volume; the last ones are not synced."""
    rng = random.Random(seed + 1)
    os.chdir(root)
    for number in range(0, 200, 3):
        os.unlink(f"many/f {number}")
    for number in range(100):
        os.makedirs(f"new/{number}")
        put(f"new/{number}/file", b"%d" % number)
    os.rename("deep/a/b", "moved")
    os.unlink("fragments-b")
    for number in range(20):
        put(f"again-{number}", rng.randbytes(100_000))
    os.truncate("two-clusters.bin", 100)
    put("hello.txt", b"a line more\n", 6)
    handle = os.open("appended", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(handle, b"synced" * 2000)
    os.fsync(handle)
    if is_compressing:
        put("packed/late", b"".join(b"late %d\n" % number for number in range(50_000)))
    os.write(handle, b"never synced" * 1000)
    put("late", rng.randbytes(20_000))
    return [handle]


def fill_fat(root, seed, entries):
    """A tree of the host for mtools."""
    rng = random.Random(seed)
    os.chdir(root)
    put("README.TXT", b"hello")
    put("empty", b"")
    put("lower.txt", b"lower")
    put("Mixed.Txt", b"mixed")
    put("large.bin", rng.randbytes(3 << 20))
    for name in (
        "A long name with blanks.text",
        "\u00fcml\u00e4ut \u0416.txt",
        "n" * 200,
        "dots.in.name.tar.gz",
        "+,;=[]",
        "trailing~1",
    ):
        put(name, name.encode())
    os.makedirs("folder/deep/er")
    for size in (1, 511, 512, 513, 4095, 4096, 4097, 70_000):
        put(f"folder/deep/er/size-{size}", rng.randbytes(size))
    path = "chain"
    for number in range(8):
        path += f"/{number}-{'d' * 12}"
    os.makedirs(path)
    put(path + "/bottom", b"bottom")
    os.mkdir("gaps")
    for number in range(60):
        put(f"gaps/file-{number}", bytes([number]) * 9000)
    os.mkdir("many")
    for number in range(entries):
        put(f"many/{'long name' if number % 3 else 'F'}{number}", b"" if number % 7 else b"%d" % number)
    for number, seconds in enumerate((315532800, 951782400, 1234567890, 4102444798)):
        put(f"time-{number}", b"t")
        os.utime(f"time-{number}", (seconds, seconds))


def digest(path, size):
    """The bytes of a file and where they are; zeroes count as a hole."""
    found = hashlib.sha256(b"%d" % size)
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME)
    try:
        at = 0
        while at < size:
            try:
                at = os.lseek(handle, at, os.SEEK_DATA) // PIECE * PIECE
                end = os.lseek(handle, max(at, 0), os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise
            end = max(-(-end // PIECE) * PIECE, at + PIECE)
            while at < end:
                data = os.pread(handle, min(1 << 20, end - at), at)
                if not data:
                    break
                add_pieces(found, data, at)
                at += len(data)
            at = max(at, end)
    finally:
        os.close(handle)
    return found.hexdigest()


def add_pieces(found, data, at):
    """Adds the pieces of some bytes that are not zero."""
    if data.count(0) == len(data):
        return
    for start in range(0, len(data), PIECE):
        piece = data[start : start + PIECE].rstrip(b"\0")
        if piece:
            found.update(struct.pack("<QI", at + start, len(piece)) + piece)


def stream_digest(stream, size):
    """The same of a stream."""
    found = hashlib.sha256(b"%d" % size)
    at = 0
    while at < size:
        data = stream.read(min(1 << 20, size - at))
        while data and len(data) % PIECE and at + len(data) < size:
            more = stream.read(PIECE - len(data) % PIECE)
            if not more:
                break
            data += more
        if not data:
            return "short"
        add_pieces(found, data, at)
        at += len(data)
    return found.hexdigest()


def record(path, has_bytes=True):
    """What is known of one file."""
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    found = {
        "kind": kind >> 12,
        "mode": status.st_mode & 0o7777,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "inode": status.st_ino,
        "mtime": status.st_mtime_ns,
        "atime": status.st_atime_ns,
        "ctime": status.st_ctime_ns,
        "links": status.st_nlink,
    }
    try:
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            found["device"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
        if kind == stat.S_IFLNK:
            found["target"] = os.fsencode(os.readlink(path)).hex()
        else:
            names = os.listxattr(path, follow_symlinks=False)
            found["xattrs"] = {
                os.fsencode(name).hex(): os.getxattr(path, name, follow_symlinks=False).hex() for name in sorted(names)
            }
        if kind == stat.S_IFREG:
            found["size"] = status.st_size
            if has_bytes:
                found["bytes"] = digest(path, status.st_size)
    except OSError as error:
        found["error"] = errno.errorcode.get(error.errno, str(error.errno))
    return found


def manifest(root, has_bytes=True):
    """All files below a folder, by path."""
    root = os.fsencode(root)
    found = {b"/": record(root, has_bytes)}
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            names = os.listdir(folder)
        except OSError as error:
            found[folder[len(root) :] or b"/"]["error"] = errno.errorcode.get(error.errno)
            continue
        for name in names:
            path = folder + b"/" + name
            try:
                one = record(path, has_bytes)
            except OSError as error:
                one = {"error": errno.errorcode.get(error.errno)}
            found[path[len(root) :]] = one
            if one.get("kind") == 4:
                waiting.append(path)
    groups = {}
    for path in sorted(found):
        one = found[path]
        if one.get("kind") == 8:
            one["same"] = groups.setdefault(one["inode"], path.hex())
    return found


def differences(ours, theirs, members, is_left_out=lambda path, member: False):
    """Lines that say where two records differ in these members."""
    lines = []
    for path in sorted(ours.keys() | theirs.keys()):
        if is_left_out(path, None):
            continue
        if path not in ours or path not in theirs:
            lines.append(f"{path!r}: only in {'the oracle' if path in theirs else 'ebsfs'}")
            continue
        for member in members:
            one, other = ours[path].get(member), theirs[path].get(member)
            if one != other and not is_left_out(path, member):
                lines.append(f"{path!r}: {member}: {str(one)[:120]} is {str(other)[:120]} in the oracle")
    return lines


def nanoseconds(text):
    """A time of JSON, since 1970."""
    if text is None:
        return None
    if text.startswith("@"):
        return int(text[1:]) * 10**9
    whole, fraction = text.rstrip("Z").split(".")
    since = datetime.datetime.fromisoformat(whole) - datetime.datetime(1970, 1, 1)
    return (since.days * 86_400 + since.seconds) * 10**9 + int(fraction)


def listed(text):
    """The records of `ebsfs files find --json`."""
    kinds = {"file": 8, "directory": 4, "symlink": 10, "char_device": 2, "block_device": 6, "fifo": 1, "socket": 12}
    found = {}
    for line in text.splitlines():
        one = json.loads(line)
        path = bytes.fromhex(one["path_hex"]) if "path_hex" in one else one["path"].encode()
        entry = {"kind": kinds.get(one["type"], one["type"]), "mode": int(one["mode"], 8)}
        for member in ("uid", "gid", "links", "inode", "device"):
            if member in one:
                entry[member] = one[member]
        if entry["kind"] == 8:
            entry["size"] = one["size"]
        if "target" in one:
            entry["target"] = one["target_hex"] if "target_hex" in one else one["target"].encode().hex()
        for member, name in (("mtime", "modified"), ("atime", "accessed"), ("ctime", "changed")):
            entry[member] = nanoseconds(one[name])
        found[path] = entry
    return found
