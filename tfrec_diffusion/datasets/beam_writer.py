"""Encodes and writes requests with Apache Beam (extra `beam`), usually on a cluster.

Beam's workers and this process must share a file system, that of the prepared data sets.
"""

import collections
import pathlib
import pickle

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

_COUNTS = "counts"


def write(splits, encode, writers, scratch, options):
    """Encodes the parts of all splits and writes their records; returns when all is written.

    The records and their order are those of a preparation without Beam, but TFDS may cut them into
    shards at other places.

    Args:
        splits: dict of `records.Split` by name.
        encode: `records.RecordEncoder`. Encoder of the data set.
        writers: dict of TFDS's `BeamWriter` by name of the split.
        scratch: `pathlib.Path`. Directory for temporary files, which all workers see.
        options: list of str. Pipeline options of Beam.

    Returns:
        dict of a `collections.Counter` by name of the split, as `records.RecordEncoder` fills it.

    Raises:
        OSError: If a worker fails.
        ValueError: If the options are wrong.
    """
    try:
        _run(make_pipeline(options), splits, encode, writers, scratch)
    except RuntimeError as error:
        # Beam's own: the last line is what a worker raised.
        raise OSError(f"Apache Beam: {str(error).strip().splitlines()[-1]}") from error
    return {name: pickle.loads(_counts_path(scratch, name).read_bytes()) for name in splits}


def make_pipeline(options):
    """Makes a pipeline.

    Args:
        options: list of str. Pipeline options of Beam.

    Returns:
        `beam.Pipeline`.

    Raises:
        ValueError: If the options are wrong.
    """
    return beam.Pipeline(options=PipelineOptions(options))


def _run(pipeline, splits, encode, writers, scratch):
    with pipeline:
        for name, split in splits.items():
            # Vocabularies are too large to travel within the pipeline.
            encoder = scratch / f"{name}.encoder"
            encoder.write_bytes(pickle.dumps((split, encode)))
            encoded = (
                pipeline
                | f"{name}: parts" >> beam.Create(split.parts)
                | f"{name}: to all workers" >> beam.Reshuffle()
                | f"{name}: encode"
                >> beam.ParDo(_Encode(str(encoder))).with_outputs(_COUNTS, main="records")
            )
            _ = encoded.records | f"{name}: write" >> _Write(writers[name])
            _ = (
                encoded[_COUNTS]
                | f"{name}: add counts" >> beam.CombineGlobally(_add)
                | f"{name}: write counts" >> beam.Map(_save, str(_counts_path(scratch, name)))
            )


def _counts_path(scratch, split):
    return scratch / f"{split}.counts"


class _Encode(beam.DoFn):
    """Encodes a part: its records are the main output, their counts another.

    Args:
        path: str. Path of the pickled split and encoder.
    """

    def __init__(self, path):
        self._path = path

    def setup(self):
        self._split, self._encode = pickle.loads(pathlib.Path(self._path).read_bytes())

    def process(self, part):
        counts = collections.Counter()
        yield from self._encode(self._split, part, counts)
        yield beam.pvalue.TaggedOutput(_COUNTS, counts)

    def teardown(self):
        del self._split, self._encode


class _Write(beam.PTransform):
    """Writes records with TFDS's writer, as one step of the pipeline that can be named."""

    def __init__(self, writer):
        super().__init__()
        self._writer = writer

    def expand(self, records):
        return self._writer.write_from_pcollection(records)


def _add(counters):
    return sum(counters, collections.Counter())


def _save(counts, path):
    pathlib.Path(path).write_bytes(pickle.dumps(counts))
