"""What HierDiffuse costs: Markdown tables of one run.

    python tools/benchmark_hierdiffuse.py
    python tools/benchmark_hierdiffuse.py --parts=c --seconds=1

(a) Batches/s of inference by sampler, as table 2d of the paper, beside the model without fusion.
(b) SGD against CFG, as table 2a, and the backbones, as table 2b.
(c) One request with 100 candidates against 100 requests with one.
(d) Samples/s of training.

Random requests with full histories of 200, sessions among the newest 50; item and category of dim
20, so that d = 40. The paper does not say how many steps its DDIM and DDPM take: given are those of
--ddim_steps and --ddpm_steps, T = 1000 being what was trained. "XLA" is Keras's predict, "graph" is
how a SavedModel is served. All numbers of a part are taken in turns, so that what else the machine
does meets all of them; medians, and ratios of them.
"""

import functools

import keras
import random_requests
import tensorflow as tf
from absl import app, flags
from timing import MODES, inference, medians, print_table

from tfrec_diffusion import models
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam
from tfrec_diffusion.schema import Feature, Schema, Table

PARTS = flags.DEFINE_list("parts", ["a", "b", "c", "d"], "what to measure")
DDIM_STEPS = flags.DEFINE_list("ddim_steps", ["50", "100"], "numbers of steps of DDIM")
DDPM_STEPS = flags.DEFINE_list("ddpm_steps", ["20", "1000"], "numbers of steps of DDPM")

_BATCH, _LENGTH, _DIM = 256, 200, 40
_ITEMS = 50_000


def make_schema():
    tables = (
        Table("item", "vocabulary", "int64", rows=_ITEMS, tiers=(_ITEMS // 10,)),
        Table("category", "hash", "int64", rows=3_000),
        Table("gap", "boundaries", "float32", rows=4, boundaries=(30.0,)),
    )
    features = (*random_requests.FEATURES, Feature("history_gap", "behavior", "gap"))
    return Schema("random", features, tables, _LENGTH)


def create(**settings):
    settings = {"start_step": None, **settings}  # T, as DDPM of all steps needs
    return models.create("hierdiffuse", make_schema(), embedding_dim=_DIM // 2, **settings)


def requests(batch=_BATCH, candidates=1):
    """Features and labels, as tensors."""
    made = random_requests.requests(make_schema(), batch, candidates)
    return keras.tree.map_structure(tf.constant, made)


def compare(title, variants):
    """Batches/s of each variant in both modes, and how many times as fast as the first it is."""
    features, _ = requests()
    built = {name: create(**settings) for name, settings in variants.items()}
    calls = {
        (name, mode): inference(model, features, mode)
        for name, model in built.items()
        for mode in MODES
    }
    ms = medians(calls)
    first = next(iter(variants))
    rows = {
        name: [
            cell
            for mode in MODES
            for cell in (f"{1000 / ms[name, mode]:.1f}", f"{ms[first, mode] / ms[name, mode]:.2f}")
        ]
        for name in variants
    }
    columns = [text for mode in MODES for text in (f"batches/s, {mode}", "times as fast")]
    print_table(title, columns, rows)


def part_a():
    variants = {"TCC, 1 step": {}, "no fusion": {"fusion": "concatenation"}}
    variants["TCC, 2 steps"] = {"sampling_steps": 2}
    for sampler, counts in (("ddim", DDIM_STEPS.value), ("ddpm", DDPM_STEPS.value)):
        for steps in map(int, counts):
            name = f"{sampler.upper()}, {steps} steps"
            variants[name] = {"sampler": sampler, "sampling_steps": steps}
    compare(f"(a) Samplers: batch {_BATCH}, N = 1", variants)


def part_b():
    variants = {
        "SGD, MLP": {},
        "CFG, MLP": {"guidance": "cfg"},
        "SGD, Transformer": {"backbone": "transformer"},
    }
    compare(f"(b) Guidance and backbone: batch {_BATCH}, N = 1", variants)


def part_c(candidates=100):
    model = create()
    sizes = {"one request, 100 candidates": (1, candidates), "100 requests, one each": (1, 1)}
    calls = {
        (name, mode): inference(model, requests(*size)[0], mode)
        for name, size in sizes.items()
        for mode in MODES
    }
    ms = medians(calls)
    together, alone = sizes
    rows = {
        mode: [
            f"{ms[together, mode]:.2f}",
            f"{candidates * ms[alone, mode]:.1f}",
            f"{candidates * ms[alone, mode] / ms[together, mode]:.1f}",
        ]
        for mode in MODES
    }
    print_table(
        "(c) Candidates share the fusion", [f"{name}, ms" for name in sizes] + ["ratio"], rows
    )


def part_d():
    features, labels = requests()
    calls = {}
    for name, settings in {
        "TCC": {},
        "no fusion": {"fusion": "concatenation"},
        "DDIM, 10 steps": {"sampler": "ddim", "sampling_steps": 10},
    }.items():
        model = create(**settings)
        model.compile(LazyAdam(), LogLoss(), jit_compile=True)
        model.make_train_function()
        calls[name] = functools.partial(train_step, model, (features, labels))
    ms = medians(calls)
    rows = {name: [f"{1000 * _BATCH / time:,.0f}"] for name, time in ms.items()}
    print_table(f"(d) Training: batch {_BATCH}, N = 1, XLA", ["samples/s"], rows)


def train_step(model, batch):
    model.train_function(iter([batch]))


def main(_):
    tf.get_logger().setLevel("ERROR")  # every setting is traced anew, which it warns of
    for part in PARTS.value:
        {"a": part_a, "b": part_b, "c": part_c, "d": part_d}[part]()


if __name__ == "__main__":
    app.run(main)
