"""``mnist-cnn`` on full MNIST, three epochs of batch 100: alexdeploy's loop beside the plain one of the textbooks.

    python -m tests.bench.train_mnist --data-root DIR [--out FILE.json] [--epochs N]

Both train the same network with Adam in float32, the plain loop at 1e-3 throughout and alexdeploy by its recipe. Both
are timed from decoded files to the last evaluation. The plain loop is torch's DataLoader over single images with
torchvision's ToTensor. They run one after the other; nothing else should run beside them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import Compose, ToDtype, ToImage

from alexdeploy.data.dataset import ImageDataset
from alexdeploy.data.sources import load_dataset
from alexdeploy.recipe import load_recipe, with_train_options
from alexdeploy.train import train_network
from alexdeploy.zoo.registry import build_network

BATCH = 100


class _Images(Dataset[tuple[Any, int]]):
    """What torchvision.datasets.MNIST with ToTensor gives: a PIL image, then a float tensor of 0…1."""

    def __init__(self, dataset: ImageDataset) -> None:
        self._dataset = dataset
        self._transform = Compose([ToImage(), ToDtype(torch.float32, scale=True)])

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._transform(self._dataset.image(index)), int(self._dataset.labels[index])


def plain_loop(learn: ImageDataset, judge: ImageDataset, epochs: int) -> list[float]:
    """Test top-1 after each epoch."""
    torch.manual_seed(0)
    model = build_network(load_recipe("mnist-cnn").network, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    top1 = []
    for _ in range(epochs):
        model.train()
        for images, labels in DataLoader(_Images(learn), BATCH, shuffle=True):
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum(int((model(x).argmax(1) == y).sum()) for x, y in DataLoader(_Images(judge), BATCH))
        top1.append(right / len(judge))
    return top1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    learn, judge = (load_dataset("mnist", split, data_root=options.data_root) for split in ("train", "val"))
    recipe = with_train_options(load_recipe("mnist-cnn"), epochs=options.epochs, batch_size=BATCH)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        ours = train_network(recipe, learn, judge, Path(folder) / "net.safetensors", device="cpu")
    middle = time.perf_counter()
    plain = plain_loop(learn, judge, options.epochs)
    seconds = {"alexdeploy": middle - started, "plain": time.perf_counter() - middle}
    report = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "epochs": options.epochs,
        "batch_size": BATCH,
        "seconds": seconds,
        "ratio": seconds["alexdeploy"] / seconds["plain"],
        "top1": {"alexdeploy": [epoch.top1 for epoch in ours.epochs], "plain": plain},
    }
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
