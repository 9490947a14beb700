"""What DiffuMIN costs: Markdown tables, and a plot.

    python tools/benchmarks/diffumin_cost.py --plot=diffumin_cost.png
    python tools/benchmarks/diffumin_cost.py --parts=b,d --seconds=1

(a) Inference against the same model without generator and calibrator, and where the time goes.
(b) The sampler against algorithm 2 as it is written, a loop over channels and steps.
(c) Samples/s of training and of inference.
(d) The extractor (eq. 2-8) against its two matrix products alone.
(e) Inference against the length of the history, and against the steps of sampling.
(f) Inference by one evaluation (`sampler="tcc"`) against no generator and against all steps.

Requests are random, with full histories of items and categories, of dim d / 2 each (`--dim`; d is
16 in the published comparisons); c = 4. "XLA" is how Keras predicts, "graph" is how a SavedModel is
served. All numbers of a part are measured in turns, so that other load of the machine meets all of
them; they are medians, and ratios of medians.
"""

import itertools
import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from random_data import random_schema, random_tensors
from timing import MODES, define_timing, in_mode, inference, medians, print_table, training

from tfrec_diffusion import command, models
from tfrec_diffusion.diffusion.interest_generator import DiffusionGenerator

_CHANNELS, _BATCH = 4, 256
_NO_GENERATOR = 0  # in place of a number of steps
_SIZES = {"batch 256, N = 1": (256, 1), "batch 1, N = 1": (1, 1), "batch 1, N = 100": (1, 100)}


def define_flags(values):
    flags.DEFINE_list("parts", list(_PARTS), "what to measure", flag_values=values)
    flags.DEFINE_integer("dim", 40, "d, the width of a behavior", 2, flag_values=values)
    flags.DEFINE_string("plot", None, "PNG to draw part e to", flag_values=values)
    define_timing(values)


