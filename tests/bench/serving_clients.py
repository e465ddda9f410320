"""Clients that cost little: requests are encoded once, and each thread sends them over a connection of its own."""

from __future__ import annotations

import http.client
import threading
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from alexdeploy.arrays import Logits
from alexdeploy.errors import InputError, UnavailableError
from tests.serving.server import Server

TIMEOUT_S = 60.0
Arrays = dict[str, npt.NDArray[Any]]
Answer = dict[str, npt.NDArray[Any]]  # by output


class Http:
    """One connection that sends prepared requests."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection(server.http.removeprefix("http://"), timeout=TIMEOUT_S)

    @staticmethod
    def prepare(model: str, arrays: Arrays) -> Any:
        inputs = []
        for name, array in arrays.items():
            inputs.append(tritonclient.http.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        body, length = tritonclient.http.InferenceServerClient.generate_request_body(inputs)
        return f"/v2/models/{model}/infer", bytes(body), {"Inference-Header-Content-Length": str(length)}

    def ask(self, prepared: Any) -> Answer:
        try:
            self._connection.request("POST", *prepared)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()  # the next request opens it again
            raise UnavailableError(f"no answer: {error!r}") from error
        if response.status != 200:
            raise InputError(f"{response.status}: {content[:300].decode(errors='replace')}")
        length = int(response.headers["Inference-Header-Content-Length"])
        result = tritonclient.http.InferenceServerClient.parse_response_body(content, header_length=length)
        return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}

    def close(self) -> None:
        self._connection.close()


class Grpc:
    """One channel that sends prepared requests."""

    def __init__(self, server: Server) -> None:
        own = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(server.grpc.removeprefix("grpc://"), own)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    @staticmethod
    def prepare(model: str, arrays: Arrays) -> Any:
        request = service_pb2.ModelInferRequest(model_name=model)
        for name, array in arrays.items():
            request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
            text = array.dtype == np.object_
            request.raw_input_contents.append(serialize_byte_tensor(array).item() if text else array.tobytes())
        return request

    def ask(self, prepared: Any) -> Answer:
        try:
            result = tritonclient.grpc.InferResult(self._stub.ModelInfer(prepared, timeout=TIMEOUT_S))
        except grpc.RpcError as error:
            raise UnavailableError(f"no answer: {error!r}"[:300]) from error
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    def close(self) -> None:
        self._channel.close()


PROTOCOLS: dict[str, type[Http] | type[Grpc]] = {"HTTP": Http, "gRPC": Grpc}


class Clients:
    """Of one model; ``ask`` is for any thread."""

    def __init__(self, protocol: str, server: Server, model: str, requests: list[Arrays]) -> None:
        self._kind, self._server = PROTOCOLS[protocol], server
        self._prepared = [self._kind.prepare(model, request) for request in requests]
        self._own, self._opened = threading.local(), list[Http | Grpc]()

    def ask(self, index: int) -> Answer:
        """The answer to a request.

        Raises:
            InputError, UnavailableError: it was refused, or not answered.
        """
        if not hasattr(self._own, "client"):
            self._own.client = self._kind(self._server)
            self._opened.append(self._own.client)
        answer: Answer = self._own.client.ask(self._prepared[index])
        return answer

    def close(self) -> None:
        """Close what the threads opened; the next ones that ask open their own."""
        while self._opened:
            self._opened.pop().close()


def logits_of(answer: Answer) -> Logits:
    return answer["logits"]


def label_of(answer: Answer) -> tuple[str, float]:
    return answer["label"][0, 0].decode(), float(answer["probability"][0, 0])
