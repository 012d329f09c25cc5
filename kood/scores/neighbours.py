"""Scores from the ID features near by: KNN, NNGuide and Relation."""

from typing import Any

import numpy as np
from keras import ops

from kood.geometry import top_value, unit
from kood.numbers import above_zero, fraction, whole
from kood.scores.fitting import Fitted, array, log_softmax
from kood.scores.streaming import blocks, spread

__all__ = ["KNN", "NNGuide", "Relation"]


def _enough(kept, k):
    if kept < k:
        raise ValueError(f"There are {kept} features, fewer than k={k}; fit more or choose a smaller k.")


def _bank(features, limit, logits=None):
    """Directions of NumPy features (min(N, limit), D), float32, as long as the logits' log-sum-exp; zero stays zero."""
    kept = spread(len(features), limit)
    bank = np.empty((len(kept), features.shape[1]), np.float32)
    done = 0
    for (rows,) in blocks(kept):
        part = np.asarray(features[rows], np.float64)
        largest = np.abs(part).max(axis=1, keepdims=True)
        part /= np.where(largest > 0, largest, 1.0)
        length = np.linalg.norm(part, axis=1, keepdims=True)
        part /= np.where(length > 0, length, 1.0)
        if logits is not None:
            part *= np.logaddexp.reduce(np.asarray(logits[rows], np.float64), axis=1, keepdims=True)
        bank[done : done + len(rows)] = part
        done += len(rows)
    return bank


def _largest(values, k, groups):
    """The k largest of each row of values (B, N), and their columns, both (B, k), descending.

    The k largest lie in the k sets of columns with the largest maxima; taking these first leaves little to sort.
    """
    width = values.shape[-1]
    each = width // groups
    if each < 2 * k:
        found, columns = ops.top_k(values, k)
        return found, ops.cast(columns, "int32")
    grouped = ops.reshape(values[:, : groups * each], (-1, groups, each))
    best = ops.cast(ops.top_k(top_value(grouped, axis=1), k)[1], "int32")
    best = ops.expand_dims(best, 1) + np.zeros((groups, 1), "int32")
    few = ops.reshape(ops.take_along_axis(grouped, best, axis=-1), (-1, groups * k))
    columns = ops.reshape(best + each * np.arange(groups, dtype="int32")[:, None], (-1, groups * k))
    if groups * each < width:
        few = ops.concatenate([few, values[:, groups * each :]], axis=-1)
        rest = ops.zeros_like(columns[:, :1]) + np.arange(groups * each, width, dtype="int32")
        columns = ops.concatenate([columns, rest], axis=-1)
    found, chosen = ops.top_k(few, k)
    return found, ops.take_along_axis(columns, ops.cast(chosen, "int32"), axis=-1)


class _Bank(Fitted):
    """Fitted features and what is kept beside them, compared in blocks."""

    #: The arrays with a row for each feature that is kept.
    ROWS: tuple[str, ...] = ("bank",)
    #: Fitted features compared at once: bounds the memory to (B, this).
    BLOCK = 32_768

    def __init__(self, limit):
        super().__init__()
        self.limit = whole("limit", limit)

    def read(self):
        """The rows in transposed blocks, (D, at most `BLOCK`), as products with them are fastest."""
        kept = {name: self.array(name) for name in self.ROWS}
        starts = range(0, len(kept["bank"]), self.BLOCK)
        return {
            f"{name}_{start}": np.ascontiguousarray(rows[start : start + self.BLOCK].T)
            for name, rows in kept.items()
            for start in starts
        }

    def _blocks(self, of="bank"):
        kept = self._placed or self.read()
        return [ops.convert_to_tensor(block) for name, block in kept.items() if name.startswith(f"{of}_")]


