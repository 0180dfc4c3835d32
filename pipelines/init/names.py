"""What a column's name says: the words that people use for users, items, times and outcomes."""

import re
from collections.abc import Collection

_ID = r"[_ ]?(id|ids|key|no|nr|num|number|code|uuid|guid|hash|idx|index)?"
_USER = re.compile(
    r"(user|usr|uid|member|visitor|customer|cust|client|viewer|account|person|profile|player|buyer|reader|subscriber|"
    r"reviewer|passenger|patient|student|guest|household|device)" + _ID
)
_ITEM = re.compile(
    r"(item|product|prod|movie|film|video|article|news|song|track|book|isbn|ad|adgroup|creative|sku|asin|offer|job|"
    r"listing|document|doc|content|post|photo|game|app|course|recipe|restaurant|business|hotel|property|show|anime|"
    r"beer|artist|album|podcast|episode|coupon|deal|pin|tweet|iid|pid|mid|vid)" + _ID
)
_IMPRESSION = re.compile(
    r"(impression|imp|request|event|log|row|record|exposure|interaction|review|rating|order|transaction|click)"
    r"[_ ]?(id|uuid|guid|key)"
)
_TIME = re.compile(
    r"((event|impression|click|rating|review|view|server|log|request|unix|utc)[_ ]?)?"
    r"(timestamp|time|datetime|date|ts|day)([_ ]?(utc|ms|sec|seconds|s|us|epoch|unix))?"
    r"|(created|shown|served|occurred|rated|viewed|clicked|updated|logged|happened|watched|played|ordered)"
    r"[_ ]?(at|on|time|date)"
    r"|epoch|unix"
)
_WEIGHT = re.compile(r"(sample|instance|case|row|importance)?[_ ]?weights?|wt")
_POSITION = re.compile(
    r"((item|display|ad|result|search)_)?(position|pos|rank|slot)(_(index|number|in_page|in_list))?"
)
_SPLIT = re.compile(
    r"split|fold|subset|partition|set|data[_ ]?split|is[_ ]?(test|train|valid|validation)"
)
_RATING = re.compile(r"(user[_ ]?)?(rating|ratings|stars?|score|overall|grade|review[_ ]?score)")
_EVENT_TYPE = re.compile(
    r"(event|event[_ ]?(type|name)|action|action[_ ]?type|behaviou?r([_ ]?type)?|interaction([_ ]?type)?)"
)
_OUTCOMES = re.compile(
    r"click(s|ed)?|(dis)?liked?s?|loved?s?|hated?s?|bought|buy|purchased?s?|conver(t|ted|sion|sions)|order(ed|s)?|label|target|y|"
    r"outcome|respon(se|ded)|cart(ed)?|addtocart|fav|favou?rited?|shared?|follow(ed)?|comment(ed)?|forward(ed)?|install(ed)?|"
    r"churn(ed)?|default|subscri(be|bed|ption)|engaged?|engagement|survived|book(ed|ing)|watched|view(ed)?|read|open(ed)?|"
    r"skip(ped)?|saved?|repl(y|ied)|retweet(ed)?|finish(ed)?|completed?|effective|income|attributed|appl(y|ied)|hired|rated|"
    r"upvoted?|class"
)
# Flags that begin with "is" and say how things were, not what happened.
_CIRCUMSTANCES = re.compile(
    r"weekend|holiday|weekday|mobile|desktop|new|rand|random|ad|live|premium|member|vip|active|male|female|test|train|valid|"
    r"streamer|author|period|paid|free|adult|child|available|logged|registered|verified|first|last|default"
)
_AFTERWARDS = re.compile(
    r"(^|_)(dwell|play_?time|playtime|stay_?time|watch_?(time|seconds|ratio|duration)|time_?spent|played|after|"
    r"completion|watched_?(ms|seconds|ratio)|session_?(length|duration)|num_?clicks|revenue|result|outcome)(_|$)"
)
_PAST = re.compile(
    r"(^|_)(hist|history|historical|past|prev|previous|recent|last|seq|sequence|clicked|clicks|viewed|seen)(_|$)"
)


def words(name: str) -> tuple[str, ...]:
    """A name's words in lower case: `userId`, `user_id` and `User ID` are all user, id."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return tuple(word for word in re.split(r"[^0-9a-z]+", apart.lower()) if word)


def joined(name: str) -> str:
    return "_".join(words(name))


def is_user(name: str) -> bool:
    return _USER.fullmatch(joined(name)) is not None


def is_item(name: str) -> bool:
    return _ITEM.fullmatch(joined(name)) is not None


def is_impression(name: str) -> bool:
    return _IMPRESSION.fullmatch(joined(name)) is not None


def is_time(name: str) -> bool:
    return _TIME.fullmatch(joined(name)) is not None or joined(name).endswith(
        ("_at", "_ts", "_time_ms")
    )


def is_weight(name: str) -> bool:
    return _WEIGHT.fullmatch(joined(name)) is not None


def is_position(name: str) -> bool:
    """Whether a name says at which place of a page or list something was shown."""
    return _POSITION.fullmatch(joined(name)) is not None


def is_split(name: str) -> bool:
    return _SPLIT.fullmatch(joined(name)) is not None


def is_rating(name: str) -> bool:
    return _RATING.fullmatch(joined(name)) is not None


def is_event_type(name: str) -> bool:
    return _EVENT_TYPE.fullmatch(joined(name)) is not None


def is_outcome(name: str) -> bool:
    """Whether a name says that something happened: clicked, is_like, long_view, converted."""
    said = words(name)
    return (
        any(_OUTCOMES.fullmatch(word) for word in said)
        and not is_id(name)
        and not is_afterwards(name)
    )


def is_flag(name: str) -> bool:
    """Whether a name is `is_...` or `has_...` of something that may be an outcome."""
    said = words(name)
    return (
        len(said) > 1
        and said[0] in ("is", "has", "did")
        and not any(map(_CIRCUMSTANCES.fullmatch, said[1:]))
    )


def is_afterwards(name: str) -> bool:
    """Whether a name says something that is known only once the outcome is: play_time, dwell, ..._after."""
    return _AFTERWARDS.search(joined(name)) is not None


def is_past(name: str) -> bool:
    """Whether a list's name says that it holds earlier events."""
    return _PAST.search(joined(name)) is not None


def is_id(name: str) -> bool:
    """Whether a name says that its numbers are names of things, such as product_id or zip_code."""
    said = words(name)
    return bool(said) and (
        said[-1]
        in ("id", "ids", "code", "key", "zip", "zipcode", "uuid", "hash", "sku", "asin", "uid")
    )


def clean(name: str, taken: Collection[str]) -> str:
    """A name of letters, digits, '_' and '-' that begins with a letter, is 60 at most, and not among those taken."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name.strip()).strip("_") or "column"
    if not plain[0].isalpha():
        plain = f"c_{plain}"
    plain = plain[:56]
    found, number = plain, 2
    while found in taken:
        found, number = f"{plain}_{number}", number + 1
    return found
