"""Alibaba display advertising (Tianchi 56): joins four files, with one request per impression."""

import datetime
import functools

import tensorflow_datasets as tfds

from tfrec_diffusion import schema
from tfrec_diffusion.datasets import impressions, records, requests, tables, vocabularies

_SOURCE = "https://tianchi.aliyun.com/dataset/56"
_PROFILE = (
    *("cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level"),
    *("shopping_level", "occupation", "new_user_class_level"),
)
_AD = ("cate_id", "campaign_id", "customer", "brand", "price")
# Columns of the behaviors by the ad's feature with which they share a table.
_BEHAVIOR = {"cate_id": "cate", "brand": "brand"}
_TYPES = {"price": "FLOAT", "pid": "VARCHAR"}  # of all others: BIGINT
_DTYPES = {"pid": "string"}
_TIERS = {"adgroup_id": 2}  # of popularity, by table
_PRICE_INTERVALS = 20
_CHINA_HOURS = 8  # from UTC


def _midnight(month, day):
    china = datetime.timezone(datetime.timedelta(hours=_CHINA_HOURS))
    return int(datetime.datetime(2017, month, day, tzinfo=china).timestamp())


_FIRST_BEHAVIOR, _FIRST_IMPRESSION = _midnight(4, 22), _midnight(5, 6)
_VALIDATION, _TEST, _END = _midnight(5, 12), _midnight(5, 13), _midnight(5, 14)


