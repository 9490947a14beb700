"""Starts a model with the weights of a trained one, whose vocabularies may have been others."""

import keras
import numpy as np

from tfrec_diffusion.row_maps import count_unknown, row_maps
from tfrec_diffusion.schema import OUT_OF_VOCABULARY
from tfrec_diffusion.training.run_directory import RunDirectory


class WarmStart:
    """The weights of a trained run, for the same model on data with other vocabularies.

    Rows of embedding tables move to where their values are now. Values that the run did not know
    keep their initial rows.

    Args:
        directory: str or `pathlib.Path`. The run's directory.
        schema: `Schema` of the new data, with its vocabularies.

    Attributes:
        new_rows: dict by table of how many of its values are new.

    Raises:
        FileNotFoundError: If there is no such run, or it has not finished an epoch.
        ValueError: If it is of data that mean something else.
    """

    def __init__(self, directory, schema):
        self._run = RunDirectory(directory)
        self._trained = self._run.load_model()
        self._maps = row_maps(schema, self._run.schema)
        _check_same_numbers(self._run.schema, schema, self._run.path)
        self.new_rows = count_unknown(self._maps)

    def apply(self, model):
        """Gives a model the weights.

        Args:
            model: `RankingModel`, made like the trained one.

        Raises:
            ValueError: If it was made with other arguments.
        """
        self._check_same_arguments(model)
        for weight, trained in zip(_others(model), _others(self._trained), strict=True):
            weight.assign(trained.numpy())
        pairs = zip(model.row_tables, self._trained.row_tables, strict=True)
        for (name, layer), (_, trained) in pairs:
            _load(layer, _saved(trained), self._maps.get(name))

    def apply_optimizer(self, model):
        """Gives a model's optimizer the moments, and tells it how many steps they are of.

        Args:
            model: Compiled `RankingModel`, after `apply`.

        Raises:
            ValueError: If the run keeps no state of such an optimizer.
        """
        trained = keras.models.load_model(self._run.model_file)
        if type(trained.optimizer) is not type(model.optimizer):
            raise ValueError(f"{self._run.model_file} has no state of {type(model.optimizer)}")
        model.optimizer.build(model.trainable_variables)
        maps = {
            id(weight): self._maps.get(name)
            for name, layer in model.row_tables
            for weight in layer.weights
        }
        for moments in ("_momentums", "_velocities"):
            pairs = zip(
                model.trainable_variables,
                getattr(model.optimizer, moments),
                getattr(trained.optimizer, moments),
                strict=True,
            )
            for variable, ours, theirs in pairs:
                rows = maps.get(id(variable))
                ours.assign(_moved(ours.numpy(), theirs.numpy(), rows))
        model.optimizer.steps_before = trained.optimizer.steps_before + int(
            trained.optimizer.iterations.numpy()
        )

    def _check_same_arguments(self, model):
        if type(model) is not type(self._trained):
            raise ValueError(
                f"{self._run.path} holds a {type(self._trained).__name__}, which cannot start a "
                f"{type(model).__name__}"
            )
        # Of a run's length, and of what has no weights.
        free = ("schema", "name", "dtype", "dropout", "curriculum_steps")
        config, trained = model.get_config(), self._trained.get_config()
        changed = [
            f"{name}={config[name]!r} (was {trained[name]!r})"
            for name in sorted(config.keys() & trained.keys())
            if name not in free and config[name] != trained[name]
        ]
        if changed:
            raise ValueError(
                f"the model must be made like that of {self._run.path}. "
                f"Received: {', '.join(changed)}"
            )


def _check_same_numbers(trained, schema, path):
    for table in schema.tables:
        old = trained.table(table.name)
        if (old.mean, old.deviation) != (table.mean, table.deviation):
            raise ValueError(
                f"table {table.name!r} must have the mean and deviation that {path} was trained "
                f"with, {old.mean:g} and {old.deviation:g}. Received: {table.mean:g} and "
                f"{table.deviation:g}. `prepare --like={path}` keeps them"
            )


def _others(model):
    """The weights of a model that have no rows for values."""
    tables = {id(weight) for _, layer in model.row_tables for weight in layer.weights}
    return [weight for weight in model.weights if id(weight) not in tables]


def _saved(layer):
    store = {}
    layer.save_own_variables(store)
    return store


def _load(layer, trained, rows):
    if rows is not None:
        trained = {"0": _moved(_saved(layer)["0"], trained["0"], rows)}
    layer.load_own_variables(trained)


def _moved(new, old, rows):
    """Rows of an array where their values are now; those of new values stay as in `new`.

    `rows[i]` is where the value of the new row i was.
    """
    if rows is None:
        return old
    known = rows != OUT_OF_VOCABULARY
    known[OUT_OF_VOCABULARY] = True
    moved = np.array(new)
    moved[known] = np.asarray(old)[rows[known]]
    return moved
