"""What a search varies: a flag of `train` or a constructor argument of the model, and its values.

The name of a constructor argument is written `set.<argument>`.
"""

import decimal
import itertools
from typing import NamedTuple

ARGUMENT = "set."


class Choice(NamedTuple):
    """One of several values.

    Args:
        name: str.
        values: tuple of str, int, float, bool or `None`. `None` for a flag leaves it as the other
            flags have it; for a constructor argument it is the value `None`.
    """

    name: str
    values: tuple

    def flags(self, value):
        """The flags of `train` that give it a value.

        Args:
            value: One of `values`.

        Returns:
            list of str.
        """
        return _flags(self.name, value)

    @property
    def extremes(self):
        """Values that are allowed if all are: here, each."""
        return self.values

    def grid(self):
        """Its values, in order.

        Returns:
            tuple.
        """
        return self.values


class Range(NamedTuple):
    """A number in a range.

    Args:
        name: str.
        low: int or float. The lowest value. If `low`, `high` and `step` are all int, so are the
            values.
        high: int or float. The highest value.
        log: bool. Whether values are spread evenly by their logarithms. Defaults to `False`.
        step: int, float or `None`. Distance of neighboring values. If `None`, 1 for int, and
            neighbors as close as four digits tell apart for float. Defaults to `None`.
    """

    name: str
    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    def flags(self, value):
        """As `Choice.flags`, of a value in the range."""
        return _flags(self.name, value)

    @property
    def extremes(self):
        """As in `Choice`: the lowest and the highest."""
        return (self.low, self.high)

    @property
    def is_whole(self):
        """Whether its values are int."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    def grid(self):
        """Its values, from the lowest to the highest.

        Returns:
            tuple, or `None` if there are too many to count.
        """
        if self.is_whole:
            return tuple(range(self.low, self.high + 1, self.step or 1))
        if self.step is None:
            return None
        low, high, step = (decimal.Decimal(str(n)) for n in (self.low, self.high, self.step))
        steps = itertools.takewhile(lambda value: value <= high, itertools.count(low, step))
        return tuple(map(float, steps))

    def rounded(self, value):
        """The value to train with in place of one that was drawn.

        Four digits are as good as sixteen, and can be read.

        Args:
            value: int or float, in the range.

        Returns:
            int or float, in the range.
        """
        if self.is_whole:
            return int(value)
        if self.step is not None:
            return min(self.grid(), key=lambda other: abs(other - value))
        return min(max(float(f"{value:.4g}"), self.low), self.high)

    def holds(self, value):
        """Whether a value is one of those in the range.

        Args:
            value: Anything.

        Returns:
            bool.
        """
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        among = self.grid()
        return self.low <= value <= self.high if among is None else value in among


def _flags(name, value):
    if name.startswith(ARGUMENT):
        return [f"--set={name.removeprefix(ARGUMENT)}={value}"]
    return [] if value is None else [f"--{name}={value}"]
