"""Raw files in each published format, of any size, for `preparation_cost.py`.

Each function takes a directory, the number of rows of all main files together, and a seed. It
writes the files, with as many rows or a few less, and returns how many. They are what some users of
the full data set would leave: with k times the rows come k times the users, each with as many
events as before, and k ** 0.6 times the items. (Taobao's first 84,475 rows have 55,368 items, all
100,150,807 have 4,162,024: an exponent of 0.61.) Items are drawn by Zipf's law, and the activity of
users is log-normal. The same arguments write the same bytes.
"""

import duckdb
import numpy as np
import pandas as pd

from tfrec_diffusion.datasets import synthetic

_DAY = 24 * 60 * 60
_ITEM_GROWTH = 0.6
_ACTIVITY = 0.9  # standard deviation of the logarithm of a user's events, as in Taobao's sample
_METADATA = (  # of a book, Python's spelling; the braces are doubled for DuckDB's `format`
    "{{'asin': '{:010d}', 'salesRank': {{'Books': {}}}, 'categories': [['Books', 'Category {}']], "
    "'title': '{}', 'description': '{}', 'related': {{'also_bought': ["
    + ", ".join(f"'{book:010d}'" for book in range(20))
    + "]}}}}"
)


def ele_me(directory, rows, seed):
    """Ele.me, with two impressions of a user a day, where the published files have one and a half.

    A row has 4.4 kB (published: about 7), and 1.8% of the rows are clicked, as in the published
    files. How many items were published is not known; 7 million are assumed.
    """
    rng = np.random.default_rng(seed)
    synthetic.write_raw(
        directory,
        users=_part(rows, of=16),
        items=_items(7_000_000, rows / 177e6),
        categories=100,
        interests=4,
        impressions=2,
        history_length=50,
        seed=seed,
    )
    written = 0
    for path in directory.glob("*.npy"):  # true probabilities, no part of the format
        written += len(np.load(path, mmap_mode="r"))
        path.unlink()
    for path in sorted(directory.glob("D*.csv")):
        lines = path.read_text().splitlines(keepends=True)
        path.unlink()
        clicked = np.array([line.startswith("1,") for line in lines])
        clicked &= rng.random(len(lines)) < 0.018 / clicked.mean()
        pairs = zip(clicked, lines, strict=True)
        # Ten files a day were published.
        day, part = path.stem.split("_")
        with (directory / f"{day}_{int(part) % 10}.csv.part").open("a") as file:
            file.writelines(f"{click:d}{line[1:]}" for click, line in pairs)
    for path in directory.glob("*.part"):
        path.rename(path.with_suffix(""))
    return written


def alibaba(directory, rows, seed):
    """Alibaba: one impression for 27 behaviors, both by time; 95% of the users have a profile."""
    rng = np.random.default_rng(seed)
    impressions = _part(rows, of=1 + 723_000_000 / 26_557_961)
    behaviors = rows - impressions
    users = _part(impressions, of=26_557_961 / (1_061_768 / 0.95))
    share = impressions / 26_557_961
    ads = _items(846_811, share)
    april_22, may_6, may_14 = 1492790400, 1494000000, 1494691200  # midnights in China

    ad = pd.DataFrame(
        {
            "adgroup_id": np.arange(1, ads + 1),
            "cate_id": 1 + _zipf(rng, _items(10_000, share), ads),
            "campaign_id": 1 + np.arange(ads) // 2,
            "customer": 1 + np.arange(ads) // 4,
            "brand": 1 + _zipf(rng, _items(100_000, share), ads),
            "price": rng.lognormal(5, 1.5, ads).round(2),
        }
    )
    known = rng.random(ads) >= 0.29
    _write_csv(
        ad.assign(brand=np.where(known, ad["brand"].astype(str), "NULL")),
        directory / "ad_feature.csv",
    )

    profiles = _part(users, of=1 / 0.95)
    columns = {"userid": np.arange(1, profiles + 1)}
    for name, values in {
        "cms_segid": 97,
        "cms_group_id": 13,
        "final_gender_code": 2,
        "age_level": 7,
        "pvalue_level": 3,
        "shopping_level": 3,
        "occupation": 2,
        "new_user_class_level ": 4,  # the blank is the published file's
    }.items():
        columns[name] = pd.array(rng.integers(0, values, profiles), "Int64")
    for name, missing in (("pvalue_level", 0.54), ("new_user_class_level ", 0.32)):
        columns[name][rng.random(profiles) < missing] = pd.NA
    _write_csv(pd.DataFrame(columns), directory / "user_profile.csv")

    user, time = _events(rng, users, impressions, may_6, may_14)
    clicked = (rng.random(impressions) < 0.0514).astype(int)
    shown = pd.DataFrame(
        {
            "user": 1 + user,
            "time_stamp": time,
            "adgroup_id": 1 + _zipf(rng, ads, impressions),
            "pid": _drawn(rng, {"430548_1007": 0.6, "430539_1007": 0.4}, impressions),
            "nonclk": 1 - clicked,
            "clk": clicked,
        }
    )
    _write_csv(_by_time(shown, "time_stamp"), directory / "raw_sample.csv")

    user, time = _events(rng, users, behaviors, april_22, may_14)
    seen = _zipf(rng, ads, behaviors)
    log = pd.DataFrame(
        {
            "user": 1 + user,
            "time_stamp": time,
            "btag": _drawn(rng, {"pv": 0.95, "cart": 0.025, "fav": 0.015, "buy": 0.01}, behaviors),
            "cate": ad["cate_id"].to_numpy()[seen],
            "brand": ad["brand"].to_numpy()[seen],
        }
    )
    repeated = rng.random(behaviors) < 51 / 723
    source = np.where(repeated, rng.integers(0, behaviors, behaviors), np.arange(behaviors))
    _write_csv(_by_time(log.iloc[source], "time_stamp"), directory / "behavior_log.csv")
    return rows


