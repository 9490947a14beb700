"""A model behind raw requests: the functions that the signatures of a SavedModel are."""

import dataclasses
import hashlib
import math

import tensorflow as tf

from tfrec_diffusion.calibration import HIGHEST, LOWEST
from tfrec_diffusion.schema import PADDING
from tfrec_diffusion.serving import OUTPUT
from tfrec_diffusion.serving.lookup import RequestLookup
from tfrec_diffusion.serving.user_state import split

STATE_VERSION = "state_version"


class ServedModel(tf.Module):
    """Scores raw requests; all is in the graph, nothing is kept between calls.

    Args:
        model: `RankingModel`.
        vocabulary_directory: str or `pathlib.Path`. Where `vocabularies/` lies.
        correct_negative_sampling: bool. As in `version.write_version`. Defaults to `False`.
        calibration: `Calibration` or `None`. As in `version.write_version`. Defaults to `None`.

    Attributes:
        schema: `Schema` of the raw features: without the behavior features that the model does not
            use.
    """

    def __init__(
        self, model, vocabulary_directory, correct_negative_sampling=False, calibration=None
    ):
        super().__init__()
        unused = {f.name for f in model.schema.group("behavior")} - set(model.behavior_features)
        features = [f for f in model.schema.features if f.name not in unused]
        tables = {feature.table for feature in features}
        self.schema = dataclasses.replace(
            model.schema,
            features=features,
            tables=[table for table in model.schema.tables if table.name in tables],
            directory=str(vocabulary_directory),
        )
        self._model = model
        self._unused = tuple(sorted(unused))
        self._lookup = RequestLookup(self.schema)
        self._correct = correct_negative_sampling
        self._calibration = calibration
        if model.has_user_state:
            self._of_user, self._of_candidates = split(model)
            self._fingerprint = tf.constant(_fingerprint(model, self.schema), tf.int64)

    def signatures(self):
        """dict by name of a function and what it takes: a `tf.TensorSpec` or a dict of them."""
        inputs = self.schema.serving_signature()
        signatures = {
            "serving_default": (self.score, inputs),
            "examples": (self.score_examples, tf.TensorSpec((None,), tf.string, name="examples")),
        }
        if self._model.has_user_state:
            of_user = {name: x for name, x in inputs.items() if name in self._of_user.input}
            others = {name: x for name, x in inputs.items() if name not in of_user}
            state = {
                name: tf.TensorSpec(x.shape, _sent_as(x), name=name)
                for name, x in self._of_user.output.items()
            }
            state[STATE_VERSION] = tf.TensorSpec((None,), tf.int64, name=STATE_VERSION)
            signatures["user_state"] = (self.user_state, of_user)
            signatures["score"] = (self.score_from_state, {**state, **others})
        return signatures

    def score(self, raw):
        """Raw features of whole requests to their click probabilities."""
        rows = self._rows(raw)
        return self._output(self._model(rows, training=False), rows)

    def score_examples(self, examples):
        """Serialized `tf.train.Example`s (batch,) to click probabilities."""
        raw = tf.io.parse_example(examples, self.schema.serving_spec())
        lists = [f for f in self.schema.features if isinstance(raw[f.name], tf.RaggedTensor)]
        with tf.control_dependencies([self._has_whole_entries(f, raw) for f in lists]):
            dense = {f.name: self._dense(f, raw) for f in lists}
        return self.score({**raw, **dense})

    def _has_whole_entries(self, feature, raw):
        """Checks that an example's list is absent, or has what belongs to each entry."""
        name, key = feature.name, self.schema.key_of(feature)
        size = math.prod(self.schema.entry_shape(feature))
        length = raw[name].row_lengths()
        what = f"have {size} values"
        if key and feature.values > 1:
            entries = raw[key].row_lengths()
            expected = entries * _values_of_an_entry(length, entries)
            what = f"have equally many values for each of `{key}`"
        elif key:
            expected = size * raw[key].row_lengths()
            what = f"{what} for each of `{key}`" if size > 1 else f"be as long as `{key}`"
        elif feature.values > 1:  # a user may have any number of them
            expected = length
        else:
            expected = tf.fill(tf.shape(length), tf.cast(size, length.dtype))
        length = tf.where(tf.equal(length, 0), expected, length)
        return tf.debugging.assert_equal(length, expected, f"`{name}` must {what}, or be absent")

    def _dense(self, feature, raw):
        """Lists of examples as a tensor; one that no example has is as long as the others."""
        key, entry = self.schema.key_of(feature), self.schema.entry_shape(feature)
        lengths = [raw[key].bounding_shape(axis=1)] if key else []
        shape = [tf.cast(axis, tf.int64) for axis in (*lengths, *entry)]
        missing = self.schema.table(feature.table).missing
        values = raw[feature.name]
        if key and feature.values > 1:
            entries = raw[key].row_lengths()
            counts = tf.repeat(_values_of_an_entry(values.row_lengths(), entries), entries)
            of_entries = tf.RaggedTensor.from_row_lengths(values.flat_values, counts)
            of_entries = of_entries.to_tensor(missing, shape=(None, feature.values))
            return tf.RaggedTensor.from_row_lengths(of_entries, entries).to_tensor(missing)
        flat = values.to_tensor(missing, shape=(-1, tf.reduce_prod(shape)))
        return tf.reshape(flat, (values.nrows(tf.int64), *shape))

    def user_state(self, raw):
        """Raw features of the user, history and behaviors to the state."""
        state = self._of_user(self._rows(raw), training=False)
        requests = tf.shape(next(iter(state.values())))[:1]
        return {name: tf.cast(x, _sent_as(x)) for name, x in state.items()} | {
            STATE_VERSION: tf.fill(requests, self._fingerprint)
        }

    def score_from_state(self, state_and_raw):
        """The state and raw features of context and candidates to click probabilities."""
        kept = self._of_user.output
        rows = self._rows(
            {n: x for n, x in state_and_raw.items() if n not in kept and n != STATE_VERSION}
        )
        with tf.control_dependencies(self._same_state(state_and_raw, rows)):
            state = {
                name: tf.cast(tf.ensure_shape(state_and_raw[name], x.shape), x.dtype)
                for name, x in kept.items()
            }
        return self._output(self._of_candidates({**state, **rows}, training=False), rows)

    def _same_state(self, state, rows):
        """Checks that a state is this model's, of these requests, and that its parts fit."""
        requests = tf.shape(rows[self.schema.candidate_key])[0]
        checks = [
            tf.debugging.assert_equal(
                state[STATE_VERSION],
                self._fingerprint,
                "the state is of another version: ask `user_state` anew",
            )
        ]
        for name in (*self._of_user.output, STATE_VERSION):
            checks.append(
                tf.debugging.assert_equal(
                    tf.shape(state[name])[0],
                    requests,
                    f"`{name}` must be of as many requests as `{self.schema.candidate_key}`",
                )
            )
        # What is open in a state is the number of behaviors: one mask for many would be broadcast.
        tf.debugging.assert_shapes(
            [
                (state[name], (None, *(n or "behaviors" for n in x.shape[1:])))
                for name, x in self._of_user.output.items()
            ]
        )
        return checks

    def _rows(self, raw):
        rows = self._lookup(raw)
        if self.schema.history_key in rows:
            nothing = tf.zeros_like(rows[self.schema.history_key])
            rows |= dict.fromkeys(self._unused, nothing)
        return rows

    def _output(self, probability, rows):
        # The correction takes probabilities that are calibrated on the data that was kept.
        if self._calibration:
            probability = calibrate(probability, self._calibration)
        if self._correct:
            probability = correct(probability, self.schema.negative_rate)
        real = tf.not_equal(rows[self.schema.candidate_key], PADDING)
        return {OUTPUT: tf.where(real, probability, 0.0)}


