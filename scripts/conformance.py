"""boto3 through every operation of the emulator and its errors; scripts/conformance runs it."""

import base64
import hashlib
import json
import os
import time
import urllib.error
import urllib.request

import boto3
import botocore.exceptions
from botocore.config import Config

BLOCK = 512 * 1024
URL = os.environ["AWS_ENDPOINT_URL"]
# What the service refuses, the client must send.
once = Config(retries={"total_max_attempts": 1}, parameter_validation=False)
ebs = boto3.client("ebs", config=once)
ec2 = boto3.client("ec2", config=once)
passed = 0


def control(path, method="POST"):
    request = urllib.request.Request(f"{URL}/_emulator/{path}", method=method, data=b"" if method == "POST" else None)
    return json.load(urllib.request.urlopen(request))


def check(what, is_so):
    global passed
    assert is_so, what
    passed += 1


def refused(what, code, reason, call, **arguments):
    """The call is refused with this code, reason (None: there is none) and HTTP status."""
    global passed
    status = {"AccessDeniedException": 403, "InvalidSignatureException": 403, "ResourceNotFoundException": 404,
              "ConflictException": 409, "RequestLimitExceeded": 503}.get(code, 400)
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        got = error.response
        assert got["Error"]["Code"] == code, (what, got)
        assert got.get("Reason") == reason, (what, got)
        assert got["ResponseMetadata"]["HTTPStatusCode"] == status, (what, got)
        passed += 1
        return
    raise AssertionError(f"{what}: not refused")


def digest(data):
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def get(snapshot, index, token):
    reply = ebs.get_snapshot_block(SnapshotId=snapshot, BlockIndex=index, BlockToken=token)
    data = reply["BlockData"].read()
    check("length", len(data) == BLOCK == reply["DataLength"])
    check("checksum", reply["Checksum"] == digest(data) and reply["ChecksumAlgorithm"] == "SHA256")
    return data


def blocks_of(snapshot, page=10000):
    found, token = {}, None
    while True:
        arguments = {"NextToken": token} if token else {}
        reply = ebs.list_snapshot_blocks(SnapshotId=snapshot, MaxResults=page, **arguments)
        check("sizes", reply["BlockSize"] == BLOCK and reply["VolumeSize"] >= 1)
        found.update((block["BlockIndex"], block["BlockToken"]) for block in reply["Blocks"])
        token = reply.get("NextToken")
        if not token:
            return found


def put(snapshot, index, data, **changes):
    arguments = {"DataLength": BLOCK, "Checksum": digest(data), "ChecksumAlgorithm": "SHA256", "BlockData": data}
    return ebs.put_snapshot_block(SnapshotId=snapshot, BlockIndex=index, **{**arguments, **changes})


def complete(snapshot, count, **checksum):
    return ebs.complete_snapshot(SnapshotId=snapshot, ChangedBlocksCount=count, **checksum)


def described(snapshot):
    return ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]


# EC2.
volume = ec2.describe_volumes()["Volumes"][0]
check("volume", volume["VolumeId"] == "vol-0c0f" and volume["Size"] == 1)
instance = ec2.describe_instances()["Reservations"][0]["Instances"][0]
check("instance", instance["BlockDeviceMappings"][0]["Ebs"]["VolumeId"] == "vol-0c0f")
check("regions", ec2.describe_regions()["Regions"][0]["RegionName"] == "us-east-1")
check("encryption", ec2.get_ebs_encryption_by_default()["EbsEncryptionByDefault"] is False)
tags = [{"ResourceType": "snapshot", "Tags": [{"Key": "Name", "Value": "a <b> & c"}]}]
first = ec2.create_snapshot(VolumeId="vol-0c0f", Description="first", TagSpecifications=tags)["SnapshotId"]
check("described", described(first)["State"] == "completed" and described(first)["Tags"][0]["Value"] == "a <b> & c")
held = blocks_of(first)
check("full size", described(first)["FullSnapshotSizeInBytes"] == len(held) * BLOCK)
check("by tag", len(ec2.describe_snapshots(Filters=[{"Name": "tag:Name", "Values": ["a <b> & c"]}])["Snapshots"]) == 1)
check("by owner", len(ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]) == 1)
refused("no snapshot", "InvalidSnapshot.NotFound", None, ec2.describe_snapshots, SnapshotIds=["snap-0400dc0055e85b9bf"])
refused("no id of EC2's", "InvalidSnapshotID.Malformed", None, ec2.describe_snapshots, SnapshotIds=["snap-0123"])
refused("ids in pages", "InvalidParameterCombination", None, ec2.describe_snapshots, SnapshotIds=[first], MaxResults=5)
refused("page too small", "InvalidParameterValue", None, ec2.describe_snapshots, MaxResults=4)
refused("no volume", "InvalidVolume.NotFound", None, ec2.create_snapshot, VolumeId="vol-0123")

