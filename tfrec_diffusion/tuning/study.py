"""The study: what Optuna proposes, what it is told, and the file from which it all comes back."""

import json
import math
from typing import NamedTuple

import numpy as np
import optuna
from optuna.trial import TrialState

from tfrec_diffusion.tuning.parameters import Choice
from tfrec_diffusion.tuning.search_file import METRICS

_ATTEMPTS = 20  # to find a proposal that was not tried before
_CLAIM, _OWN, _SECONDS, _FAILED = "search", "own settings", "seconds", "failed"
_PRUNERS = {
    "median": optuna.pruners.MedianPruner,
    "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
    "none": optuna.pruners.NopPruner,
}


class Trial(NamedTuple):
    """A trial of a study.

    Args:
        number: int. From 0.
        params: dict by name. The value of each parameter.
        state: str. `"running"`, also when a command was stopped before its end; `"trained"`,
            `"pruned"` or `"failed"`.
        value: float or `None`. The metric on the validation split, once it is trained; of a pruned
            one, in its last epoch.
        epochs: int. Epochs after which it was measured.
        seconds: float. How long it ran.
        failure: str. Why it failed; empty if it did not.
        is_own: bool. Whether it has the settings of the flags as they stand.
    """

    number: int
    params: dict
    state: str
    value: float | None
    epochs: int
    seconds: float
    failure: str
    is_own: bool


class Study:
    """Trials of a search, in a file that the next command goes on from.

    What is proposed depends on the search, `seed` and the trials before alone, so that a search
    that was stopped goes on as it would have.

    Only one process may have a study open.

    Args:
        directory: `pathlib.Path`. An existing directory, which gets the file `study.log`, an Optuna
            journal.
        search: `Search`.
        seed: int. Of the proposals.
        claim: dict. What the trials depend on, of what JSON can hold. Later commands must have the
            same.

    Raises:
        ValueError: If the directory has the trials of another search.
    """

    def __init__(self, directory, search, seed, claim):
        self._search = search
        self._seed = seed
        self._distributions = {p.name: _distribution(p) for p in search.parameters}
        self._direction = "maximize" if METRICS[search.metric] else "minimize"
        # Not every proposal and value: what is worth it is printed with the trials.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            storage=optuna.storages.JournalStorage(_journal(directory / "study.log")),
            study_name="tune",
            direction=self._direction,
            pruner=_PRUNERS[search.pruner](),
            load_if_exists=True,
        )
        claim = json.loads(json.dumps(claim))
        before = self._study.user_attrs.get(_CLAIM)
        if before is None:
            self._study.set_user_attr(_CLAIM, claim)
        else:
            _check_same(directory, before, claim)

    # What there is to try

    def propose(self, params=None, is_own=False):
        """Adds a trial.

        Args:
            params: dict by name or `None`. The value of each parameter. If `None`, the sampler
                proposes. Defaults to `None`.
            is_own: bool. Whether `params` are those of the flags as they stand. Defaults to
                `False`.

        Returns:
            `Trial`, or `None` if all combinations are there.
        """
        proposal = self._proposal() if params is None else params
        if proposal is None:
            return None
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=proposal,
                distributions=self._distributions,
                user_attrs={_OWN: is_own},
            )
        )
        return self.trials()[-1]

    def to_repeat(self):
        """The trials that failed and were not tried again.

        Returns:
            list of `Trial`.
        """
        return [trial for trial in self.current() if trial.state == "failed"]

    def current(self):
        """The trials but for those that failed and were tried again.

        Returns:
            list of `Trial`.
        """
        trials = self.trials()
        return [
            trial
            for trial in trials
            if trial.state != "failed"
            or all(later.params != trial.params for later in trials[trial.number + 1 :])
        ]

    def _proposal(self):
        trials = self._study.get_trials(deepcopy=False)
        tried = [trial.params for trial in trials]
        if self._search.sampler == "tpe":
            for attempt in range(_ATTEMPTS):
                proposal = self._sampled(trials, [self._seed, len(trials), attempt])
                if proposal not in tried:
                    return proposal
            if self._search.size == math.inf:
                return proposal
        return next((one for one in self._search.combinations() if one not in tried), None)

    def _sampled(self, trials, seeds):
        """What TPE proposes after these trials, whoever has seen them come in.

        A study in memory is asked, as one in a file would keep half of a proposal if the process
        ended in its middle, and a sampler of its own, whose state is known.
        """
        seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
        sampler = optuna.samplers.TPESampler(seed=seed)
        asked = optuna.create_study(direction=self._direction, sampler=sampler)
        asked.add_trials(trials)
        drawn = asked.ask(self._distributions).params
        return {
            p.name: drawn[p.name] if isinstance(p, Choice) else p.rounded(drawn[p.name])
            for p in self._search.parameters
        }

    # What has come out

    def trials(self):
        """All trials, by their numbers.

        Returns:
            list of `Trial`.
        """
        return [_trial(frozen) for frozen in self._study.get_trials(deepcopy=False)]

    def best(self):
        """The best trial that was trained to its end.

        Returns:
            `Trial`, the first of several, or `None`.
        """
        best = None
        for trial in self.trials():
            if trial.state == "trained" and (
                best is None or self._search.is_better(trial.value, best.value)
            ):
                best = trial
        return best

    def report(self, number, values):
        """Tells what a trial has reached by now; what was told before may be told again.

        Args:
            number: int. The trial's.
            values: list of float. The metric after each epoch.

        Returns:
            bool. Whether it is so far behind the others that it should end.
        """
        trial = self._handle(number)
        known = len(self._study.get_trials(deepcopy=False)[number].intermediate_values)
        for epoch, value in enumerate(values, 1):
            if epoch > known:
                trial.report(value, epoch)
        return len(values) > 0 and trial.should_prune()

    def add_seconds(self, number, seconds):
        """Tells how long a trial has run since that was told last.

        Args:
            number: int. The trial's.
            seconds: float.
        """
        before = self._study.get_trials(deepcopy=False)[number].user_attrs.get(_SECONDS, 0.0)
        self._handle(number).set_user_attr(_SECONDS, before + seconds)

    def complete(self, number, value):
        """Ends a trial that was trained to its end.

        Args:
            number: int. The trial's.
            value: float. The metric of the model that it keeps.
        """
        self._study.tell(number, value)

    def prune(self, number):
        """Ends a trial that is behind the others.

        Args:
            number: int. The trial's.
        """
        self._study.tell(number, state=TrialState.PRUNED)

    def fail(self, number, failure):
        """Ends a trial that failed.

        Optuna would forget a failed trial, and propose its like again. As a pruned one it stands
        behind all that were trained.

        Args:
            number: int. The trial's.
            failure: str. Why it failed.
        """
        self._handle(number).set_user_attr(_FAILED, failure)
        self._study.tell(number, state=TrialState.PRUNED)

    def _handle(self, number):
        frozen = self._study.get_trials(deepcopy=False)[number]
        return optuna.trial.Trial(self._study, frozen._trial_id)


