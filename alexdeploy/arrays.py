"""The array types that rooms hand to each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Batch = npt.NDArray[Any]
"""Network input: the contract's ``input_shape`` and ``input_type``, with or without the batch in front."""
Labels = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]
