"""Real and made data with fixed splits. The packages of the extra ``claims`` are imported in this file alone."""

from __future__ import annotations

import gzip
import io
import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normscope.terms.datum import Datum
from normscope.terms.errors import DataError, MissingExtraError

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp"}
_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(frozen=True, repr=False)
class Split(Datum):
    """Training and test samples: inputs (N, …) float32, targets (N,) int64 or float32."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    def to(self, device: str) -> Split:
        """The same on a device."""
        return Split(*(part.to(device) for part in (self.x, self.y, self.test_x, self.test_y)))

    def but(self, **changes: Tensor) -> Split:
        """The same with other tensors in some places."""
        return replace(self, **changes)

    @property
    def flat(self) -> Split:
        """Each input as one vector (N, features)."""
        return self.but(x=self.x.flatten(1), test_x=self.test_x.flatten(1))

    @property
    def rows(self) -> Split:
        """Images read row by row: (N, H, C·W)."""
        return self.but(**{name: getattr(self, name).transpose(1, 2).flatten(2) for name in ("x", "test_x")})

    @property
    def pixels(self) -> Split:
        """Images read pixel by pixel: (N, H·W, C)."""
        return self.but(**{name: getattr(self, name).flatten(2).transpose(1, 2) for name in ("x", "test_x")})

    def first(self, samples: int) -> Split:
        """The first training samples; the test split stays whole."""
        return self.but(x=self.x[:samples], y=self.y[:samples])


@cache
def images(source: str = "") -> Split:
    """Images (N, C, H, W), standardized by the training split's mean and deviation.

    Args:
        source: "" for the 1,797 digits that scikit-learn bundles (1,347 to train on); else a folder with
            ``train.parquet`` and ``test.parquet`` of the Hugging Face layout (``img.bytes`` or ``image.bytes``, and
            ``label``), with the four IDX files of MNIST (gzipped or not), or with one folder of pictures a class
            under ``train`` and ``test``.

    Raises:
        MissingExtraError: a package of the extra ``claims`` is missing.
        DataError: the folder holds none of these.
    """
    x, y, test_x, test_y = _digits() if not source else _folder(Path(source))
    mean, deviation = x.mean(), x.std()
    return Split((x - mean) / deviation, y, (test_x - mean) / deviation, test_y)


def far_apart(samples: int, length: int, seed: int = 0) -> Split:
    """The long-lag task: sequences (N, length, 2) of noise, whose first value's sign is the class (N,).

    After Hochreiter & Schmidhuber 1997, section 5.2, cut down: the second feature marks the one step that counts.
    """
    turns = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * samples, length, 2, generator=turns)
    x[..., 1] = 0.0
    x[:, 0, 1] = 1.0
    y = (x[:, 0, 0] > 0).long()
    return Split(x[:samples], y[:samples], x[samples:], y[samples:])


def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError.of("The ledger's digits", "scikit-learn", "claims") from None
    bunch: Any = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(bunch.images, dtype=torch.float32)[order, None]
    y = torch.tensor(bunch.target, dtype=torch.int64)[order]
    train = 3 * len(y) // 4
    return x[:train], y[:train], x[train:], y[train:]


def _folder(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if (path / "train.parquet").is_file():
        return *_parquet(path / "train.parquet"), *_parquet(path / "test.parquet")
    if all(_idx_file(path, name) for name in _IDX):
        x, y, test_x, test_y = (_idx(path, name) for name in _IDX)
        return x[:, None].float(), y.long(), test_x[:, None].float(), test_y.long()
    if (path / "train").is_dir() and (path / "test").is_dir():
        return *_pictures(path / "train"), *_pictures(path / "test")
    raise DataError(
        f"Images were asked for from `{path}`.",
        found=", ".join(sorted(entry.name for entry in path.glob("*"))[:6]) or "nothing there",
        because="a folder of images is read in one of three layouts",
        do="give a folder with train.parquet and test.parquet, with MNIST's four IDX files, or with a folder of "
        "pictures for each class under train/ and test/",
    )


def _parquet(file: Path) -> tuple[Tensor, Tensor]:
    try:
        import pandas
        import pyarrow  # noqa: F401  # pyright: ignore[reportMissingImports]  (pandas' reader, asked for by name)
    except ImportError as error:
        raise MissingExtraError.of("Reading parquet", error.name or "pyarrow", "claims") from None
    frame = pandas.read_parquet(file)
    column = next((name for name in ("img", "image") if name in frame), None)
    if column is None or "label" not in frame:
        raise DataError(
            f"Images were asked for from `{file}`.",
            found=f"columns {', '.join(map(str, frame.columns))}",
            because="an image column and its labels are read by name",
            do="name them `img` or `image`, and `label`",
        )
    x = np.stack([_decoded(io.BytesIO(entry["bytes"])) for entry in frame[column]])
    return torch.from_numpy(x).permute(0, 3, 1, 2).float(), torch.tensor(frame["label"].to_numpy(), dtype=torch.int64)


def _pictures(folder: Path) -> tuple[Tensor, Tensor]:
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    files = [(file, at) for at, one in enumerate(classes) for file in sorted(one.iterdir())]
    files = [(file, at) for file, at in files if file.suffix.lower() in _PICTURES]
    if not files:
        raise DataError(
            f"Images were asked for from `{folder}`.",
            found=f"{len(classes)} folders without a picture",
            because="each class is a folder of pictures",
            do="put " + ", ".join(sorted(_PICTURES)) + " files of one size into a folder for each class",
        )
    x = np.stack([_decoded(file) for file, _ in files])
    return torch.from_numpy(x).permute(0, 3, 1, 2).float(), torch.tensor([at for _, at in files])


def _decoded(file: Any) -> np.ndarray:
    """A picture as (H, W, 3) bytes."""
    try:
        from PIL import Image  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtraError.of("Reading pictures", "pillow", "claims") from None
    return np.asarray(Image.open(file).convert("RGB"))


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)


def _idx(folder: Path, name: str) -> Tensor:
    """LeCun's format: two zero bytes, the type (8: unsigned byte), the rank, the sizes in big-endian, the values."""
    file = _idx_file(folder, name)
    assert file is not None
    raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    rank = raw[3] if len(raw) > 3 else 0
    sizes = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, 4 + 4 * rank, 4)]
    if raw[:3] != b"\0\0\x08" or len(raw) != 4 + 4 * rank + math.prod(sizes):
        raise DataError(
            f"Images were asked for from `{file}`.",
            found=f"{len(raw)} bytes that begin with {raw[:4].hex()}",
            because="an IDX file of bytes begins with 000008, its rank and its sizes, and holds no more",
            do="take the file again from where it came",
        )
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    return torch.from_numpy(values.reshape(sizes).copy())
