"""Second opinions for scripts/oracle: the Sleuth Kit and dissect.target on partitions whose journal is empty.

Neither replays a journal, so they read a partition that the kernel has replayed. Where one differs from the oracle, ebsfs agrees
with the oracle; what is known of the reasons is in EXPLAINED. A difference without a reason is a failure of scripts/oracle.
"""

import collections
import io
import re
import stat
import subprocess

from oracle_tree import stream_digest

# Files that the Sleuth Kit reads of each partition: each is a process.
MOST_READ = 150
LARGEST = 100 << 20
# Tool, pattern of a form, member (or *): why they differ. None as a reason: the tool does not read such a form at all.
EXPLAINED = [
    ("dissect", "ext.*", "mtime", "times before 1970 and after 2038 are read without the bits of the epoch"),
    ("dissect", "xfs-1k", "missing names", "folders whose blocks are larger than those of the filesystem are read wrong"),
    ("dissect", "btrfs.*", "errors", "times before 1970 are an overflow"),
    ("dissect", "ext.*", "uid", "the upper 16 bits are not read"),
    ("dissect", "ext.*", "gid", "the upper 16 bits are not read"),
    ("dissect", "ntfs.*", "kind", "links and devices of Interix are files"),
    ("dissect", "ntfs.*", "errors", "links of Interix are files"),
    ("dissect", "ntfs", "bytes", "a compressed file of one cluster is read wrong"),
    ("dissect", "fat.*", "missing names", "the flags of lower case in short names are not read"),
    ("dissect", "fat.*", "more names", "the flags of lower case in short names are not read; the label is a file"),
    ("sleuthkit", "fat.*", "missing names", "long names are cut"),
    ("sleuthkit", "fat.*", "more names", "long names are cut; the label is a file"),
    ("dissect", "fat32-few", "*", "FAT32 with few clusters is taken for FAT16"),
    ("sleuthkit", "fat32-few", "*", "FAT32 with few clusters is refused"),
    ("dissect", "ext4-bigalloc.*", "*", "clusters of several blocks are not supported"),
    ("sleuthkit", "ext4-bigalloc.*", "*", "clusters of several blocks are not supported"),
    ("dissect", "(ext2|ext3|ext4-plain).*", "bytes", "a file of one hole in a map of blocks is read wrong"),
    ("dissect", "(ext2|ext3|ext4-plain).*", "missing names", "it does not show one name of a large folder"),
    ("dissect", "ext4-(metabg.*|sparse-super2)", "*", "descriptors of groups of groups are not found"),
    ("sleuthkit", "ext4-(metabg.*|sparse-super2)", "*", "descriptors of groups of groups are not found"),
    ("dissect", "ext.*inline.*", "bytes", "data in inodes is read without its second part"),
    ("dissect", "ext.*inline.*", "missing names", "folders in inodes are read wrong"),
    ("dissect", "ext.*inline.*", "more names", "folders in inodes are read wrong"),
    ("dissect", "ext.*inline.*", "kind", "folders in inodes are read wrong"),
    ("dissect", "ext.*inline.*", "mode", "folders in inodes are read wrong"),
    ("dissect", "ext.*inline.*", "errors", "folders in inodes are read wrong"),
    ("sleuthkit", "ext.*inline.*", "bytes", "data in inodes is not read"),
    ("sleuthkit", "ext.*inline.*", "missing names", "folders in inodes are not read"),
    ("sleuthkit", "ext.*", "more names", "it takes the remains of removed entries for names"),
    ("sleuthkit", "ext.*", "refused", "it refuses a file whose extents need a tree of three levels"),
]


def reason(tool, form, member):
    for one, pattern, which, why in EXPLAINED:
        if one == tool and re.fullmatch(pattern, form.name) and which in ("*", member):
            return why
    return None


def ranges(disk, sector):
    """Where partitions begin, as dissect.volume reads the table; None without a table."""
    from dissect.volume.disk import Disk

    with open(disk, "rb") as file:
        try:
            return {partition.offset for partition in Disk(file, sector_size=sector).partitions}
        except Exception:
            return None


class Opinion:
    """Where a tool and the oracle differ."""

    def __init__(self, tool, form):
        self.tool, self.form = tool, form
        self.files, self.compared = 0, 0
        self.found = collections.defaultdict(list)

    def differ(self, member, path, ours="", theirs=""):
        self.found[member].append(f"{path!r}: {str(ours)[:80]} is {str(theirs)[:80]} in the oracle")

    def lines(self):
        yield f"{self.tool}: {self.files} files, {self.compared} with their bytes"
        for member, examples in self.found.items():
            why = reason(self.tool, self.form, member)
            verdict = "explained" if why else "UNEXPLAINED"
            yield f"{self.tool}: {verdict}: {member} of {len(examples)}: {why or ', '.join(examples[:3])}"

    def unexplained(self):
        return [member for member in self.found if not reason(self.tool, self.form, member)]


def is_chosen(path, number):
    """All files outside of the large folders, and some of those."""
    return number % 200 == 0 if path.startswith((b"/many/", b"/new/")) else True