# Reading.
path = os.path.join(os.path.dirname(os.environ["AWS_SHARED_CREDENTIALS_FILE"]), "volumes", "vol-0c0f.raw")
with open(path, "r+b") as file:
    for index in list(held)[:5]:
        file.seek(index * BLOCK)
        check("bytes", get(first, index, held[index]) == file.read(BLOCK))
    check("small pages", blocks_of(first, 100).keys() == held.keys())
    check("url-safe tokens", all(len(t) > 80 and not set("+/=") & set(t) for t in held.values()))
    last = max(held)
    some = ebs.list_snapshot_blocks(SnapshotId=first, MaxResults=100, StartingBlockIndex=last)
    check("from the last", [block["BlockIndex"] for block in some["Blocks"]] == [last] and not some.get("NextToken"))
    beyond = ebs.list_snapshot_blocks(SnapshotId=first, MaxResults=100, StartingBlockIndex=2048)
    check("past the end", not beyond["Blocks"] and not beyond.get("NextToken"))
    check("no token to expire", abs(beyond["ExpiryTime"].timestamp() - time.time()) < 60)
    lives = {round(ebs.list_snapshot_blocks(SnapshotId=first)["ExpiryTime"].timestamp() - time.time()) for _ in range(20)}
    check("token lives", len(lives) > 10 and 552_000 < min(lives) and max(lives) < 636_000)
    for wrong in (1, 99, 10001):
        refused("page size", "ValidationException", None, ebs.list_snapshot_blocks, SnapshotId=first, MaxResults=wrong)
    refused("negative", "ValidationException", None, ebs.list_snapshot_blocks, SnapshotId=first, StartingBlockIndex=-1)
    one, two = sorted(held)[:2]
    free = next(index for index in range(2000) if index not in held)
    for what, index, token in [("another's token", two, held[one]), ("not held", free, held[one]), ("rubbish", one, "A" * 95)]:
        refused(what, "ValidationException", "INVALID_BLOCK_TOKEN", ebs.get_snapshot_block, SnapshotId=first, BlockIndex=index, BlockToken=token)
    refused("page token", "ValidationException", "INVALID_PAGE_TOKEN", ebs.list_snapshot_blocks, SnapshotId=first, NextToken="A" * 95)
    refused("empty token", "ValidationException", None, ebs.get_snapshot_block, SnapshotId=first, BlockIndex=one, BlockToken="")
    refused("negative", "ValidationException", None, ebs.get_snapshot_block, SnapshotId=first, BlockIndex=-1, BlockToken=held[one])
    refused("no snapshot", "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND", ebs.list_snapshot_blocks, SnapshotId="snap-0123")
    control("expire-tokens")
    refused("expired", "ValidationException", "INVALID_BLOCK_TOKEN", ebs.get_snapshot_block, SnapshotId=first, BlockIndex=one, BlockToken=held[one])

    # EBS lists writes, not differences: a new block, a rewritten one, one rewritten with the same bytes, one zeroed.
    file.seek(free * BLOCK)
    file.write(os.urandom(BLOCK))
    file.seek(one * BLOCK)
    file.write(os.urandom(BLOCK))
    file.flush()
    os.system(f"fallocate --punch-hole --offset {last * BLOCK} --length {BLOCK} '{path}'")
    control(f"volumes/vol-0c0f/touch?block={two}")