def create(steps, dim, **settings):
    """A DiffuMIN with that many steps of sampling, or `_NO_GENERATOR`."""
    if steps == _NO_GENERATOR:
        generator = {"generator": None}
    else:
        generator = {"sampler": "ddpm", "sampling_steps": steps}
    settings = {**generator, **settings}
    schema = random_schema(history_length=5000)
    return models.create("diffumin", schema=schema, embedding_dim=dim // 2, **settings)


def requests(length, batch=_BATCH, candidates=1):
    """Features and labels, as tensors."""
    return random_tensors(random_schema(length), batch, candidates)


def piece(model, inputs, outputs, features, mode):
    """A call of the part of a model between Keras tensors, on what it gets in the model."""
    values = keras.Model(model.input, inputs)(features)
    return in_mode(keras.Model(inputs, outputs), inputs, values, mode)


# === (a) Inference with and without generator ===


def part_a(values, length=1500, all_steps=(20, 10, 5, 1)):
    variants = {steps: create(steps, values.dim) for steps in (_NO_GENERATOR, *all_steps)}
    columns = list(itertools.product(_SIZES, MODES))
    calls = {}
    for size, mode in columns:
        features, _ = requests(length, *_SIZES[size])
        for steps, model in variants.items():
            calls[size, mode, steps] = inference(model, features, mode)
        parts = pieces(variants[all_steps[0]], features, mode)
        calls |= {(size, mode, name): call for name, call in parts.items()}
    ms = medians(calls, values)

    titles = [", ".join(column) for column in columns]
    base = np.array([ms[*column, _NO_GENERATOR] for column in columns])
    rows = {}
    for steps in variants:
        times = np.array([ms[*column, steps] for column in columns])
        name = "no generator" if steps == _NO_GENERATOR else f"T' = {steps}"
        ratios = zip(times, times / base, strict=True)
        rows[name] = [f"{time:.2f} ({ratio:.2f})" for time, ratio in ratios]
    print_table(f"(a) Inference at length {length}: ms (ratio to no generator)", titles, rows)

    rows = {name: [f"{ms[*column, name]:.2f}" for column in columns] for name in parts}
    fits = [np.polyfit(all_steps, [ms[*column, s] for s in all_steps], 1) for column in columns]
    slopes, starts = np.transpose(fits)
    rows["in the model: a step of sampling"] = [f"{slope:.3f}" for slope in slopes]
    rows["in the model: the generator but for its steps"] = [f"{x:.2f}" for x in starts - base]
    print_table(f"(a) Where it goes at T' = {all_steps[0]}: ms of each part alone", titles, rows)


def pieces(model, features, mode):
    """Calls of the parts of a DiffuMIN, by name."""
    layer = {layer.name.removeprefix("diffumin."): layer for layer in model.layers}
    history, _, target, history_mask = layer["extractor"].input
    ends = {
        "embedding": (model.input, [history, target]),
        "channels and extractor": ([history, target, history_mask], layer["extractor"].output),
        "generator": (layer["generator"].input, layer["generator"].output),
        "short-term Transformer": (layer["short_term"].input, layer["short_term"].output),
        "tower": (layer["click.tower"].input, model.output),
    }
    calls = {name: piece(model, *both, features, mode) for name, both in ends.items()}

    # What no exact step can avoid: the products with weights, of the noised and of all tokens.
    denoiser, noised = layer["generator"].denoiser, tf.size(features["item"]) * _CHANNELS
    first, last = denoiser.blocks
    of_all = [first.out, first.ffn_in, first.ffn_out, last.key_value]
    of_noised = [first.query, first.key_value, last.query, last.out, last.ffn_in, last.ffn_out]
    rows = [noised * _CHANNELS] * len(of_all) + [noised] * (len(of_noised) + 1)
    kernels = [dense.kernel for dense in (*of_all, *of_noised, denoiser.noise)]
    inputs = [tf.random.normal((n, k.shape[0])) for n, k in zip(rows, kernels, strict=True)]

    def products(inputs):
        return [x @ kernel for x, kernel in zip(inputs, kernels, strict=True)]

    return calls | {"dense products of one step": in_mode(products, inputs, inputs, mode)}


# === (b) The sampler against the literal one ===


def part_b(values, steps=20):
    keras.utils.set_random_seed(0)
    generator = DiffusionGenerator(steps, start="uniform")
    shape = (_BATCH, _CHANNELS, values.dim)
    generator.build((None, *shape))
    for weight in generator.trainable_weights:
        weight.assign_add(0.1 * tf.random.normal(weight.shape))  # the biases are zero before
    inputs = (
        tf.random.normal(shape),
        tf.linalg.l2_normalize(tf.random.normal(shape), -1),
        tf.random.uniform(shape[:-1], 1, 1001, tf.int32),
        tf.random.normal((steps + 1, *shape)),
    )

    def lean(interests, channels, t, noise):
        condition = generator.denoiser.condition(interests, channels)
        return generator.generate(interests, condition, t, noise)

    def literal(*inputs):
        return literal_generate(generator, *inputs)

    samplers, rows = {}, {}
    for name, function in {"literal, graph": literal, "lean, graph": lean}.items():
        start = time.perf_counter()
        samplers[name] = tf.function(function).get_concrete_function(*inputs)
        seconds = time.perf_counter() - start
        graph = samplers[name].graph.as_graph_def()
        operations = len(graph.node) + sum(len(f.node_def) for f in graph.library.function)
        rows[name] = [f"{seconds:.2f}", f"{operations:,}"]
    samplers["lean, XLA"] = tf.function(lean, jit_compile=True)
    rows["lean, XLA"] = ["", ""]
    expected = samplers["literal, graph"](*inputs)
    for sampler in samplers.values():
        np.testing.assert_allclose(sampler(*inputs), expected, rtol=1e-4, atol=1e-4)
    calls = {name: lambda f=sampler: f(*inputs) for name, sampler in samplers.items()}
    ms = medians(calls, values)
    for name, row in rows.items():
        row += [f"{ms[name]:.1f}", f"{ms['literal, graph'] / ms[name]:.2f}"]
    columns = ["s to trace", "operations", "ms", "times as fast"]
    print_table(f"(b) Sampler: batch {_BATCH}, N = 1, T' = {steps}", columns, rows)


def literal_generate(generator, interests, channels, t, noise):
    """Algorithm 2 as it is written: one channel after another, one step after another."""
    denoiser, chain = generator.denoiser, generator.chain
    start = generator.schedule.q_sample(interests, t, noise[0])
    augmented = []
    for i in range(_CHANNELS):
        x = start[:, i]
        for s, timestep in enumerate(chain.timesteps):
            tokens = [x if k == i else interests[:, k] for k in range(_CHANNELS)]
            tokens = tf.stack(tokens, axis=1) + denoiser.embed_time([timestep])
            for block in denoiser.blocks:
                tokens = literal_block(block, tokens, channels[:, i : i + 1])
            x = chain.signal[s] * x + chain.prediction[s] * dense(denoiser.noise, tokens[:, i])
            x += chain.deviation[s] * noise[s + 1, :, i]
        augmented.append(x)
    return tf.stack(augmented, axis=1)


def literal_block(block, tokens, channel):
    key, value = tf.split(dense(block.key_value, tokens), 2, axis=-1)
    attended = attend(dense(block.query, tokens), key, value, block.num_heads)
    tokens = block.attention_norm(tokens + dense(block.out, attended))
    # With one key the softmax is 1 whatever the query and the key: any projection does for both.
    query, key = dense(block.query, tokens), dense(block.query, channel)
    attended = attend(query, key, dense(block.guide_value, channel), block.num_heads)
    tokens = block.guide_norm(tokens + dense(block.guide_out, attended))
    hidden = tf.nn.relu(dense(block.ffn_in, tokens))
    return block.ffn_norm(tokens + dense(block.ffn_out, hidden))


def attend(query, key, value, heads):
    """Multi-head attention, (rows, tokens, d) each."""

    dim = query.shape[2]

    def split(x):
        return tf.transpose(tf.reshape(x, (-1, x.shape[1], heads, dim // heads)), (0, 2, 1, 3))

    scores = tf.matmul(split(query), split(key), transpose_b=True) * (dim / heads) ** -0.5
    attended = tf.transpose(tf.nn.softmax(scores) @ split(value), (0, 2, 1, 3))
    return tf.reshape(attended, (-1, query.shape[1], dim))


def dense(layer, x):
    return tf.tensordot(x, layer.kernel, 1) + layer.bias


# === (c) Samples/s ===


def part_c(values, length=1000, steps=10):
    model = create(steps, values.dim)
    features, labels = requests(length)
    calls = {"inference": inference(model, features, "XLA")}
    calls["training"] = training(model, [(features, labels)])
    ms = medians(calls, values)
    rows = {kind: [f"{1000 * _BATCH / ms[kind]:,.0f}"] for kind in ("training", "inference")}
    title = f"(c) Length {length}, T' = {steps}, batch {_BATCH}, N = 1, XLA"
    print_table(title, ["samples/s"], rows)


# === (d) The extractor ===


def part_d(values, length=5000):
    model = create(_NO_GENERATOR, values.dim)
    extractor = model.get_layer("diffumin.extractor")
    history, channels, target, history_mask = extractor.input
    features, _ = requests(length)

    def two_products(inputs):
        history, channels = inputs
        return tf.matmul(tf.matmul(channels[:, 0], history, transpose_b=True), history)

    factors = keras.Model(model.input, [history, channels])(features)
    calls = {}
    for mode in MODES:
        inputs = [history, target, history_mask]
        calls[mode, "extractor"] = piece(model, inputs, extractor.output, features, mode)
        calls[mode, "products"] = in_mode(two_products, [history, channels], factors, mode)
    ms = medians(calls, values)
    rows = {}
    for mode in MODES:
        whole, products = ms[mode, "extractor"], ms[mode, "products"]
        rows[mode] = [f"{whole:.1f}", f"{products:.1f}", f"{whole / products:.2f}"]
    title = f"(d) Extractor: length {length}, batch {_BATCH}, N = 1"
    print_table(title, ["extractor, ms", "its two products, ms", "ratio"], rows)


# === (e) Against length and steps ===


def part_e(
    values, lengths=(50, 200, 1000, 2000, 5000), all_steps=(5, 10, 20, 50), length=1500, steps=20
):
    variants = {number: create(number, values.dim) for number in (_NO_GENERATOR, *all_steps)}
    settings = [(number, x) for x in lengths for number in (_NO_GENERATOR, steps)]
    settings += [(number, length) for number in variants]
    features = {x: requests(x)[0] for x in (*lengths, length)}
    calls = {
        (mode, number, x): inference(variants[number], features[x], mode)
        for mode in MODES
        for number, x in settings
    }
    ms = medians(calls, values)
    by_length, by_steps = {}, {}
    for mode in MODES:
        full, base = f"DiffuMIN, {mode}", f"no generator, {mode}"
        by_length[full] = [ms[mode, steps, x] for x in lengths]
        by_length[base] = [ms[mode, _NO_GENERATOR, x] for x in lengths]
        by_steps[full] = [ms[mode, number, length] for number in all_steps]
        by_steps[base] = [ms[mode, _NO_GENERATOR, length]] * len(all_steps)  # a level line
    panels = [
        ("history length", f"T' = {steps}", lengths, by_length, 1000, "1,000 behaviors"),
        ("sampling steps T'", f"history length {length:,}", all_steps, by_steps, 1, "step"),
    ]
    for x_name, fixed, x, lines, unit, unit_name in panels:
        rows = {}
        for name, times in lines.items():
            slope, start = np.polyfit(x, times, 1)
            distance = np.abs(start + slope * np.array(x) - times).max()
            cells = [*times, start, slope * unit, distance]
            rows[name] = [f"{cell:z.1f}" for cell in cells]
        columns = [f"{value:,}" for value in x]
        columns += ["line: at 0", f"per {unit_name}", "farthest from it"]
        print_table(f"(e) ms by {x_name}: {fixed}, batch {_BATCH}, N = 1", columns, rows)
    if values.plot:
        draw(values.plot, panels, values.dim)


def draw(path, panels, dim):
    """Writes a PNG with a panel for each x: the points as measured and their straight lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panes = figure.subplots(1, len(panels))
    for axes, (x_name, fixed, x, lines, unit, unit_name) in zip(panes, panels, strict=True):
        for name, ms in lines.items():
            color = "#0072b2" if name.endswith("XLA") else "#d55e00"
            face, marker, line = (color, "o", "-") if "DiffuMIN" in name else ("white", "s", "--")
            slope, start = np.polyfit(x, ms, 1)
            label = f"{name}: {start:.0f} ms + {slope * unit:z.1f} ms per {unit_name}"
            ends = np.array([0, max(x)])
            axes.plot(ends, start + slope * ends, line, color=color, label=label)
            axes.plot(x, ms, marker, color=color, markerfacecolor=face, zorder=3)
        axes.set(xlabel=x_name, ylabel=f"ms a batch of {_BATCH}", title=fixed)
        axes.set_xlim(0, 1.03 * max(x))
        axes.set_ylim(0, 1.4 * axes.get_ylim()[1])  # room for the legend
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper left", frameon=False, fontsize=9)
    figure.suptitle(f"Inference: c = {_CHANNELS}, d = {dim}, N = 1")
    figure.savefig(path, dpi=150)


# === (f) One evaluation ===


def part_f(values, length=1500, steps=20):
    one, many, none = "one evaluation", f"T' = {steps}", "no generator"
    variants = {
        one: create(1, values.dim, sampler="tcc"),
        many: create(steps, values.dim),
        none: create(_NO_GENERATOR, values.dim),
    }
    columns = list(itertools.product(_SIZES, MODES))
    calls = {}
    for size, mode in columns:
        features, _ = requests(length, *_SIZES[size])
        for name, model in variants.items():
            calls[size, mode, name] = inference(model, features, mode)
    ms = medians(calls, values)
    rows = {name: [f"{ms[*column, name]:.2f}" for column in columns] for name in variants}
    for name, of in ((one, none), (one, many), (many, none)):
        ratios = (ms[*column, name] / ms[*column, of] for column in columns)
        rows[f"{name} / {of}"] = [f"{ratio:.2f}" for ratio in ratios]
    titles = [", ".join(column) for column in columns]
    print_table(f"(f) Inference at length {length}: ms, and ratios", titles, rows)


_PARTS = {"a": part_a, "b": part_b, "c": part_c, "d": part_d, "e": part_e, "f": part_f}


def main(values):
    tf.get_logger().setLevel("ERROR")  # every setting is traced anew, which it warns of
    for part in values.parts:
        _PARTS[part](values)


if __name__ == "__main__":
    command.run(main, define_flags)
