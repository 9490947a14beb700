"""`python -m tfrec_diffusion.export`: a trained model as a SavedModel for TF Serving."""

import dataclasses
import os
import pathlib
import shutil

import keras
import tensorflow as tf

from tfrec_diffusion import flags
from tfrec_diffusion.layers.lookup import RequestLookup
from tfrec_diffusion.runs import load_model
from tfrec_diffusion.schema import PADDING

OUTPUT = "click_probability"


def export(model, vocabulary_directory, export_dir, correct_negative_sampling=False):
    """Writes the next version of a SavedModel: raw features in, click probabilities out.

    Signatures: `serving_default` takes the named tensors of `Schema.serving_signature`: raw ids as
    in the logs, user and context features (batch,), candidates (batch, candidates), histories
    (batch, length), newest last; what is shorter is padded on the right with the missing value
    ("" of strings, -1 of integers, NaN of floats), which also stands for any value not known.
    `examples` takes `examples` (batch,), serialized `tf.train.Example`s of the same raw values.
    Both return `click_probability` (batch, candidates), float32, 0 for a padded candidate.
    Of a history longer than the model was trained with, the newest behaviors count. What the model
    does not use of the behaviors is no input.

    Args:
        model: `RankingModel`.
        vocabulary_directory: Where `vocabularies/` lies.
        export_dir: The version is its next number; it appears under it when it is whole.
        correct_negative_sampling: Whether both signatures give the probability of a click among all
            impressions, with `correct` and the schema's `negative_rate`; else it is that among the
            impressions that the data set kept. Names and ranking are the same either way.

    Returns:
        Path of the version.

    Raises:
        ValueError: If there is nothing to correct. Data prepared before its schema knew the rate
            looks so too, and its probabilities, too high, would be served as corrected.
    """
    negative_rate = model.schema.negative_rate
    if correct_negative_sampling and negative_rate == 1:
        raise ValueError(
            "`correct_negative_sampling` needs a model of data with a `negative_rate` below 1 in "
            f"its schema. Received: negative_rate={negative_rate} (data set {model.schema.name!r})"
        )
    unused = {f.name for f in model.schema.group("behavior")} - set(model.behavior_features)
    schema = dataclasses.replace(
        model.schema,
        features=[f for f in model.schema.features if f.name not in unused],
        directory=str(vocabulary_directory),
    )
    lookup = RequestLookup(schema)

    def score(raw):
        rows = lookup(raw)
        rows |= dict.fromkeys(unused, tf.zeros_like(rows[schema.history_key]))
        real = tf.not_equal(rows[schema.candidate_key], PADDING)
        probability = model(rows, training=False)
        if correct_negative_sampling:
            probability = correct(probability, negative_rate)
        return {OUTPUT: tf.where(real, probability, 0.0)}

    def score_examples(examples):
        raw = tf.io.parse_example(examples, schema.serving_spec())
        candidates = raw[schema.candidate_key].bounding_shape(axis=1)
        behaviors = raw[schema.history_key].bounding_shape(axis=1)
        for feature in schema.group("candidate", "history", "behavior"):
            # Also a list that no example has is as long as the others.
            length = candidates if feature.group == "candidate" else behaviors
            missing = schema.table(feature.table).missing
            raw[feature.name] = raw[feature.name].to_tensor(missing, shape=(-1, length))
        return score(raw)

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.track(lookup)
    archive.add_endpoint("serving_default", score, input_signature=[schema.serving_signature()])
    archive.add_endpoint(
        "examples",
        score_examples,
        input_signature=[tf.TensorSpec((None,), tf.string, name="examples")],
    )
    return _write(archive, pathlib.Path(export_dir))


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


def _write(archive, export_dir):
    export_dir.mkdir(parents=True, exist_ok=True)
    versions = [int(path.name) for path in export_dir.iterdir() if path.name.isdecimal()]
    version = export_dir / str(max(versions, default=0) + 1)
    aside = export_dir / f"incomplete.{version.name}"
    shutil.rmtree(aside, ignore_errors=True)
    archive.write_out(str(aside), verbose=False)
    os.rename(aside, version)
    return version


def main(values):
    model = load_model(values.model_dir)
    print(export(model, values.model_dir, values.export_dir, values.correct_negative_sampling))


if __name__ == "__main__":
    flags.run(main, flags.export)