second = ec2.create_snapshot(VolumeId="vol-0c0f")["SnapshotId"]


def changed(a, b):
    reply = ebs.list_changed_blocks(FirstSnapshotId=a, SecondSnapshotId=b, MaxResults=100)
    return {c["BlockIndex"]: (bool(c.get("FirstBlockToken")), bool(c.get("SecondBlockToken"))) for c in reply["ChangedBlocks"]}, reply


forward, reply = changed(first, second)
expected = {one: (True, True), two: (True, True), last: (True, False), free: (False, True)}
check("changes", forward == expected)
backward, _ = changed(second, first)
check("backwards", backward == {index: sides[::-1] for index, sides in expected.items()})
same, bare = changed(first, first)
check("with itself", same == {} and set(bare) == {"ChangedBlocks", "ResponseMetadata"})
token = next(c["SecondBlockToken"] for c in reply["ChangedBlocks"] if c["BlockIndex"] == free)
check("its token reads", len(get(second, free, token)) == BLOCK)
refused("no first", "ValidationException", "INVALID_SNAPSHOT_ID", ebs.list_changed_blocks, SecondSnapshotId=second)

# Writing.
data = [os.urandom(BLOCK) for _ in range(3)]
started = ebs.start_snapshot(VolumeSize=2, Description="made", ClientToken="t-1", Tags=[{"Key": "k", "Value": "v"}])
made = started["SnapshotId"]
check("started", started["Status"] == "pending" and started["BlockSize"] == BLOCK and started["VolumeSize"] == 2)
check("the same token", ebs.start_snapshot(VolumeSize=2, Description="made", ClientToken="t-1", Tags=[{"Key": "k", "Value": "v"}])["SnapshotId"] == made)
refused("another request", "ConflictException", None, ebs.start_snapshot, VolumeSize=3, ClientToken="t-1")
refused("pending", "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND", ebs.list_snapshot_blocks, SnapshotId=made)
refused("pending", "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND", ebs.get_snapshot_block, SnapshotId=made, BlockIndex=0, BlockToken="invalid")
refused("pending parent", "ValidationException", "INVALID_SNAPSHOT_ID", ebs.start_snapshot, VolumeSize=2, ParentSnapshotId=made)
for index, block in zip((7, 3, 4095), data):
    put(made, index, block)
refused("beyond", "ValidationException", "INVALID_BLOCK", put, snapshot=made, index=4096, data=data[0])
refused("length", "ValidationException", "INVALID_BLOCK", put, snapshot=made, index=1, data=data[0], DataLength=5)
refused("short", "ValidationException", "INVALID_PARAMETER_VALUE", put, snapshot=made, index=1, data=b"short")
refused("short and said so", "ValidationException", "INVALID_PARAMETER_VALUE", put, snapshot=made, index=1, data=b"short", DataLength=5)
refused("other digest", "ValidationException", "INVALID_PARAMETER_VALUE", put, snapshot=made, index=1, data=data[0], ChecksumAlgorithm="SHA1")
refused("negative", "ValidationException", None, put, snapshot=made, index=-1, data=data[0])
refused("no base64", "ValidationException", None, put, snapshot=made, index=1, data=data[0], Checksum="not-base64!")
refused("progress", "ValidationException", None, put, snapshot=made, index=1, data=data[0], Progress=101)
refused("checksum", "InvalidSignatureException", None, put, snapshot=made, index=1, data=data[0], Checksum=digest(data[1]))
linear = hashlib.sha256(b"".join(hashlib.sha256(data[n]).digest() for n in (1, 0, 2))).digest()
aggregate = {"Checksum": base64.b64encode(linear).decode(), "ChecksumAlgorithm": "SHA256", "ChecksumAggregationMethod": "LINEAR"}
refused("half a checksum", "ValidationException", "INVALID_PARAMETER_VALUE", complete, snapshot=made, count=3, Checksum=aggregate["Checksum"])
complete(made, 3, **aggregate)
ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[made], WaiterConfig={"Delay": 1})
read = blocks_of(made)
check("made", sorted(read) == [3, 7, 4095] and get(made, 3, read[3]) == data[1])
check("again", complete(made, 99)["Status"] == "completed")
refused("after", "ValidationException", "INVALID_SNAPSHOT_ID", put, snapshot=made, index=1, data=data[0])
refused("unrelated", "ValidationException", "UNRELATED_SNAPSHOTS", ebs.list_changed_blocks, FirstSnapshotId=first, SecondSnapshotId=made)
child = ebs.start_snapshot(VolumeSize=2, ParentSnapshotId=made)["SnapshotId"]
put(child, 7, bytes(BLOCK))
complete(child, 1)
check("inherits", sorted(blocks_of(child)) == [3, 7, 4095] and list(changed(made, child)[0]) == [7])
for what, state, count in [("count", "error", 5), ("aggregate", "error", 1)]:
    wrong = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    put(wrong, 0, data[0])
    check("accepted", complete(wrong, count, **(aggregate if what == "aggregate" else {}))["Status"] == "pending")
    check(what, described(wrong)["State"] == state and "mismatch" in described(wrong)["StateMessage"])
