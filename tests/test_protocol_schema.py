"""client.proto: it was compiled as it is, and has the public schema's numbers."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from repeater.protocol.centrifugo.protobuf_messages import PACKAGE
from tests import official_protobuf as official
from tests.deadlines import PROCESS_STARTS
from tests.processes import starts_processes

ROOT = Path(__file__).parent.parent
PACKAGE_FOLDER = ROOT / "service" / "repeater"
PROTO, COMPILED = PACKAGE_FOLDER / "client.proto", PACKAGE_FOLDER / "client.binpb"

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is not installed"
)

# Serves until everything is up, as a library would.
SERVED = """
import sys
import trio
from repeater import NodeOptions, open_node, open_server

async def main():
    async with open_node(NodeOptions(insecure=True)):
        pass
    async with open_server(NodeOptions(insecure=True), port=0):
        pass

trio.run(main)
print(*(name for name in sys.modules if name.startswith("google.protobuf")))
"""

# Both schemas are loaded in one process, and each reads what the other wrote.
TOGETHER = """
import {first}
import {second}
from centrifuge.protocol import client_pb2
from repeater.protocol.centrifugo.protobuf_format import PROTOBUF
from repeater.publication import Publication

reply = client_pb2.Reply.FromString(PROTOBUF.publication(Publication("news", b"1"))[1:])
command = client_pb2.Command(id=1, presence={{"channel": "news"}}).SerializeToString()
(read,) = PROTOBUF.commands(bytes((len(command),)) + command)
print(reply.push.channel, read.presence.channel)
"""
# Of bytes that are not a message, a text that is not UTF-8, and what is right.
IN_PYTHON = """
from google.protobuf.internal import api_implementation
from repeater.errors import DisconnectError
from repeater.protocol.centrifugo.protobuf_format import PROTOBUF

print(api_implementation.Type())
for message in (b"\\x02\\x08\\x80", b"\\x05\\x6a\\x03\\x12\\x01\\xff", b"\\x02\\x08\\x07"):
    try:
        print(*(command.id for command in PROTOBUF.commands(message)))
    except DisconnectError as error:
        print(error.disconnect.code)
"""
SDK, OURS = "centrifuge", "repeater.protocol.centrifugo.protobuf_format"


def run(*arguments: str, **variables: str) -> str:
    """What a Python process prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=PROCESS_STARTS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def messages() -> dict[str, Any]:
    """The messages of the compiled schema, by name."""
    (file,) = FileDescriptorSet.FromString(COMPILED.read_bytes()).file
    assert file.package == PACKAGE == "repeater.client"
    return {one.name: one for one in file.message_type}


@needs_compiler
@starts_processes
def test_the_compiled_schema_is_the_one_that_is_read(tmp_path: Path) -> None:
    """`just protobuf` would change nothing."""
    compiled = tmp_path / "client.binpb"
    options = (f"--proto_path={PACKAGE_FOLDER}", f"--descriptor_set_out={compiled}")
    run("-m", "grpc_tools.protoc", *options, PROTO.name)
    assert compiled.read_bytes() == COMPILED.read_bytes()


@needs_compiler
@starts_processes
def test_the_compiler_is_not_newer_than_the_least_runtime() -> None:
    """A runtime reads what a compiler of its version or an older one made."""
    said = re.fullmatch(r"libprotoc (\d+)\.(\d+)", run("-m", "grpc_tools.protoc", "--version"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (least,) = (one for one in project["dependencies"] if one.startswith("protobuf"))
    # The versions of Python's runtime have a number of their own before the compiler's.
    allowed = re.fullmatch(r"protobuf>=\d+\.(\d+)\.(\d+)", least)
    assert said
    assert allowed
    assert tuple(map(int, said.groups())) <= tuple(map(int, allowed.groups()))


def test_no_generated_code_is_there() -> None:
    """Classes are made from the descriptor at run time, and only one module makes them."""
    assert not [*PACKAGE_FOLDER.rglob("*_pb2*")]
    importing = [
        path.name
        for path in PACKAGE_FOLDER.rglob("*.py")
        if re.search(r"^\s*(from|import) google\b", path.read_text(), re.MULTILINE)
    ]
    assert importing == ["protobuf_messages.py"]


def test_fields_are_those_of_the_public_schema() -> None:
    """Number, type and place of every field, as the SDK's own copy of the schema has them."""
    for name, ours in messages().items():
        theirs = official.DESCRIPTOR.message_types_by_name[name]
        for field in ours.field:
            younger = official.LACKING.get(name, {}).get(field.name)
            if younger is not None:
                assert field.number == younger
                continue
            other = theirs.fields_by_name[field.name]
            assert (field.number, field.type) == (other.number, other.type), (name, field.name)
            assert (field.label == field.LABEL_REPEATED) is other.is_repeated
            if field.type_name and not other.message_type.GetOptions().map_entry:
                assert field.type_name == f".{PACKAGE}.{other.message_type.name}"


def test_what_is_left_out_of_the_public_messages_is_known() -> None:
    """No field is forgotten: JSON has none of these either."""
    left_out = set()
    for name, ours in messages().items():
        names = {field.name for field in ours.field}
        for field in official.DESCRIPTOR.message_types_by_name[name].fields:
            if field.name not in names:
                left_out.add(f"{name}.{field.name}")
    assert left_out == {
        "Command.ping",
        "ConnectRequest.flag",
        "ConnectResult.time",
        "Disconnect.reconnect",
        "Publication.channel",
        "Publication.time",
        "Push.connect",
        "Push.id",
        "RefreshResult.client",
        "RefreshResult.version",
        "Reply.ping",
        "SubscribeResult.id",
    }


@starts_processes
def test_nothing_is_imported_before_the_first_protobuf_client() -> None:
    """Neither the package, nor a node, nor a server imports `google.protobuf`."""
    assert run("-c", SERVED) == ""


@starts_processes
@pytest.mark.parametrize(("first", "second"), [(SDK, OURS), (OURS, SDK)])
def test_one_process_can_have_the_sdk_too(first: str, second: str) -> None:
    """The SDK's names are in the pool that all share, ours in one of their own."""
    assert run("-c", TOGETHER.format(first=first, second=second)) == "news news"


@starts_processes
def test_the_runtime_without_c_refuses_the_same() -> None:
    """It is what platforms without a wheel get; its errors are others."""
    said = run("-c", IN_PYTHON, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python")
    assert said.split() == ["python", "3501", "3501", "7"]
