"""What HierDiffuse costs: Markdown tables.

    python tools/benchmarks/hierdiffuse_cost.py
    python tools/benchmarks/hierdiffuse_cost.py --parts=c --seconds=1

(a) Batches/s of inference by sampler, as table 2d of the paper, beside the model without fusion.
(b) SGD against CFG, as table 2a, and the backbones, as table 2b.
(c) One request with 100 candidates against 100 requests with one.
(d) Samples/s of training.

Requests are random, with full histories of 200 behaviors and sessions among the newest 50; item and
category have dim 20 each, so that d = 40. The paper does not say how many steps its DDIM and DDPM
take: `--ddim_steps` and `--ddpm_steps` give them; the models are trained for T = 1000. "XLA" is how
Keras predicts, "graph" is how a SavedModel is served. All numbers of a part are measured in turns,
so that other load of the machine meets all of them; they are medians, and ratios of medians.
"""

import tensorflow as tf
from absl import flags
from random_data import FEATURES, random_tensors
from timing import MODES, define_timing, inference, medians, print_table, training

from tfrec_diffusion import command, models
from tfrec_diffusion.schema import Feature, Schema, Table

_BATCH, _LENGTH, _DIM = 256, 200, 40
_ITEMS = 50_000


def define_flags(values):
    flags.DEFINE_list("parts", list(_PARTS), "what to measure", flag_values=values)
    flags.DEFINE_list("ddim_steps", ["50", "100"], "numbers of steps of DDIM", flag_values=values)
    flags.DEFINE_list("ddpm_steps", ["20", "1000"], "numbers of steps of DDPM", flag_values=values)
    define_timing(values)


def make_schema():
    tables = (
        Table("item", "vocabulary", "int64", rows=_ITEMS, tiers=(_ITEMS // 10,)),
        Table("category", "hash", "int64", rows=3_000),
        Table("gap", "boundaries", "float32", rows=4, boundaries=(30.0,)),
    )
    features = (*FEATURES, Feature("history_gap", "behavior", "gap"))
    return Schema("random", features, tables, _LENGTH)


def create(**settings):
    settings = {"start_step": None, **settings}  # T, as DDPM of all steps needs
    return models.create("hierdiffuse", make_schema(), embedding_dim=_DIM // 2, **settings)


def requests(batch=_BATCH, candidates=1):
    """Features and labels, as tensors."""
    return random_tensors(make_schema(), batch, candidates)


def compare(title, variants, values):
    """Prints the batches/s of each variant in both modes, and how they compare with the first.

    Args:
        title: str. Title of the table.
        variants: dict by name of dicts: arguments of `create`.
        values: `absl.flags.FlagValues`.
    """
    features, _ = requests()
    built = {name: create(**settings) for name, settings in variants.items()}
    calls = {
        (name, mode): inference(model, features, mode)
        for name, model in built.items()
        for mode in MODES
    }
    ms = medians(calls, values)
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


def part_a(values):
    variants = {"TCC, 1 step": {}, "no fusion": {"fusion": "concatenation"}}
    variants["TCC, 2 steps"] = {"sampling_steps": 2}
    for sampler, counts in (("ddim", values.ddim_steps), ("ddpm", values.ddpm_steps)):
        for steps in map(int, counts):
            name = f"{sampler.upper()}, {steps} steps"
            variants[name] = {"sampler": sampler, "sampling_steps": steps}
    compare(f"(a) Samplers: batch {_BATCH}, N = 1", variants, values)


def part_b(values):
    variants = {
        "SGD, MLP": {},
        "CFG, MLP": {"guidance": "cfg"},
        "SGD, Transformer": {"backbone": "transformer"},
    }
    compare(f"(b) Guidance and backbone: batch {_BATCH}, N = 1", variants, values)


def part_c(values, candidates=100):
    model = create()
    sizes = {"one request, 100 candidates": (1, candidates), "100 requests, one each": (1, 1)}
    calls = {
        (name, mode): inference(model, requests(*size)[0], mode)
        for name, size in sizes.items()
        for mode in MODES
    }
    ms = medians(calls, values)
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


def part_d(values):
    variants = {
        "TCC": {},
        "no fusion": {"fusion": "concatenation"},
        "DDIM, 10 steps": {"sampler": "ddim", "sampling_steps": 10},
    }
    batch = requests()
    calls = {name: training(create(**settings), [batch]) for name, settings in variants.items()}
    ms = medians(calls, values)
    rows = {name: [f"{1000 * _BATCH / time:,.0f}"] for name, time in ms.items()}
    print_table(f"(d) Training: batch {_BATCH}, N = 1, XLA", ["samples/s"], rows)


_PARTS = {"a": part_a, "b": part_b, "c": part_c, "d": part_d}


def main(values):
    tf.get_logger().setLevel("ERROR")  # every setting is traced anew, which it warns of
    for part in values.parts:
        _PARTS[part](values)


if __name__ == "__main__":
    command.run(main, define_flags)
