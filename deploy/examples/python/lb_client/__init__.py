"""A client of the load balancer's API.

    from lb_client import Client
    from lb.v1 import table_pb2

    with Client("unix:/run/lbd/lbd.sock") as client:
        for backend in client.backends("web"):
            print(backend.address, backend.weight)
        client.apply([client.create_backend("web", "192.168.3.9", weight=2)])

Whichever of the nodes answers is as good as the others. What may have been applied and was not answered is asked again with the
same id, which applies it once.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, List, Optional, Sequence, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from lb.v1 import cluster_pb2, cluster_pb2_grpc, table_pb2, table_pb2_grpc

__all__ = ["Client", "credentials", "Refused", "Changed", "request_id"]

Answer = TypeVar("Answer")

#: What another attempt may mend, by the same node or another one.
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
#: Between two attempts, in seconds.
_PAUSE = 0.2


class Refused(Exception):
    """The cluster does not do it: why, and what it is about."""

    def __init__(self, error: grpc.RpcError) -> None:
        self.code: grpc.StatusCode = error.code()
        self.reason = ""
        #: The field or the rule, such as "mutations[3].ports".
        self.subject = ""
        status = rpc_status.from_call(error) if isinstance(error, grpc.Call) else None
        details: Iterable[Any] = status.details if status is not None else ()
        for detail in details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                self.reason, self.subject = info.reason, info.metadata.get("subject", "")
        super().__init__(error.details())


class Changed(Refused):
    """What was read has changed since: read it again and decide anew."""


def request_id() -> str:
    """An id that carries its time (UUIDv7, RFC 9562 5.7): such are remembered for an hour."""
    made = int(time.time() * 1000).to_bytes(6, "big")
    random = bytearray(os.urandom(10))
    random[0] = 0x70 | random[0] & 0x0F
    random[2] = 0x80 | random[2] & 0x3F
    text = (made + bytes(random)).hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def credentials(cert: Path, key: Path, ca: Path) -> grpc.ChannelCredentials:
    """For endpoints HOST:PORT: whom to show oneself as, from files as "lbctl pki issue" makes them."""
    return grpc.ssl_channel_credentials(ca.read_bytes(), key.read_bytes(), cert.read_bytes())


class Client:
    """Calls one of several nodes, and the next one when it does not answer."""

    def __init__(
        self,
        *endpoints: str,
        credentials: Optional[grpc.ChannelCredentials] = None,
        timeout: float = 10.0,
        patience: float = 30.0,
    ) -> None:
        """Endpoints: "unix:PATH", or "HOST:PORT" with credentials. timeout: of one call. patience: of all attempts at it."""
        self._timeout, self._patience = timeout, patience
        self._at = 0

        def connect(endpoint: str) -> grpc.Channel:
            if credentials is not None and not endpoint.startswith("unix:"):
                return grpc.secure_channel(endpoint, credentials)
            return grpc.insecure_channel(endpoint)

        self._channels = [connect(endpoint) for endpoint in endpoints or ("unix:/run/lbd/lbd.sock",)]

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def _call(self, call: Callable[[grpc.Channel], Answer]) -> Answer:
        """Calls until a node answers."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return call(self._channels[self._at % len(self._channels)])
            except grpc.RpcError as error:
                if error.code() not in _AGAIN or time.monotonic() > deadline:
                    refused = Refused(error)
                    if refused.subject == "expected_revision":
                        raise Changed(error) from error
                    raise refused from error
                self._at += 1
                time.sleep(_PAUSE)

    def status(self) -> cluster_pb2.GetStatusResponse:
        """The cluster at a glance."""
        request = cluster_pb2.GetStatusRequest(brief=True)
        return self._call(lambda c: cluster_pb2_grpc.ClusterServiceStub(c).GetStatus(request, timeout=self._timeout))

    def _pages(self, request: Any, call: Callable[[Any], Callable[..., Any]]) -> Iterator[Any]:
        while True:
            page = self._call(lambda c: call(table_pb2_grpc.TableServiceStub(c))(request, timeout=self._timeout))
            yield page
            if not page.next_page_token:
                return
            request.page_token, request.at_least_revision = page.next_page_token, page.revision

    def revision(self) -> int:
        """The table's revision now."""
        page = next(self._pages(table_pb2.ListSegmentsRequest(page_size=1), lambda t: t.ListSegments))
        return int(page.revision)

    def vips(self) -> List[table_pb2.Vip]:
        return [vip for page in self._pages(table_pb2.ListVipsRequest(), lambda t: t.ListVips) for vip in page.vips]

    def services(self) -> List[table_pb2.Service]:
        pages = self._pages(table_pb2.ListServicesRequest(), lambda t: t.ListServices)
        return [service for page in pages for service in page.services]

    def backends(self, service: str = "") -> List[table_pb2.Backend]:
        """Of a service, or all."""
        pages = self._pages(table_pb2.ListBackendsRequest(service=service), lambda t: t.ListBackends)
        return [backend for page in pages for backend in page.backends]

    @staticmethod
    def create_backend(service: str, address: str, **settings: Any) -> table_pb2.Mutation:
        backend = table_pb2.Backend(service=service, address=address, **settings)
        return table_pb2.Mutation(create_backend=table_pb2.CreateBackendRequest(backend=backend))

    def apply(
        self,
        mutations: Sequence[table_pb2.Mutation],
        *,
        expected_revision: int = 0,
        dry_run: bool = False,
        id: Optional[str] = None,
    ) -> table_pb2.MutationResponse:
        """Makes all changes or none, once, however often it has to be asked for. Raises Changed if the configuration has
        changed since expected_revision."""
        id = id or request_id()

        def parts() -> Iterable[table_pb2.ApplyRequest]:
            # As many as surely fit into a message.
            for start in range(0, max(len(mutations), 1), 5000):
                yield table_pb2.ApplyRequest(
                    request_id=id,
                    expected_revision=expected_revision,
                    dry_run=dry_run,
                    mutations=mutations[start : start + 5000],
                )

        return self._call(lambda c: table_pb2_grpc.TableServiceStub(c).ApplyStream(parts(), timeout=self._timeout))

    def watch(self, from_revision: int = 0) -> Iterator[table_pb2.WatchResponse]:
        """Every change in order, for ever: when a node ends, the next one goes on where it was."""
        while True:
            request = table_pb2.WatchRequest(from_revision=from_revision)
            channel = self._channels[self._at % len(self._channels)]
            try:
                for message in table_pb2_grpc.TableServiceStub(channel).Watch(request):
                    from_revision = message.revision or from_revision
                    yield message
            except grpc.RpcError as error:
                if error.code() not in _AGAIN:
                    raise Refused(error) from error
            self._at += 1
            time.sleep(_PAUSE)
