"""Label a folder of photographs with Ray Data, on the cores of this machine or of a cluster.

    pip install 'ray[data]'
    python examples/07_ray_labels.py model.onnx photos labels 2

The last argument is the number of workers; each has a model of its own. ``labels`` becomes a folder of Parquet files
with exactly one row per image: image, label, probability, and why one could not be read. On a cluster (RAY_ADDRESS
names it) all three paths are on a disk that every machine sees. On one machine `alexdeploy predict` does the same
without Ray. A run that was stopped starts from the beginning.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if "RAY_ADDRESS" not in os.environ:  # before Ray is loaded: else a Ray of this machine alone listens on all networks
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pyarrow as pa
import pyarrow.dataset
import ray
import ray.data

from alexdeploy import Classifier
from alexdeploy.errors import AlexdeployError, GateError, InputError, UsageError
from alexdeploy.files import printable
from alexdeploy.runners.artifact import open_artifact
from alexdeploy.runners.predict import find_images

BATCH = 32
ROW = pa.schema(
    [(name, pa.string()) for name in ("image", "label")] + [("probability", pa.float64()), ("error", pa.string())]
)


class Labeller:
    """What runs in each worker."""

    def __init__(self, model: str) -> None:
        self.classifier = Classifier(model, threads=1)  # the workers are the threads

    def __call__(self, batch: pa.Table) -> pa.Table:
        """(path) → one row each."""
        paths = [Path(os.fsdecode(path)) for path in batch["path"].to_pylist()]
        answers = {position: best for position, [best] in self.classifier.ranked(paths, skipped=[])}
        rows = [self.row(path, answers.get(position)) for position, path in enumerate(paths)]
        return pa.Table.from_pylist(rows, ROW)

    def row(self, path: Path, answer: tuple[str, float] | None) -> dict[str, object]:
        """An image that was left out is asked for once more, for the reason."""
        try:
            label, probability = answer or self.classifier([path])[0]
        except InputError as error:
            return {"image": printable(path), "error": str(error)}
        return {"image": printable(path), "label": label, "probability": probability}


def main(model: str, photos: str, labels: str, workers: str) -> None:
    """Write the folder ``labels``; it appears when all is written."""
    target = Path(labels).absolute()
    if target.exists():
        raise UsageError(f"{labels} exists; name a new folder")
    part = target.with_name(f"{target.name}.part")
    # found here, so that a missing model or folder is one line and no traceback of a worker
    images = find_images([Path(photos).absolute()], open_artifact(model).contract.labels)
    rows = [{"path": os.fsencode(image.path)} for image in images]
    ray.init(include_dashboard=None if "RAY_ADDRESS" in os.environ else False)
    ray.data.from_items(rows, override_num_blocks=-(-len(rows) // BATCH)).map_batches(
        Labeller,
        fn_constructor_args=(str(Path(model).absolute()),),
        batch_size=BATCH,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=int(workers)),
    ).write_parquet(str(part), mode=ray.data.SaveMode.OVERWRITE)  # what a run that was killed has left
    errors = pa.dataset.dataset(part).to_table(columns=["error"])["error"]
    if len(errors) != len(rows):  # a worker that died is started again, and its batches with it
        raise GateError(f"{part}: {len(errors)} rows of {len(rows)} images; run it again")
    part.rename(target)
    print(f"{labels}: {len(rows)} images, {len(rows) - errors.null_count} of them unreadable")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except AlexdeployError as error:  # one clear line instead of a traceback
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