refused("key and parent", "ValidationException", "INVALID_PARAMETER_VALUE", ebs.start_snapshot, VolumeSize=2, ParentSnapshotId=made, Encrypted=True)
refused("smaller", "ValidationException", "INVALID_VOLUME_SIZE", ebs.start_snapshot, VolumeSize=1, ParentSnapshotId=made)
refused("no parent", "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND", ebs.start_snapshot, VolumeSize=2, ParentSnapshotId="snap-0123")
key = "arn:aws:kms:us-east-1:111122223333:key/k"
check("key", ebs.start_snapshot(VolumeSize=1, Encrypted=True, KmsKeyArn=key)["KmsKeyArn"] == key)
refused("not encrypted with key", "ValidationException", "INVALID_PARAMETER_VALUE", ebs.start_snapshot, VolumeSize=1, Encrypted=False, KmsKeyArn=key)

# What the switches do.
control("switches?max_pending=1")
refused("too many", "ConcurrentLimitExceededException", None, ebs.start_snapshot, VolumeSize=1)
control("switches?max_pending=100&get_rps=1")
refused("throttled", "RequestThrottledException", "ACCOUNT_THROTTLED", lambda: [get(made, 3, read[3]) for _ in range(3)])
control("switches?get_rps=1000&get_rps_snapshot=1")
refused("throttled", "RequestThrottledException", "RESOURCE_LEVEL_THROTTLE", lambda: [get(made, 3, read[3]) for _ in range(3)])
control("switches?get_rps_snapshot=1000&deny=ebs:GetSnapshotBlock")
refused("denied", "AccessDeniedException", None, ebs.get_snapshot_block, SnapshotId=made, BlockIndex=3, BlockToken=read[3])
control("switches?deny=&empty_page=1")
page = ebs.list_snapshot_blocks(SnapshotId=made, MaxResults=100)
check("empty page", page["Blocks"] == [] and page["NextToken"])
control("switches?empty_page=0&bare_last_page=1&nulls=1")
page = ebs.list_snapshot_blocks(SnapshotId=made, MaxResults=100)
check("bare last page", len(page["Blocks"]) == 3 and "VolumeSize" not in page)
control("switches?bare_last_page=0&nulls=0&visible_ms=600000")
refused("not visible yet", "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND", ebs.list_snapshot_blocks, SnapshotId=made)
control("switches?visible_ms=0&pending_ms=600000")
pending = ec2.create_snapshot(VolumeId="vol-0c0f")["SnapshotId"]
check("pending", described(pending)["State"] == "pending" and "FullSnapshotSizeInBytes" not in described(pending))
control("switches?pending_ms=0")
many = ec2.create_snapshots(InstanceSpecification={"InstanceId": instance["InstanceId"]})["Snapshots"]
check("create snapshots", [snapshot["VolumeId"] for snapshot in many] == ["vol-0c0f"])
ec2.create_tags(Resources=[made], Tags=[{"Key": "later", "Value": "1"}])
check("tagged", {"Key": "later", "Value": "1"} in described(made)["Tags"])

