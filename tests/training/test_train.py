"""The commands as a user runs them, on a small synthetic data set."""

import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from unittest.mock import Mock, patch

import numpy as np
import pytest
import tensorflow as tf
from commands import run
from memory import let_go

from tfrec_diffusion.datasets.preparation import prepare
from tfrec_diffusion.files import lock
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.metrics import auc, gauc
from tfrec_diffusion.prepared_directory import PreparedDirectory, find_prepared
from tfrec_diffusion.training import run as running
from tfrec_diffusion.training.run_directory import RunDirectory

REPOSITORY = pathlib.Path(__file__).parents[2]
TAOBAO = REPOSITORY.parent / "shared" / "data" / "taobao"


@pytest.fixture(autouse=True)
def _let_go():
    """Every test trains anew."""
    yield
    let_go()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    prepare("synthetic", data_dir=directory, users=300, items=200, categories=20, history_length=10)
    return directory


def start(command, *arguments):
    """Starts a command in a process of its own, which optimizes its graphs: other last digits."""
    return subprocess.Popen(
        [sys.executable, "-m", f"tfrec_diffusion.{command}", *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )


def train_arguments(data_dir, model_dir, *more):
    return (
        "train",
        "--dataset=synthetic",
        f"--data_dir={data_dir}",
        f"--model_dir={model_dir}",
        "--batch_size=32",
        "--epochs=2",
        "--checkpoint_every=20",
        "--nojit_compile",
        "--model=avg_pooling",
        "--set=dropout=0.1",
        "--set=tower_units=16,8",
        "--set=embedding_stddev=0.2",
        "--warmup_steps=15",
        "--table_decay=0.01",
        *more,
    )


def weights_and_metrics(model_dir):
    metrics = json.loads((model_dir / "metrics.json").read_text())
    for split in metrics["splits"].values():
        del split["seconds"], split["samples_per_second"]
    validation = [(epoch["auc"], epoch["log_loss"]) for epoch in metrics["validation_by_epoch"]]
    return (
        RunDirectory(model_dir).load_model().get_weights(),
        metrics["splits"],
        metrics["steps"],
        validation,
    )


def assert_same_result(model_dir, expected_dir):
    ours, expected = weights_and_metrics(model_dir), weights_and_metrics(expected_dir)
    for weight, expected_weight in zip(ours[0], expected[0], strict=True):
        np.testing.assert_array_equal(weight, expected_weight)
    assert ours[1:] == expected[1:]


@pytest.fixture(scope="module")
def uninterrupted(data_dir, tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("uninterrupted")
    code, stdout, stderr = run(*train_arguments(data_dir, model_dir))
    assert code == 0, stderr
    assert "best reachable" in stdout
    return model_dir


@pytest.fixture(scope="module")
def one_epoch(data_dir, tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("one_epoch")
    code, _, stderr = run(*train_arguments(data_dir, model_dir, "--epochs=1"))
    assert code == 0, stderr
    return model_dir


def test_a_run_leaves_metrics_a_model_and_events(uninterrupted):
    metrics = json.loads((uninterrupted / "metrics.json").read_text())
    assert set(metrics["splits"]) == {"validation", "test"}
    assert metrics["splits"]["test"].keys() >= {"auc", "gauc", "log_loss", "samples_per_second"}
    assert 0.5 < metrics["splits"]["test"]["auc"] < metrics["best_reachable"]["test"]["auc"]
    assert metrics["flags"]["batch_size"] == 32 and metrics["versions"]["keras"]
    assert "git_revision" in metrics
    best = max(epoch["auc"] for epoch in metrics["validation_by_epoch"])
    assert metrics["splits"]["validation"]["auc"] == best
    assert list(uninterrupted.glob("tensorboard/events*"))
    assert (uninterrupted / "vocabularies").is_dir()


def test_a_run_leaves_what_it_predicted(uninterrupted):
    directory = RunDirectory(uninterrupted)
    for split, metrics in directory.metrics["splits"].items():
        predicted = directory.predictions(split)
        assert auc(predicted.labels, predicted.probabilities) == metrics["auc"]
        assert gauc(predicted.labels, predicted.probabilities, predicted.groups) == metrics["gauc"]
        # They are whole before the metrics say that the run has ended.
        assert directory.predictions_file(split).stat().st_mtime <= directory.ended_at
    assert directory.predictions("train") is None


@pytest.fixture(scope="module")
def uninterrupted_process(data_dir, tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("uninterrupted_process")
    process = start(*train_arguments(data_dir, model_dir))
    process.communicate()
    assert process.returncode == 0
    return model_dir


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_resumes_to_the_same_result(
    data_dir, uninterrupted_process, tmp_path, number
):
    arguments = train_arguments(data_dir, tmp_path)
    process = start(*arguments)
    while not (tmp_path / "checkpoints" / "checkpoint").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    stdout, _ = process.communicate()
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert "the same command goes on from here" in stdout
    assert not (tmp_path / "metrics.json").exists()

    process = start(*arguments)
    stdout, _ = process.communicate()
    assert process.returncode == 0
    assert "resuming epoch" in stdout
    assert_same_result(tmp_path, uninterrupted_process)


def test_a_run_that_died_while_validating_resumes_to_the_same_result(
    data_dir, uninterrupted, tmp_path
):
    """All steps are done and saved then, but the epoch is not over."""
    arguments = train_arguments(data_dir, tmp_path)
    died = Mock(side_effect=OSError("died"))
    with patch.object(running, "evaluate", died):
        code, _, stderr = run(*arguments)
    assert code == 2 and stderr == "error: died\n"
    code, _, stderr = run(*arguments)
    assert code == 0, stderr
    assert_same_result(tmp_path, uninterrupted)


def test_more_epochs_train_on(data_dir, uninterrupted, one_epoch, tmp_path):
    model_dir = shutil.copytree(one_epoch, tmp_path / "run")
    code, _, stderr = run(*train_arguments(data_dir, model_dir))
    assert code == 0, stderr
    assert_same_result(model_dir, uninterrupted)


def test_a_model_dir_is_one_processs(uninterrupted, data_dir):
    with lock(uninterrupted, "training in"):
        code, _, stderr = run(*train_arguments(data_dir, uninterrupted))
    assert code == 2
    assert stderr == f"error: another process is training in {uninterrupted}\n"


def test_other_defaults_of_the_model_are_refused(uninterrupted, data_dir, tmp_path):
    """As after an update of the package."""
    model_dir = shutil.copytree(uninterrupted, tmp_path / "run")
    path = model_dir / "flags.json"
    flags = json.loads(path.read_text())
    value = flags["argument embedding_stddev"]
    path.write_text(json.dumps({**flags, "argument embedding_stddev": 2 * value}))
    code, _, stderr = run(*train_arguments(data_dir, model_dir))
    assert code == 2
    assert f"argument embedding_stddev={value} (was {2 * value})" in stderr


def test_other_data_are_refused(uninterrupted, data_dir, tmp_path):
    other = tmp_path / "data"
    shutil.copytree(data_dir, other)
    (schema,) = other.glob("synthetic/*/schema.json")
    schema.write_text(schema.read_text().replace('"negative_rate": 1.0', '"negative_rate": 0.5'))
    code, _, stderr = run("evaluate", f"--model_dir={uninterrupted}", f"--data_dir={other}")
    assert code == 2 and "was trained on other data" in stderr


def test_data_with_other_history_lengths_do_not_continue_a_run(uninterrupted, data_dir, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "model")
    schema = tmp_path / "model" / "schema.json"
    schema.write_text(schema.read_text().replace('"history_length": 10', '"history_length": 9'))
    code, _, stderr = run(*train_arguments(data_dir, tmp_path / "model"))
    assert code == 2 and "was trained on other data" in stderr


def of_one_class(data_dir, directory):
    """The same data, but nothing in the validation split is clicked."""
    shutil.copytree(data_dir, directory)
    (path,) = directory.glob("synthetic/*/*validation.tfrecord*")
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            example = tf.train.Example.FromString(record)
            label = example.features.feature["label"].bytes_list
            label.value[0] = bytes(len(label.value[0]))
            writer.write(example.SerializeToString())
    return directory


def test_of_a_validation_split_of_one_class_the_best_log_loss_is_kept(data_dir, tmp_path):
    """The more a model has seen, the fewer clicks it expects: here the later epochs are better."""
    data_dir = of_one_class(data_dir, tmp_path / "data")
    code, stdout, stderr = run(*train_arguments(data_dir, tmp_path / "run"))
    assert code == 0, stderr
    line = "validation has labels of one class only, for which no AUC is defined: the best epoch is"
    assert stdout.count(f"{line} chosen by log loss\n") == 1
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    first, second = metrics["validation_by_epoch"]
    assert first["auc"] is None and second["log_loss"] < first["log_loss"]
    kept = metrics["splits"]["validation"]["log_loss"]
    assert kept == pytest.approx(second["log_loss"], rel=1e-6)


# So high that the weights of the second step are none any more.
MUCH_TOO_HIGH = "--learning_rate=1e38"


def test_a_diverged_run_stops_and_says_at_which_step(data_dir, tmp_path):
    """The loss of the first step is that of the initial weights."""
    code, _, stderr = run(*train_arguments(data_dir, tmp_path, MUCH_TOO_HIGH))
    assert code == 2
    assert stderr.startswith("error: the loss is nan at step 2: training has diverged. Train in an")
    assert not list(tmp_path.glob("m*")), "neither model.keras nor metrics.json"
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize("jit_compile", ["--jit_compile", "--nojit_compile"])
def test_of_several_steps_in_one_execution_all_are_named(data_dir, tmp_path, jit_compile):
    more = (MUCH_TOO_HIGH, jit_compile, "--steps_per_execution=8")
    code, _, stderr = run(*train_arguments(data_dir, tmp_path, *more))
    assert code == 2 and "the loss is nan in steps 1 to 8: training has diverged" in stderr


def test_a_run_that_diverges_with_its_last_step_has_no_epoch(data_dir, tmp_path):
    """Its last loss is a number, its weights are none any more."""
    steps = -(-5058 // 32)
    with patch.object(running.Run, "_fit_epoch", lambda self, *_: diverge(self.model)):
        code, _, stderr = run(*train_arguments(data_dir, tmp_path))
    assert code == 2
    assert f"after step {steps} the model predicts NaN for " in stderr
    assert "impressions of validation: training has diverged" in stderr
    assert not list(tmp_path.glob("m*")) and not (tmp_path / "validation.json").exists()


def diverge(model):
    model.optimizer.iterations.assign(-(-5058 // 32))
    model.get_layer("click.logit").bias.assign([math.nan])


def test_the_best_epoch_is_kept_and_all_steps_are_counted(data_dir, one_epoch, tmp_path):
    worse_and_worse = iter([0.9, 0.8, 0.7, 0.7])
    with patch.object(
        running, "evaluate", lambda *_: {"auc": next(worse_and_worse), "gauc": 0.5, "log_loss": 0.1,
                                       "impressions": 9},
    ):  # fmt: skip
        code, _, stderr = run(*train_arguments(data_dir, tmp_path, "--steps_per_execution=7"))
    assert code == 0, stderr
    steps = json.loads((tmp_path / "metrics.json").read_text())["steps"]
    best = RunDirectory(tmp_path).load_model()
    epochs = 2
    assert steps == epochs * -(-5058 // 32)
    of_first = RunDirectory(one_epoch).load_model()
    for weight, expected in zip(best.weights, of_first.weights, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)


def test_a_weight_of_clicks_is_undone(data_dir, tmp_path):
    """Probabilities stay those of clicks, also those that an export serves."""
    directories = [f"--model_dir={tmp_path / 'run'}", f"--export_dir={tmp_path / 'export'}"]
    code, _, stderr = run(*train_arguments(data_dir, tmp_path / "run", "--positive_weight=20"))
    assert code == 0, stderr
    run_directory = RunDirectory(tmp_path / "run")
    predicted = run_directory.predictions("test")
    assert predicted.probabilities.mean() == pytest.approx(predicted.labels.mean(), abs=0.1)
    data = RequestData(find_prepared(data_dir, "synthetic"))
    features, labels, *_ = next(data.batches("test", len(predicted.labels)).as_numpy_iterator())
    plain = run_directory.load_model()(features).numpy()
    assert plain.mean() > 0.8 > 3 * labels.mean()
    # Twenty times the odds.
    odds = predicted.probabilities / (1 - predicted.probabilities)
    np.testing.assert_allclose(plain / (1 - plain), 20 * odds[:, None], rtol=1e-3)
    code, _, stderr = run("export", *directories)
    assert code == 0, stderr
    described = json.loads((tmp_path / "export" / "1" / "describe.json").read_text())
    assert described["calibration"]["method"] == "positive_weight"
    assert described["calibration"]["intercept"] == pytest.approx(-math.log(20))


def test_training_ends_when_patience_does(data_dir, tmp_path):
    """Without learning, no epoch is better than the first."""
    arguments = train_arguments(
        data_dir, tmp_path, "--epochs=9", "--patience=2", "--learning_rate=0", "--best_by=gauc",
        "--set=activation=relu",
    )  # fmt: skip
    code, stdout, stderr = run(*arguments)
    assert code == 0, stderr
    assert "no better gauc of validation since epoch 1: training ends after epoch 3" in stdout
    directory = RunDirectory(tmp_path)
    assert len(directory.validation) == 3
    written = directory.metrics_file.stat().st_mtime_ns
    code, stdout, _ = run(*arguments)
    assert code == 0 and "loss:" not in stdout and len(directory.validation) == 3
    assert directory.metrics_file.stat().st_mtime_ns > written  # evaluated again


def test_a_schedule_has_as_many_epochs_as_it_began_with(data_dir, tmp_path):
    falling = train_arguments(data_dir, tmp_path, "--schedule=cosine", "--epochs=1")
    code, _, stderr = run(*falling)
    assert code == 0, stderr
    code, _, stderr = run(*falling, "--epochs=2")
    assert code == 2 and "epochs of the schedule=2 (was 1)" in stderr


def test_a_missing_shard_is_named(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    (shard,) = tmp_path.glob("data/synthetic/*/*train.tfrecord*")
    shard.unlink()
    code, _, stderr = run(*train_arguments(tmp_path / "data", tmp_path / "model"))
    assert code == 2 and f"{shard.name} is missing" in stderr


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_damaged_shard_is_named(data_dir, tmp_path, split):
    shutil.copytree(data_dir, tmp_path / "data")
    (shard,) = tmp_path.glob(f"data/synthetic/*/*{split}.tfrecord*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    code, _, stderr = run(*train_arguments(tmp_path / "data", tmp_path / "model"))
    assert code == 2 and stderr.startswith(f"error: {shard} is damaged (corrupted record at ")
    assert not list(tmp_path.glob("model/m*"))


def test_evaluate_names_a_damaged_shard(data_dir, uninterrupted, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    (shard,) = tmp_path.glob("data/synthetic/*/*test.tfrecord*")
    shard.write_bytes(shard.read_bytes()[:-1])
    code, _, stderr = run("evaluate", f"--model_dir={uninterrupted}", f"--data_dir={tmp_path}/data")
    assert code == 2 and stderr.startswith(f"error: {shard} is damaged (truncated record at ")


def test_train_and_evaluate_tell_of_newer_raw_files(data_dir, uninterrupted, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    clicks = tmp_path / "raw" / "clicks.csv"
    clicks.parent.mkdir()
    clicks.touch()
    os.utime(clicks, (50, 50))
    prepared = PreparedDirectory(find_prepared(tmp_path / "data", "synthetic"))
    prepared.remember_raw_files(clicks.parent, 100)
    for written, expected in ((90, False), (110, True)):
        os.utime(clicks, (written, written))
        with patch.object(running.Run, "train", return_value=0):
            _, _, of_training = run(*train_arguments(tmp_path / "data", tmp_path / "run"))
        flags = (f"--model_dir={uninterrupted}", f"--data_dir={tmp_path / 'data'}")
        _, _, of_evaluation = run("evaluate", *flags)
        for stderr in (of_training, of_evaluation):
            assert (f"newer, such as {clicks} of 1970-01-01 00:01 UTC" in stderr) == expected


@pytest.mark.parametrize(("more", "expected"), [((), None), (("--set=curriculum_steps=7",), 7)])
def test_a_curriculum_is_as_long_as_the_training(data_dir, tmp_path, more, expected):
    with patch.object(running.Run, "train", autospec=True, return_value=0) as train:
        run(*train_arguments(data_dir, tmp_path, "--model=hierdiffuse", *more))
    (trained, epochs), _ = train.call_args
    expected = expected or epochs * trained.steps_per_epoch
    assert trained.model.curriculum_steps == expected


def test_a_finished_run_is_not_trained_again(data_dir, uninterrupted):
    code, stdout, _ = run(*train_arguments(data_dir, uninterrupted))
    assert code == 0
    assert "is trained already" in stdout and "loss:" not in stdout


def test_evaluate_adds_predictions_that_are_missing(uninterrupted, tmp_path):
    for name in ("model.keras", "flags.json", "schema.json"):
        shutil.copy(uninterrupted / name, tmp_path)
    shutil.copytree(uninterrupted / "vocabularies", tmp_path / "vocabularies")
    directory = RunDirectory(tmp_path)
    code, _, stderr = run("evaluate", f"--model_dir={tmp_path}")
    assert code == 0, stderr
    assert directory.predictions("test") is None
    code, _, stderr = run("evaluate", f"--model_dir={tmp_path}", "--write_predictions")
    assert code == 0, stderr
    found, expected = (
        one.predictions("test")[:3] for one in (directory, RunDirectory(uninterrupted))
    )
    for column, of_training in zip(found, expected, strict=True):
        np.testing.assert_allclose(column, of_training, atol=1e-6)


def test_evaluate_and_export(data_dir, uninterrupted, tmp_path):
    code, stdout, stderr = run("evaluate", f"--model_dir={uninterrupted}", "--split=test")
    assert code == 0, stderr
    metrics = json.loads((uninterrupted / "metrics.json").read_text())
    assert f"test: auc {metrics['splits']['test']['auc']:.4f}" in stdout
    code, stdout, stderr = run("export", f"--model_dir={uninterrupted}", f"--export_dir={tmp_path}")
    assert code == 0, stderr
    assert stdout.split()[-1] == str(tmp_path / "1")
    assert (tmp_path / "1" / "saved_model.pb").exists()


@pytest.mark.slow
@pytest.mark.skipif(not TAOBAO.exists(), reason=f"needs the real Taobao sample in {TAOBAO}")
def test_real_logs_go_the_whole_way(tmp_path):
    directories = [f"--data_dir={tmp_path}/data", f"--model_dir={tmp_path}/model"]
    for command, arguments in (
        ("prepare", ["--dataset=taobao", f"--raw_dir={TAOBAO}", directories[0]]),
        ("train", ["--dataset=taobao", *directories, "--set=attention_units=8", "--batch_size=64"]),
        ("evaluate", [directories[1], "--split=test_99"]),
        ("export", [directories[1], f"--export_dir={tmp_path}/export"]),
    ):
        code, stdout, stderr = run(command, *arguments)
        assert code == 0, stderr
        if command == "evaluate":
            assert "(81400 impressions)" in stdout
    splits = json.loads((tmp_path / "model" / "metrics.json").read_text())["splits"]
    assert set(splits) == {"validation", "test", "test_popularity", "test_99"}
    served = tf.saved_model.load(str(tmp_path / "export" / "1")).signatures["serving_default"]
    scores = served(
        user=tf.constant([1], tf.int64),
        item=tf.constant([[2268318, 1, -1]], tf.int64),
        category=tf.constant([[2520377, 1, -1]], tf.int64),
        history_item=tf.constant([[2333346, 2576651]], tf.int64),
        history_category=tf.constant([[2520771, 149192]], tf.int64),
    )["click_probability"].numpy()
    assert 0 < scores[0, 0] < 1 and scores[0, 2] == 0


def test_other_flags_do_not_continue_a_run(data_dir, uninterrupted):
    arguments = train_arguments(data_dir, uninterrupted, "--learning_rate=0.5")
    code, _, stderr = run(*arguments)
    assert code == 2
    assert "--learning_rate=0.5 (was 0.001)" in stderr and stderr.count("\n") == 1


def test_a_wrong_split_lists_those_there_are(uninterrupted):
    code, _, stderr = run("evaluate", f"--model_dir={uninterrupted}", "--split=tset")
    assert code == 2
    assert stderr == (
        "error: `split` must be one of ['test', 'train', 'validation']. Received: 'tset'\n"
    )
