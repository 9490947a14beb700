"""What the name of a column tells: whether it may be a user's id, a label, a price and so on."""

import itertools
import re

# In the order in which they win.
USERS = (
    *("user", "u", "member", "visitor", "customer", "client", "account", "buyer", "viewer"),
    *("reader", "reviewer", "player", "person", "who", "cookie", "device", "session"),
)
ITEMS = (
    *("item", "i", "product", "video", "article", "news", "movie", "book", "song", "track"),
    *("goods", "sku", "asin", "isbn", "adgroup", "ad", "creative", "doc", "document", "content"),
    *("post", "note", "photo", "offer", "listing", "poi", "restaurant", "hotel", "recipe", "game"),
    *("app", "job", "business", "material", "candidate", "feed", "show"),
)
LABELS = ("click", "clicked", "clk", "label", "target", "y", "response", "outcome")
FURTHER_LABELS = (
    *("like", "liked", "buy", "bought", "purchase", "purchased", "order", "ordered", "pay", "paid"),
    *("follow", "followed", "conversion", "convert", "converted", "cvr", "cart", "addtocart"),
    *("share", "shared", "favorite", "favourite", "fav", "collect", "collected", "forward"),
    *("comment", "commented", "subscribe", "subscribed", "install", "installed", "save", "saved"),
    *("download", "downloaded", "hate", "dislike", "complete", "finish", "longview", "longwatch"),
)
RATINGS = ("rating", "stars", "overall")
REQUESTS = (
    *("request", "req", "impression", "page", "pageview", "search", "query", "list", "slate"),
    "session",
)
WEIGHTS = ("weight", "sampleweight", "impressionweight", "importance")

_TIMES = {
    *("time", "ts", "timestamp", "date", "datetime", "at", "when", "ms", "day", "dt", "created"),
    *("unixtime", "epoch"),
}
_NOT_OF_THE_EVENT = {
    *("update", "updated", "register", "registered", "birth", "birthday", "born", "signup"),
    *("publish", "published", "release", "upload", "end", "expire", "click", "buy", "order"),
}
_QUANTITIES = {
    *("price", "age", "count", "cnt", "num", "number", "duration", "amount", "qty", "quantity"),
    *("length", "size", "score", "rate", "ratio", "days", "hours", "minutes", "seconds", "views"),
    *("likes", "clicks", "sales", "stock", "distance", "salary", "revenue", "cost", "discount"),
    *("total", "avg", "mean", "sum", "height", "width", "year", "fee", "balance", "income"),
}
_OF_CANDIDATES = {
    *("price", "category", "categories", "cate", "cat", "brand", "seller", "shop", "store"),
    *("author", "genre", "genres", "tag", "tags", "topic", "topics", "publisher", "campaign"),
    *("color", "title", "discount", "creator", "artist", "album", "subcategory", "advertiser"),
    *("uploader", "music", "duration", "cuisine", "merchant", "vendor", "stock", "embedding"),
}
_OF_USERS = {"gender", "sex", "age", "occupation", "membership", "vip", "income", "education"}
_OF_CONTEXT = {
    *("position", "pos", "rank", "slot", "hour", "weekday", "dow", "tab", "page", "os", "browser"),
    *("platform", "channel", "network", "screen", "query", "referrer", "referer", "scene"),
    *("surface", "placement", "pid", "device", "app", "version", "locale", "weather"),
}
_POSITIONS = {"position", "pos", "rank", "slot"}
_AFTERWARDS = {
    *("dwell", "stay", "play", "played", "playtime", "watch", "watched", "read", "viewtime"),
    *("completion", "gmv", "revenue", "profit", "spent"),
}
_EVENTS = {"event", "action", "behavior", "behaviour", "type", "btag", "activity", "feedback"}
_OF_IDS = {"id", "ids", "key", "hash", "code", "no", "idx", "index", "uuid", "guid"}


