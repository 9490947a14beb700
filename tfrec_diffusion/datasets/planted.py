"""Users with planted interests, of whom it is known how well their clicks can be predicted."""

import itertools
import operator
import pathlib

import numpy as np
import tensorflow_datasets as tfds

from tfrec_diffusion import metrics, schema
from tfrec_diffusion.datasets import log_builder, logs_spec, planted_files, planted_users, records


class Planted(log_builder.LogBuilder):
    """Logs that the package makes itself, of users with planted interests, and prepares as `logs`.

    `planted_users` says how users click. A user has one request, which is one record with all its
    candidates, and is in one split. The splits follow each other in time.

    The report has, under `best_reachable`, the AUC, GAUC and log loss of the true click
    probabilities on each split. No model can be expected to do better. Under `oracles` it has the
    same of what can be known: of `planted_oracles.click_probabilities`, and of `counts`, a logistic
    regression on `planted_oracles.pooled_counts` that is fitted to the training split.

    With `sessions` there are the additional splits `test_spurious_0`, `test_spurious_10` ..
    `test_spurious_50`, which have that percentage of spurious sessions, with the same users in all
    other respects. The other splits have 20 percent.

    Raw files that were written earlier with the same options are used again. Those of other options
    are replaced. `planted_files` says what they hold.

    Args:
        data_dir: str or `pathlib.Path`. Root of the prepared data sets.
        raw_dir: str, `pathlib.Path` or `None`. Directory for the raw files. If `None`, it is
            `<data_dir>/planted/raw`. Defaults to `None`.
        users: int. Number of users in the training split. Defaults to `25000`.
        held_out_users: int. Number of users in each other split. Defaults to `3000`.
        items: int. Number of items. Defaults to `5000`.
        aspects: int. Number of aspects, at most 16. Defaults to `4`.
        values: int. Number of values of each aspect, from 2 to 100. Defaults to `16`.
        types: int. Number of types of users. If 0, preferences are independent, so that other users
            tell nothing about a user. Defaults to `40`.
        visible: bool. Whether the aspects of candidates and behaviors are features. If not, the
            item is the only feature and tells its aspects, and `items` must be at least
            `values ** aspects`. Defaults to `True`.
        impressions: int. Number of candidates of a request. Defaults to `8`.
        history_length: int. Number of behaviors of a user. Defaults to `300`.
        sessions: bool. Whether the newest 50 behaviors are five sessions with intents. This needs
            visible aspects, at least 50 behaviors and at least 100 items. Defaults to `False`.
        spurious_items: str. The tier of the items in spurious sessions, `"popular"` or `"niche"`.
            Defaults to `"popular"`.
        seed: int. Seed of all random numbers. Defaults to `0`.
    """

    VERSION = tfds.core.Version(planted_files.VERSION)

    def __init__(
        self,
        *,
        data_dir,
        raw_dir=None,
        users=25000,
        held_out_users=3000,
        items=5000,
        aspects=4,
        values=16,
        types=40,
        visible=True,
        impressions=8,
        history_length=300,
        sessions=False,
        spurious_items="popular",
        seed=0,
    ):
        self.users = users
        self.held_out_users = held_out_users
        self.items = items
        self.aspects = aspects
        self.values = values
        self.types = types
        self.visible = visible
        self.impressions = impressions
        self.history_length = history_length
        self.sessions = sessions
        self.spurious_items = spurious_items
        self.seed = seed
        planted_files.check(self.options)
        raw_dir = pathlib.Path(raw_dir or pathlib.Path(data_dir) / "planted" / "raw")
        super().__init__(
            raw_dir=raw_dir,
            data_dir=data_dir,
            spec=planted_files.spec(aspects, visible),
            spec_path=raw_dir / planted_files.SPEC,
            history_length=history_length,
        )

    @property
    def spans(self):
        """As in `log_builder.LogBuilder`, of all splits."""
        return {
            name: (split.begin * logs_spec.TIME_UNITS["s"], split.end * logs_spec.TIME_UNITS["s"])
            for name, split in planted_files.splits(sessions=self.sessions).items()
        }

    def convert(self):
        """Writes the raw files and converts them, see `RequestBuilder.convert`."""
        planted_files.write(self.raw_dir, **self.options)
        reachable, oracles = oracle_metrics(self.raw_dir, self.spans)
        self.report.note("best_reachable", reachable)
        self.report.note("oracles", oracles)
        schema_, vocabularies, splits = super().convert()
        candidate = [feature.name for feature in schema_.group("candidate")]
        splits = {
            name: records.Split(_WholeRequests(split.encode, candidate), split.parts)
            for name, split in splits.items()
        }
        return schema_, vocabularies, splits


class _WholeRequests:
    """Makes one request of the impressions of each user.

    Args:
        encode: `impressions.Encoder`. Makes a request of each impression.
        candidate: list of str. Names of the candidate features.
    """

    def __init__(self, encode, candidate):
        self._encode = encode
        self._lists = (schema.LABEL, *candidate)

    def __call__(self, part):
        """As `impressions.Encoder`."""
        by_user = itertools.groupby(self._encode(part), lambda keyed: keyed[1][schema.GROUP_ID])
        for _, keyed in by_user:
            keys, impressions = zip(*keyed, strict=True)
            lists = {name: map(operator.itemgetter(name), impressions) for name in self._lists}
            joined = {name: np.concatenate([*entries]) for name, entries in lists.items()}
            yield keys[0], {**impressions[0], **joined}


def oracle_metrics(raw_dir, splits):
    """Metrics of the true click probabilities and of the oracles.

    Args:
        raw_dir: str or `pathlib.Path`. Directory that `planted_files.write` has written.
        splits: iterable of str. Names of the splits.

    Returns:
        Two dicts by split: of dicts of floats `auc`, `gauc` and `log_loss` of the true
        probabilities; and of dicts of such dicts by oracle, for all splits but train.
    """
    reachable, oracles = {}, {}
    for split in splits:
        predicted = planted_files.read_oracles(raw_dir, split)
        users, labels = predicted.pop("user_id"), predicted.pop("label")
        if split == "train":
            click_rate = _logistic_regression(predicted["counts"], labels)
        predicted["counts"] = click_rate(predicted["counts"])
        found = {
            name: metrics.summary(labels, probabilities, users)
            for name, probabilities in predicted.items()
        }
        reachable[split] = found.pop("true")
        if split != "train":
            oracles[split] = found
    return reachable, oracles


def _logistic_regression(numbers, labels):
    """Fits the probability of a label to a number, by Newton's method; returns the function."""
    scale = max(1, numbers.max())
    inputs = np.stack([np.ones(len(numbers)), numbers / scale], axis=1)
    weights = np.zeros(2)
    for _ in range(20):
        probabilities = planted_users.sigmoid(inputs @ weights)
        curvature = (inputs.T * (probabilities * (1 - probabilities))) @ inputs
        weights += np.linalg.pinv(curvature) @ (inputs.T @ (labels - probabilities))
    return lambda values: planted_users.sigmoid(weights[0] + weights[1] * values / scale)