def names(opinion, seen, truth):
    for path in sorted(truth.keys() - seen):
        opinion.differ("missing names", path)
    for path in sorted(seen - truth.keys()):
        opinion.differ("more names", path)


def sleuth_kit(form, image, truth):
    opinion = Opinion("sleuthkit", form)
    kind = {"ext": "ext", "ntfs": "ntfs", "fat": "fat"}[form.family]
    listing = subprocess.run(["fls", "-f", kind, "-r", "-p", "-u", image], capture_output=True, check=False, timeout=300)
    if listing.returncode != 0:
        opinion.differ("no answer", b"/", listing.stderr.decode(errors="replace").strip())
        return opinion
    seen, inodes = {b"/"}, {}
    controls = {re.sub(rb"[\0-\x1f]", b"^", path): path for path in truth if re.search(rb"[\0-\x1f]", path)}
    for line in listing.stdout.splitlines():
        found = re.fullmatch(rb"(.)/(.) ([0-9-]+):\t(.*)", line)
        if not found or found[1] == b"v" or found[4].startswith(b"$"):
            continue
        path = b"/" + found[4]
        # It prints control characters so.
        path = controls.get(path, path)
        # A stream of NTFS has its name behind a colon.
        if form.family == "ntfs" and (b":" in found[4] or found[3].rpartition(b"-")[0].endswith(b"-144") and path in seen):
            continue
        seen.add(path)
        inodes[path] = found[3].decode()
    opinion.files = len(seen)
    names(opinion, seen, truth)
    for number, path in enumerate(sorted(seen & truth.keys())):
        one = truth[path]
        if one.get("kind") != 8 or one["size"] > LARGEST or not is_chosen(path, number) or opinion.compared >= MOST_READ:
            continue
        opinion.compared += 1
        read = subprocess.run(["icat", "-f", kind, image, inodes[path]], capture_output=True, check=False, timeout=120)
        ours = stream_digest(io.BytesIO(read.stdout), max(one["size"], len(read.stdout)))
        if read.returncode != 0:
            opinion.differ("refused", path, read.stderr.decode(errors="replace")[:70])
        elif ours != one["bytes"]:
            opinion.differ("bytes", path, f"{len(read.stdout)} bytes {read.stderr[:50]!r}", one["size"])
    return opinion


def dissect(form, image, truth):
    from dissect.target import filesystem

    opinion = Opinion("dissect", form)
    with open(image, "rb") as file:
        try:
            volume = filesystem.open(file)
        except Exception as error:
            opinion.differ("no answer", b"/", error)
            return opinion
        seen, waiting = {b"/"}, [(b"/", volume.get("/"))]
        number = 0
        while waiting:
            above, folder = waiting.pop()
            try:
                entries = list(folder.scandir())
            except Exception as error:
                opinion.differ("folders", above, repr(error))
                continue
            for entry in entries:
                name = entry.name.encode("utf-8", "surrogateescape")
                if name in (b".", b"..") or (form.family == "ntfs" and above == b"/" and name.startswith(b"$")):
                    continue
                path = (above if above != b"/" else b"") + b"/" + name
                if path in seen:
                    continue
                seen.add(path)
                number += 1
                if path not in truth:
                    continue
                try:
                    one = entry.get()
                    look(opinion, path, one, truth[path], number)
                    if truth[path].get("kind") == 4:
                        waiting.append((path, one))
                except Exception as error:
                    opinion.differ("errors", path, repr(error))
        opinion.files = len(seen)
        names(opinion, seen, truth)
    return opinion


def look(opinion, path, entry, truth, number):
    """One file as dissect.target reads it."""
    status = entry.lstat()
    found = {"kind": stat.S_IFMT(status.st_mode) >> 12, "mtime": getattr(status, "st_mtime_ns", None), "size": status.st_size}
    members = ["kind", "mtime"]
    if opinion.form.family in ("ext", "xfs", "btrfs"):
        found |= {"mode": status.st_mode & 0o7777, "uid": status.st_uid, "gid": status.st_gid}
        members += ["mode", "uid", "gid"]
    for member in members:
        if found[member] != truth[member]:
            opinion.differ(member, path, found[member], truth[member])
    if truth["kind"] == 10 and "target" in truth:
        target = entry.readlink().encode("utf-8", "surrogateescape").hex()
        if target != truth["target"]:
            opinion.differ("target", path, bytes.fromhex(target), bytes.fromhex(truth["target"]))
    if truth["kind"] != 8:
        return
    if found["size"] != truth["size"]:
        opinion.differ("size", path, found["size"], truth["size"])
    elif truth["size"] <= LARGEST and is_chosen(path, number):
        opinion.compared += 1
        if stream_digest(entry.open(), truth["size"]) != truth["bytes"]:
            opinion.differ("bytes", path, "", truth["size"])


def opinions(form, image, truth):
    found = [dissect(form, image, truth)]
    if form.family in ("ext", "ntfs", "fat"):
        found.append(sleuth_kit(form, image, truth))
    return found
