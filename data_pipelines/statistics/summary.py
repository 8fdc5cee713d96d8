"""Mean, spread, range and quantiles of a stream of vectors, in bounded memory and mergeable.

Count, mean, standard deviation, minimum and maximum are exact (sums in float64). Quantiles are exact up to `KEPT`
values per dimension. Beyond, the stream is thinned by sorting 2 KEPT values and keeping every second with twice the
weight (Munro and Paterson 1980; Manku, Rajagopalan and Lindsay 1998): every thinning of values of weight w moves a rank
by at most w, so that after L levels a rank is off by at most L / (2 KEPT) of the count: 1.1e-4 for a billion values.
"""

from collections.abc import Sequence

import numpy as np

KEPT = 2**16  # values per dimension and level


class Summary:
    """The summary of vectors [dims]: `update` adds some, `merge` joins two summaries."""

    def __init__(self, kept: int = KEPT):
        self._kept, self.count = kept, 0
        self._mean = self._squares = self._low = self._high = None  # float64 [dims]; squares: sum around the mean
        self._unsorted: list[np.ndarray] = []  # float32 [dims, n] of weight 1
        self._waiting = 0  # values per dimension in `_unsorted`
        self._levels: list[list[np.ndarray]] = []  # level i: sorted [dims, kept] of weight 2^(i + 1)
        self._turns: list[int] = []  # thinnings so far at each level; they keep odd and even ranks in turn

    def update(self, values: np.ndarray) -> None:
        """Adds the vectors `values`, float [n, dims]."""
        if not len(values):
            return
        values = np.ascontiguousarray(np.asarray(values, np.float32).T)  # numpy adds along rows much faster
        mean = values.mean(1, dtype=np.float64)
        centre = mean.astype(np.float32)
        offsets = values - centre[:, None]
        squares = np.einsum("dn,dn->d", offsets, offsets, dtype=np.float64) - len(values.T) * np.square(centre - mean)
        self._moments(values.shape[1], mean, squares, values.min(1), values.max(1))
        self._add(values)

    def merge(self, other: "Summary") -> "Summary":
        """Adds the other summary's values; returns this one."""
        if other.count:
            self._moments(other.count, other._mean, other._squares, other._low, other._high)
            self._turns += [0] * (len(other._turns) - len(self._turns))
            for level, parts in enumerate(other._levels):
                for part in parts:
                    self._keep(level, part)
            for part in other._unsorted:
                self._add(part)
        return self

    def arrays(self) -> dict[str, np.ndarray]:
        """The whole state, for `restored`; empty where there are no values."""
        if not self.count:
            return {}
        levels = {f"level.{i}": part for i, parts in enumerate(self._levels) for part in parts}  # at most one each
        unsorted = np.concatenate(self._unsorted, 1) if self._unsorted else np.zeros((len(self._mean), 0), np.float32)
        return {"count": np.array([self.count]), "mean": self._mean, "squares": self._squares, "low": self._low,
                "high": self._high, "turns": np.array(self._turns, np.int64), "fresh": unsorted, **levels}

    @classmethod
    def restored(cls, arrays: dict[str, np.ndarray], kept: int = KEPT) -> "Summary":
        """The summary that `arrays` came from: going on from it gives the same numbers."""
        self = cls(kept)
        if arrays:
            self.count = int(arrays["count"][0])
            self._mean, self._squares, self._low, self._high = (
                arrays[name] for name in ("mean", "squares", "low", "high"))
            self._turns = arrays["turns"].tolist()
            self._levels = [[arrays[name]] if (name := f"level.{i}") in arrays else []
                            for i in range(len(self._turns))]
            self._unsorted, self._waiting = [arrays["fresh"]], arrays["fresh"].shape[1]
        return self

    def _moments(self, count: int, mean, squares, low, high) -> None:
        """Joins the moments and the range of `count` more vectors to those so far; each float64 [dims]."""
        if not self.count:
            self.count, self._mean, self._squares, self._low, self._high = count, mean, squares, low, high
            return
        total, gap = self.count + count, mean - self._mean
        self._squares = self._squares + squares + np.square(gap) * (self.count * count / total)
        self._mean = self._mean + gap * (count / total)
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        self.count = total

    def _add(self, values: np.ndarray) -> None:
        """Adds values [dims, n] of weight 1 to those that quantiles are taken from."""
        self._unsorted.append(values)
        self._waiting += values.shape[1]
        if self._waiting < 2 * self._kept:
            return
        values = np.concatenate(self._unsorted, 1)
        while values.shape[1] >= 2 * self._kept:
            self._thin(-1, values[:, :2 * self._kept])
            values = values[:, 2 * self._kept:]
        self._unsorted, self._waiting = [values.copy()], values.shape[1]

    def _thin(self, level: int, values: np.ndarray) -> None:
        """Keeps every second of the values [dims, 2 kept] of weight 2^(level + 1), at the next level."""
        while len(self._levels) <= level + 1:
            self._levels.append([])
            self._turns.append(0)
        turn = self._turns[level + 1] = self._turns[level + 1] + 1
        self._keep(level + 1, np.sort(values, axis=1)[:, turn % 2::2].copy())

    def _keep(self, level: int, part: np.ndarray) -> None:
        """Adds sorted values [dims, kept] to a level; a second part there is thinned into the next."""
        while len(self._levels) <= level:
            self._levels.append([])
        self._levels[level].append(part)
        if len(self._levels[level]) == 2:
            pair, self._levels[level] = np.concatenate(self._levels[level], 1), []
            self._thin(level, pair)

    @property
    def rank_error(self) -> float:
        """A bound on how far the rank of a quantile is off, as a share of the count; 0 where it is exact."""
        return len(self._turns) / (2 * self._kept)

    def quantiles(self, shares: tuple[float, ...]) -> np.ndarray:
        """The quantiles float64 [shares, dims], interpolated linearly between ranks as numpy does."""
        parts = [(part, 1) for part in self._unsorted]
        parts += [(part, 2 ** (level + 1)) for level, kept in enumerate(self._levels) for part in kept]
        values = np.concatenate([part for part, _ in parts], 1).astype(np.float64)
        weights = np.concatenate([np.full(part.shape[1], float(weight)) for part, weight in parts])
        out = []
        for row in values:
            order = np.argsort(row, kind="stable")
            rank = np.cumsum(weights[order]) - (weights[order] + 1) / 2  # in the middle of the ranks it stands for
            out.append(np.interp(np.array(shares) * (self.count - 1), rank, row[order]))
        return np.array(out).T

    def result(self, more: Sequence[str] = ()) -> dict:
        """JSON data: {"count", "mean", "std", "min", "max", "q01", "q99", "rank_error"}, and quantiles of other names,
        as "q02" is the one of 0.02."""
        quantiles = dict.fromkeys(("q01", "q99", *more))
        quantiles = dict(zip(quantiles, self.quantiles(tuple(int(name[1:]) / 100 for name in quantiles)), strict=True))
        std = np.sqrt(np.maximum(self._squares, 0) / self.count)
        lists = {"mean": self._mean, "std": std, "min": self._low, "max": self._high, **quantiles}
        return {"count": self.count, **{name: np.asarray(value, np.float64).tolist() for name, value in lists.items()},
                "rank_error": self.rank_error}
