"""A model on a server that speaks KServe's protocol v2 (Triton, KServe, OpenVINO Model Server), over HTTP or gRPC."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from functools import cached_property, partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from alexdeploy.arrays import Batch, Logits
from alexdeploy.errors import InputError, UnavailableError, UsageError, in_a_line, one_line
from alexdeploy.optional import require
from alexdeploy.runners.base import Runner, check_input, logits_among, one_row_each
from alexdeploy.specs import TensorSpec, find_logits

ModelConfig = Any  # a message of tritonclient, which has no types
_T = TypeVar("_T")
_SCHEMES = ("http", "https", "grpc", "grpcs")
_EXAMPLES = "http://127.0.0.1:8000 or grpc://127.0.0.1:8001"
_HEAD = "Inference-Header-Content-Length"  # bytes of JSON before the tensors
_TOLD = {  # what a server tells of a model → gRPC's method in tritonclient, and the message
    "": ("get_model_metadata", "ModelMetadataResponse"),
    "config": ("get_model_config", "ModelConfig"),
    "stats": ("get_inference_statistics", "ModelStatisticsResponse"),
}
# what gRPC calls a request that is not as it should be, and no answer; everything else is trouble of the server
_REFUSALS = frozenset(
    f"StatusCode.{name}"
    for name in ("INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE", "FAILED_PRECONDITION", "UNIMPLEMENTED")
)
_SILENCE = frozenset(f"StatusCode.{name}" for name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"))
_BUSY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)  # and these, though they are 4xx
_LONGEST = 300  # characters of other people's words


@dataclass(frozen=True)
class Counters:
    """What a server has counted of a model since it was loaded; differences tell of the time between.

    Attributes:
        inferences: images that were computed.
        executions: calls of the model; ``inferences / executions`` is the mean batch.
        queue_ns, compute_ns: of all requests together, waiting and being computed (a batch counts for each of its own).
        requests, failed: that were answered, and that were not.
    """

    inferences: int
    executions: int
    queue_ns: int
    compute_ns: int
    requests: int
    failed: int

    def __sub__(self, earlier: Counters) -> Counters:
        return Counters(*(now - then for now, then in zip(astuple(self), astuple(earlier), strict=True)))


class KServeRunner(Runner):
    """A model on a server; threads may share it.

    Args:
        url: ``http://host:8000``, ``https://…``, ``grpc://host:8001`` or ``grpcs://…``; HTTP where there is no scheme.
        model: its name on the server.
        version: empty for the one that the server chooses, which is the newest.
        timeout_s: seconds that one answer may take.

    Attributes:
        inputs, outputs: that the server tells of, with the batch as first dimension; bytes are of type ``object``.
        versions: of the model that are ready, ascending.

    Raises:
        UsageError: no such URL.
        UnavailableError: from every call that gets no answer of this protocol; tritonclient is not installed.
        InputError: from every call that the server refuses; the message has its own words.

    Example:
        >>> from alexdeploy.runners.kserve import KServeRunner  # doctest: +SKIP
        >>> with KServeRunner("http://127.0.0.1:8000", "digits") as runner:  # doctest: +SKIP
        ...     runner.infer(images).shape
        (3, 10)
    """

    tf32 = None

    def __init__(self, url: str, model: str, *, version: str = "", timeout_s: float = 30.0) -> None:
        scheme, address = parse_url(url)
        self.runtime = f"kserve-{scheme[:4]}"
        self._asked = _Asked(url, model, version)
        self._connected = (_Grpc if scheme.startswith("grpc") else _Http)(scheme, address, self._asked, timeout_s)
        try:
            found = self._wire.told("")
            self.inputs = [self._spec(tensor) for tensor in found.inputs]
            self.outputs = [self._spec(tensor) for tensor in found.outputs]
            if not self.inputs or not self.outputs:
                raise self._asked.odd(f"has {len(self.inputs)} inputs and {len(self.outputs)} outputs")
        except BaseException:
            self.close()
            raise
        self.versions = sorted(found.versions, key=lambda name: (len(name), name))
        self.input = self.inputs[0]  # infer checks that it takes images: ask is for other models too
        logits = find_logits(self.outputs)
        self.classes = logits.classes if logits is not None else None

    def infer(self, batch: Batch) -> Logits:
        """As of any runner, in one request.

        Raises:
            InputError: the model takes no images, or it is not clear which output holds the logits.
        """
        logits = self._logits
        self.check_batch(batch)
        found = self._request({self.input.name: batch}, [logits], 0)[logits.name]
        return one_row_each(self._asked.read(lambda: np.array(found, np.float32)))  # a copy, which may be written

    def ask(self, inputs: Mapping[str, npt.NDArray[Any]], *, top: int = 0) -> dict[str, npt.NDArray[Any]]:
        """All outputs by name, in one request; read-only.

        Args:
            inputs: by name; encoded bytes in an array of type ``object``.
            top: where > 0, each output is its ``top`` largest values, best first, as bytes ``value:index:label``
                (Triton's classification extension).

        Raises:
            UsageError: an array of a type that the protocol does not have.
        """
        return self._request(inputs, self.outputs, top)

    def config(self) -> ModelConfig:
        """The model's configuration as the server uses it, with what it filled in itself.

        Raises:
            InputError: the server is not Triton and tells none.
        """
        return self._wire.told("config")

    def counters(self) -> Counters | None:
        """What the server has counted; None where it does not count."""
        try:
            models = self._wire.told("stats").model_stats  # one of each version
        except InputError:
            return None
        spent = [one.inference_stats for one in models]
        return Counters(
            inferences=sum(one.inference_count for one in models),
            executions=sum(one.execution_count for one in models),
            queue_ns=sum(one.queue.ns for one in spent),
            compute_ns=sum(one.compute_input.ns + one.compute_infer.ns + one.compute_output.ns for one in spent),
            requests=sum(one.success.count for one in spent),
            failed=sum(one.fail.count for one in spent),
        )

    def _release(self) -> None:
        self._wire.close()

    @property
    def _wire(self) -> _Http | _Grpc:
        self.check_process()  # two processes on one connection would read each other's answers
        return self._connected

    @cached_property
    def _logits(self) -> TensorSpec:
        origin = f"{self._asked.url}: model '{self._asked.model}'"
        check_input(self.inputs, origin)
        return logits_among(self.outputs, origin)

    def _request(
        self, inputs: Mapping[str, npt.NDArray[Any]], outputs: list[TensorSpec], top: int
    ) -> dict[str, npt.NDArray[Any]]:
        wanted = [self._wire.library.InferRequestedOutput(output.name, class_count=top) for output in outputs]
        answer = self._wire.infer([self._tensor(name, array) for name, array in inputs.items()], wanted)
        found = {output.name: self._asked.read(partial(answer.as_numpy, output.name)) for output in outputs}
        for name, told in [(output.name, "object" if top else output.dtype) for output in outputs]:
            if found[name] is None:
                raise self._asked.odd(f"gave no '{name}'")
            if found[name].dtype != told:
                raise self._asked.odd(f"gave '{name}' as {found[name].dtype}, and told of {told}")
        return found

    def _tensor(self, name: str, array: npt.NDArray[Any]) -> Any:
        kind = require("tritonclient.utils").np_to_triton_dtype(array.dtype)
        if kind is None:
            raise UsageError(f"'{name}' is an array of type {array.dtype}, which the protocol does not have")
        tensor = self._wire.library.InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(np.ascontiguousarray(array))
        return tensor

    def _spec(self, tensor: Any) -> TensorSpec:
        dtype = require("tritonclient.utils").triton_to_np_dtype(tensor.datatype)
        if dtype is None:
            raise self._asked.odd(f"has '{tensor.name}' of type '{tensor.datatype}'")
        return TensorSpec(tensor.name, tuple(tensor.shape), np.dtype(dtype).name)


@dataclass(frozen=True)
class _Asked:
    """Whom a request is for, and what is said when it fails."""

    url: str
    model: str
    version: str

    def refused(self, words: str) -> InputError:
        return InputError(f"{self.url}: refuses a request to '{self}': {_line(words)}")

    def no_answer(self, why: str) -> UnavailableError:
        return UnavailableError(
            f"{self.url}: no answer about '{self}' ({_line(why)}); start the server, or name where it listens, such "
            f"as {_EXAMPLES}"
        )

    def failed(self, words: str) -> UnavailableError:
        return UnavailableError(f"{self.url}: fails on a request to '{self}': {_line(words)}; see the server's log")

    def odd(self, what: str) -> UnavailableError:
        return UnavailableError(f"{self.url}: '{self}' {_line(what)}; expected a server of KServe's protocol v2")

    def closed(self) -> UsageError:
        return UsageError(f"{self.url}: this runner was closed; open another")

    @np.errstate(over="ignore")  # of JSON numbers that float32 does not hold, which are infinite then
    def read(self, read: Callable[[], _T]) -> _T:
        """What a server gave, by a library that trusts it."""
        try:
            return read()
        except Exception as error:  # of JSON that has another form, or of tensors of another size than they say
            raise self.odd(f"gave something else: {in_a_line(error)}") from error

    def __str__(self) -> str:
        return f"{self.model}, version {self.version}" if self.version else self.model


class _Http:
    """The protocol over HTTP, by tritonclient's bodies on the standard library's connections, one of each thread.

    tritonclient's own HTTP client leaves the four file descriptors of a gevent loop behind with each thread that ends.
    """

    def __init__(self, scheme: str, address: str, asked: _Asked, timeout_s: float) -> None:
        self.library = require("tritonclient.http")
        self._asked, self._timeout_s = asked, timeout_s
        self._kind = HTTPSConnection if scheme == "https" else HTTPConnection
        self._host, _, folder = address.partition("/")
        version = f"/versions/{quote(asked.version, safe='')}" if asked.version else ""
        self._path = f"{folder and '/' + folder}/v2/models/{quote(asked.model, safe='')}{version}"
        self._lock, self._own = threading.Lock(), threading.local()
        self._connections: WeakSet[HTTPConnection] | None = WeakSet()  # that of a thread goes with the thread

    def told(self, what: str) -> Any:
        """The message that gRPC would give of the model itself, its ``config`` or its ``stats``."""
        from google.protobuf import json_format  # comes with tritonclient

        _, content = self._exchanged("GET", f"/{what}" if what else "")
        # a newer server may tell more than this tritonclient knows
        return self._asked.read(
            lambda: json_format.ParseDict(json.loads(content), _message(what), ignore_unknown_fields=True)
        )

    def infer(self, given: list[Any], wanted: list[Any]) -> Any:
        """Tritonclient's ``InferResult``."""
        client = self.library.InferenceServerClient
        body, size = client.generate_request_body(given, outputs=wanted)
        headers = {} if size is None else {_HEAD: str(size)}
        answer, content = self._exchanged("POST", "/infer", body, headers)
        head = answer.getheader(_HEAD)
        return self._asked.read(
            lambda: client.parse_response_body(content, header_length=None if head is None else int(head))
        )

    def close(self) -> None:
        with self._lock:
            connections, self._connections = self._connections, None
        for connection in connections or ():
            connection.close()

    def _exchanged(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = MappingProxyType({})
    ) -> tuple[HTTPResponse, bytes]:
        connection = self._connection()
        used = connection.sock is not None
        send = partial(_exchange, connection, method, self._path + path, body, headers)
        try:
            try:
                answer, content = send()
            except ConnectionError:
                connection.close()
                if not used or self._connections is None:
                    raise
                answer, content = send()  # the server had closed it while nothing was asked
        except Exception as error:  # of any kind where another thread closes the connection meanwhile
            connection.close()
            raise (self._asked.no_answer(in_a_line(error)) if self._connections else self._asked.closed()) from error
        if answer.status != HTTPStatus.OK:
            words = _words(content) or answer.reason
            if 400 <= answer.status < 500 and answer.status not in _BUSY:
                raise self._asked.refused(words)
            raise self._asked.failed(f"{answer.status}: {words}")
        return answer, content

    def _connection(self) -> HTTPConnection:
        found: HTTPConnection | None = getattr(self._own, "connection", None)
        with self._lock:
            if self._connections is None:
                raise self._asked.closed()
            if found is None:
                found = self._own.connection = self._kind(self._host, timeout=self._timeout_s)
                self._connections.add(found)
        return found


class _Grpc:
    """The protocol over gRPC; one client serves all threads."""

    def __init__(self, scheme: str, address: str, asked: _Asked, timeout_s: float) -> None:
        self.library = require("tritonclient.grpc")
        self._asked, self._timeout_s = asked, timeout_s
        self._client = self.library.InferenceServerClient(address, ssl=scheme == "grpcs")

    def told(self, what: str) -> Any:
        """The message of the model itself, its ``config`` or its ``stats``."""
        answer = self._called(_TOLD[what][0], self._asked.model, self._asked.version)
        return answer.config if what == "config" else answer

    def infer(self, given: list[Any], wanted: list[Any]) -> Any:
        """Tritonclient's ``InferResult``."""
        return self._called("infer", self._asked.model, given, model_version=self._asked.version, outputs=wanted)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None

    def _called(self, method: str, *args: Any, **options: Any) -> Any:
        client = self._client
        if client is None:
            raise self._asked.closed()
        try:
            return getattr(client, method)(*args, **options, client_timeout=self._timeout_s)
        except require("tritonclient.utils").InferenceServerException as error:
            if error.status() in _REFUSALS:
                raise self._asked.refused(error.message()) from error
            words = f"{error.status()}: {error.message()}"
            raise (self._asked.no_answer if error.status() in _SILENCE else self._asked.failed)(words) from error
        except ValueError as error:  # closed meanwhile, by another thread
            raise self._asked.closed() from error


def _message(what: str) -> Any:
    module = require(f"tritonclient.grpc.{'model_config_pb2' if what == 'config' else 'service_pb2'}")
    return getattr(module, _TOLD[what][1])()


def _exchange(
    connection: HTTPConnection, method: str, path: str, body: bytes, headers: Mapping[str, str]
) -> tuple[HTTPResponse, bytes]:
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer, answer.read()


def _words(content: bytes) -> str:
    """What a server says of a failure; the protocol's is {"error": …}."""
    text = content.decode(errors="replace")
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        return str(json.loads(text)["error"])
    return text


def _line(text: str) -> str:
    return one_line(" ".join(text.split()))[:_LONGEST]


def parse_url(url: str) -> tuple[str, str]:
    """(scheme, what tritonclient takes: host:port, of HTTP with a path); a UsageError where it is no URL."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        grpc, port = parts.scheme.startswith("grpc"), parts.port
    except ValueError:  # no number for a port, or half an IPv6 address
        parts, grpc, port = urlsplit(""), False, None
    path = parts.path.rstrip("/")
    if (
        parts.scheme not in _SCHEMES
        or not parts.hostname
        or (grpc and (path or port is None))
        or parts.username is not None
        or parts.query
        or parts.fragment
    ):
        raise UsageError(f"'{url}': expected where a server listens, such as {_EXAMPLES}")
    return parts.scheme, parts.netloc + path
