"""Processes that encode give what this one would, in its order.

They import this module, so it imports nothing that waits for TensorFlow.
"""

import collections
import os
import types

import pytest

from tfrec_diffusion.datasets import workers


def _count_up(split, part, counts):
    counts["parts"] += 1
    for i in range(part):
        yield f"{part}/{i}", split.encode(i)


def _end(split, part, counts):
    os._exit(1)


def _fail(split, part, counts):
    raise OSError(f"part {part} is damaged")


def _split(encode, parts):
    return types.SimpleNamespace(encode=encode, parts=parts)


def test_records_come_in_order(tmp_path):
    split = _split(bytes, [3, 1, 0, 2, 4, 1, 5])
    made = {}
    for count in (1, 2):
        counts = collections.Counter()
        with workers.Workers(count, tmp_path) as processes:
            made[count] = list(processes.records("train", split, _count_up, counts))
        assert counts == {"parts": 7}
    assert made[1] == made[2]
    assert [key for key, _ in made[1]][:4] == ["3/0", "3/1", "3/2", "1/0"]


@pytest.mark.parametrize(
    ("encode", "message"), [(_fail, "part 1 is damaged"), (_end, "a process of `workers` ended")]
)
def test_a_failure_is_an_os_error(tmp_path, encode, message):
    with workers.Workers(2, tmp_path) as processes:
        records = processes.records("train", _split(bytes, [1]), encode, None)
        with pytest.raises(OSError, match=message):
            list(records)


@pytest.mark.slow
def test_same_bytes(tmp_path, taobao_in_parts, digests):
    from tfrec_diffusion.datasets.preparation import Preparation, prepare

    made = [
        prepare(
            "taobao",
            raw_dir=taobao_in_parts,
            data_dir=tmp_path / str(count),
            preparation=Preparation(workers=count),
        )
        for count in (1, 2)
    ]
    assert digests(made[0]) == digests(made[1])
