"""Against a real cluster, whose endpoints are in LB_ENDPOINTS. It must have nothing but its nodes."""

import ipaddress
import json
import os
import threading
import time
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, List

from lb.v1 import table_pb2, table_pb2_grpc
from lb_client import Changed, Client, Refused, credentials, request_id
from lb_client.ensure import Wanted, ensure, main

ENDPOINTS = os.environ["LB_ENDPOINTS"].split()
#: For endpoints HOST:PORT: certificate, key, authority.
FILES = [Path(path) for path in os.environ.get("LB_CREDENTIALS", "").split()]


def connect() -> Client:
    return Client(*ENDPOINTS, credentials=credentials(*FILES) if FILES else None)


VIP = "192.168.2.1"
WANTED: Dict[str, List[Dict[str, Any]]] = {
    "vips": [{"address": VIP, "unmatched": "UNMATCHED_REJECT"}],
    "services": [
        {"name": "web", "vip": VIP, "ports": [{"protocol": "PROTOCOL_TCP", "first": 80, "last": 80}], "checks": {}}
    ],
    "backends": [{"service": "web", "address": "192.168.3.5", "weight": 3}],
}


def addresses(count: int) -> List[str]:
    first = ipaddress.ip_address("10.1.0.1")
    return [str(first + number) for number in range(count)]


class Against(unittest.TestCase):
    def setUp(self) -> None:
        self.client = connect()
        self.addCleanup(self.client.close)
        ensure(self.client, Wanted(json.dumps(WANTED)), prune=True)

    def test_what_is_wanted_is_made_once(self) -> None:
        self.assertEqual(ensure(self.client, Wanted(json.dumps(WANTED)), prune=True), [])
        more = json.loads(json.dumps(WANTED))
        more["backends"][0]["weight"] = 5
        more["backends"].append({"service": "web", "address": "192.168.3.6"})
        made = ensure(self.client, Wanted(json.dumps(more)))
        self.assertEqual([mutation.WhichOneof("change") for mutation in made], ["update_backend", "create_backend"])
        self.assertEqual(ensure(self.client, Wanted(json.dumps(more))), [])
        self.assertEqual({b.address: b.weight for b in self.client.backends()}, {"192.168.3.5": 5, "192.168.3.6": 1})
        # The script, too.
        with TemporaryDirectory() as directory:
            file = Path(directory) / "wanted.json"
            file.write_text(json.dumps(WANTED))
            endpoints = [word for endpoint in ENDPOINTS for word in ("--endpoint", endpoint)]
            endpoints += [word for option, file_ in zip(("--cert", "--key", "--ca"), FILES) for word in (option, str(file_))]
            self.assertEqual(main([*endpoints, "--prune", "--dry-run", str(file)]), 0)
            self.assertEqual(len(self.client.backends()), 2, "a dry run")
            self.assertEqual(main([*endpoints, "--prune", str(file)]), 0)
        self.assertEqual([backend.weight for backend in self.client.backends()], [3])

    def test_errors_name_what_is_wrong(self) -> None:
        good = self.client.create_backend("web", "192.168.3.7")
        with self.assertRaises(Refused) as caught:
            self.client.apply([good, self.client.create_backend("web", "nowhere")])
        self.assertEqual((caught.exception.subject, caught.exception.reason), ("mutations[1].address", "INVALID_ARGUMENT"))
        revision = self.client.revision()
        self.client.apply([good])
        with self.assertRaises(Changed):
            self.client.apply([self.client.create_backend("web", "192.168.3.8")], expected_revision=revision)

    def test_a_request_is_made_once(self) -> None:
        id = request_id()
        mutations = [self.client.create_backend("web", "192.168.3.9")]
        first = self.client.apply(mutations, id=id)
        delete = table_pb2.DeleteBackendRequest(service="web", address="192.168.3.9")
        self.client.apply([table_pb2.Mutation(delete_backend=delete)])
        self.assertEqual(self.client.apply(mutations, id=id), first)
        self.assertEqual(len(self.client.backends()), 1, "it was not made again")

    def test_a_thousand_backends_are_watched_as_they_arrive(self) -> None:
        seen: List[str] = []
        enough = threading.Event()

        def follow(from_revision: int) -> None:
            with connect() as other:
                for message in other.watch(from_revision):
                    # What is found of backends is told, too.
                    come = [change.backend for change in message.changes if not change.backend.HasField("before")]
                    seen.extend(backend.after.address for backend in come)
                    if len(seen) >= 2000:
                        return enough.set()

        thread = threading.Thread(target=follow, args=(self.client.revision(),), daemon=True)
        thread.start()
        begun = time.monotonic()
        self.client.apply([self.client.create_backend("web", a, mac="02:00:00:00:00:01") for a in addresses(1000)])
        at_once = time.monotonic() - begun
        begun = time.monotonic()
        table = table_pb2_grpc.TableServiceStub(self.client._channels[0])
        for address in addresses(2000)[1000:]:
            mac = "02:00:00:00:00:01"
            backend = table_pb2.Backend(service="web", address=address, mac=mac)
            table.CreateBackend(table_pb2.CreateBackendRequest(backend=backend), timeout=10)
        one_by_one = time.monotonic() - begun
        self.assertTrue(enough.wait(30), f"{len(seen)} of 2000 were told of")
        self.assertEqual(sorted(seen), sorted(addresses(2000)))
        print(f"1000 backends: {at_once:.3f} s in one transaction, {one_by_one:.2f} s one by one", flush=True)


if __name__ == "__main__":
    unittest.main()
