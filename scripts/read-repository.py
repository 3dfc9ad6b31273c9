#!/usr/bin/env python3
"""Reads a snapshot of an ebsfs repository in a folder, written from docs/format.md alone: read-repository.py FOLDER [NAME IMAGE].

Without NAME it lists the manifests. It needs the module zstandard, or Python 3.14.
"""
import hashlib
import json
import os
import struct
import sys

try:
    from compression import zstd
except ImportError:
    import zstandard as zstd

BLOCK, SEGMENT = 512 << 10, 65_536


def expand(frame, most):
    if hasattr(zstd, "ZstdDecompressor") and hasattr(zstd, "MAX_COMPRESSION_LEVEL"):
        return zstd.ZstdDecompressor().decompress(frame, max_output_size=most)
    return zstd.decompress(frame)


def sha256(*parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def behind_header(magic, data):
    assert data[:8] == magic, f"not {magic.decode()}"
    assert data[8:16] == bytes(8), "sealed"
    return data[32:]


class Repository:
    def __init__(self, folder):
        self.folder = folder
        header = json.loads(self.get("ebsfs-repository.json"))
        assert header["format"] == 2 and header["encryption"] == "none", header
        self.packs = {}

    def get(self, name):
        with open(os.path.join(self.folder, name), "rb") as file:
            return file.read()

    def manifests(self):
        names = sorted(os.listdir(os.path.join(self.folder, "snapshots")))
        firsts = [name for name in names if name.startswith("0-fence-")]
        lasts = [name for name in names if name.startswith("zz-fence-")]
        assert firsts and lasts, "the listing is not complete"
        return [name for name in names if name.count(".") == 2 and name[8:9] == "T"]

    def manifest(self, name):
        data = self.get(f"snapshots/{name}")
        assert sha256(data[:-32]) == data[-32:], "the manifest is damaged"
        if data[:8] == b"ebsfwdr2":
            return None
        manifest = json.loads(behind_header(b"ebsfman2", data[:-32]))
        assert manifest["format"] == 2
        return manifest

    def segment(self, name):
        """(index within the segment, pack, offset, length, SHA-256) of each block."""
        data = self.get(f"segments/{name[:2]}/{name}")
        assert sha256(data).hex() == name, "the segment is damaged"
        data = expand(behind_header(b"ebsfseg2", data), 6 << 20)
        (packs,) = struct.unpack_from("<I", data)
        names = [data[4 + 32 * at:36 + 32 * at].hex() for at in range(packs)]
        at = 4 + 32 * packs
        (count,) = struct.unpack_from("<I", data, at)
        at += 4
        columns = []
        for kind, size in (("H", 2), ("H", 2), ("I", 4), ("I", 4)):
            columns.append(struct.unpack_from(f"<{count}{kind}", data, at))
            at += size * count
        digests = [data[at + 32 * n:at + 32 * n + 32] for n in range(count)]
        assert at + 32 * count == len(data)
        for index, pack, offset, length, digest in zip(*columns, digests):
            yield index, names[pack], offset, length, digest

    def pack(self, name):
        """A whole pack, verified by its name."""
        if name not in self.packs:
            data = self.get(f"packs/{name[:2]}/{name}")
            behind_header(b"ebsfpak2", data)
            assert data[-8:] == b"ebsfend2"
            (count,) = struct.unpack("<I", data[-12:-8])
            assert sha256(data[:32], data[len(data) - 12 - 40 * count:]).hex() == name
            self.packs = {name: data}
        return self.packs[name]

    def restore(self, name, path):
        manifest = self.manifest(name)
        assert manifest, "the snapshot was withdrawn"
        with open(path, "wb") as image:
            image.truncate(manifest["volume_bytes"])
            blocks = 0
            for segment in manifest["segments"]:
                for index, pack, offset, length, digest in self.segment(segment["name"]):
                    stored = self.pack(pack)[offset:offset + (length & 0x7FFFFFFF)]
                    block = expand(stored, BLOCK) if length >> 31 else stored
                    assert sha256(block) == digest, f"block {index} is damaged"
                    image.seek((segment["number"] * SEGMENT + index) * BLOCK)
                    image.write(block)
                    blocks += 1
            assert blocks == manifest["blocks"]
        return manifest.get("damaged", [])


def main():
    repository = Repository(sys.argv[1])
    if len(sys.argv) == 2:
        print("\n".join(repository.manifests()))
        return
    damaged = repository.restore(sys.argv[2], sys.argv[3])
    if damaged:
        print(f"damaged: {damaged}", file=sys.stderr)


main()
