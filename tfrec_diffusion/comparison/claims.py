"""What papers claim, and whether the runs of a comparison bear it out."""

import math
from typing import NamedTuple

from tfrec_diffusion.comparison import statistics
from tfrec_diffusion.comparison.differences import measured, summary
from tfrec_diffusion.comparison.entry import Entry

# What is expected of a difference, given a margin: it lies between these.
EXPECTED = {
    "above": lambda margin: (margin, math.inf),
    "below": lambda margin: (-math.inf, margin),
    "equal within": lambda margin: (-margin, margin),
}


class Contrast(NamedTuple):
    """A difference in AUC: of an entry from another one, on a split of their data set.

    Args:
        entry: `Entry`.
        against: `Entry`. On the same data set.
        split: str.
    """

    entry: Entry
    against: Entry
    split: str

    def __str__(self):
        split = "" if self.split == "test" else f", {self.split}"
        return f"{self.entry.row} - {self.against.row} on {self.entry.data_set.name}{split}"


class Claim(NamedTuple):
    """A claim of a paper.

    Args:
        text: str. The claim.
        paper: str. What the paper has measured.
        contrasts: list of tuples of a `Contrast`, and of one that is taken off or `None`. Each is
            an independent test of the claim.
        expected: str. What the claim says of the difference, a key of `EXPECTED`. Defaults to
            `"above"`.
        margin: float. `"above"` and `"below"` this. Defaults to `0.0`.
        gap: list of two str or `None`. Names of oracles; the difference is also given as a share of
            the gap between their AUCs. Defaults to `None`.
        why: str. Why it came out so. Defaults to `""`.
    """

    text: str
    paper: str
    contrasts: list[tuple[Contrast, Contrast | None]]
    expected: str = "above"
    margin: float = 0.0
    gap: list[str] | None = None
    why: str = ""


class Judgment(NamedTuple):
    """What came out of one contrast of a claim.

    Args:
        claim: `Claim`.
        contrast: `Contrast`.
        minus: `Contrast` or `None`. The one that is taken off.
        difference: `Difference` or `None`. Its p is that of the nearest difference at which the
            claim turns, adjusted by Holm. `None` before there are two seeds.
    """

    claim: Claim
    contrast: Contrast
    minus: Contrast | None
    difference: statistics.Difference | None

    @property
    def verdict(self):
        """str. `"holds"`, `"does not hold"` or `"cannot tell"`; empty without a difference."""
        if not self.difference:
            return ""
        if self.difference.p >= statistics.SURE:
            return "cannot tell"
        low, high = EXPECTED[self.claim.expected](self.claim.margin)
        return "holds" if low < self.difference.mean < high else "does not hold"

    @property
    def missing(self):
        """str. The runs that it lacks. Empty if none."""
        entries = {
            (entry.data_set.name, entry.row): entry
            for contrast in (self.contrast, self.minus)
            if contrast
            for entry in (contrast.entry, contrast.against)
        }
        missing = [
            f"{entry.row}: {entry.missing()}" for entry in entries.values() if entry.missing()
        ]
        return "; ".join(missing)

    @property
    def share(self):
        """float. The difference as a share of the gap between oracles, or `None` if unknown."""
        if not self.claim.gap or not self.difference:
            return None
        known = self.contrast.entry.oracles(self.contrast.split)
        low, high = (known.get(f"oracle: {name}") for name in self.claim.gap)
        return self.difference.mean / (high["auc"] - low["auc"]) if low and high else None


def judge(claims):
    """Decides claims one by one, with p adjusted by Holm over the contrasts of each.

    Args:
        claims: list of `Claim`.

    Returns:
        list of `Judgment`, claim by claim.
    """
    return [one for claim in claims for one in _judge(claim)]


def _judge(claim):
    found = [
        Judgment(claim, contrast, minus, _difference(claim, contrast, minus))
        for contrast, minus in claim.contrasts
    ]
    adjusted = iter(statistics.holm([one.difference.p for one in found if one.difference]))
    return [
        one._replace(difference=one.difference and one.difference._replace(p=next(adjusted)))
        for one in found
    ]


def _difference(claim, contrast, minus):
    seeds = measured(*contrast)
    if minus:
        less = measured(*minus)
        seeds = {seed: seeds[seed] - less[seed] for seed in seeds if seed in less}
    found = summary(seeds.values())
    if found is None:
        return None
    bounds = filter(math.isfinite, EXPECTED[claim.expected](claim.margin))
    return found._replace(p=max(summary(seeds.values(), bound).p for bound in bounds))