class _Neighbours(_Bank):
    """Fitted features, searched for the nearest."""

    STATE: tuple[str, ...] = ("bank", "k")
    #: See `_largest`.
    GROUPS = 16

    def __init__(self, k, limit):
        self.k = whole("k", k)
        super().__init__(limit)

    def restored(self):
        super().restored()
        self._has_zero = not self.state["bank"].any(axis=1).all()

    def keep(self, **arrays):
        super().keep(**arrays).restored()
        return self

    def _row(self, blocks, rows):
        """The rows (B, D) of the bank with these numbers (B,)."""
        found, start = None, 0
        for block in blocks:
            inside = ops.clip(rows - start, 0, block.shape[1] - 1)
            part = ops.transpose(ops.take(block, inside, axis=1))
            found = part if found is None else ops.where(ops.expand_dims(rows >= start, -1), part, found)
            start += block.shape[1]
        return found

    def _nearest(self, blocks, features, less_half=False):
        """The k largest products (B, k) of features with the bank's rows, and which rows they are.

        The bank is searched `BLOCK` rows at once, so that the memory is (B, BLOCK) and not (B, N).

        Args:
            features: (B, D).
            less_half: Whether half the square of each row is taken off its product.
        """
        nearest: Any = None
        nearest_rows: Any = None
        start = 0
        for block in blocks:
            size = block.shape[1]
            closeness = ops.matmul(features, block)
            if less_half:
                closeness = closeness - 0.5 * ops.sum(ops.square(block), axis=0)
            values, rows = _largest(closeness, min(self.k, size), self.GROUPS)
            rows = rows + start
            start += size
            if nearest is not None:
                values = ops.concatenate([nearest, values], axis=-1)
                rows = ops.concatenate([nearest_rows, rows], axis=-1)
                values, chosen = ops.top_k(values, min(self.k, start))
                rows = ops.take_along_axis(rows, ops.cast(chosen, "int32"), axis=-1)
            nearest, nearest_rows = values, rows
        return nearest, nearest_rows


class KNN(_Neighbours):
    """Euclidean distance to the k-th nearest ID feature, all features brought to length 1.

    A feature that was itself fitted is its own first neighbour. A zero feature stays zero, at distance 1 from
    all.

    Source: Sun et al. 2022, arXiv:2204.06507. (OpenOOD answers the squared distance, which orders alike; its k is 50
    too.)

    Args:
        k: Which neighbour, counted from 1.
        limit: Most features that are kept; of more, as many at equal distances in the order given. What is kept is part
            of the served model, and memory and time grow with it. (Sun et al. keep 1% of ImageNet's.)

    Raises:
        ValueError: `k` or `limit` below 1.
    """

    usual = {"k": (10, 50, 200, 1000)}

    def __init__(self, k=50, limit=50_000):
        super().__init__(k, limit)

    def fit(self, features, labels=None, logits=None):
        """Keeps the directions of the features.

        Raises:
            ValueError: Fewer than k features.
        """
        features = array("features", features)
        _enough(min(len(features), self.limit), self.k)
        return self.keep(bank=_bank(features, self.limit))

    def doubt(self, labels):
        """As of `Fitted`: k is more than the median class has images."""
        usual = int(np.median(np.bincount(labels)[np.unique(labels)]))
        if self.k <= usual:
            return ""
        return (
            f"more neighbours than the {usual} training images of a usual class, so that most are of other classes, "
            f"and known images look as far off as others; knn:k={max(1, usual // 2)} fits"
        )

    def score(self, features, logits=None):
        """Distance to the k-th nearest fitted feature: float32 (B,) in [0, 2]."""
        blocks = self._blocks()
        features = unit(self.checked(features, blocks[0].shape[0]), axis=-1)
        # The least distance is the largest product less half the square, which differs only where a row is zero.
        nearest = self._nearest(blocks, features, self._has_zero)[1]
        # From the difference: sqrt(2 - 2 cos) would be off by 3e-4 where the neighbour is close.
        neighbour = self._row(blocks, nearest[:, self.k - 1])
        return ops.sqrt(ops.sum(ops.square(features - neighbour), axis=-1))


