"""Taobao UserBehavior (Tianchi 649): next-item requests from a file of behaviors."""

import datetime

import tensorflow_datasets as tfds

from tfrec_diffusion.datasets import next_item

_COLUMNS = ("user", "item", "category", "behavior", "time")
_CHINA = datetime.timezone(datetime.timedelta(hours=8))
_FIRST_SECOND = int(datetime.datetime(2017, 11, 25, tzinfo=_CHINA).timestamp())
_END_SECOND = int(datetime.datetime(2017, 12, 4, tzinfo=_CHINA).timestamp())


class Taobao(next_item.NextItem):
    """Next-item requests from `UserBehavior.csv` or `UserBehavior.csv.gz`.

    Arguments and splits are those of `next_item.NextItem`. Views, favorites, carts and purchases
    all count as behaviors.
    """

    VERSION = tfds.core.Version("1.2.0")
    dtype = "int64"
    exact_times = True

    def load(self, database):
        """See `NextItem.load`."""
        path = self.raw_file("UserBehavior.csv", "https://tianchi.aliyun.com/dataset/649")
        columns = dict.fromkeys(("user", "item", "category", "time"), "BIGINT")
        database.load("behaviors", [path], columns, header=_COLUMNS)
        database.drop(
            "behaviors",
            'coalesce("user", -1) < 0 OR coalesce(item, -1) < 0 OR coalesce(category, -1) < 0',
            "no user, item or category",
        )
        database.drop(
            "behaviors",
            f"NOT coalesce(time >= {_FIRST_SECOND} AND time < {_END_SECOND}, false)",
            "time outside 25 November to 3 December 2017 (UTC+8)",
        )
