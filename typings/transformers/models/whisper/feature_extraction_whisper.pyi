"""What Shoal uses of Whisper's features. For pyright alone.

The library's own module imports its ``__init__`` again, which takes pyright eleven seconds to read.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

class WhisperFeatureExtractor:
    def __init__(
        self, feature_size: int = ..., sampling_rate: int = ..., *, chunk_length: int = ...
    ) -> None: ...
    def __call__(
        self, raw_speech: npt.NDArray[np.float32], *, sampling_rate: int, return_tensors: str
    ) -> Mapping[str, Any]: ...