def words(name):
    """The words of a name, such as `["user", "id"]` of `userId`.

    Args:
        name: str.

    Returns:
        list of str in lower case.
    """
    split = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return [word.lower() for word in re.split(r"[\W_]+", split) if word]


def thing(name):
    """What a column of ids is about, such as `"user"` of `user_id`, `userId` and `userid`.

    Args:
        name: str.

    Returns:
        str.
    """
    parts = words(name)
    if len(parts) > 1 and parts[-1] in _OF_IDS:
        parts = parts[:-1]
    joined = "".join(parts)
    short = joined.removesuffix("id")
    return short if short in (*USERS, *ITEMS, *REQUESTS) else joined


def rank(name, things):
    """Where a column stands among some things.

    Args:
        name: str.
        things: sequence of str, such as `USERS`.

    Returns:
        int from 0, or `None` if it is none of them.
    """
    return things.index(thing(name)) if thing(name) in things else None


def label_rank(name, things):
    """As `rank`, for labels, which may be called `is_click` or `click_label`.

    Args:
        name: str.
        things: sequence of str, such as `LABELS`.

    Returns:
        int from 0, or `None`.
    """
    parts = [word for word in words(name) if word not in ("is", "has", "was", "did", "flag")]
    if len(parts) > 1:
        parts = [word for word in parts if word != "label"]
    joined = "".join(parts)
    return things.index(joined) if joined in things else None


def is_id(name):
    """bool. Whether a name says that a column holds ids.

    Args:
        name: str.
    """
    parts = words(name)
    return bool(parts) and (parts[-1] in _OF_IDS or thing(name) != "".join(parts))


def is_time(name):
    """bool. Whether a name says that a column holds times.

    Args:
        name: str.
    """
    return any(word in _TIMES or word.endswith(("time", "timestamp")) for word in words(name))


def is_other_time(name):
    """bool. Whether a name says that a time is not the time of an event.

    Args:
        name: str.
    """
    return not _NOT_OF_THE_EVENT.isdisjoint(words(name))


def is_quantity(name):
    """bool. Whether a name says that integers are quantities rather than ids.

    Args:
        name: str.
    """
    return not is_id(name) and not _QUANTITIES.isdisjoint(words(name))


def is_position(name):
    """bool. Whether a name says that a column is where an impression stood.

    Args:
        name: str.
    """
    return not _POSITIONS.isdisjoint(words(name))


def is_afterwards(name):
    """bool. Whether a name says that a column is known only after the impression.

    Args:
        name: str.
    """
    return not _AFTERWARDS.isdisjoint(words(name))


def is_event(name):
    """bool. Whether a name says that a column holds the kinds of behaviors.

    Args:
        name: str.
    """
    return not is_id(name) and not _EVENTS.isdisjoint(words(name))


def group(name):
    """The group of features that a name alone suggests.

    Args:
        name: str.

    Returns:
        str, `"user"`, `"candidate"` or `"context"`, or `None`.
    """
    found, first = set(words(name)), "".join(words(name)[:1])
    if found & _OF_CONTEXT:
        return "context"
    if found & _OF_CANDIDATES or first in ITEMS:
        return "candidate"
    return "user" if found & _OF_USERS or first == "user" else None


def feature_name(name, taken, *, shorten=True):
    """A name for the feature of a column.

    Args:
        name: str. Name of the column.
        taken: collection of str. Names in lower case that other features have.
        shorten: bool. Whether `user_id` becomes `user`. Defaults to `True`.

    Returns:
        str of letters, digits, `_` and `-`.
    """
    whole = re.sub(r"[^A-Za-z0-9_\-]+", "_", name).strip("_") or "column"
    short = re.sub(r"(?<=[a-z0-9])(_id|Id|ID)$", "", whole) if shorten else whole
    free = (f"{whole}_{number}" for number in itertools.count(2))
    names = itertools.chain((short, whole), free)
    return next(candidate for candidate in names if candidate.lower() not in taken)
