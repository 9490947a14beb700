"""Beam's workers write what this process would."""

import pytest
import tensorflow as tf

from tfrec_diffusion.datasets.preparation import Preparation, prepare


@pytest.fixture(scope="module", autouse=True)
def beam_writer():
    # Imported by the process that runs these tests, and not by all that collect them.
    return pytest.importorskip("tfrec_diffusion.datasets.beam_writer", exc_type=ImportError)


def _records(directory, split):
    shards = sorted(directory.glob(f"taobao-{split}.tfrecord*"))
    return list(tf.data.TFRecordDataset(shards).as_numpy_iterator())


@pytest.mark.slow
def test_same_records_and_counts(tmp_path, taobao_in_parts):
    here = prepare("taobao", raw_dir=taobao_in_parts, data_dir=tmp_path / "here")
    options = ["--runner=FnApiRunner", "--direct_num_workers=2"]
    there = prepare(
        "taobao",
        raw_dir=taobao_in_parts,
        data_dir=tmp_path / "there",
        preparation=Preparation(beam_options=options),
    )
    for split in ("train", "test_99"):
        assert _records(there, split) == _records(here, split)
    for name in ("schema.json", "report.json"):
        assert (there / name).read_bytes() == (here / name).read_bytes()


def test_wrong_options_are_an_error_at_once(tmp_path):
    with pytest.raises(ValueError, match="NoSuchRunner"):
        prepare(
            "taobao",
            raw_dir=tmp_path,
            data_dir=tmp_path,
            preparation=Preparation(beam_options=["--runner=NoSuchRunner"]),
        )


def test_a_worker_that_fails_is_one_line(tmp_path, monkeypatch, beam_writer):
    def fail(*arguments):
        raise RuntimeError("Traceback:\n  much\nOSError: no space left")

    monkeypatch.setattr(beam_writer, "_run", fail)
    with pytest.raises(OSError, match="^Apache Beam: OSError: no space left$"):
        beam_writer.write({}, None, {}, tmp_path, [])
