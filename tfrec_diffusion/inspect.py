"""Says what is in a prepared data set: schema, first requests, counts, and a picture.

python -m tfrec_diffusion.inspect --dataset=logs/kuairand --picture=inspect.png
"""

from tfrec_diffusion import command, flags


def main(values):
    from tfrec_diffusion.inspection.description import describe
    from tfrec_diffusion.prepared_directory import find_prepared

    for part in describe(
        find_prepared(values.data_dir, values.dataset),
        picture=values.picture,
        label=values.label,
        split=values.split,
        requests=values.requests,
    ):
        print(f"\n{part}", flush=True)
    print(f"\n{values.picture}")


if __name__ == "__main__":
    command.run(main, flags.inspect)
