"""A trained model with another sampler, on one that was never trained."""

import numpy as np
import pytest
import resample
import run_tool

from tfrec_diffusion import models
from tfrec_diffusion.datasets.preparation import prepare
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.training.evaluation import evaluate
from tfrec_diffusion.training.run_directory import RunDirectory

ONE_STEP = ("--set=sampler=ddim", "--set=spacing=strided", "--set=start_step=20")


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """`run_of(**arguments)`: the directory of a run of such a DiffuMIN."""
    path = tmp_path_factory.mktemp("data")
    data = RequestData(
        prepare("synthetic", data_dir=path, users=40, items=60, categories=6, history_length=20)
    )

    def run_of(**arguments):
        model = models.create(
            "diffumin", schema=data.schema, tower_units=(8,), embedding_stddev=0.3, **arguments
        )
        directory = RunDirectory(tmp_path_factory.mktemp("run"))
        directory.claim({"data_dir": str(path), "dataset": "synthetic"}, {}, data.schema)
        directory.save_model(model)
        return directory

    return run_of


def test_one_step_in_the_place_of_three(run_of):
    directory = run_of(sampler="ddpm", sampling_steps=3)
    printed = run_tool.run(
        resample, f"--model_dir={directory.path}", *ONE_STEP, "--set=sampling_steps=1"
    )
    (table,) = run_tool.tables(printed)
    trained, resampled = table.values()
    assert list(table)[1] == "sampler=ddim spacing=strided start_step=20 sampling_steps=1"

    model, data = directory.load_run()
    predicted = []

    def keep(split, probabilities, *_):
        predicted.append(probabilities)

    expected = evaluate(model, data, "test", 256, keep=keep)
    assert float(trained[0]) == pytest.approx(expected["auc"], abs=5e-5)
    arguments = {"sampler": "ddim", "spacing": "strided", "start_step": 20, "sampling_steps": 1}
    other = models.DiffuMIN(**{**model.get_config(), **arguments})
    other.set_weights(model.get_weights())
    expected = evaluate(other, data, "test", 256, keep=keep)
    assert float(resampled[0]) == pytest.approx(expected["auc"], abs=5e-5)
    moves = np.abs(predicted[1] - predicted[0])
    assert moves.max() > 1e-3
    moved = f"{(moves > 1e-3).mean():.1%} of {len(moves):,} probabilities moved"
    assert moved in printed and f"the largest {moves.max():.5f}" in printed


def test_one_step_is_what_tcc_takes(run_of):
    """Its teacher stays behind."""
    directory = run_of(sampler="tcc", sampling_steps=1)
    printed = run_tool.run(resample, f"--model_dir={directory.path}", *ONE_STEP, "--split=test")
    assert "\n0.0% of " in printed and "the mean move is 0.00000" in printed


def test_under_the_guidance_of_others(run_of):
    """Of a batch of two, each is guided by the other one."""
    directory = run_of(sampler="tcc")
    printed = run_tool.run(
        resample, f"--model_dir={directory.path}", "--guided_by_others", "--split=test"
    )
    (table,) = run_tool.tables(printed)
    assert list(table)[1] == "guided by others"
    assert "the mean move is 0.00000" not in printed

    model, _ = directory.load_run()
    generator = model.get_layer("diffumin.generator")
    r, o = np.random.default_rng(0).normal(size=(2, 2, 1, *generator.input[0].shape[2:]))
    real = np.ones((2, 1), bool)
    own = generator(r, o, real)
    resample.guide_by_others(model)
    rolled = generator(r, o, real)
    assert np.abs(rolled - own).max() > 1e-3
    same = np.repeat(r[:1], 2, axis=0), np.repeat(o[:1], 2, axis=0)
    np.testing.assert_allclose(generator(*same, real)[0], own[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--set=channels=2", "could not be loaded"),
        ("--set=sampler=tcc", "could not be loaded"),  # no teacher was trained
        ("--set=steps=1", "--set takes name=value with one of: channels=4, "),
    ],
)
def test_what_does_not_fit_is_refused(run_of, setting, message):
    directory = run_of(sampler="ddpm", sampling_steps=1)
    status, _, error = run_tool.ended(resample, f"--model_dir={directory.path}", setting)
    assert status == 2 and message in error


def test_others_guide_only_what_is_guided(run_of):
    directory = run_of(context_guidance=False, channel_guidance=False)
    status, _, error = run_tool.ended(
        resample, f"--model_dir={directory.path}", "--guided_by_others"
    )
    assert status == 2 and "needs a DiffuMIN whose generator is guided" in error
