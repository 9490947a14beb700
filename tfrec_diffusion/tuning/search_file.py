"""A search file: what is searched, among which values, and how; checked."""

import itertools
import json
import math
import pathlib
from typing import NamedTuple

from tfrec_diffusion.tuning.parameters import Choice, Range

# Of `--best_by`: to whether more is better.
METRICS = {"auc": True, "gauc": True, "log_loss": False}
SAMPLERS = ("tpe", "grid")
PRUNERS = ("median", "successive_halving", "none")
_TRIALS = 30  # of a search that could go on
_RANGE = ("low", "high", "log", "step")
_OTHERS = ("comment", "flags", "sampler", "pruner")


class Search(NamedTuple):
    """What a search file says.

    Args:
        path: str or `pathlib.Path`. The file.
        parameters: tuple of `Choice` and `Range`.
        flags: list of str. Flags of `tfrec_diffusion.train` for every trial. Defaults to `()`.
        sampler: str. How values are proposed: `"tpe"`, where good ones were found (Tree-structured
            Parzen Estimator), or `"grid"`, all combinations in order. Defaults to `"tpe"`.
        pruner: str. Which trials end early, judged after each epoch by those before:
            `"median"`, those below the median; `"successive_halving"`, all but the best quarter
            after 1, 4, 16, ... epochs; `"none"`. Defaults to `"median"`.
        metric: str. The metric of the validation split by which trials are compared, a key of
            `METRICS`: that of the flag `--best_by`. Defaults to `"auc"`.
    """

    path: str | pathlib.Path
    parameters: tuple[Choice | Range, ...]
    flags: list[str] = ()
    sampler: str = "tpe"
    pruner: str = "median"
    metric: str = "auc"

    def flags_of(self, params):
        """Flags of `tfrec_diffusion.train` for a trial.

        Args:
            params: dict by name. The value of each parameter.

        Returns:
            list of str.
        """
        return list(itertools.chain(*(p.flags(params[p.name]) for p in self.parameters)))

    @property
    def size(self):
        """Number of combinations, or `math.inf`."""
        grids = [parameter.grid() for parameter in self.parameters]
        return math.inf if None in grids else math.prod(map(len, grids))

    def combinations(self):
        """All combinations of values, the last parameter's values first; there must be a `size`.

        Yields:
            dict by name.
        """
        names = [parameter.name for parameter in self.parameters]
        for values in itertools.product(*(parameter.grid() for parameter in self.parameters)):
            yield dict(zip(names, values, strict=True))

    def num_trials(self, asked):
        """How many trials a search has from the first to the last.

        Args:
            asked: int or `None`. If `None`, a grid is taken whole, and other searches have 30.

        Returns:
            int. No more than there are combinations.
        """
        if asked is None:
            asked = math.inf if self.sampler == "grid" else _TRIALS
        return min(asked, self.size)

    def is_better(self, value, than):
        """Whether a value of the metric is better than another one.

        Args:
            value: float.
            than: float.

        Returns:
            bool.
        """
        return value > than if METRICS[self.metric] else value < than


def read(path, flags=()):
    """Reads a search file.

    `experiments/planted_search.json` is one. `search` has, by name, a list of values, or a range:
    `low`, `high`, and `log` (whether by logarithms) or `step`. A name is that of a flag of
    `tfrec_diffusion.train`, or `set.` and a constructor argument of the model.

    Args:
        path: str or `pathlib.Path`. The file.
        flags: list of str. Flags of `tfrec_diffusion.train` for every trial, behind those of the
            file. Defaults to `()`.

    Returns:
        `Search`.

    Raises:
        OSError: If there is no such file.
        ValueError: If it lacks something, or has something that means nothing.
    """
    try:
        says = json.loads(pathlib.Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(says, dict) or not isinstance(says.get("search"), dict) or not says["search"]:
        raise ValueError(f"{path} needs `search`: an object of values or a range by name")
    _check_known(path, says, ("search", *_OTHERS))
    own = says.get("flags", [])
    if not isinstance(own, list) or not all(isinstance(flag, str) for flag in own):
        raise ValueError(f"{path}: `flags` must be a list of strings. Received: {own}")
    for name, known in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        if name in says and says[name] not in known:
            raise ValueError(
                f"{path}: `{name}` must be one of {known}. Received: {json.dumps(says[name])}"
            )
    search = Search(
        path,
        tuple(_parameter(path, name, given) for name, given in says["search"].items()),
        [*own, *flags],
        **{name: says[name] for name in ("sampler", "pruner") if name in says},
    )
    for parameter in search.parameters:
        if search.sampler == "grid" and parameter.grid() is None:
            raise ValueError(
                f"{path}: {parameter.name} needs a list of values or a `step` for a grid"
            )
    return search


def _parameter(path, name, given):
    what = f"{path}: {name}"
    if isinstance(given, list):
        return Choice(name, _checked_values(what, given))
    if not isinstance(given, dict):
        raise ValueError(
            f"{what} must have a list of values or a range, such as "
            f'{{"low": 0.0, "high": 0.5}}. Received: {json.dumps(given)}'
        )
    _check_known(what, given, _RANGE)
    low, high, step = (given.get(name) for name in ("low", "high", "step"))
    log = given.get("log", False)
    if not _is_number(low) or not _is_number(high) or low >= high:
        raise ValueError(
            f"{what} needs a number `low` below a number `high`. Received: {json.dumps(given)}"
        )
    if not isinstance(log, bool):
        raise ValueError(f"{what}: `log` must be true or false. Received: {json.dumps(log)}")
    if log and (low <= 0 or step is not None):
        raise ValueError(
            f"{what}: with `log`, `low` must be above 0 and there is no `step`. "
            f"Received: {json.dumps(given)}"
        )
    parameter = Range(name, low, high, log, step)
    if step is not None:
        grid = parameter.grid() if _is_number(step) and step > 0 else ()
        if len(grid) < 2:
            raise ValueError(
                f"{what}: `step` must be a number above 0, and `high` at least one step above "
                f"`low`. Received: {json.dumps(given)}"
            )
        # Without what is left of the last step.
        parameter = parameter._replace(high=grid[-1])
    return parameter


def _checked_values(what, values):
    plain = all(value is None or isinstance(value, (str, int, float)) for value in values)
    if not plain or len(values) < 2 or len({*values}) < len(values):
        raise ValueError(
            f"{what} needs two or more different values: strings, numbers, true, false or null. "
            f"Received: {json.dumps(values)}"
        )
    return tuple(values)


def _check_known(what, found, known):
    unknown = [*found.keys() - {*known}]
    if unknown:
        raise ValueError(f"{what} may have {[*known]}. Received: {sorted(unknown)}")


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