def _values_of_an_entry(length, entries):
    return length // tf.maximum(entries, 1)


def _sent_as(tensor):
    # TF Serving's REST API knows no bfloat16.
    return tf.float32 if tf.as_dtype(tensor.dtype) == tf.bfloat16 else tensor.dtype


def _fingerprint(model, schema):
    """An int64 that differs where a state means something else: by arguments, weights, rows."""
    digest = hashlib.sha256(schema.digest().encode())
    config = {**model.get_config(), "name": None}  # Keras numbers the models of a process
    digest.update(repr(sorted(config.items())).encode())
    for weight in model.weights:
        digest.update(weight.numpy().tobytes())
    return int.from_bytes(digest.digest()[:6])  # JSON's numbers are whole to 2^53


def calibrate(probability, calibration):
    """What `calibration` makes of a probability.

    Args:
        probability: float32 tensor in [0, 1].
        calibration: `Calibration`.

    Returns:
        float32 tensor of that shape, in the same order.
    """
    # As in `correct`.
    p = tf.clip_by_value(tf.cast(probability, tf.float64), LOWEST, HIGHEST)
    log_odds = tf.math.log(p) - tf.math.log1p(-p)
    calibrated = tf.sigmoid(calibration.slope * log_odds + calibration.intercept)
    return tf.cast(calibrated, tf.float32)


def correct(probability, negative_rate):
    """q = p / (p + (1 - p) / negative_rate): p as if no negative had been left out of the data.

    Args:
        probability: float32 tensor in [0, 1], calibrated on the data that was kept.
        negative_rate: float. Share of the negatives that was kept, in (0, 1].

    Returns:
        float32 tensor of that shape, in the same order.

    Reference: He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, ADKDD 2014,
    section 6.3.
    """
    # Rounding each step to float32 would swap the ranks of some neighbors.
    p = tf.cast(probability, tf.float64)
    return tf.cast(p / (p + (1 - p) / negative_rate), tf.float32)
