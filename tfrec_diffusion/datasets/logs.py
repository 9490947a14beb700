"""Your own logs: a table of impressions and a table of behaviors, which a spec file describes."""

import pathlib

import tensorflow_datasets as tfds

from tfrec_diffusion.datasets import known_tables, log_builder, logs_spec, requests

_HISTORY_LENGTH = 100


class Logs(log_builder.LogBuilder):
    """One request for each impression, with the user's behaviors before it.

    The history of an impression holds only behaviors at earlier times than its own, newest last;
    behaviors of the same time come in the order of the files. Vocabularies count the training
    impressions and the behaviors before the end of training.

    Args:
        raw_dir: str or `pathlib.Path`. Directory of the tables.
        data_dir: str or `pathlib.Path`. Root of the prepared data sets. This one is written to
            `<data_dir>/logs/<name of the spec file>/<version>`.
        spec: str or `pathlib.Path`. Path of the spec file. `logs_spec.Spec` documents its content,
            and `experiments/kuairand.json` is an example. It must be given. Defaults to `None`,
            which is an error.
        history_length: int or `None`. Longest history; the newest behaviors are kept. If `None`,
            100 or, with `like`, that of the model. Defaults to `None`.
        train_from: str or `None`. In the place of the spec's. Defaults to `None`.
        train_until: str or `None`. In the place of the spec's. If `validation_until` is `None`,
            there is then no validation: the test begins there. Splits without impressions are then
            left out. Defaults to `None`.
        validation_until: str or `None`. In the place of the spec's. Defaults to `None`.
        test_until: str or `None`. In the place of the spec's. Defaults to `None`.
        like: str, `pathlib.Path` or `None`. Directory of a trained model's run, by whose
            vocabularies, boundaries and means values are encoded. Splits without impressions are
            left out. If `None`, they are made from what training sees. Defaults to `None`.
        grow: bool. Whether values that the model does not know get rows, after those that it has,
            if training sees them `min_count` times. Defaults to `False`.
        forget: int or `None`. Days after which a value that was not seen may lose its row to a new
            one. If `None`, none does. Defaults to `None`.

    Raises:
        FileNotFoundError: If there is no spec, or no such run.
        ValueError: If the spec is wrong, or is not what the model was trained with.
    """

    VERSION = tfds.core.Version("1.2.0")

    def __init__(
        self,
        *,
        raw_dir,
        data_dir,
        spec=None,
        history_length=None,
        train_from=None,
        train_until=None,
        validation_until=None,
        test_until=None,
        like=None,
        grow=False,
        forget=None,
    ):
        loaded = logs_spec.Spec.load(spec)
        path = pathlib.Path(spec)
        self.train_from, self.train_until = train_from, train_until
        self.validation_until, self.test_until = validation_until, test_until
        loaded = loaded.with_splits(train_from, train_until, validation_until, test_until)
        self.grow, self.forget = grow, forget
        known = None
        if like:
            like = str(like)  # a number on the command line
            known = known_tables.KnownTables(like, known_tables.Growth(grow, forget))
            known.check(loaded)
            if history_length is None:
                history_length = known.schema.history_length
            like = f"{pathlib.Path(like).name} ({known.schema.digest()[:16]})"
        elif grow or forget is not None:
            raise ValueError("`grow` and `forget` need `like`, the directory of a trained model")
        if forget is not None:
            requests.check_integers(forget=forget)
            if not grow:
                raise ValueError(
                    "`forget` needs `grow`: new values take the rows of forgotten ones"
                )
        self.like = like
        self.spec = f"{path.name} ({loaded.digest})"
        super().__init__(
            raw_dir=raw_dir,
            data_dir=data_dir,
            spec=loaded,
            spec_path=path,
            history_length=_HISTORY_LENGTH if history_length is None else history_length,
            known=known,
            config=tfds.core.BuilderConfig(name=path.stem),
        )

    @property
    def may_lack_splits(self):
        """bool. See `RequestBuilder.may_lack_splits`."""
        return self._known is not None or self.train_until is not None
