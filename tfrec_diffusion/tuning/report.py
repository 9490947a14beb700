"""What a search leaves: a table of the best trials, their flags, all trials, and a picture."""

import csv
import shlex

from tfrec_diffusion.files import written_aside

_BEST = 5  # trials in the table


class Report:
    """The files of a search, and what is printed at its end.

    Args:
        study: `Study`.
        search: `Search`.
        directory: `pathlib.Path`. Where the files go: `best.flags`, `trials.csv`, `tune.png`.
        training_of: callable. Takes a `Trial`, returns its `Training`.
    """

    def __init__(self, study, search, directory, training_of):
        self._study = study
        self._search = search
        self._training_of = training_of
        self.flag_file = directory / "best.flags"
        self.trials_file = directory / "trials.csv"
        self.picture_file = directory / "tune.png"
        self._directory = directory

    def write(self):
        """Writes all files but the picture, which takes longer."""
        with (
            written_aside(self.trials_file) as aside,
            open(aside, "w", encoding="utf-8", newline="") as file,
        ):
            csv.writer(file).writerows(self._rows())
        if self._study.best():
            with written_aside(self.flag_file) as aside:
                aside.write_text(self._flags(), encoding="utf-8")

    def draw(self):
        """Writes the picture."""
        from tfrec_diffusion.tuning import picture

        with written_aside(self.picture_file) as aside:
            figure = picture.draw(self._study.current(), self._study.best(), self._search)
            figure.savefig(aside, dpi=150, format="png")

    def __str__(self):
        best = self._study.best()
        if not best:
            return f"no trial has been trained to its end yet; {self._counted()}"
        trained = [trial for trial in self._study.trials() if trial.state == "trained"]
        trained.sort(key=lambda trial: trial.value, reverse=self._search.is_better(1, 0))
        metric = self._search.metric
        lines = [
            f"\n{metric} on the validation split; {self._counted()}",
            *_aligned([self._heading(), *map(self._line, trained[:_BEST])]),
        ]
        for trial in trained:
            if trial.is_own:
                lines.append(
                    f"as the flags stand: {metric} {trial.value:.4f}, trial {trial.number}"
                )
        return "\n".join(
            [
                *lines,
                f"\nthe best: {self._training_of(best).directory}",
                f"its flags: python -m tfrec_diffusion.train --flagfile={self.flag_file}",
                f"all trials: {self.trials_file}, {self.picture_file}",
            ]
        )

    def _counted(self):
        states = [trial.state for trial in self._study.current()]
        counted = [
            f"{states.count(state)} {'unfinished' if state == 'running' else state}"
            for state in ("trained", "pruned", "failed", "running")
            if state in states
        ]
        return f"trials: {', '.join(counted) or 'none'}"

    def _heading(self):
        names = (parameter.name for parameter in self._search.parameters)
        return ["trial", self._search.metric, "epochs", "seconds", *names]

    def _line(self, trial):
        params = (str(trial.params[parameter.name]) for parameter in self._search.parameters)
        found = (trial.number, f"{trial.value:.4f}", trial.epochs, f"{trial.seconds:.0f}")
        return [*map(str, found), *params]

    def _flags(self):
        best = self._study.best()
        training = self._training_of(best)
        return "\n".join(
            [
                f"# The best of {len(self._study.current())} trials of {self._search.path}: trial "
                f"{best.number}, validation {self._search.metric} {best.value:.4f}.",
                "#",
                f"#   python -m tfrec_diffusion.train --flagfile={self.flag_file}",
                *training.common,
                *training.varied,
                f"--model_dir={self._directory / 'best'}",
                "",
            ]
        )

    def _rows(self):
        names = [parameter.name for parameter in self._search.parameters]
        metric = f"validation_{self._search.metric}"
        yield ["trial", "state", metric, "epochs", "seconds", *names, "flags", "failure"]
        for trial in self._study.trials():
            params = [_text(trial.params[name]) for name in names]
            yield [
                *(trial.number, trial.state, _text(trial.value), trial.epochs),
                *(round(trial.seconds, 1), *params),
                *(shlex.join(self._training_of(trial).varied), trial.failure),
            ]


def _text(value):
    return "" if value is None else value


def _aligned(lines):
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(cells)
