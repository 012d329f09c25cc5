"""Dealing the in-distribution images out to their parts: by class, at random, and what belongs together into one."""

import zlib

import numpy as np

from kood.errors import UserError

__all__ = ["FEW", "deal", "draw_count", "draw_per_class", "generator"]

#: A class of which a part would get fewer rows than this gets them by chance. Always rounded, and one at least, rare
#: classes would be more of the calibration images than they are of the images, or less, and the threshold with them.
FEW = 5


def generator(seed: int, purpose: str) -> np.random.Generator:
    """The random numbers of one purpose."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def _by_class(labels: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    return [rows[labels[rows] == label] for label in np.unique(labels[rows])]


def draw_per_class(labels: np.ndarray, rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many rows of each class, ascending."""
    draw = generator(seed, "per_class")
    return np.sort(np.concatenate([draw.permutation(members)[:most] for members in _by_class(labels, rows)]))


def draw_count(labels: np.ndarray, rows: np.ndarray, count: int, seed: int, key: str) -> np.ndarray:
    """`count` of the rows in the classes' proportions, the odd ones to the largest remainders.

    Raises:
        UserError: There are not so many.
    """
    if count > len(rows):
        raise UserError(f"{key}.count: {count} images asked for, {len(rows)} there; write at most {len(rows)}")
    draw = generator(seed, "count")
    classes = _by_class(labels, rows)
    exact = np.array([count * len(members) / len(rows) for members in classes])
    sizes = np.floor(exact).astype(int)
    sizes[np.argsort(sizes - exact, kind="stable")[: count - sizes.sum()]] += 1
    return np.sort(
        np.concatenate([draw.permutation(members)[:size] for members, size in zip(classes, sizes, strict=True)])
    )


