"""A model behind raw requests: the functions that the signatures of a SavedModel are."""

import dataclasses

import tensorflow as tf

from tfrec_diffusion.layers.lookup import RequestLookup
from tfrec_diffusion.models.user_state import split
from tfrec_diffusion.schema import PADDING

OUTPUT = "click_probability"


class ServedModel(tf.Module):
    """Scores raw requests; all is in the graph, nothing is kept between calls.

    Args:
        model: `RankingModel`.
        vocabulary_directory: Where `vocabularies/` lies.
        correct_negative_sampling: See `export`.

    Attributes:
        schema: `Schema` of the raw features: without the behavior features that the model does not
            use.
    """

    def __init__(self, model, vocabulary_directory, correct_negative_sampling=False):
        super().__init__()
        unused = {f.name for f in model.schema.group("behavior")} - set(model.behavior_features)
        self.schema = dataclasses.replace(
            model.schema,
            features=[f for f in model.schema.features if f.name not in unused],
            directory=str(vocabulary_directory),
        )
        self._model = model
        self._unused = tuple(sorted(unused))
        self._lookup = RequestLookup(self.schema)
        self._correct = correct_negative_sampling
        if model.has_user_state:
            self._of_user, self._of_candidates = split(model)

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
                name: tf.TensorSpec(x.shape, x.dtype, name=name)
                for name, x in self._of_user.output.items()
            }
            signatures["user_state"] = (self.user_state, of_user)
            signatures["score"] = (self.score_from_state, {**state, **others})
        return signatures

    def score(self, raw):
        """Raw features of whole requests to their click probabilities."""
        rows = self._rows(raw)
        return self._output(self._model(rows, training=False), rows)

    def score_examples(self, examples):
        """Serialized `tf.train.Example`s (batch,) to click probabilities."""
        schema = self.schema
        raw = tf.io.parse_example(examples, schema.serving_spec())
        candidates = raw[schema.candidate_key].bounding_shape(axis=1)
        behaviors = raw[schema.history_key].bounding_shape(axis=1)
        for feature in schema.group("candidate", "history", "behavior"):
            # Also a list that no example has is as long as the others.
            length = candidates if feature.group == "candidate" else behaviors
            missing = schema.table(feature.table).missing
            raw[feature.name] = raw[feature.name].to_tensor(missing, shape=(-1, length))
        return self.score(raw)

    def user_state(self, raw):
        """Raw features of the user, history and behaviors to the state."""
        return self._of_user(self._rows(raw), training=False)

    def score_from_state(self, state_and_raw):
        """The state and raw features of context and candidates to click probabilities."""
        state = {
            name: tf.ensure_shape(state_and_raw[name], x.shape)
            for name, x in self._of_user.output.items()
        }
        # What is open in a state is the number of behaviors: one mask for many would be broadcast.
        tf.debugging.assert_shapes(
            [(x, (None, *(n or "behaviors" for n in x.shape[1:]))) for x in state.values()]
        )
        rows = self._rows({n: x for n, x in state_and_raw.items() if n not in state})
        requests = tf.shape(rows[self.schema.candidate_key])[0]
        same = [
            tf.debugging.assert_equal(
                tf.shape(x)[0],
                requests,
                f"`{name}` must be of as many requests as `{self.schema.candidate_key}`",
            )
            for name, x in state.items()
        ]
        with tf.control_dependencies(same):
            probability = self._of_candidates({**state, **rows}, training=False)
        return self._output(probability, rows)

    def _rows(self, raw):
        rows = self._lookup(raw)
        if self.schema.history_key in rows:
            nothing = tf.zeros_like(rows[self.schema.history_key])
            rows |= dict.fromkeys(self._unused, nothing)
        return rows

    def _output(self, probability, rows):
        if self._correct:
            probability = correct(probability, self.schema.negative_rate)
        real = tf.not_equal(rows[self.schema.candidate_key], PADDING)
        return {OUTPUT: tf.where(real, probability, 0.0)}


def correct(probability, negative_rate):
    """q = p / (p + (1 - p) / negative_rate): p as if no negative had been left out of the data.

    Args:
        probability: float32 tensor in [0, 1], calibrated on the data that was kept.
        negative_rate: Share of the negatives that was kept, in (0, 1].

    Returns:
        float32 tensor of that shape, in the same order.

    Reference: He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, ADKDD 2014,
    section 6.3.
    """
    # Rounding each step to float32 would swap the ranks of some neighbors.
    p = tf.cast(probability, tf.float64)
    return tf.cast(p / (p + (1 - p) / negative_rate), tf.float32)