# An account of many snapshots.
control("switches?account_snapshots=2000")
pages = ec2.get_paginator("describe_snapshots").paginate(OwnerIds=["self"], PaginationConfig={"PageSize": 300})
ids = [snapshot["SnapshotId"] for page in pages for snapshot in page["Snapshots"]]
check("account", len(ids) > 2000 and len(set(ids)) == len(ids))
check("one of it", described(ids[-1])["SnapshotId"] == ids[-1] and described(ids[-1])["VolumeSize"] == 8)
check("by filter", len(ec2.describe_snapshots(Filters=[{"Name": "snapshot-id", "Values": ids[-3:]}])["Snapshots"]) == 3)
control("switches?account_snapshots=0&ec2_throttle=1")
refused("throttled", "RequestLimitExceeded", None, ec2.describe_snapshots, OwnerIds=["self"])
control("switches?ec2_throttle=0")

# Replies that have no list in them.
for switch, value in [("lose_list", 1), ("null_list", 1), ("empty_object", 1), ("error_200", 1)]:
    control(f"switches?{switch}={value}")
    check(switch, not ebs.list_snapshot_blocks(SnapshotId=second).get("Blocks"))
    check(switch, not ebs.list_changed_blocks(FirstSnapshotId=first, SecondSnapshotId=second).get("ChangedBlocks"))
    control(f"switches?{switch}=0")
control("switches?page_blocks=1&lose_token_at=2")
page = ebs.list_changed_blocks(FirstSnapshotId=first, SecondSnapshotId=second)
page = ebs.list_changed_blocks(FirstSnapshotId=first, SecondSnapshotId=second, NextToken=page["NextToken"])
check("lost token", page["ChangedBlocks"] and "NextToken" not in page)
control("switches?page_blocks=0&lose_token_at=&cycle=1")
tokens, token = [], {}
for _ in range(4):
    token = {"NextToken": ebs.list_snapshot_blocks(SnapshotId=second, **token)["NextToken"]}
    tokens += token.values()
check("cycle", tokens[:2] == tokens[2:] and tokens[0] != tokens[1])
control("switches?cycle=0")

# Who may use what is not AWS's.
for path, headers, status in [("counters", {}, 200), ("", {}, 200), ("counters", {"Host": "rebound.example"}, 403),
                              ("switches?latency_ms=1", {"Origin": "https://example.org"}, 403),
                              (f"blocks/{made}/3", {}, 403), ("clock?ahead_s=18446744073709551615", {}, 400)]:
    request = urllib.request.Request(f"{URL}/_emulator/{path}", headers=headers, data=b"" if "?" in path else None)
    try:
        got = urllib.request.urlopen(request).status
    except urllib.error.HTTPError as error:
        got = error.code
    check(path, got == status)

# Deleting a snapshot leaves what others share with it.
ec2.delete_snapshot(SnapshotId=first)
refused("deleted", "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND", ebs.list_snapshot_blocks, SnapshotId=first)
rest = blocks_of(second)
shared = next(index for index in rest if index in held and index not in expected)
check("shared", digest(get(second, shared, rest[shared])) != "")

# Signatures.
for key_id, code in [("AKIAOTHER", "UnrecognizedClientException"), (None, "InvalidSignatureException")]:
    own = boto3.Session().get_credentials().access_key
    wrong = boto3.client("ebs", config=once, aws_access_key_id=key_id or own, aws_secret_access_key="wrong")
    try:
        wrong.list_snapshot_blocks(SnapshotId=made)
        raise AssertionError("signed with a wrong key and answered")
    except botocore.exceptions.ClientError as error:
        check("signature", error.response["Error"]["Code"] == code)
elsewhere = boto3.client("ebs", config=once, region_name="eu-west-1")
refused("other Region", "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND", elsewhere.list_snapshot_blocks, SnapshotId=made)
start = time.time()
control("switches?latency_ms=200")
blocks_of(made)
check("latency", time.time() - start >= 0.2)
print(f"boto3: {passed} checks passed")