def _distribution(parameter):
    if isinstance(parameter, Choice):
        return optuna.distributions.CategoricalDistribution(parameter.values)
    low, high, step = parameter.low, parameter.high, parameter.step
    if parameter.is_whole:
        return optuna.distributions.IntDistribution(low, high, parameter.log, step or 1)
    return optuna.distributions.FloatDistribution(low, high, parameter.log, step)


def _journal(path):
    """Optuna's file, as a killed process may have left it, ready to go on with."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.exists():
        lines = path.read_bytes()
        whole = lines.rfind(b"\n") + 1
        if whole < len(lines):
            with open(path, "rb+") as file:
                file.truncate(whole)
    # Optuna links to the path, as it stands, from beside it.
    return optuna.storages.journal.JournalFileBackend(str(path.absolute()))


def _check_same(directory, before, claim):
    # Another version of the package may have other flags.
    names = [n for n in {**before, **claim} if not n.startswith("--") or n in {*before} & {*claim}]
    changed = [
        f"{name}={claim.get(name)} (was {before.get(name)})"
        for name in names
        if claim.get(name) != before.get(name)
    ]
    if changed:
        raise ValueError(
            f"{directory} holds another search; give another --tune_dir or the same search. "
            f"Received: {', '.join(changed)}"
        )


def _trial(frozen):
    failure = frozen.user_attrs.get(_FAILED, "")
    if failure:
        state = "failed"
    else:
        state = {TrialState.COMPLETE: "trained", TrialState.PRUNED: "pruned"}.get(
            frozen.state, "running"
        )
    return Trial(
        frozen.number,
        frozen.params,
        state,
        None if failure else frozen.value,
        len(frozen.intermediate_values),
        frozen.user_attrs.get(_SECONDS, 0.0),
        failure,
        frozen.user_attrs[_OWN],
    )
