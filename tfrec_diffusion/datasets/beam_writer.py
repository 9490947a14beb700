"""Encodes and writes requests with Apache Beam (extra `beam`): in many processes or on a cluster.

What Beam's workers share with this process is a file system: that of the prepared data sets.
"""

import collections
import pathlib
import pickle

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

_COUNTS = "counts"


def write(splits, encode, writers, scratch, options):
    """Encodes the parts of splits and writes their records; returns when all is written.

    Args:
        splits: dict of `requests.Split` by name.
        encode: `requests.Encoder`.
        writers: dict of TFDS's `BeamWriter` by split.
        scratch: Directory for temporary files, which all workers see.
        options: list of Beam's pipeline options.

    Returns:
        dict of a `collections.Counter` by split, as `requests.Encoder` counts.
    """
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
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
    return {name: pickle.loads(_counts_path(scratch, name).read_bytes()) for name in splits}


def _counts_path(scratch, split):
    return scratch / f"{split}.counts"


class _Encode(beam.DoFn):
    """A part to its records, and to what they are counted as.

    Args:
        path: Of the pickled split and encoder.
    """

    def __init__(self, path):
        self._path = path

    def setup(self):
        self._split, self._encode = pickle.loads(pathlib.Path(self._path).read_bytes())

    def process(self, part):
        counts = collections.Counter()
        yield from self._encode(self._split, part, counts)
        yield beam.pvalue.TaggedOutput(_COUNTS, counts)


class _Write(beam.PTransform):
    """What TFDS's writer does with records, under a name of its own."""

    def __init__(self, writer):
        super().__init__()
        self._writer = writer

    def expand(self, records):
        return self._writer.write_from_pcollection(records)


def _add(counters):
    return sum(counters, collections.Counter())


def _save(counts, path):
    pathlib.Path(path).write_bytes(pickle.dumps(counts))