class Alibaba(requests.RequestBuilder):
    """Impressions of `raw_sample.csv` with their ad and their user's profile and behaviors.

    The raw files `raw_sample.csv`, `ad_feature.csv`, `user_profile.csv` and `behavior_log.csv` are
    plain or gzipped. Features have the names of their columns. The features of an ad or a user
    without a row are missing.

    The history of an impression holds the category and brand of the user's behaviors in earlier
    seconds, newest last. Behaviors of the same second are sorted by category, brand and kind, and a
    behavior that the log repeats counts once. Page views, favorites, carts and purchases all count.
    Which of these a behavior was is left out, as in DiffuMIN; it would take a fourth more to store.

    In China's time zone, 6 to 11 May 2017 are for training, 12 May for validation and 13 May for
    the test. Vocabularies and intervals come from the impressions and behaviors before the end of
    training.

    Args:
        raw_dir: str or `pathlib.Path`. Directory of the raw files.
        data_dir: str or `pathlib.Path`. Root of the prepared data sets.
        history_length: int. Longest history; the newest behaviors are kept. Defaults to `1500`.
        min_count: int. How often training must see a value to give it a row of its own. Defaults
            to `2`.
        train_on_validation: bool. Whether 12 May is for training as well, as in the papers. This is
            meant for the last run, with settings that were chosen without it: there is still a
            validation split, but it tells nothing. Defaults to `False`.
    """

    VERSION = tfds.core.Version("1.0.0")
    features = (
        *(schema.Feature(name, "user", name) for name in ("user", *_PROFILE)),
        *(schema.Feature(name, "candidate", name) for name in ("adgroup_id", *_AD)),
        schema.Feature("pid", "context", "pid"),
        *(schema.Feature(f"history_{name}", "history", key) for key, name in _BEHAVIOR.items()),
        schema.Feature("history_gap", "behavior", "gap"),
        schema.Feature("history_age", "behavior", "age"),
    )

    def __init__(
        self, *, raw_dir, data_dir, history_length=1500, min_count=2, train_on_validation=False
    ):
        requests.check_integers(history_length=history_length, min_count=min_count)
        if not isinstance(train_on_validation, bool):
            raise ValueError(
                "`train_on_validation` must be True or False. "
                f"Received: train_on_validation={train_on_validation!r}"
            )
        self.history_length = history_length
        self.min_count = min_count
        self.train_on_validation = train_on_validation
        super().__init__(raw_dir=raw_dir, data_dir=data_dir)

    def convert(self):
        """See `RequestBuilder.convert`."""
        paths = {
            name: self.raw_file(f"{name}.csv", _SOURCE)
            for name in ("raw_sample", "ad_feature", "user_profile", "behavior_log")
        }
        train_until = _TEST if self.train_on_validation else _VALIDATION
        with tables.Database(self.scratch, self.report) as database:
            self._load_impressions(database, paths)
            self._load_behaviors(database, paths["behavior_log"])
            vocabs = {
                name: self._vocabulary(database, name, train_until)
                for name in ("user", *_PROFILE, "adgroup_id", *_AD, "pid")
            }
            queries = {
                "impressions": "SELECT * FROM impressions",
                "behaviors": "SELECT * EXCLUDE (btag) FROM behaviors",
            }
            parts = database.cut(self.scratch / "parts", "user", queries)
        vocabs["gap"] = vocabularies.Boundaries("gap", requests.GAP_BOUNDARIES)
        vocabs["age"] = vocabularies.Boundaries("age", requests.AGE_BOUNDARIES)
        tables_ = [vocabulary.table() for vocabulary in vocabs.values()]
        schema_ = schema.Schema(self.name, self.features, tables_, self.history_length)
        encoder = functools.partial(
            impressions.Encoder,
            features=self.features,
            vocabularies=vocabs,
            gaps=("history_gap",),
            ages=("history_age",),
            history_length=self.history_length,
            ticks=1,
            time_zone_hours=_CHINA_HOURS,
        )
        spans = {
            "train": (_FIRST_IMPRESSION, train_until),
            "validation": (_VALIDATION, _TEST),
            "test": (_TEST, _END),
        }
        splits = {name: records.Split(encoder(span=span), parts) for name, span in spans.items()}
        return schema_, vocabs, splits

    # Loading

    def _load_impressions(self, database, paths):
        """Fills the table `impressions` with usable rows, as `impressions.Encoder` reads them."""
        names = ("user", "time_stamp", "adgroup_id", "pid", "nonclk", "clk")
        database.load("raw_sample", [paths["raw_sample"]], _typed(names))
        _drop_missing(database, "raw_sample", "user", "adgroup_id")
        _drop_outside(database, "raw_sample", _FIRST_IMPRESSION, "6 to 13 May 2017")
        database.drop(
            "raw_sample",
            "NOT coalesce(clk IN (0, 1) AND nonclk = 1 - clk, false)",
            "clk neither 0 nor 1, or nonclk not the other",
        )
        _load_side(database, "ad_feature", paths["ad_feature"], "adgroup_id", _AD)
        _load_side(database, "user_profile", paths["user_profile"], "userid", _PROFILE)
        columns = {"user": 's."user"', "adgroup_id": "s.adgroup_id", "pid": "s.pid"}
        columns |= {name: f"a.{name}" for name in _AD} | {name: f"p.{name}" for name in _PROFILE}
        values = ", ".join(f"{_or_missing(name, sql)} AS f_{name}" for name, sql in columns.items())
        from_ = (
            "raw_sample AS s LEFT JOIN ad_feature AS a USING (adgroup_id) "
            'LEFT JOIN user_profile AS p ON s."user" = p.userid'
        )
        ((ads, profiles),) = database.execute(
            "SELECT count(*) FILTER (a.adgroup_id IS NULL), count(*) FILTER (p.userid IS NULL) "
            f"FROM {from_}"
        )
        self.report.note("raw_sample: ad without a row in ad_feature", ads)
        self.report.note("raw_sample: user without a row in user_profile", profiles)
        database.execute(
            f'CREATE TABLE impressions AS SELECT s."user", s.time_stamp AS time, s.rowid AS row, '
            f's.clk::FLOAT AS label, {values} FROM {from_} ORDER BY s."user", time, row',
            "Sorting impressions",
        )
        for table in paths.keys() - {"behavior_log"}:
            database.execute(f"DROP TABLE {table}")

    def _load_behaviors(self, database, path):
        """Fills the table `behaviors` with usable, distinct rows for `impressions.Encoder`."""
        types = _typed(("user", "time_stamp", "cate", "brand")) | {"btag": "VARCHAR"}
        database.load("behavior_log", [path], types, lenient=("brand",))
        _drop_missing(database, "behavior_log", "user", "cate")
        _drop_outside(database, "behavior_log", _FIRST_BEHAVIOR, "22 April to 13 May 2017")
        database.drop(
            "behavior_log",
            "coalesce(btag, '') NOT IN ('pv', 'fav', 'cart', 'buy')",
            "btag none of pv, fav, cart, buy",
        )
        # Sorted by all columns, distinct rows have just one order. That of the log is not kept.
        database.execute(
            'CREATE TABLE behaviors AS SELECT DISTINCT "user", time_stamp AS time, '
            f"cate AS f_history_cate, {_or_missing('brand', 'brand')} AS f_history_brand, btag "
            'FROM behavior_log ORDER BY "user", time, f_history_cate, f_history_brand, btag',
            "Sorting behaviors",
        )
        ((read,),) = database.execute("SELECT count(*) FROM behavior_log")
        ((kept,),) = database.execute("SELECT count(*) FROM behaviors")
        self.report.drop("behavior_log", "repeated", read - kept, bad=False)
        database.execute("DROP TABLE behavior_log")

    # Encoding

    def _vocabulary(self, database, name, train_until):
        """Maps the raw values of a table to rows, by what training may see."""
        seen = f"SELECT f_{name} AS value FROM impressions WHERE time < {train_until}"
        if name in _BEHAVIOR:
            column = f"f_history_{_BEHAVIOR[name]}"
            seen += f" UNION ALL SELECT {column} FROM behaviors WHERE time < {train_until}"
        if name == "price":
            values, counts, *_ = database.value_counts(seen)
            return vocabularies.Boundaries.from_counts(
                name, values, counts, buckets=_PRICE_INTERVALS
            )
        values, counts, total, _ = database.value_counts(seen, self.min_count)
        return vocabularies.Vocabulary.from_counts(
            name,
            _DTYPES.get(name, "int64"),
            values,
            counts,
            tiers=_TIERS.get(name, 1),
            seen=total,
        )


def _typed(names):
    return {name: _TYPES.get(name, "BIGINT") for name in names}


def _or_missing(name, sql):
    return f"coalesce({sql}, {tables.MISSING[_TYPES.get(name, 'BIGINT')]})"


def _drop_missing(database, table, *ids):
    missing = " OR ".join(f'coalesce("{name}", -1) < 0' for name in ids)
    database.drop(table, missing, f"no {' or '.join(ids)}")


def _drop_outside(database, table, first, days):
    database.drop(
        table,
        f"NOT coalesce(time_stamp >= {first} AND time_stamp < {_END}, false)",
        f"time outside {days} (UTC+8)",
    )


def _load_side(database, table, path, key, names):
    """Loads a file with one row per key. Of several rows with the same key, the first counts."""
    # The last column of user_profile.csv has a name that ends in a blank.
    spelled = {name.strip(): name for name in tables.column_names(path)}
    types = {spelled.get(name, name): kind for name, kind in _typed((key, *names)).items()}
    database.load(table, [path], types, lenient=[spelled.get(name, name) for name in names])
    for name in names:
        if spelled[name] != name:
            database.execute(
                f"ALTER TABLE {table} RENAME COLUMN {tables.quoted(spelled[name])} TO {name}"
            )
    _drop_missing(database, table, key)
    database.drop_repeated(table, key, f"{key} repeated")
