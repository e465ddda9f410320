"""Images for training: decoded once, kept as bytes where they fit in memory, augmented a batch at a time.

What happens to an image depends on the seed, the step and its place in the batch alone, so that a resumed run and a run
on several processes see the same images as one that was never interrupted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from alexdeploy.contract import Contract
from alexdeploy.data.dataset import ImageDataset, Seen
from alexdeploy.data.preprocess import center_crop, resize
from alexdeploy.recipe import TrainSettings

LEAST_AREA, GREATEST_STRETCH = 0.35, 4 / 3
_MEMORY_SHARE = 0.4
_PCA_IMAGES = 512


class Pixels:
    """The readable images of a split as uint8 (H, W, C) in the network's channel order, resized, of any size.

    With ``cropped`` they are the centre crops of the contract.
    """

    def __init__(self, dataset: ImageDataset, contract: Contract, *, cropped: bool) -> None:
        """Decode the images once; they are kept when they take less than 40 % of the free memory.

        Raises:
            InputError: an image cannot be read and the data set does not skip such images.
        """
        self._dataset, self._contract, self._cropped = dataset, contract, cropped
        budget_bytes = _MEMORY_SHARE * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._kept: list[Tensor] | Tensor | None = []
        self._good: list[int] = []
        seen = Seen()
        for index, image in dataset.images():
            seen.add(image)
            self._good.append(index)
            if isinstance(self._kept, list):
                self._kept.append(self._prepare(image))
                budget_bytes -= self._kept[-1].nbytes
                if budget_bytes < 0:
                    self._kept = None
                    if not dataset.skip_bad:  # otherwise go on, to find the bad ones
                        self._good = list(range(len(dataset)))
                        break
        seen.warn(dataset.name, contract)
        if self._kept and len({image.shape for image in self._kept}) == 1:
            self._kept = torch.stack(list(self._kept))
        self.labels = torch.from_numpy(dataset.labels[self._good])

    def __len__(self) -> int:
        return len(self._good)

    @property
    def are_stacked(self) -> bool:
        """True if all images lie in one array."""
        return isinstance(self._kept, Tensor)

    def __getitem__(self, indices: Tensor) -> Tensor | list[Tensor]:
        """One uint8 tensor (n, H, W, C) where all images have one size, else one tensor per image."""
        if isinstance(self._kept, Tensor):
            return self._kept.index_select(0, indices)
        if self._kept is not None:
            return [self._kept[i] for i in indices.tolist()]
        with ThreadPoolExecutor() as pool:
            return list(pool.map(self._read, indices.tolist()))

    def _read(self, position: int) -> Tensor:
        return self._prepare(self._dataset.image(self._good[position]))

    def _prepare(self, image: Image.Image) -> Tensor:
        resized = resize(image, self._contract)
        if self._cropped:
            resized = center_crop(resized, self._contract.size)
        array = np.array(resized).reshape(resized.height, resized.width, -1)
        return torch.from_numpy(np.ascontiguousarray(array[:, :, ::-1]) if self._contract.color == "bgr" else array)


def principal_components(pixels: Pixels) -> Tensor:
    """(C, C) float32: column i is the i-th principal component of the pixels times its standard deviation (of 255).

    Taken over every eighth row and column of up to 512 images spread over the split.
    """
    chosen = torch.linspace(0, len(pixels) - 1, min(len(pixels), _PCA_IMAGES)).round().long()
    thinned = [image[::8, ::8].reshape(-1, image.shape[-1]) for image in pixels[chosen]]
    covariance = torch.cov(torch.cat(thinned).double().T).reshape(thinned[0].shape[1], -1)
    variances, directions = torch.linalg.eigh(covariance)
    components: Tensor = directions * variances.clamp(min=0).sqrt()
    return components.float()


class Augmentation:
    """The recipe's random changes and the contract's normalisation, for whole batches."""

    def __init__(self, pixels: Pixels, contract: Contract, settings: TrainSettings) -> None:
        self._pixels, self._contract = pixels, contract
        self._augment, self._degrees = settings.augment, settings.rotate
        self._shifts = principal_components(pixels) * settings.fancy_pca if settings.fancy_pca else None

    @property
    def is_instant(self) -> bool:
        """True if a batch takes no work on single images."""
        return self._augment == "none" and not self._degrees and self._pixels.are_stacked

    def batch(self, indices: Tensor, places: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Float32 (n, C, H, W) in channels-last memory, and labels (n,).

        Args:
            indices: which images.
            places: where each stands in the global batch.
            size: images in the global batch.
            seed: of all random choices for the global batch.
        """
        generator = torch.Generator().manual_seed(seed)
        chance = torch.rand(size, 5, generator=generator)[places]
        shifts = None
        if self._shifts is not None:
            shifts = torch.randn(size, self._contract.channels, generator=generator)[places] @ self._shifts.T
        images = self._pixels[indices]
        if self._degrees:
            angles = (2 * torch.rand(size, generator=generator)[places] - 1) * self._degrees
            images = [_turned(image, angle) for image, angle in zip(images, angles.tolist(), strict=True)]
        if self._augment != "none":
            images = [self._window(image, draw) for image, draw in zip(images, chance.tolist(), strict=True)]
        stacked = images if isinstance(images, Tensor) else torch.stack(images)
        return normalize_batch(stacked, self._contract, shifts), self._pixels.labels[indices]

    def _window(self, image: Tensor, chance: Sequence[float]) -> Tensor:
        size = self._contract.size
        image = _at_least(image, size)
        height, width = image.shape[:2]
        tall, wide = size
        if self._augment == "scale-mirror":
            area = height * width * (LEAST_AREA + (1 - LEAST_AREA) * chance[0])
            stretch = GREATEST_STRETCH ** (2 * chance[1] - 1)
            tall = min(height, round(math.sqrt(area / stretch)))
            wide = min(width, round(math.sqrt(area * stretch)))
        top, left = int(chance[2] * (height - tall + 1)), int(chance[3] * (width - wide + 1))
        image = image[top : top + tall, left : left + wide]
        if (tall, wide) != size:
            image = tv.resize(image.permute(2, 0, 1), [*size], antialias=True).permute(1, 2, 0)
        return image.flip(1) if chance[4] < 0.5 else image


def _turned(image: Tensor, angle: float) -> Tensor:
    """(H, W, C) turned about its centre by that many degrees, counter-clockwise; black where there was no image."""
    pixels = image.numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    turned = picture.rotate(angle, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(turned).reshape(pixels.shape))


def _at_least(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image smaller than ``size`` padded with black, evenly, as the contract's centre crop does."""
    lacking = [max(wanted - side, 0) for wanted, side in zip(size, image.shape[:2], strict=True)]
    if not any(lacking):
        return image
    (down, right) = lacking
    return torch.nn.functional.pad(image, (0, 0, right // 2, (right + 1) // 2, down // 2, (down + 1) // 2))


def normalize_batch(images: Tensor, contract: Contract, shifts: Tensor | None = None) -> Tensor:
    """uint8 (n, H, W, C) in the network's channel order → float32 (n, C, H, W), bit for bit as the contract says.

    ``shifts`` (n, C), in units of 0…255, are added to every pixel of an image first.
    """
    floats = images.float()
    if shifts is not None:
        floats += shifts[:, None, None, :]
    normal = floats.div_(contract.scale).sub_(torch.tensor(contract.mean)).div_(torch.tensor(contract.std))
    return normal.permute(0, 3, 1, 2)
