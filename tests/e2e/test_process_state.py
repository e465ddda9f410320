"""An application that embeds the package finds its process as it left it: one interpreter, all runtimes in turn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from onnx import helper

from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.zoo.checkpoint import save_checkpoint, untrained
from tests.helpers.docs import ROOT
from tests.helpers.graphs import conv_lrn_gemm

CONTRACT = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.25,) * 3, labels=("ant", "bee", "cat", "dog"))
APPLICATION = r"""
import asyncio, gc, locale, logging, multiprocessing, os, random, signal, socket, sys, threading, warnings
import numpy as np, onnx, onnx_ir, onnxruntime, onnxscript, torch
from PIL import Image, ImageFile
try:
    import openvino
except ModuleNotFoundError:
    openvino = None

logging.basicConfig(level=logging.WARNING)
for name in ("torch", "onnx_ir", "onnxscript", "PIL", "alexdeploy"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.simplefilter("error")  # a choice of the application, and no warning may be raised
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
np.seterr(all="raise")
torch.set_num_threads(3)
umask = os.umask(0o027)
random.seed(7), np.random.seed(7), torch.manual_seed(7)


def state():
    loggers = {name: found for name, found in logging.root.manager.loggerDict.items() if name in NAMES}
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "locale": locale.setlocale(locale.LC_ALL),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "warnings": list(warnings.filters),
        "loggers": {
            name: (found.level, found.handlers[:], found.filters[:], found.propagate, found.disabled)
            for name, found in loggers.items() if isinstance(found, logging.Logger)
        },
        "root": (logging.root.level, logging.root.handlers[:], logging.root.filters[:], logging.root.manager.disable),
        "threads of torch": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "precision of torch": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.backends.fp32_precision),
        "errors of NumPy": np.geterr(),
        "recursion": sys.getrecursionlimit(),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "random": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
        "collector": (gc.isenabled(), gc.get_threshold()),
        "streams": (sys.stdin, sys.stdout, sys.stderr, sys.excepthook, sys.displayhook, threading.excepthook),
        "path": sys.path[:],
        "sockets": socket.getdefaulttimeout(),
        "Pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES),
        "switch": sys.getswitchinterval(),
    }


NAMES = {name for name, found in logging.root.manager.loggerDict.items() if isinstance(found, logging.Logger)}
before = state()
import alexdeploy

photograph = np.full((9, 12, 3), 100, np.uint8)
Image.fromarray(photograph).save("photograph.png")
runtimes = ["onnxruntime-cpu", "pytorch", *(["openvino"] if openvino else [])]
kept = []
for runtime in runtimes:
    file = "lenet.safetensors" if runtime == "pytorch" else "model.onnx"
    with alexdeploy.load(file, runtime=runtime) as runner:
        runner.infer(np.zeros((3, *runner.input.shape[1:]), np.float32))
    with alexdeploy.Classifier(file, runtime=runtime) as classifier:
        [first] = classifier([photograph])
        try:
            with classifier:
                raise KeyError("the application's own")
        except KeyError:
            pass
        try:
            classifier([photograph])
            sys.exit("a closed classifier has answered")
        except ValueError:
            pass
    [prediction] = alexdeploy.predict(file, ["photograph.png"], runtime=runtime)
    left_open = alexdeploy.Classifier(file, runtime=runtime)
    kept.append(left_open)

    async def ask():
        return await asyncio.gather(*(asyncio.to_thread(left_open, [photograph]) for _ in range(20)))

    assert asyncio.run(ask()) == [[first]] * 20
    closer = threading.Thread(target=alexdeploy.load(file, runtime=runtime).close)
    closer.start(), closer.join()
after = state()
wrong = [name for name in before if before[name] != after[name]]
assert os.umask(umask) == 0o027
print(wrong)
for name in wrong:
    pairs = before[name].items() if isinstance(before[name], dict) else enumerate(before[name])
    print([key for key, value in pairs if after[name][key] != value], file=sys.stderr)
"""


def test_load_predict_and_close_leave_the_process_as_it_was(tmp_path: Path) -> None:
    model = conv_lrn_gemm()
    helper.set_model_props(model, {METADATA_KEY: CONTRACT.to_json()})
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    save_checkpoint(tmp_path / "lenet.safetensors", untrained("lenet", 10, seed=0))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{APPLICATION}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
