"""A prepared data set with the older part of each history replaced by clusters, as in TWIN-V2.

Si et al., "TWIN V2: Scaling Ultra-Long User Behavior Sequence Modeling for Enhanced CTR Prediction
at Kuaishou", CIKM 2024, its section on hierarchical clustering.
"""

import dataclasses
import functools
import hashlib
import pathlib
import shutil

import numpy as np
import tensorflow_datasets as tfds

from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.datasets import clustering, records, requests, vocabularies
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.training.run_directory import RunDirectory, check_same_data

_SIZE = "history_size"
_BATCH = 1024


class Clustered(requests.RequestBuilder):
    """The requests of a prepared data set, with virtual behaviors in place of old ones.

    A virtual behavior stands for a cluster, with all features of the member that is nearest to the
    centroid. (The paper averages features that are numbers. Here they are rows of tables, and the
    features of one true behavior go together.) The row of the behavior feature `history_size`,
    less 1, is the number of members, which is 1 for a true behavior. Virtual behaviors come before
    the true ones, in the order of their newest members.

    As in production, where clusters are not refreshed at each request, a user's older behaviors are
    clustered anew whenever `recent` more have come: of n behaviors the first c are clustered, where
    c is the greatest multiple of `recent` that is at most n - `recent`. Older parts that are equal
    are clustered only once. If the source has cut a history at its `history_length`, the older part
    changes with every behavior, so the source should keep everything that is to be clustered.

    Args:
        raw_dir: str or `pathlib.Path`. Directory of the prepared data set, the source.
        data_dir: str or `pathlib.Path`. Root of the prepared data sets. This one is written to
            `<data_dir>/clustered/<name in the source's schema>/<version>`.
        model_dir: str or `pathlib.Path`. Directory of a model that was trained on the source. Its
            embeddings of the history features, concatenated, are clustered. It must be given.
            Defaults to `None`, which is an error.
        recent: int. How many of the newest behaviors are never clustered, at least. Defaults to
            `20`.
        max_size: int. Size of the largest cluster. Defaults to `20`.
        group_feature: str or `None`. Name of a history or behavior feature that must be the same
            for all members of a cluster; in the paper, how much of a video was played. If `None`,
            there is none. Defaults to `None`.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, *, raw_dir, data_dir, model_dir=None, recent=20, max_size=20, group_feature=None
    ):
        requests.check_integers(recent=recent)
        requests.check_integers(least=2, max_size=max_size)
        if raw_dir is None:
            raise ValueError(
                "`raw_dir` must be the directory of a prepared data set. Received: None"
            )
        if model_dir is None:
            raise ValueError("`model_dir` must be the directory of a trained model. Received: None")
        self._source = RequestData(raw_dir)
        self._of_behaviors = [
            feature.name for feature in self._source.schema.group("history", "behavior")
        ]
        if group_feature not in (None, *self._of_behaviors):
            raise ValueError(
                f"`group_feature` must be one of {self._of_behaviors}. Received: {group_feature!r}"
            )
        embeddings = _history_embeddings(model_dir, self._source.schema)
        digest = hashlib.sha256(b"".join(rows.tobytes() for rows in embeddings.values()))
        self.model_dir = f"{pathlib.Path(model_dir).name} ({digest.hexdigest()[:16]})"
        self.recent = recent
        self.max_size = max_size
        self.group_feature = group_feature
        self._shorten = _Shortening(self._of_behaviors, embeddings, recent, max_size, group_feature)
        config = tfds.core.BuilderConfig(name=self._source.schema.name)
        super().__init__(raw_dir=raw_dir, data_dir=data_dir, config=config)

    @property
    def features(self):
        """tuple of `schema.Feature`s: those of the source, and `history_size`."""
        return (*self._source.schema.features, schema_lib.Feature(_SIZE, "behavior", "size"))

    @property
    def targets(self):
        """See `RequestBuilder.targets`."""
        return self._source.schema.targets

    def convert(self):
        """See `RequestBuilder.convert`."""
        source = self._source
        sizes = vocabularies.Boundaries("size", range(2, self.max_size + 1))
        schema = dataclasses.replace(
            source.schema,
            features=self.features,
            tables=(*source.schema.tables, sizes.table()),
            # It must be known before the first request is written.
            history_length=max(1, *(self._cluster(split) for split in source.splits)),
        )
        for note in ("best_reachable", "oracles"):
            known = {split: getattr(source, note)(split) for split in source.splits}
            if any(known.values()):
                self.report.note(note, known)
        members = np.concatenate([counts for _, counts in self._shorten.clusters.values()])
        self.report.note("clusters", {"count": len(members), "members": int(members.sum())})
        vocabs = {
            table.name: _VocabularyFile(source.schema.vocabulary_path(table))
            for table in source.schema.tables
            if table.kind == "vocabulary"
        }
        encode = functools.partial(_requests, self.raw_dir, self._shorten, sizes)
        return schema, vocabs, {name: records.Split(encode, [name]) for name in source.splits}

    def _cluster(self, split):
        """Makes the clusters of a split; returns the length of its longest history with them."""
        total = self._source.num_requests(split)
        self.report.read(
            f"{self._source.schema.name} {self._source.directory.name}, {split}", total
        )
        histories = tfds.core.utils.tqdm(
            _read(self._source, split, self._source.schema.group("history", "behavior")),
            desc=f"Clustering {split}", unit=" requests", total=total, leave=False, mininterval=1.0,
        )  # fmt: skip
        return max(len(self._shorten(history)[0]) for history in histories)


class _Shortening:
    """Chooses the behaviors of a history that remain, and how many each stands for.

    Args:
        of_behaviors: list of str. Names of the history and behavior features.
        embeddings: dict of float arrays of shape (rows, dim) by name of the history feature.
        recent: int. As in `Clustered`.
        max_size: int. As in `Clustered`.
        group_feature: str or `None`. As in `Clustered`.

    Attributes:
        clusters: dict of the virtual behaviors of every older part so far, by its digest.
    """

    def __init__(self, of_behaviors, embeddings, recent, max_size, group_feature):
        self._of_behaviors = of_behaviors
        self._embeddings = embeddings
        self._recent = recent
        self._max_size = max_size
        self._group_feature = group_feature
        self.clusters = {}

    def __call__(self, history):
        """Positions in the history, (k,), and how many behaviors each stands for, (k,)."""
        length = len(history[self._of_behaviors[0]])
        older = max(0, length - self._recent) // self._recent * self._recent
        members, sizes = self._virtual({name: history[name][:older] for name in self._of_behaviors})
        recent = np.arange(older, length)
        return np.concatenate([members, recent]), np.concatenate([sizes, np.ones_like(recent)])

    def _virtual(self, older):
        """`clustering.virtual_behaviors`, called once for equal behaviors."""
        compared = [older[name] for name in self._embeddings]
        if self._group_feature is None:
            groups = np.zeros(len(compared[0]), np.int32)
        else:
            groups = older[self._group_feature]
        key = hashlib.sha256(np.stack([*compared, groups]).tobytes()).digest()
        if key not in self.clusters:
            embedded = [table[older[name]] for name, table in self._embeddings.items()]
            self.clusters[key] = clustering.virtual_behaviors(
                np.concatenate(embedded, axis=1), groups, self._max_size
            )
        return self.clusters[key]


class _VocabularyFile:
    """A vocabulary of the source, which stays as it is."""

    def __init__(self, path):
        self._path = pathlib.Path(path)

    def save(self, directory):
        """Copies the file, as `vocabularies.Vocabulary.save` would write it."""
        path = pathlib.Path(schema_lib.vocabulary_path(directory, self._path.stem))
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(self._path, path)


def _history_embeddings(model_dir, schema):
    """The embedding table of each history feature in a trained model, by name of the feature."""
    directory = RunDirectory(model_dir)
    model, trained = directory.load_model(), directory.schema
    # Rows mean the same if the model was trained on shorter histories.
    # Embeddings depend on none of these.
    others = {name: getattr(trained, name) for name in ("history_length", "labels", "weighted")}
    check_same_data(trained, dataclasses.replace(schema, **others))
    for feature in schema.group("history"):
        if schema.input_dtype(feature) != "int32" or schema.entry_shape(feature):
            raise ValueError(
                "behaviors are clustered by one embedded row of each feature. "
                f"{feature.name!r} has numbers or several values"
            )
    return {
        feature.name: model.tables[feature.table].embeddings.numpy()
        for feature in schema.group("history")
    }


def _read(data, split, features):
    """Yields the requests of a split as in `records.Split`, with some of their features."""
    with data.naming_damage(split):
        yield from _read_batches(data, split, features)


def _read_batches(data, split, features):
    schema = data.schema
    by_label = [RequestData(data.directory, label=name) for name in ("", *schema.labels)]
    batches = (one.batches(split, _BATCH, with_group_id=True) for one in by_label)
    for of_labels in zip(*batches, strict=True):
        inputs, _, weights, group_ids = of_labels[0]
        targets = [labels.numpy() for _, labels, *_ in of_labels]
        targets += [weights.numpy()] if schema.weighted else []
        rows = {feature: inputs[feature.name].numpy() for feature in features}
        candidates = weights.numpy() > 0
        behaviors = inputs[schema.history_key].numpy() != schema_lib.PADDING
        group_ids = group_ids.numpy()
        for i in range(len(group_ids)):
            real = {"candidate": candidates[i], "history": behaviors[i], "behavior": behaviors[i]}
            request = {
                feature.name: values[i][real.get(feature.group, ...)]
                for feature, values in rows.items()
            }
            for name, values in zip(schema.targets, targets, strict=True):
                request[name] = values[i, candidates[i]]
            yield {**request, schema_lib.GROUP_ID: group_ids[i]}


def _requests(source_dir, shorten, sizes, split):
    """Yields the requests of a split of the source, with shorter histories."""
    source = RequestData(source_dir)
    of_behaviors = [feature.name for feature in source.schema.group("history", "behavior")]
    for number, request in enumerate(_read(source, split, source.schema.features)):
        behaviors, counts = shorten(request)
        shortened = {name: request[name][behaviors] for name in of_behaviors}
        yield number, {**request, **shortened, _SIZE: sizes.encode(counts)}