class NNGuide(_Neighbours):
    """Nearest-neighbour guidance: the energy, weighed by how near the feature is to confident ID features.

    -logsumexp(logits) times the mean of the k largest <x / |x|, E_i z_i / |z_i|>, over the fitted features z_i and
    their E_i = logsumexp(logits_i). A zero feature has product 0 with all. Where log-sum-exps are negative, as under
    some angular heads, the product of two of them is positive and the order turns; the paper's classifiers have none.

    Source: Park et al. 2023, arXiv:2309.14888. (k and the share are OpenOOD's, which keeps the first features, in whole
    batches, and adds 1e-10 to unit features; the paper keeps a random share, 1% of ImageNet's. pytorch-ood has k = 10
    and keeps all, as `k=10,share=1` does.)

    Args:
        k: Number of neighbours.
        share: Share of the fitted features that are kept, but never fewer than k: at equal distances in the order
            given.
        limit: Most features that are kept, as for `KNN`.

    Raises:
        ValueError: `k` or `limit` below 1, `share` outside (0, 1].
    """

    version = 3
    STATE = (*_Neighbours.STATE, "classes")
    usual = {"k": (10, 100), "share": (0.01, 0.1, 1.0)}

    def __init__(self, k=100, share=0.01, limit=50_000):
        super().__init__(k, limit)
        if not 0 < share <= 1:
            raise ValueError(f"share must be a fraction, above 0 and up to 1; it is {share!r}.")
        self.share = float(share)

    def fit(self, features, labels=None, logits=None):
        """Keeps the directions of the features, as long as their log-sum-exp.

        Raises:
            ValueError: Fewer than k features.
        """
        features = array("features", features)
        logits = self.rows_of_logits(features, logits)
        kept = min(len(features), self.limit, max(round(self.share * len(features)), self.k))
        _enough(kept, self.k)
        return self.keep(bank=_bank(features, kept, logits), classes=logits.shape[1])

    def score(self, features, logits):
        """Minus the log-sum-exp times the guidance: float32 (B,), unbounded."""
        blocks = self._blocks()
        features, logits = self.pair(features, blocks[0].shape[0], logits, int(self.array("classes")))
        guidance = ops.mean(self._nearest(blocks, unit(features, axis=-1))[0], axis=-1)
        return -guidance * ops.logsumexp(logits, axis=-1)


class Relation(_Bank):
    """Neural relation graph: minus the mean relation to the ID images.

    -1/N sum over i of k(x, z_i)^power, k(x, z) = max(0, cos(x, z)) p(x)^T p(z), of the relations above `threshold`;
    p is the softmax. A zero feature has relation 0 with all.

    Source: Kim et al. 2023, arXiv:2301.12321. (OpenOOD and the authors' code answer the sum, which orders alike; the
    threshold is theirs, and `usual` OpenOOD's.)

    Args:
        power: Exponent of a relation, above 0.
        threshold: Relations up to this one count nothing, from 0 to below 1.
        limit: Most features that are kept, as for `KNN`.

    Raises:
        ValueError: `power` not above 0, `threshold` outside [0, 1), `limit` below 1.
    """

    ROWS = ("bank", "posteriors")
    STATE = (*ROWS, "power", "threshold")
    usual = {"power": (1, 2, 4, 6, 8)}

    def __init__(self, power=1, threshold=0.03, limit=50_000):
        super().__init__(limit)
        self.power, self.threshold = above_zero("power", power), fraction("threshold", threshold)

    def fit(self, features, labels=None, logits=None):
        """Keeps the directions of the features and their posteriors."""
        features = array("features", features)
        logits = self.rows_of_logits(features, logits)
        kept = spread(len(features), self.limit)
        posteriors = [np.exp(log_softmax(np.asarray(logits[rows], np.float64))) for (rows,) in blocks(kept)]
        return self.keep(bank=_bank(features, self.limit), posteriors=np.concatenate(posteriors))

    def score(self, features, logits):
        """Minus the mean relation: float32 (B,) in [-1, 0]."""
        banks, posteriors = self._blocks(), self._blocks("posteriors")
        features, logits = self.pair(features, banks[0].shape[0], logits, posteriors[0].shape[0])
        features, p = unit(features, axis=-1), ops.softmax(logits)
        total, count = 0.0, 0
        for bank, posterior in zip(banks, posteriors, strict=True):
            relation = ops.maximum(ops.matmul(features, bank), 0.0) * ops.matmul(p, posterior)
            counted = ops.where(relation > self.threshold, relation, 0.0)
            total = total + ops.sum(counted if self.power == 1 else ops.power(counted, self.power), axis=-1)
            count += bank.shape[1]
        return -total / count
