"""A prepared data set again, with the older part of each history in clusters, as TWIN-V2 has it.

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
from tfrec_diffusion.datasets import clustering, requests, vocabularies
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.runs import check_same_data, load_model

_SIZE = "history_size"
_BATCH = 1024


class Clustered(requests.RequestBuilder):
    """The requests of a prepared data set, with virtual behaviors in place of old ones.

    A virtual behavior stands for a cluster. All its features are those of the member nearest to the
    centroid (the paper averages those that are numbers; here they are rows of tables, and what is
    known of one true behavior fits together). The behavior feature `history_size` says how many
    members there are: its row less 1; it is 1 for a true behavior. Virtual behaviors come before
    the true ones, in the order of their newest members.

    As one refreshes clusters in production, not at each request, a user's older behaviors are
    clustered anew whenever there are `recent` more: of a history of n behaviors the first c are
    clustered, c the greatest multiple of `recent` up to n - `recent`. Equal older parts are
    clustered once. Only histories that the source has cut at its `history_length` change their
    older part with every behavior: let the source keep all that is to be clustered.

    Args:
        raw_dir: Directory of the prepared data set.
        data_dir: Root of the prepared data sets; this one goes to
            <data_dir>/clustered/<name in the schema of that data set>/<version>.
        model_dir: Directory of a model trained on that data set. Its embeddings of the history
            features, side by side, are what is clustered.
        recent: Newest behaviors that are never clustered, at least.
        max_size: Largest cluster.
        group_feature: Name of a history or behavior feature that all members of a cluster have the
            same value of (the paper: of how much of a video was played). `None`: of none.
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
        """Those of the source, and `history_size`."""
        return (*self._source.schema.features, schema_lib.Feature(_SIZE, "behavior", "size"))

    def convert(self):
        """See `RequestBuilder.convert`."""
        source = self._source
        sizes = vocabularies.Boundaries("size", range(2, self.max_size + 1))
        schema = dataclasses.replace(
            source.schema,
            features=self.features,
            tables=(*source.schema.tables, sizes.table()),
            # Known before the first request is written: models are as long as this.
            history_length=max(1, *(self._cluster(split) for split in source.splits)),
        )
        reachable = {split: source.best_reachable(split) for split in source.splits}
        if any(reachable.values()):
            self.report.note("best_reachable", reachable)
        members = np.concatenate([counts for _, counts in self._shorten.clusters.values()])
        self.report.note("clusters", {"count": len(members), "members": int(members.sum())})
        vocabs = {
            table.name: _VocabularyFile(source.schema.vocabulary_path(table))
            for table in source.schema.tables
            if table.kind == "vocabulary"
        }
        encode = functools.partial(_requests, self.raw_dir, self._shorten, sizes)
        return schema, vocabs, {name: requests.Split(encode, [name]) for name in source.splits}

    def _cluster(self, split):
        """Makes the clusters of a split; the length of its longest history with them."""
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
    """Which behaviors of a history are left, and for how many each stands.

    Args:
        of_behaviors: Names of the history and behavior features.
        embeddings: Tables of the history features by name, (rows, dim).
        recent, max_size, group_feature: As in `Clustered`.

    Attributes:
        clusters: Virtual behaviors of each older part that came up, by its digest.
    """

    def __init__(self, of_behaviors, embeddings, recent, max_size, group_feature):
        self._of_behaviors = of_behaviors
        self._embeddings = embeddings
        self._recent = recent
        self._max_size = max_size
        self._group_feature = group_feature
        self.clusters = {}

    def __call__(self, history):
        """Places in the history, (k,), and numbers of behaviors, (k,)."""
        length = len(history[self._of_behaviors[0]])
        older = max(0, length - self._recent) // self._recent * self._recent
        members, sizes = self._virtual({name: history[name][:older] for name in self._of_behaviors})
        recent = np.arange(older, length)
        return np.concatenate([members, recent]), np.concatenate([sizes, np.ones_like(recent)])

    def _virtual(self, older):
        """`clustering.virtual_behaviors`, once for equal behaviors."""
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
    """A vocabulary that is kept as it is."""

    def __init__(self, path):
        self._path = pathlib.Path(path)

    def save(self, directory):
        """Copies it to `directory`/vocabularies."""
        path = pathlib.Path(schema_lib.vocabulary_path(directory, self._path.stem))
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(self._path, path)


def _history_embeddings(model_dir, schema):
    """A trained model's embedding table of each history feature, by the feature's name."""
    model = load_model(model_dir)
    trained = schema_lib.Schema.load(model_dir)
    # Shorter histories in training change nothing of what a row means.
    check_same_data(trained, dataclasses.replace(schema, history_length=trained.history_length))
    return {
        feature.name: model.tables[feature.table].embeddings.numpy()
        for feature in schema.group("history")
    }


def _read(data, split, features):
    """The requests of a split as `RequestBuilder.convert` describes them, some features of each."""
    schema = data.schema
    for inputs, labels, weights, group_ids in data.batches(split, _BATCH, with_group_id=True):
        rows = {feature: inputs[feature.name].numpy() for feature in features}
        candidates = weights.numpy() > 0
        behaviors = inputs[schema.history_key].numpy() != schema_lib.PADDING
        labels, group_ids = labels.numpy(), group_ids.numpy()
        for i in range(len(labels)):
            real = {"candidate": candidates[i], "history": behaviors[i], "behavior": behaviors[i]}
            request = {
                feature.name: values[i][real.get(feature.group, ...)]
                for feature, values in rows.items()
            }
            yield {
                **request,
                schema_lib.LABEL: labels[i, candidates[i]],
                schema_lib.GROUP_ID: group_ids[i],
            }


def _requests(source_dir, shorten, sizes, split):
    """The requests of a split of the source, with shorter histories."""
    source = RequestData(source_dir)
    of_behaviors = [feature.name for feature in source.schema.group("history", "behavior")]
    for number, request in enumerate(_read(source, split, source.schema.features)):
        behaviors, counts = shorten(request)
        shortened = {name: request[name][behaviors] for name in of_behaviors}
        yield number, {**request, **shortened, _SIZE: sizes.encode(counts)}