def deal(
    labels: np.ndarray,
    units: np.ndarray,
    rows: np.ndarray,
    shares: tuple[float, ...],
    seed: int,
    purpose: str,
    leave: int | np.ndarray = 1,
    least: int = 0,
    expected: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Deals rows out to parts, class by class, and every unit whole.

    A part asks for round(share n) of each class's n rows. Units come in a random order; one goes to the part where that
    brings its classes nearer to what it asks for (squared distances, each by the size of its class), as long as units
    of its classes remain for all who have none yet. A part that would be left without a class takes the smallest unit
    that has it. Where every unit is one row, each part gets what it asks for.

    Of a class of which that would be fewer than `FEW` rows, a part asks for share m of its m units, rounded up or down
    by chance: so much it gets on average, and of all such classes together about so much every time.

    Args:
        labels: int64 (N,).
        units: int64 (N,); rows of one number stay together.
        rows: Which rows are dealt, ascending.
        shares: Of each part.
        leave: How many units of each class others still need, or (K,) of which class how many.
        least: How many units a part asks for at least of a class that is there.
        expected: (K,), how many units of each class there are on average where chance decided `rows`; not given, m.

    Returns:
        The rows of each part, then those left, all ascending.
    """
    draw, given = generator(seed, purpose), labels[rows]
    _, unit = np.unique(units[rows], return_inverse=True)
    leave = np.resize(leave, given.max(initial=-1) + 1)
    table = _Table(given, unit, shares, leave, least)
    table.ask_of_few(generator(seed, f"{purpose} of few"), shares, expected)
    members = {int(label): np.unique(unit[given == label]) for label in np.unique(given)}
    waiting = {label: draw.permutation(its).tolist() for label, its in members.items()}
    # Those of few units first, while all of them can still be had.
    for label in sorted(waiting, key=lambda label: len(waiting[label])):
        for part in range(len(shares)):
            table.fill(part, label, waiting[label])
    return [rows[table.part_of[unit] == part] for part in range(len(shares) + 1)]


def _systematic(draw: np.random.Generator, exact: np.ndarray) -> np.ndarray:
    """Whole numbers (n,) of these averages, each rounded up or down, whose sum is the sum of these rounded so."""
    order = draw.permutation(len(exact))
    ends = draw.random() + np.concatenate([[0.0], np.cumsum(exact[order])])
    found = np.empty(len(exact), np.int64)
    found[order] = np.diff(np.floor(ends).astype(np.int64))
    return np.clip(found, np.floor(exact), np.ceil(exact)).astype(np.int64)


class _Table:
    """Who has what while units are dealt: parts by number, the last of them being those left."""

    def __init__(self, labels: np.ndarray, units: np.ndarray, shares: tuple[float, ...], leave: np.ndarray, least: int):
        totals = np.bincount(labels)
        pairs, counts = np.unique(units * len(totals) + labels, return_counts=True)
        owner, label = np.divmod(pairs, len(totals))
        self._label, self._count = label.tolist(), counts.tolist()
        self._starts = np.searchsorted(owner, np.arange(units.max(initial=-1) + 2)).tolist()
        self._sizes, self._totals = np.bincount(units).tolist(), totals.tolist()
        self._free = np.bincount(label, minlength=len(totals)).tolist()
        self._wanted = [[float(round(share * n)) for n in self._totals] for share in shares]
        #: How many units a part wants of a class of which it asks for few rows.
        self._few: list[dict[int, int]] = [{} for _ in shares]
        self._has = [[0] * len(totals) for _ in shares]
        self._leave, self._least = leave.tolist(), least
        self.part_of = np.full(len(self._sizes), len(shares))

    def ask_of_few(self, draw: np.random.Generator, shares: tuple[float, ...], expected: np.ndarray | None) -> None:
        """Draws how many units each part asks for of the classes of which it would get few rows."""
        rows, there = np.array(self._totals), np.array(self._free)
        wanted, free = there if expected is None else expected[: len(there)], there - np.array(self._leave)
        asks: np.ndarray = np.multiply.outer(shares, wanted)
        few = (np.multiply.outer(shares, rows) < FEW) & (rows > 0) & (np.array(shares) > 0)[:, None]
        # Where others may leave too few units, they are evened out with those whom others leave more.
        tight = np.ceil(np.round(asks, 9)).sum(axis=0) > free
        # Where there are too few for all parts, each goes without the same share of what it asks for.
        of_few = np.where(few, asks, 0.0).sum(axis=0)
        room = free - np.where(few, 0.0, asks).sum(axis=0)
        asks = np.where(few, asks * np.clip(room / np.maximum(of_few, 1e-9), 0.0, 1.0), asks)
        drawn, asked = np.zeros(len(there)), np.zeros(len(there))
        for part, its in enumerate(few):
            exact = asks[part].copy()
            exact[tight] *= ((free - drawn) / np.maximum(free - asked, 1e-9))[tight]
            exact = np.round(np.clip(exact, 0.0, np.maximum(free - drawn, 0.0)), 9)
            units = np.maximum(_systematic(draw, exact[its]), self._least)
            self._few[part] = dict(zip(np.flatnonzero(its).tolist(), units.tolist(), strict=True))
            for label, count in self._few[part].items():
                self._wanted[part][label] = count * self._totals[label] / self._free[label]
            asked += asks[part]
            drawn[its] += units
            drawn[~its] += asks[part][~its]

    def _holds(self, one: int) -> list[tuple[int, int]]:
        """The labels of a unit, and how many rows it has of each."""
        its = slice(self._starts[one], self._starts[one + 1])
        return list(zip(self._label[its], self._count[its], strict=True))

    def fill(self, part: int, label: int, waiting: list[int]) -> None:
        """Gives a part what it asks for of a class, from units in the order in which they wait."""
        has, wanted = self._has[part], self._wanted[part]
        free = [one for one in waiting if self.part_of[one] == len(self._has)]
        few = self._few[part].get(label)
        lacks = 0 if few is None else few - sum(self.part_of[one] == part for one in waiting)
        for one in free:
            if lacks <= 0 if few is not None else has[label] >= wanted[label]:
                return
            if self._may_go(one, part) and (few is not None or self._brings_nearer(one, part)):
                self._give(one, part)
                lacks -= 1
        if wanted[label] and not has[label] and free and (few is None or self._least):
            self._give(min(free, key=lambda one: self._sizes[one]), part)

    def _may_go(self, one: int, part: int) -> bool:
        return all(
            self._free[label] - 1 >= self._leave[label] + sum(
                self._wanted[other][label] > 0 and not self._has[other][label]
                for other in range(len(self._has))
                if other != part
            )
            for label, _ in self._holds(one)
        )  # fmt: skip

    def _brings_nearer(self, one: int, part: int) -> bool:
        has, wanted = self._has[part], self._wanted[part]
        change = sum(n * (2 * (has[k] - wanted[k]) + n) / self._totals[k] for k, n in self._holds(one))
        return change < 0

    def _give(self, one: int, part: int) -> None:
        self.part_of[one] = part
        for label, count in self._holds(one):
            self._has[part][label] += count
            self._free[label] -= 1
