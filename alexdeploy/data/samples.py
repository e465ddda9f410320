"""A few real images for the parity gate, from the data set when one is named, else from scikit-learn."""

from __future__ import annotations

import numpy as np
from PIL import Image

from alexdeploy.arrays import Batch
from alexdeploy.contract import Contract
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.data.preprocess import preprocess

_COUNT = 5


def real_images(contract: Contract, dataset: ImageDataset | None = None) -> Batch:
    """(5, *input_shape) images as the contract says.

    Without a data set: scikit-learn's two photographs, whole and cut in parts, or its digits for grey-scale networks.
    """
    if dataset is not None:
        return np.stack([image for _, image in dataset.subset(_COUNT).inputs(contract)])
    if contract.color == "gray":
        from sklearn.datasets import load_digits

        images = [Image.fromarray((digit * 15).astype(np.uint8)) for digit in load_digits().images[:_COUNT]]
    else:
        from sklearn.datasets import load_sample_images

        china, flower = (Image.fromarray(array) for array in load_sample_images().images)
        width, height = china.size
        images = [china, flower, *(p.crop((0, 0, width // 2, height)) for p in (china, flower))]
        images.append(china.crop((width // 2, 0, width, height)))
    return np.stack([preprocess(image, contract) for image in images])
