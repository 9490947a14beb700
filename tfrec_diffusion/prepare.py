"""Prepares a data set, once: raw files to records, `schema.json`, vocabularies and a report.

python -m tfrec_diffusion.prepare --dataset=taobao --raw_dir=... --data_dir=... [--set=name=value]
"""

import sys
import time

from tfrec_diffusion import command, flags


def main(values):
    from tfrec_diffusion import datasets
    from tfrec_diffusion.datasets.preparation import Preparation, describe, prepare
    from tfrec_diffusion.drafting import spec_draft
    from tfrec_diffusion.prepared_directory import PreparedDirectory

    if values.draft_spec is not None:
        return print(*spec_draft.draft(values.draft_spec, values.raw_dir), sep="\n")
    more = [f"{n}={values[n].value}" for n in ("like", "grow", "forget") if values[n].value]
    options = command.settings([*values.set, *more], datasets.builder_class(values.dataset))
    begun = time.time()
    path = prepare(
        values.dataset,
        data_dir=values.data_dir,
        raw_dir=values.raw_dir,
        overwrite=values.overwrite,
        preparation=Preparation(
            group_by=values.group_by,
            max_bad_rows=values.max_bad_rows,
            workers=values.workers,
            beam_options=values.beam_options or None,
        ),
        **options,
    )
    directory = PreparedDirectory(path)
    print(*describe(directory.report), sep="\n")
    for warning in directory.report.get("warnings", ()):
        print(f"warning: {warning}", file=sys.stderr)
    fresh = directory.prepared_at >= begun
    if fresh and values.raw_dir:
        directory.remember_raw_files(values.raw_dir, begun)
    elif newer := directory.newer_raw_files():
        print(f"warning: {newer}", file=sys.stderr)
    print(f"\n{'Prepared' if fresh else 'Was already there'}: {path}")


if __name__ == "__main__":
    command.run(main, flags.prepare)