def amazon_books(directory, rows, seed):
    """Amazon Books: 15 reviews of a user, at least five, by book; five in six books have none."""
    rng = np.random.default_rng(seed)
    users = _part(rows, of=8_898_041 / 603_668)
    books = _items(367_982, rows / 8_898_041)
    user, day = _events(rng, users, rows, 9_600, 16_200, least=5)  # days since 1970
    reviews = pd.DataFrame(
        {
            "reader": user,
            "book": _zipf(rng, books, rows),
            "time": day * _DAY,
            "stars": rng.integers(1, 6, rows).astype(float),
            "start": rng.integers(1, 1 << 15, rows),
            "length": rng.exponential(800, rows).astype(int),
        }
    ).sort_values("book", kind="stable")
    text = "".join(rng.choice(list("etaoin shrdlu"), 1 << 16))
    described = round(books * 2_370_585 / 367_982)
    metadata = pd.DataFrame(
        {"book": rng.permutation(described), "start": rng.integers(1, 1 << 15, described)}
    )
    metadata["category"] = _zipf(rng, 1_600, described)
    with duckdb.connect() as database:
        database.register("reviews", reviews)
        database.register("metadata", metadata)
        database.execute(
            f"""COPY (
                SELECT format('A{{:013X}}', reader) AS "reviewerID",
                    format('{{:010d}}', book) AS asin,
                    'Reader ' || reader AS "reviewerName",
                    [0, 0] AS helpful,
                    substr($text, start, length) AS "reviewText",
                    stars AS overall,
                    substr($text, start, 20) AS summary,
                    time AS "unixReviewTime",
                    strftime(make_timestamp(time * 1000000), '%m %-d, %Y') AS "reviewTime"
                FROM reviews
            ) TO '{directory / "reviews_Books_5.json"}' (FORMAT json)""",
            {"text": text},
        )
        # A CSV file of one column and no quotes: any text, line by line.
        database.execute(
            f"""COPY (
                SELECT format($line, book, start, category, substr($text, start, 30),
                    substr($text, start, 500))
                FROM metadata
            ) TO '{directory / "meta_Books.json"}'
            (FORMAT csv, HEADER false, QUOTE '', ESCAPE '', DELIMITER '\t')""",
            {"text": text, "line": _METADATA},
        )
    return rows


def taobao(directory, rows, seed):
    """Taobao: a hundred behaviors of a user, by time; users in order of their number as text."""
    rng = np.random.default_rng(seed)
    share = rows / 100_150_807
    users, items = _part(rows, of=100_150_807 / 987_994), _items(4_162_024, share)
    november_25, december_4 = 1511539200, 1512316800  # midnights in China
    user, time = _events(rng, users, rows, november_25, december_4)
    item = _zipf(rng, items, rows)
    behaviors = {"pv": 0.898, "cart": 0.053, "fav": 0.028, "buy": 0.021}
    frame = pd.DataFrame(
        {
            "user": np.sort(np.arange(1, users + 1).astype(str)).astype(int)[user],
            "item": 1 + item,
            "category": 1 + _zipf(rng, _items(9_439, share), items)[item],
            "behavior": _drawn(rng, behaviors, rows),
            "time": time,
        }
    )
    _write_csv(frame, directory / "UserBehavior.csv", header=False)
    return rows


