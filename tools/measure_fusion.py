"""Two measures of a trained HierDiffuse's diffusion, on the histories of a split.

    python tools/measure_fusion.py --model_dir=runs/taobao_hierdiffuse

1. How near does h^fusion of the consistency sampler, with 1, 2 and 4 evaluations, come to that of
   DDPM with all T steps? Printed is the mean over users of the cosine. Beside it stand the cosine
   of two runs of DDPM with different noise, which is as near as one sample comes to another, and
   that of two users.
2. Does the guidance matter? Printed is the AUC of the split as it is, with the short-term interests
   of another user, and with none.

All samplers start where the model's sampler does.
"""

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from tfrec_diffusion import command, metrics
from tfrec_diffusion import flags as shared_flags
from tfrec_diffusion.diffusion.fusion import DiffusionFusion
from tfrec_diffusion.training.run_directory import RunDirectory

_EVALUATIONS = (1, 2, 4)


def define_flags(values):
    shared_flags.trained_model(values, "HierDiffuse")
    flags.DEFINE_integer("users", 500, "users to sample for", 2, flag_values=values)
    flags.DEFINE_integer(
        "seed", 0, "seed of the noise, and of who gets whose interests", flag_values=values
    )


def fusion_of(model):
    """The model's `DiffusionFusion`.

    Raises:
        ValueError: If it has none.
    """
    for layer in model.layers:
        if isinstance(layer, DiffusionFusion):
            return layer
    raise ValueError(
        f"`model_dir` must hold a HierDiffuse that diffuses. Received: a model {model.name}"
    )


def cosine(a, b):
    """The mean over rows of the cosine of two arrays."""
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    return (a * b).sum(axis=-1).mean()


def convergence(fusion, interest, conditions, weights, seed):
    """Compares samplers.

    Args:
        fusion: `DiffusionFusion`.
        interest: array. The call argument of `fusion`, of the users to sample for.
        conditions: array. As `interest`.
        weights: array. As `interest`.
        seed: int. Seed of the noise.

    Yields:
        str and float: what is compared, and the cosine.
    """
    steps = fusion.num_train_steps if fusion.start_step is None else fusion.start_step

    @tf.function(autograph=False)
    def run(chain, noise):
        return fusion.denoise(interest, conditions, weights, noise, chain)

    def sample(name, count, run_number):
        noise = tf.random.stateless_normal((count + 1, *interest.shape), (seed, run_number))
        if name == "tcc":
            noise = fusion.inference_noise(count + 1)
        return run(fusion.make_chain(name, count, steps), noise).numpy()

    ddpm = [sample("ddpm", steps, run_number) for run_number in range(2)]
    for count in _EVALUATIONS:
        name = f"TCC of {count} and DDPM of {steps} evaluations"
        yield name, cosine(sample("tcc", count, 0), ddpm[0])
    yield "two runs of DDPM", cosine(*ddpm)
    yield "DDPM for two users", cosine(ddpm[0], np.roll(ddpm[0], 1, axis=0))
    yield "h^L and DDPM", cosine(interest, ddpm[0])


def aucs(model, fusion, data, split, changes):
    """The AUC of a split when the guidance of its requests is changed.

    Args:
        model: `HierDiffuse`.
        fusion: `DiffusionFusion` of the model.
        data: `RequestData`.
        split: str. A split of the data set.
        changes: dict by name of callables from the conditions and weights of all requests to
            changed ones.

    Yields:
        str and float: the name of a change, and the AUC.
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
    """Labels and scores of the real candidates of batches, with given inputs of the fusion."""
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
    """The inputs of the fusion for `count` users: for the first request of each with a history."""
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


def main(values):
    model, data = RunDirectory(values.model_dir).load_run(values.data_dir)
    fusion = fusion_of(model)
    until = keras.Model(model.input, fusion.input)
    users = first_of_users(until, data, values.split, values.users)
    print(f"| h^fusion of {len(users[0])} users of {values.split} | cosine |\n|---|---:|")
    for name, value in convergence(fusion, *users, values.seed):
        print(f"| {name} | {value:.4f} |", flush=True)

    rng = np.random.default_rng(values.seed)

    def of_another(conditions, weights):
        order = rng.permutation(len(conditions))
        return conditions[order], weights[order]

    changes = {
        "as it is": lambda conditions, weights: (conditions, weights),
        "of another user": of_another,
        "none": lambda conditions, weights: (conditions, np.zeros_like(weights)),
    }
    print(f"\n| short-term interests, {values.split} | AUC |\n|---|---:|")
    for name, value in aucs(model, fusion, data, values.split, changes):
        print(f"| {name} | {value:.4f} |", flush=True)


if __name__ == "__main__":
    command.run(main, define_flags)
