"""A model on a server that speaks KServe's protocol v2 (Triton, KServe, OpenVINO Model Server), over HTTP or gRPC."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from alexdeploy.arrays import Batch, Logits
from alexdeploy.errors import InputError, UnavailableError, UsageError, in_a_line
from alexdeploy.optional import require
from alexdeploy.runners.base import Runner, check_input, logits_among, one_row_each
from alexdeploy.specs import TensorSpec, find_logits

ModelConfig = Any  # a message of tritonclient, which has no types
_T = TypeVar("_T")

_SCHEMES = ("http", "https", "grpc", "grpcs")
_EXAMPLES = "http://127.0.0.1:8000 or grpc://127.0.0.1:8001"
# what a server says of a request; everything else is trouble of the server or on the way to it
_REFUSALS = frozenset(
    f"StatusCode.{name}"
    for name in ("INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE", "FAILED_PRECONDITION", "UNIMPLEMENTED")
)
_BUSY = frozenset({"408", "429"})


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
        self.url, self.model, self.version = url, model, version
        self._scheme, self._address = _parsed(url)
        self._timeout_s = timeout_s
        self._closed = False
        self._lock, self._own = threading.Lock(), threading.local()
        self._clients: WeakSet[Any] = WeakSet()  # that of a thread goes with the thread
        self._of_grpc = self._scheme.startswith("grpc")
        self.runtime = "kserve-grpc" if self._of_grpc else "kserve-http"
        self._library = require("tritonclient.grpc" if self._of_grpc else "tritonclient.http")
        self._messages = require("tritonclient.grpc.service_pb2")
        if self._of_grpc:
            self._shared = self._library.InferenceServerClient(self._address, ssl=self._scheme == "grpcs")
        try:
            found = self._asked("get_model_metadata", self._messages.ModelMetadataResponse)
            self.inputs = [self._spec(tensor) for tensor in found.inputs]
            self.outputs = [self._spec(tensor) for tensor in found.outputs]
            if not self.inputs or not self.outputs:
                raise self._odd(f"says that '{model}' has {len(self.inputs)} inputs and {len(self.outputs)} outputs")
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
        return one_row_each(np.array(found, np.float32))  # a copy: what tritonclient gives is read-only

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
        if self._of_grpc:
            return self._called("get_model_config", self.model, self.version).config
        return self._asked("get_model_config", require("tritonclient.grpc.model_config_pb2").ModelConfig)

    def counters(self) -> Counters | None:
        """What the server has counted; None where it does not count."""
        try:
            found = self._asked("get_inference_statistics", self._messages.ModelStatisticsResponse)
        except InputError:
            return None
        models = found.model_stats  # one of each version
        spent = [one.inference_stats for one in models]
        return Counters(
            inferences=sum(one.inference_count for one in models),
            executions=sum(one.execution_count for one in models),
            queue_ns=sum(one.queue.ns for one in spent),
            compute_ns=sum(one.compute_input.ns + one.compute_infer.ns + one.compute_output.ns for one in spent),
            requests=sum(one.success.count for one in spent),
            failed=sum(one.fail.count for one in spent),
        )

    def close(self) -> None:
        with self._lock:
            self._closed = True
            clients = list(self._clients)
            self._clients.clear()
        if self._of_grpc:
            clients.append(self._shared)
        for client in clients:
            client.close()

    @cached_property
    def _logits(self) -> TensorSpec:
        origin = f"{self.url}: model '{self.model}'"
        check_input(self.inputs, origin)
        return logits_among(self.outputs, origin)

    def _request(
        self, inputs: Mapping[str, npt.NDArray[Any]], outputs: list[TensorSpec], top: int
    ) -> dict[str, npt.NDArray[Any]]:
        given = [self._input(name, array) for name, array in inputs.items()]
        wanted = [self._library.InferRequestedOutput(output.name, class_count=top) for output in outputs]
        answer = self._called("infer", self.model, given, model_version=self.version, outputs=wanted)
        found = {output.name: self._read(lambda name=output.name: answer.as_numpy(name)) for output in outputs}
        missing = next((name for name, array in found.items() if array is None), None)
        if missing is not None:
            raise self._odd(f"gave no '{missing}'")
        return found

    def _input(self, name: str, array: npt.NDArray[Any]) -> Any:
        kind = require("tritonclient.utils").np_to_triton_dtype(array.dtype)
        if kind is None:
            raise UsageError(f"'{name}' is an array of type {array.dtype}, which the protocol does not have")
        tensor = self._library.InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(np.ascontiguousarray(array))
        return tensor

    def _asked(self, method: str, kind: Any) -> Any:
        """A message of that kind about this model; gRPC gives just that, HTTP its JSON."""
        answer = self._called(method, self.model, self.version)
        if self._of_grpc:
            return answer
        from google.protobuf import json_format  # comes with tritonclient

        # a newer server may tell more than this tritonclient knows
        return self._read(lambda: json_format.ParseDict(answer, kind(), ignore_unknown_fields=True))

    def _called(self, method: str, *args: Any, **options: Any) -> Any:
        if self._of_grpc:
            options["client_timeout"] = self._timeout_s
        client, refused = self._client(), require("tritonclient.utils").InferenceServerException
        try:
            return getattr(client, method)(*args, **options)
        except refused as error:
            raise self._in_words(error.status(), " ".join(str(error.message()).split())[:300]) from error
        except Exception as error:  # of sockets, TLS, HTTP and JSON, which have no common base
            self._drop(client)
            raise self._no_answer(in_a_line(error)) from error

    def _read(self, read: Callable[[], _T]) -> _T:
        try:
            return read()
        except Exception as error:  # of JSON that has another form, or of tensors of another size than they say
            raise self._odd(f"gave something else: {in_a_line(error)}") from error

    def _client(self) -> Any:
        """The one of this thread; of gRPC one serves all."""
        if self._closed:
            raise UsageError(f"{self.runtime}: the runner was closed; open another")
        if self._of_grpc:
            return self._shared
        client = getattr(self._own, "client", None)
        if client is None:
            client = self._library.InferenceServerClient(
                self._address,
                connection_timeout=self._timeout_s,
                network_timeout=self._timeout_s,
                ssl=self._scheme == "https",
            )
            self._own.client = client
            with self._lock:
                self._clients.add(client)
        return client

    def _drop(self, client: Any) -> None:
        """After a failure half-way an HTTP client may wait for ever for its only connection."""
        if not self._of_grpc:
            self._own.client = None
            client.close()

    def _in_words(self, status: str | None, words: str) -> InputError | UnavailableError:
        refused = status in _REFUSALS or (str(status).startswith("4") and status not in _BUSY)
        if refused:
            return InputError(f"{self.url}: refuses a request to '{self._name}': {words}")
        return self._no_answer(f"{status}: {words}")

    def _no_answer(self, why: str) -> UnavailableError:
        return UnavailableError(
            f"{self.url}: no answer about '{self._name}' ({why}); start the server, or name where it listens, such as "
            f"{_EXAMPLES}"
        )

    def _odd(self, what: str) -> UnavailableError:
        return UnavailableError(f"{self.url}: '{self._name}' {what}; expected a server of KServe's protocol v2")

    @property
    def _name(self) -> str:
        return f"{self.model}, version {self.version}" if self.version else self.model

    def _spec(self, tensor: Any) -> TensorSpec:
        dtype = require("tritonclient.utils").triton_to_np_dtype(tensor.datatype)
        if dtype is None:
            raise self._odd(f"has '{tensor.name}' of type '{tensor.datatype}'")
        return TensorSpec(tensor.name, tuple(tensor.shape), np.dtype(dtype).name)


def _parsed(url: str) -> tuple[str, str]:
    """(scheme, what tritonclient takes: host:port, of HTTP with a path)."""
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
        raise UsageError(f"`url` '{url}': expected where a server listens, such as {_EXAMPLES}")
    return parts.scheme, parts.netloc + path
