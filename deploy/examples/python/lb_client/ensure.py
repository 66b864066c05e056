"""Makes the table what a file says, in one transaction; what is so already is left alone.

    lb-ensure --endpoint unix:/run/lbd/lbd.sock wanted.json

The file has the API's names:

    {"vips":     [{"address": "192.168.2.1"}],
     "services": [{"name": "web", "vip": "192.168.2.1", "ports": [{"protocol": "PROTOCOL_TCP", "first": 80, "last": 80}]}],
     "backends": [{"service": "web", "address": "192.168.3.5", "weight": 2}]}

It can be run as often as one likes, by several machines at once: what another one has changed meanwhile is read again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Type, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from lb.v1 import table_pb2
from lb_client import Changed, Client, Refused, credentials

Row = TypeVar("Row", bound=Message)

#: What the server sets, or what two rows are told apart by.
_NOT_SETTINGS = {
    "Vip": {"owner", "lease", "epoch", "moving_to", "deleting", "routed", "revision", "problem"},
    "Service": {"revision"},
    "Backend": {
        "revision", "health", "health_reason", "health_since", "draining_since", "drained", "share_eighths", "flows", "drain_ends_s",
    },
}  # fmt: skip


class Wanted:
    """What a file says."""

    def __init__(self, text: str) -> None:
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise SystemExit(f"lb-ensure: it is no JSON: {error}")
        unknown = set(rows) - {"vips", "services", "backends"}
        if unknown:
            raise SystemExit(f"lb-ensure: {', '.join(sorted(unknown))}: only vips, services and backends are known")

        def read(name: str, kind: Type[Row]) -> List[Row]:
            messages = []
            for at, row in enumerate(rows.get(name, [])):
                try:
                    messages.append(json_format.ParseDict(row, kind()))
                except json_format.ParseError as error:
                    raise SystemExit(f"lb-ensure: {name}[{at}]: {error}")
            return messages

        self.vips: List[table_pb2.Vip] = read("vips", table_pb2.Vip)
        self.services: List[table_pb2.Service] = read("services", table_pb2.Service)
        self.backends: List[table_pb2.Backend] = read("backends", table_pb2.Backend)


def _differs(wanted: Message, present: Message) -> bool:
    """Whether a setting that is named differs."""
    ignored = _NOT_SETTINGS[wanted.DESCRIPTOR.name]
    return any(
        getattr(present, field.name) != value for field, value in wanted.ListFields() if field.name not in ignored
    )


def _update(change: Message, wanted: Message) -> None:
    """Has a request change every setting that is named and that it knows."""
    known = change.DESCRIPTOR.fields_by_name
    for field, value in wanted.ListFields():
        if field.name not in known or field.name in _NOT_SETTINGS[wanted.DESCRIPTOR.name]:
            continue
        if isinstance(value, Message):
            getattr(change, field.name).CopyFrom(value)
        elif isinstance(value, (str, int, float)):
            setattr(change, field.name, value)
        else:
            getattr(change, field.name).extend(value)


def changes(client: Client, wanted: Wanted, prune: bool) -> Tuple[int, List[table_pb2.Mutation]]:
    """What has to change, and the revision that this was found at."""
    # First: what changes while the rest is read has a later one.
    revision = client.revision()
    vips: Dict[str, table_pb2.Vip] = {vip.address: vip for vip in client.vips()}
    services: Dict[str, table_pb2.Service] = {service.name: service for service in client.services()}
    backends = {(backend.service, backend.address): backend for backend in client.backends()}
    found: List[table_pb2.Mutation] = []

    for vip in wanted.vips:
        present_vip = vips.pop(vip.address, None)
        if present_vip is None:
            found.append(table_pb2.Mutation(create_vip=table_pb2.CreateVipRequest(vip=vip)))
        elif _differs(vip, present_vip):
            found.append(table_pb2.Mutation(update_vip=table_pb2.UpdateVipRequest(address=vip.address)))
            _update(found[-1].update_vip, vip)
    for service in wanted.services:
        present_service = services.pop(service.name, None)
        if present_service is None:
            found.append(table_pb2.Mutation(create_service=table_pb2.CreateServiceRequest(service=service)))
        elif _differs(service, present_service):
            found.append(table_pb2.Mutation(update_service=table_pb2.UpdateServiceRequest(name=service.name)))
            _update(found[-1].update_service, service)
    for backend in wanted.backends:
        present_backend = backends.pop((backend.service, backend.address), None)
        if present_backend is None:
            found.append(table_pb2.Mutation(create_backend=table_pb2.CreateBackendRequest(backend=backend)))
        elif _differs(backend, present_backend):
            of = table_pb2.UpdateBackendRequest(service=backend.service, address=backend.address)
            found.append(table_pb2.Mutation(update_backend=of))
            _update(found[-1].update_backend, backend)
    if prune:
        for service_name, address in backends:
            delete = table_pb2.DeleteBackendRequest(service=service_name, address=address)
            found.append(table_pb2.Mutation(delete_backend=delete))
        for name in services:
            found.append(table_pb2.Mutation(delete_service=table_pb2.DeleteServiceRequest(name=name)))
        for address in vips:
            found.append(table_pb2.Mutation(delete_vip=table_pb2.DeleteVipRequest(address=address)))
    return revision, found


def ensure(client: Client, wanted: Wanted, *, prune: bool = False, dry_run: bool = False) -> List[table_pb2.Mutation]:
    """Makes it so. What had to change."""
    while True:
        revision, found = changes(client, wanted, prune)
        if not found:
            return found
        try:
            client.apply(found, expected_revision=revision, dry_run=dry_run)
            return found
        except Changed:
            continue


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="lb-ensure", description="Makes the table what a file says.")
    parser.add_argument("--endpoint", action="append", help="unix:PATH or HOST:PORT; can be repeated")
    parser.add_argument("--cert", type=Path, help="for HOST:PORT: the certificate to show")
    parser.add_argument("--key", type=Path, help="its key")
    parser.add_argument("--ca", type=Path, help="the certificate of the cluster's authority")
    parser.add_argument("--prune", action="store_true", help="remove what the file does not name")
    parser.add_argument("--dry-run", action="store_true", help="change nothing, and say what would be changed")
    parser.add_argument("file", help='JSON, or "-" for standard input')
    options = parser.parse_args(arguments)
    wanted = Wanted(sys.stdin.read() if options.file == "-" else Path(options.file).read_text())
    shown = [path for path in (options.cert, options.key, options.ca) if path is not None]
    if len(shown) not in (0, 3):
        parser.error("--cert, --key and --ca go together")
    with Client(*(options.endpoint or ()), credentials=credentials(*shown) if shown else None) as client:
        try:
            found = ensure(client, wanted, prune=options.prune, dry_run=options.dry_run)
        except Refused as refused:
            print(f"lb-ensure: {refused}", file=sys.stderr)
            return 1
    for mutation in found:
        kind = mutation.WhichOneof("change")
        assert kind is not None
        print(kind, json_format.MessageToJson(getattr(mutation, kind), indent=None))
    print(f"{len(found)} changes{' would be made' if options.dry_run else ''}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