def logs(directory, rows, seed):
    """The tables of `experiments/kuairand.json`: of a user, 9 impressions and 46 behaviors."""
    rng = np.random.default_rng(seed)
    impressions = _part(rows, of=1_273_845 / 228_329)
    behaviors = rows - impressions
    users = _part(impressions, of=228_329 / 25_156)
    videos = _items(7_583, rows / 1_273_845)
    april_8, april_25, may_9 = 1649347200, 1650816000, 1652025600  # midnights in China

    video = pd.DataFrame(
        {
            "video_id": np.arange(videos),
            "author_id": 10_000 + _zipf(rng, videos, videos),
            "tag": _zipf(rng, 45, videos),
            "music_id": 9_000_000_000 + rng.permutation(videos),
            "video_type": _drawn(rng, {"NORMAL": 0.99, "AD": 0.01}, videos),
            "video_duration": rng.lognormal(10.5, 0.8, videos).round(),
        }
    )
    _write_csv(video, directory / "videos.csv.gz")

    columns = {"user_id": np.arange(users)}
    for name, kinds in {
        "user_active_degree": ("full_active", "high_active", "middle_active", "UNKNOWN"),
        "is_lowactive_period": ("0", "1"),
        "is_video_author": ("0", "1"),
        "follow_user_num_range": ("(0,10]", "(10,50]", "(50,100]", "(250,500]", "500+"),
        "fans_user_num_range": ("0", "[1,10)", "[10,100)", "[100,1k)"),
        "friend_user_num_range": ("0", "[1,5)", "[5,30)", "[30,60)"),
        "register_days_range": ("61-90", "181-365", "366-730", "730+"),
    }.items():
        columns[name] = _drawn(rng, dict.fromkeys(kinds, 1 / len(kinds)), users)
    for number, kinds in {0: 2, 1: 7, 3: 1_400, 4: 15, 8: 350}.items():
        columns[f"onehot_feat{number}"] = rng.integers(0, kinds, users)
    _write_csv(pd.DataFrame(columns), directory / "users.csv.gz")

    user, time = _events(rng, users, impressions, april_25, may_9)
    day, second = np.divmod(time - april_25, _DAY)
    dates = pd.date_range("2022-04-25", periods=14).strftime("%Y%m%d").to_numpy(int)
    clicked = rng.random(impressions) < 0.44
    shown = _zipf(rng, videos, impressions)
    frame = pd.DataFrame(
        {
            "user_id": user,
            "video_id": shown,
            "time_ms": time * 1000 + rng.integers(0, 1000, impressions),
            "date": dates[day],
            "tab": _drawn(
                rng, {"1": 0.76, "0": 0.09, "4": 0.06, "6": 0.05, "2": 0.04}, impressions
            ),
            "is_click": clicked.astype(int),
            "long_view": (clicked & (rng.random(impressions) < 0.7)).astype(int),
            **{name: video[name].to_numpy()[shown] for name in video.columns[1:4]},
            "video_type": video["video_type"].take(shown).array,
            "video_duration": video["video_duration"].to_numpy()[shown],
            "hour": second // 3600,
        }
    )
    _write_csv(_by_time(frame, "time_ms"), directory / "impressions.csv.gz")

    user, time = _events(rng, users, behaviors, april_8, may_9)
    kinds = {"watch": 0.62, "long_watch": 0.35, "click": 0.03}
    frame = pd.DataFrame(
        {
            "user_id": user,
            "video_id": _zipf(rng, videos, behaviors),
            "event": _drawn(rng, kinds, behaviors),
            "time_ms": time * 1000,
        }
    )
    _write_csv(frame, directory / "behaviors.csv.gz")
    return rows


def _part(rows, of):
    return max(1, round(rows / of))


def _items(all_items, share):
    """How many items a share of the full data set has."""
    return max(2, round(all_items * share**_ITEM_GROWTH))


def _zipf(rng, kinds, size):
    """Random numbers below `kinds`; the frequency of the k-th is about 1 / sqrt(k)."""
    return ((1 + rng.random(size) * (np.sqrt(kinds + 1) - 1)) ** 2).astype(np.int64) - 1


def _drawn(rng, shares, size):
    codes = rng.choice(len(shares), size, p=list(shares.values()))
    return pd.Categorical.from_codes(codes, list(shares))


def _events(rng, users, rows, since, until, least=0):
    """User numbers and times of events, ordered by both; each user has at least `least`."""
    weights = rng.lognormal(sigma=_ACTIVITY, size=users)
    counts = least + rng.multinomial(rows - least * users, weights / weights.sum())
    moments = np.repeat(np.arange(users), counts) * (until - since)
    moments += rng.integers(0, until - since, rows)
    user, time = np.divmod(np.sort(moments), until - since)
    return user, since + time


def _by_time(frame, column):
    return frame.sort_values(column, kind="stable")


def _write_csv(frame, path, header=True):
    compression = "gzip" if path.suffix == ".gz" else None
    duckdb.from_df(frame).write_csv(str(path), header=header, compression=compression)
