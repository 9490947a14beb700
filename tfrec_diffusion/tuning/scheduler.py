"""Trains the trials of a study, several at a time, and ends those that are behind the others."""

import contextlib
import dataclasses
import math
import shlex
import signal
import time

from tfrec_diffusion import processes
from tfrec_diffusion.tuning.training import Training

_POLL_SECONDS = 0.2
_MOST_FAILED = 3  # trials that fail before any other ends well: then none would


@dataclasses.dataclass(eq=False)
class _Job:
    """A trial that is being trained."""

    number: int
    is_own: bool
    training: Training
    begun: float
    epochs: int = 0  # that the study has been told of
    is_behind: bool = False


class _Other:
    """The process of a command that was killed, which goes on without it."""

    def __init__(self, training):
        self._training = training

    def poll(self):
        return None if self._training.is_locked else 0

    def terminate(self):
        """Nobody knows its number."""

    def wait(self):
        """It ends by itself, and the next command waits for that."""


class Scheduler:
    """Trains the trials of a study.

    A trial that fails does not end the search. If the first three fail, though, the search itself
    is taken for wrong: it ends with the error of the last one, and the next command tries these
    trials again. The study is told of failed trials when another one has ended well.

    Args:
        study: `Study`.
        metric: str. The metric of the search.
        training_of: callable. Takes a `Trial`, returns its `Training`.
        report: callable. Called after each trial.
    """

    def __init__(self, study, metric, training_of, report):
        self._study = study
        self._metric = metric
        self._training_of = training_of
        self._report = report
        self._signals = ()
        self._running = {}
        self._failures = {}  # by number, of which the study has not been told

    def work(self, total, jobs, seconds=math.inf, signals=(), first=None, repeats=False):
        """Trains until there are so many trials, the time is up, or a signal came.

        Trials that an earlier command left in their middle go on. Whatever ends this, what runs
        then is stopped; trainings write a checkpoint first.

        Args:
            total: int. Trials, with those that there are.
            jobs: int. Trials at a time.
            seconds: float. The time. Defaults to `math.inf`.
            signals: list of int. Signals that came, to which others may be added. Defaults to `()`.
            first: dict by name or `None`. The values of the parameters in the first trial. If
                `None`, they are proposed. Defaults to `None`.
            repeats: bool. Whether trials that failed are tried again. Defaults to `False`.

        Raises:
            ValueError: If the first trials fail.
        """
        self._signals = signals
        begun, again = time.monotonic(), self._study.to_repeat() if repeats else []
        before = self.ended - len(again)
        waiting = [trial for trial in self._study.trials() if trial.state == "running"] + again
        with (
            processes.shared_compilations() as environment,
            processes.stopped_at_the_end(self._running),
            self._seconds_kept(),
        ):
            while not signals and time.monotonic() - begun < seconds:
                self._fill(waiting, total, jobs, first, environment)
                if not self._running:
                    break
                time.sleep(_POLL_SECONDS)
                ended = self.ended
                for process, job in [*self._running.items()]:
                    self._look_at(process, job, environment)
                if self.ended > ended:
                    self._report()
                    done = self.ended
                    left = processes.time_left(begun, before, done, total)
                    print(f"{done} of {total} trials; {left} to go, as fast as so far", flush=True)
        if self._failures and not self._running:
            self._give_up()

    @property
    def ended(self):
        """int. Trials that have ended. One that failed and was tried again is none."""
        return sum(trial.state != "running" for trial in self._study.current())

    @contextlib.contextmanager
    def _seconds_kept(self):
        try:
            yield
        finally:
            for job in self._running.values():
                self._study.add_seconds(job.number, time.monotonic() - job.begun)

    def _fill(self, waiting, total, jobs, first, environment):
        """Starts as many trials as fit into `jobs`: those that wait, then new ones."""
        while len(self._running) < jobs:
            trials = self._study.current()
            if waiting:
                trial = waiting.pop(0)
                if trial.state == "failed":
                    trial = self._study.propose(trial.params, trial.is_own)
            elif len(trials) < total:
                params = None if trials else first
                trial = self._study.propose(params, is_own=params is not None)
            else:
                return
            training = self._training_of(trial)
            own = " (as the flags stand)" if trial.is_own else ""
            flags = shlex.join(training.varied)
            print(f"trial {trial.number}: {flags}{own} ...", flush=True)
            job = _Job(trial.number, trial.is_own, training, time.monotonic())
            self._start(job, environment)

    def _start(self, job, environment):
        training = job.training
        if training.is_locked or training.is_finished:
            process = _Other(training)
        else:
            process = processes.start(training.command, training.directory, environment)
        self._running[process] = job

    def _look_at(self, process, job, environment):
        status = process.poll()
        # Read behind `status`: an ended process writes no more.
        values = job.training.values
        if len(values) > job.epochs:
            job.epochs = len(values)
            behind = self._study.report(job.number, values)
            # The flags' own settings are what the others are compared with in the end.
            job.is_behind = behind and job.epochs < job.training.epochs and not job.is_own
            if job.is_behind:
                process.terminate()
        # A terminal sends its signals to the trainings as well.
        if status is None or (self._signals and not job.training.is_finished):
            return
        del self._running[process]
        was_finished = job.training.is_finished
        if not was_finished and (
            job.training.is_locked or (isinstance(process, _Other) and not job.is_behind)
        ):
            # Of two processes that have met there, one has gone.
            self._start(job, environment)
            return
        self._study.add_seconds(job.number, time.monotonic() - job.begun)
        if was_finished and not math.isnan(job.training.value):
            self._end_well(job, lambda: self._study.complete(job.number, job.training.value))
        elif was_finished:
            self._fail(job, f"the validation split has no {self._metric}: try another --best_by")
        elif job.is_behind:
            self._end_well(job, lambda: self._study.prune(job.number))
        else:
            self._fail(job, _failure(job.training, status))

    def _end_well(self, job, tell):
        tell()
        for number, failure in self._failures.items():
            self._study.fail(number, failure)
        self._failures.clear()
        trial, best = self._study.trials()[job.number], self._study.best()
        found = f"{self._metric} {trial.value:.4f}"
        if trial.state == "pruned":
            outcome = f"pruned after epoch {trial.epochs} with {found}"
        else:
            outcome = f"{found} after epoch {trial.epochs}"
        of_best = f"; best {best.value:.4f} of trial {best.number}" if best else ""
        print(f"trial {trial.number}: {outcome}, {trial.seconds:.0f} s{of_best}", flush=True)

    def _fail(self, job, failure):
        print(f"trial {job.number} FAILED: {failure}", flush=True)
        if self.ended:
            self._study.fail(job.number, failure)
            return
        self._failures[job.number] = failure
        if len(self._failures) == _MOST_FAILED:
            self._give_up()

    def _give_up(self):
        (*_, (number, failure)) = self._failures.items()
        raise ValueError(
            f"no trial has ended well, so that the search itself seems to be wrong; once that is "
            f"put right, the same command tries them again. Trial {number}: {failure}"
        )


def _failure(training, status):
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    words = processes.last_words(training.directory, 1)
    return words[0].removeprefix("error: ") if words else f"exit status {status}"
