"""The images that a sampling job keeps, while it goes on."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kood.data.images import fit_images
from kood.diffusion.sampling import Shard

__all__ = ["Collected"]


class Collected:
    """What a job has kept so far, as places in its shards; the images themselves stay on disk.

    Args:
        wanted: Images to keep.
        show: Is told how many are kept, and figures by name.
        image_shape: (H, W, C) that what is drawn is enlarged to.

    Attributes:
        drawn: Images drawn for those that are kept.
        kept: How many are.
        conditions: Their conditions, (n, K) a shard.
    """

    def __init__(
        self, wanted: int, show: Callable[[float, Mapping[str, float]], None], image_shape: tuple[int, int, int]
    ):
        self.wanted, self.image_shape = wanted, image_shape
        self.drawn = self.kept = 0
        self.conditions: list[np.ndarray] = []
        self._show = show
        self._places: list[tuple[Path, np.ndarray]] = []
        self._rates: list[float] = []

    @property
    def facts(self) -> dict[str, Any]:
        """What the report tells: how many were drawn, kept and wanted, the share that was dropped, the pace."""
        # The median block: the first one waits for the compiler.
        rate = round(float(np.median(self._rates)), 1)
        return {
            "drawn": self.drawn, "kept": self.kept, "wanted": self.wanted, "drop_rate": 1.0 - self.kept / self.drawn,
            "images_per_second": rate,
        }  # fmt: skip

    def take(
        self,
        shards: Iterator[Shard],
        condition: np.ndarray,
        *,
        over: Callable[[], bool],
        keeps: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> bool:
        """Takes of each shard what is wanted, until there is enough or the time is up.

        Args:
            shards: Blocks of images, in order.
            condition: (N, K), theirs.
            over: Whether the time is up; one image at least is taken.
            keeps: Images (n, H, W, C) -> (n,) bool, which are kept; not given, all are.

        Returns:
            Whether it is one of the two.
        """
        first = 0
        for shard in shards:
            size = len(shard.images)
            kept = np.ones(size, bool) if keeps is None else keeps(fit_images(shard.images, self.image_shape))
            rows = np.flatnonzero(kept)
            # What comes after the last one wanted was drawn for nothing and is not counted against the filter.
            if len(rows) > self.wanted - self.kept:
                rows = rows[: self.wanted - self.kept]
                size = int(rows[-1]) + 1
            self.drawn += size
            self.kept += len(rows)
            self._rates.append(len(shard.images) / max(shard.seconds, 1e-9))
            self._places.append((shard.path, rows))
            self.conditions.append(condition[first : first + len(shard.images)][rows])
            first += len(shard.images)
            self._show(self.kept, self._figures())
            if self.kept >= self.wanted or (self.kept and over()):
                return True
        return False

    def show_part(self, images: float) -> None:
        """Shows the part of a block that is done, at the share that is kept."""
        share = self.kept / self.drawn if self.drawn else 1.0
        self._show(min(self.kept + images * share, self.wanted), self._figures())

    def _figures(self) -> dict[str, float]:
        figures = {"images/s": float(np.median(self._rates))} if self._rates else {}
        return {**figures, "dropped": 1.0 - self.kept / self.drawn} if self.kept < self.drawn else figures

    def blocks(self) -> Iterator[np.ndarray]:
        """The kept images, a shard at a time."""
        for path, rows in self._places:
            yield fit_images(np.load(path, mmap_mode="r", allow_pickle=False)[rows], self.image_shape)
