"""Two measures of a trained HierDiffuse's diffusion, on the histories of a split.

    python tools/measure_fusion.py --model_dir=runs/taobao_hierdiffuse

1. How near the consistency sampler's h^fusion, of 1, 2 and 4 evaluations, comes to that of DDPM
   with all T steps: the mean over users of the cosine, beside that of two runs of DDPM with
   different noise, which is as near as one sample comes to another, and that of two users.
2. Whether the guidance matters: the split's AUC as it is, with the short-term interests of another
   user, and with none.

All samplers start as the model does. Prints Markdown.
"""

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from tfrec_diffusion import metrics
from tfrec_diffusion.diffusion.fusion import DiffusionFusion
from tfrec_diffusion.runs import load_run

MODEL_DIR = flags.DEFINE_string("model_dir", None, "of a trained HierDiffuse", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", None, "default: where the model was trained from")
SPLIT = flags.DEFINE_string("split", "test", "a split of the data set")
USERS = flags.DEFINE_integer("users", 500, "to sample for", 2)
SEED = flags.DEFINE_integer("seed", 0, "of the noise, and of who gets whose interests")

_EVALUATIONS = (1, 2, 4)


def fusion_of(model):
    """The model's `DiffusionFusion`.

    Raises:
        ValueError: If it has none.
    """
    for layer in model.layers:
        if isinstance(layer, DiffusionFusion):
            return layer
    raise ValueError(
        f"{MODEL_DIR.value} must hold a HierDiffuse that diffuses: {model.name} does not"
    )


def cosine(a, b):
    """Mean over rows of the cosine."""
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    return (a * b).sum(axis=-1).mean()


def convergence(fusion, interest, conditions, weights):
    """Rows of the first table: name and cosine.

    Args:
        fusion: `DiffusionFusion`.
        interest, conditions, weights: As it takes them, arrays of the users to sample for.
    """
    steps = fusion.num_train_steps if fusion.start_step is None else fusion.start_step

    @tf.function(autograph=False)
    def run(chain, noise):
        return fusion.denoise(interest, conditions, weights, noise, chain)

    def sample(name, count, seed):
        noise = tf.random.stateless_normal((count + 1, *interest.shape), (SEED.value, seed))
        if name == "tcc":
            noise = fusion.inference_noise(count + 1)
        return run(fusion.make_chain(name, count, steps), noise).numpy()

    ddpm = [sample("ddpm", steps, seed) for seed in range(2)]
    for count in _EVALUATIONS:
        name = f"TCC of {count} and DDPM of {steps} evaluations"
        yield name, cosine(sample("tcc", count, 0), ddpm[0])
    yield "two runs of DDPM", cosine(*ddpm)
    yield "DDPM for two users", cosine(ddpm[0], np.roll(ddpm[0], 1, axis=0))
    yield "h^L and DDPM", cosine(interest, ddpm[0])


def aucs(model, fusion, data, split, changes):
    """AUC of a split by name, each change applied to the guidance of all its requests.

    Args:
        changes: dict of functions of all requests' conditions and weights by name.
    """
    until = keras.Model(model.input, fusion.input)
    # What of the model lies behind the fusion, with the fusion's result as one more input.
    behind = keras.Model([model.input, fusion.output], model.output)
    batches = list(data.batches(split))
    parts = [until.predict_on_batch(features) for features, *_ in batches]
    interest, conditions, weights, real = (np.concatenate(x) for x in zip(*parts, strict=True))
    for name, change in changes.items():
        inputs = (interest, *change(conditions, weights), real)
        yield name, metrics.auc(*scores(behind, fusion, batches, inputs))


def scores(behind, fusion, batches, inputs):
    """Labels and scores of the batches' real candidates, with these inputs of the fusion."""
    labels, predicted, start = [], [], 0
    for features, label, weight in batches:
        rows = slice(start, start + len(label))
        start = rows.stop
        fused = fusion(*(x[rows] for x in inputs))
        counted = weight.numpy() > 0
        predicted.append(behind.predict_on_batch([features, fused])[counted])
        labels.append(label.numpy()[counted])
    return np.concatenate(labels), np.concatenate(predicted)


def first_of_users(until, data, split, count):
    """Inputs of the fusion for the first request with a history of `count` users."""
    seen, parts = set(), []
    for features, _, _, group_id in data.batches(split, with_group_id=True):
        inputs = until.predict_on_batch(features)
        new = [
            i
            for i, user in enumerate(group_id.numpy())
            if inputs[3][i] and user not in seen and not seen.add(user)
        ]
        parts.append([x[new] for x in inputs[:3]])
        if len(seen) >= count:
            break
    return [np.concatenate(x)[:count] for x in zip(*parts, strict=True)]


def main(_):
    model, data = load_run(MODEL_DIR.value, DATA_DIR.value)
    fusion = fusion_of(model)
    users = first_of_users(keras.Model(model.input, fusion.input), data, SPLIT.value, USERS.value)
    print(f"| h^fusion of {len(users[0])} users of {SPLIT.value} | cosine |\n|---|---:|")
    for name, value in convergence(fusion, *users):
        print(f"| {name} | {value:.4f} |", flush=True)

    rng = np.random.default_rng(SEED.value)

    def of_another(conditions, weights):
        order = rng.permutation(len(conditions))
        return conditions[order], weights[order]

    changes = {
        "as it is": lambda conditions, weights: (conditions, weights),
        "of another user": of_another,
        "none": lambda conditions, weights: (conditions, np.zeros_like(weights)),
    }
    print(f"\n| short-term interests, {SPLIT.value} | AUC |\n|---|---:|")
    for name, value in aucs(model, fusion, data, SPLIT.value, changes):
        print(f"| {name} | {value:.4f} |", flush=True)


if __name__ == "__main__":
    app.run(main)
