"""ReelKV from Python, with nothing but the published protos.

    pip install -r client/examples/python/requirements.txt
    REELKV_ADDR=127.0.0.1:7301 python client/examples/python/quickstart.py

Stubs are generated into a temporary directory. Requests name no route, so any node takes them and
passes them on. Exits non-zero on a wrong result.
"""

import os
import pathlib
import struct
import sys
import tempfile
import zlib

import grpc
from grpc_tools import protoc

PROTO_ROOT = pathlib.Path(__file__).resolve().parents[3] / "proto"
TIMEOUT_S = 10


def generate_stubs(directory):
    """Compiles reelkv/v1/*.proto and makes the result importable."""
    files = [f"reelkv/v1/{name}.proto" for name in ("error", "meta", "kv", "admin")]
    arguments = ["protoc", f"-I{PROTO_ROOT}", f"--python_out={directory}", f"--grpc_python_out={directory}"]
    if protoc.main(arguments + files) != 0:
        sys.exit("the protos do not compile")
    sys.path.insert(0, directory)


def client_crc(keyspace_id, key, value):
    """The checksum that travels with a record: see Record.client_crc in kv.proto."""
    return zlib.crc32(struct.pack(">II", keyspace_id, len(key)) + key + value)


def check(condition, what):
    if not condition:
        sys.exit(f"wrong result: {what}")


def main():
    with tempfile.TemporaryDirectory() as directory:
        generate_stubs(directory)
        from reelkv.v1 import admin_pb2, admin_pb2_grpc, error_pb2, kv_pb2, kv_pb2_grpc

    def error_of(rpc_error):
        """The node's own error, carried as the binary details of the status."""
        for name, value in rpc_error.trailing_metadata() or ():
            if name == "grpc-status-details-bin":
                return error_pb2.Error.FromString(value)
        raise rpc_error

    addr = os.environ.get("REELKV_ADDR", "127.0.0.1:7301")
    with grpc.insecure_channel(addr) as channel:
        kv, admin = kv_pb2_grpc.KvStub(channel), admin_pb2_grpc.AdminStub(channel)
        name = "example_python"
        try:
            keyspace = admin.CreateKeyspace(admin_pb2.CreateKeyspaceRequest(name=name), timeout=TIMEOUT_S).keyspace_id
        except grpc.RpcError as rpc_error:
            check(error_of(rpc_error).WhichOneof("kind") == "already_exists", "create keyspace")
            directory = admin.GetDirectory(admin_pb2.GetDirectoryRequest(), timeout=TIMEOUT_S)
            keyspace = next(k.keyspace_id for k in directory.keyspaces if k.name == name)
        print(f"keyspace {name} has number {keyspace}")

        def put(key, value, condition=None):
            request = kv_pb2.PutRequest(
                keyspace_id=keyspace, key=key, value=value,
                client_crc=client_crc(keyspace, key, value), condition=condition,
            )
            return kv.Put(request, timeout=TIMEOUT_S).version

        version = put(b"alien", b"1979")
        print(f"put alien, version {version}")
        record = kv.Get(kv_pb2.GetRequest(keyspace_id=keyspace, key=b"alien"), timeout=TIMEOUT_S).record
        check((record.key, record.value, record.version) == (b"alien", b"1979", version), record)
        check(record.client_crc == client_crc(keyspace, record.key, record.value), "checksum")
        print(f"get alien: {record.value!r}")

        newer = put(b"alien", b"restored", kv_pb2.Condition(version=version))
        check(newer > version, "versions rise")
        try:
            put(b"alien", b"late", kv_pb2.Condition(version=version))
            check(False, "a stale condition held")
        except grpc.RpcError as rpc_error:
            error = error_of(rpc_error)
            check(error.WhichOneof("kind") == "condition_failed", error)
            check(error.condition_failed.current_version == newer, error)
            print(f"refused, as it should be: {error.message}")

        put(b"brazil", b"1985")
        request = kv_pb2.ScanRequest(keyspace_id=keyspace, start_key=b"a", end_key=b"c")
        records = [r for page in kv.Scan(request, timeout=TIMEOUT_S) for r in page.records]
        for r in records:
            check(r.client_crc == client_crc(keyspace, r.key, r.value), "checksum")
            print(f"scan: {r.key!r} = {r.value!r}")
        check([r.key for r in records] == [b"alien", b"brazil"], records)


if __name__ == "__main__":
    main()
