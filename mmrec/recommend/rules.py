"""What a shop rules about its lists: one file that people review, `rules.yaml` in the home.

In: the file. Out: `Rule`s in the file's order, or an InputError that names the line, and of two rules that contradict
each other both lines.
A rule does one thing (exclude, include, hold, boost, cap, quota, pin, repeat) to the items it names, for the users it
names, from a day up to a day; docs/rules.md shows each.
Trade-off: two rules are called contradictory only where the file alone shows it, whatever the items of the day are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from mmrec.errors import InputError

KINDS = ("exclude", "include", "hold", "boost", "cap", "quota", "pin", "repeat")
_MOST = 2_000_000  # values of a file: an alias within an alias within an alias is more than anyone means
_NEEDS = {"boost": "places", "cap": "most", "quota": "least", "pin": "place", "repeat": "after"}
# of YAML's words those that are what they look like: no is False to it, and 012 is 10
_PLAIN = re.compile(r"true|false|[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_OWN = ("kind", "items", "line", "approved")  # a record's words, not a file's
_TAKEN = {"twin": "that stands in them already", "withdrawn": "that left the shop before they were published"}
_TEXTS = {"item", "category", "title"}  # of items; of users: user
_Scalar = str | int | Annotated[float, Field(allow_inf_nan=False)] | bool
_Count = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]


def _day(given: Any) -> Any:
    """Not a number, which would be seconds since 1970."""
    if given is None or isinstance(given, date):
        return given
    return date.fromisoformat(given if isinstance(given, str) else repr(given))


_Day = Annotated[date, BeforeValidator(_day)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Range(BaseModel):
    """Numbers from `at_least` up to, not including, `below`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    at_least: _Number | None = Field(None, description="the least number that is meant")
    below: _Number | None = Field(None, description="the first number that is not meant any more")

    @model_validator(mode="after")
    def _some(self) -> Range:
        if self.at_least is None and self.below is None:
            raise ValueError("a range has at_least, below, or both")
        if self.at_least is not None and self.below is not None and self.at_least >= self.below:
            raise ValueError("no number is at_least one and below the other")
        return self


_Values = Annotated[tuple[_Scalar, ...], Field(min_length=1)]
Match = dict[Annotated[str, StringConstraints(min_length=1)], Range | _Values]


class Rule(BaseModel):
    """One rule. `line`: where it stands in its file.

    A match is field -> values, any of which will do, or a range; all its fields must hold. Fields of items are item,
    category (any of the item's), title, or the name of an attribute; of users, user, or the name of an attribute.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$", description="how lists and tables call it")
    kind: Literal["exclude", "include", "hold", "boost", "cap", "quota", "pin", "repeat"] = Field(
        description="what it does"
    )
    items: Match = Field({}, description="what it is done to")
    users: Match = Field({}, description="for whom; empty: everybody")
    from_: _Day | None = Field(None, alias="from", description="first run_date it holds for; null: always")
    until: _Day | None = Field(None, description="first run_date it holds for no more; null: for good")
    each: str | None = Field(None, description="of a cap: a field of items; every value of it has the cap of its own")
    places: _Count | None = Field(None, le=1000, description="of a boost: so many places up")
    most: _Count | None = Field(None, description="of a cap: so many in a list at most")
    least: _Count | None = Field(None, description="of a quota: so many in a list, if there are so many")
    place: _Count | None = Field(None, description="of a pin: the item's place in a list, 1 is first")
    after: Annotated[int, Field(strict=True, ge=0, le=100_000)] | None = Field(
        None, description="of a repeat: so many days after the event that keeps an item out"
    )
    events: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="of a repeat: event types that it is about; null: all"
    )
    why: str = Field("", description="for people who read the file")
    line: int = Field(0, description="where it begins")
    approved: tuple[str, ...] = Field((), description="of a hold: items that a person let through; never of a file")

    @model_validator(mode="after")
    def _whole(self) -> Rule:
        if self.name in _TAKEN:
            raise ValueError(f"{self.name} is what lists call an item {_TAKEN[self.name]}")
        for kind, need in _NEEDS.items():
            if (getattr(self, need) is not None) != (self.kind == kind):
                raise ValueError(f"{need} is for {kind}, and a {kind} needs it")
        if self.each is not None and self.kind != "cap":
            raise ValueError("each is for cap")
        if self.events is not None and self.kind != "repeat":
            raise ValueError("events is for repeat")
        if not self.items and not (self.kind in ("repeat", "hold") or (self.kind == "cap" and self.each)):
            raise ValueError(f"{self.kind} needs at least one field of items")
        if self.kind == "pin" and (set(self.items) != {"item"} or len(_values(self.items["item"])) != 1):
            raise ValueError("a pin is of one item: pin: {item: ID}")
        if self.from_ is not None and self.until is not None and self.from_ >= self.until:
            raise ValueError("no day is from the one and before the other")
        return self

    @property
    def holds_lists(self) -> bool:
        """Whether it is the lists themselves that wait for a person."""
        return self.kind == "hold" and not self.items

    def holds(self, day: date) -> bool:
        """Whether it is in force on a run_date."""
        return (self.from_ is None or self.from_ <= day) and (self.until is None or day < self.until)

    def record(self) -> dict[str, Any]:
        """What a manifest keeps; `of_records` reads it."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def of_records(records: list[dict[str, Any]]) -> list[Rule]:
    """Rules as a manifest keeps them."""
    return TypeAdapter(list[Rule]).validate_python(records)


def read(path: Path) -> list[Rule]:
    """The rules of a file; none where there is no file.

    Raises: InputError: with the line of what can't be read or understood, or both lines of a contradiction.
    """
    if not path.is_file():
        if path.exists() or path.is_symlink():
            raise InputError("the rules can't be read: this is no file", where=str(path), valid="a file, or nothing",
                             next="mmrec rules check")  # fmt: skip
        return []
    lines: dict[tuple[Any, ...], int] = {}
    raw = path.read_bytes()
    try:
        root = yaml.compose(raw.decode(), Loader=yaml.SafeLoader)
        whole = None if root is None else _plain(root, (), lines, path)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # YAML's own let a bad number through
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        line = mark.line + 1 if mark else 1
        if isinstance(error, UnicodeDecodeError):
            line += raw[: error.start].count(b"\n")
        if isinstance(error, yaml.reader.ReaderError):
            line += raw.decode()[: error.position].count("\n")
        raise InputError(f"the rules can't be read: {said}", where=_at(path, line),
                         valid="YAML", next="mmrec rules check") from None  # fmt: skip
    if whole is None:
        return []
    if not isinstance(whole, dict) or set(whole) != {"rules"} or not isinstance(whole["rules"], list):
        raise InputError("a rules file has one key, rules, and under it a list", where=_at(path, 1),
                         value=sorted(map(str, whole)) if isinstance(whole, dict) else type(whole).__name__,
                         valid="rules:\n         - name: ...", next="mmrec rules check")  # fmt: skip
    found = [_rule(each, n, lines, path) for n, each in enumerate(whole["rules"])]
    for one, other in combinations(found, 2):
        said = _contradiction(one, other)
        if said:
            raise InputError(f"two rules contradict each other: {said}",
                             where=f"{_at(path, one.line)} ({one.name}) and line {other.line} ({other.name})",
                             valid="rules that can both be kept", next="mmrec rules check")  # fmt: skip
    return found


def _at(path: Path, line: int) -> str:
    return f"{path.name} line {line}"


def _plain(node: yaml.Node, at: tuple[Any, ...], lines: dict[tuple[Any, ...], int], path: Path) -> Any:
    """A node as Python has it; `lines` gets the line of everything."""
    lines[at] = node.start_mark.line + 1
    if len(lines) > _MOST:
        raise InputError("the rules are too many", where=_at(path, lines[at]), value=f"more than {_MOST} values",
                         next="mmrec rules check")  # fmt: skip
    if isinstance(node, yaml.MappingNode):
        out: dict[Any, Any] = {}
        for key, value in node.value:
            name = _scalar(key)
            if not isinstance(name, str):
                raise InputError("a key is a word", where=_at(path, key.start_mark.line + 1), value=key.value,
                                 next="mmrec rules check")  # fmt: skip
            if name in out:
                raise InputError("a key stands twice", where=f"{_at(path, lines[(*at, name)])} and line "
                                 f"{key.start_mark.line + 1}", value=name, next="mmrec rules check")  # fmt: skip
            out[name] = _plain(value, (*at, name), lines, path)
            lines[(*at, name)] = key.start_mark.line + 1
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_plain(value, (*at, n), lines, path) for n, value in enumerate(node.value)]
    value = _scalar(node)
    if value is None:
        return None
    # an id is what is typed, not the number that YAML makes of 0345472322
    if _text(*at):
        return node.value
    said = isinstance(value, str) or _PLAIN.fullmatch(node.value) or node.value.lower().lstrip("+-") in (".nan", ".inf")
    if _of_match(*at) and node.style is None and not said:
        raise InputError(f"YAML takes this for {value!r}: put it in quotes if it is text", where=_at(path, lines[at]),
                         value=node.value, valid="true, false, 12, 1.5, or 'no' in quotes",
                         next="mmrec rules check")  # fmt: skip
    return value


def _of_match(*at: Any) -> bool:
    """Whether it is a value, or one of a list, of any field of items or users."""
    return len(at) > 3 and at[0] == "rules" and at[2] in (*KINDS, "users")


def _text(*at: Any) -> bool:
    """Whether it is a value, or one of a list, of a field that is text."""
    _, _, of, name, *rest = *at, *[None] * (4 - len(at))
    return (name == "user" if of == "users" else name in _TEXTS) and not (rest and isinstance(rest[0], str))


def _scalar(node: yaml.Node) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        return None
    try:
        value = yaml.SafeLoader("").construct_object(node)
    except (ValueError, LookupError, AttributeError):  # 2026-02-30
        kind = node.tag.rpartition(":")[2]
        raise yaml.constructor.ConstructorError(
            None, None, f"{node.value[:40]!r} is no {kind}", node.start_mark
        ) from None
    return value.isoformat() if isinstance(value, date) else value


def _rule(given: Any, n: int, lines: dict[tuple[Any, ...], int], path: Path) -> Rule:
    at: tuple[Any, ...] = ("rules", n)
    if not isinstance(given, dict):
        raise InputError("a rule has a name and says what it does", where=_at(path, lines[at]), value=given,
                         valid="- name: ...", next="mmrec rules check")  # fmt: skip
    kinds = [k for k in KINDS if k in given]
    if len(kinds) != 1:
        raise InputError("a rule does one thing", where=_at(path, lines[at]), value=kinds or sorted(given),
                         valid=KINDS, next="mmrec rules check")  # fmt: skip
    (kind,) = kinds
    for key in _OWN:
        if key in given:
            _refuse(path, lines, (*at, key), "no such key", key)
    values: dict[str, Any] = {k: v for k, v in given.items() if k != kind}
    values |= {"kind": kind, "items": _match(given[kind]), "line": lines[at]}
    if "users" in given:
        values["users"] = _match(given["users"])
    try:
        return Rule.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = tuple(kind if part == "items" else part for part in first["loc"])
        near = next((w for i in range(len(where), -1, -1) if (w := (*at, *where[:i])) in lines), at)
        said = first["msg"].removeprefix("Value error, ").lower()
        _refuse(path, lines, near, said, first["input"] if where else given.get("name"), ".".join(map(str, where[:2])))
    raise AssertionError


def _refuse(path: Path, lines: dict[tuple[Any, ...], int], at: tuple[Any, ...], said: str, value: Any,
            key: str = "") -> None:  # fmt: skip
    fields = [f.alias or n for n, f in Rule.model_fields.items() if n not in _OWN]
    raise InputError(f"a rule is wrong: {said}", where=_at(path, lines[at]) + (f": {key}" if key else ""), value=value,
                     valid=[*KINDS, *fields], next="mmrec rules check")  # fmt: skip


def _match(given: Any) -> Any:
    """One value is a list of one; what is no mapping is left for pydantic to refuse."""
    if not isinstance(given, dict):
        return given
    return {k: v if isinstance(v, dict | list) else [v] for k, v in given.items()}


def _values(match: Range | tuple[_Scalar, ...]) -> tuple[_Scalar, ...]:
    return () if isinstance(match, Range) else match


# ---- contradictions ----


def _contradiction(a: Rule, b: Rule) -> str | None:
    """Why no list can keep both rules, as far as their own words go; None: it can."""
    if a.name == b.name:
        return "both have the same name"
    if not _meet(a, b):
        return None
    return next(filter(None, _reasons(a, b)), None)


def _reasons(a: Rule, b: Rule) -> Iterator[str | None]:
    for bars, wants in ((a, b), (b, a)):
        if wants.kind in ("include", "boost", "pin", "quota", "repeat") and _users_within(wants, bars):
            if bars.kind == "exclude" and _within(wants.items, bars.items):  # what is held may be approved
                yield f"{bars.name} excludes everything that {wants.name} is about"
            if bars.kind == "include" and _apart(wants.items, bars.items, {"item", "title"}):
                yield f"{bars.name} includes nothing that {wants.name} is about"
        limits = wants.kind == "quota" and bars.kind == "cap" and bars.each is None
        if limits and (wants.least or 0) > (bars.most or 0) and _within(wants.items, bars.items):
            yield f"{wants.name} asks for {wants.least} where {bars.name} allows {bars.most}"
    if a.kind == b.kind == "pin":
        if a.place == b.place:
            yield f"both pin place {a.place}"
        elif a.items == b.items:
            yield "both pin the same item"
    alike = a.items == b.items and a.each == b.each and _users_within(a, b) and _users_within(b, a)
    if a.kind == b.kind and a.kind in ("boost", "cap", "quota", "repeat") and a.events == b.events and alike:
        numbers = [getattr(r, _NEEDS[r.kind]) for r in (a, b)]
        if numbers[0] != numbers[1]:
            yield f"the same items for the same users, once {numbers[0]} and once {numbers[1]}"


def _meet(a: Rule, b: Rule) -> bool:
    """Whether there may be a day and a user for whom both hold."""
    apart = (a.until is not None and b.from_ is not None and a.until <= b.from_) or (
        b.until is not None and a.from_ is not None and b.until <= a.from_)  # fmt: skip
    return not apart and not _apart(a.users, b.users, set(a.users))


def _users_within(a: Rule, b: Rule) -> bool:
    """Whether `b` holds for all of the users of `a`."""
    return _within(a.users, b.users)


def _within(a: Match, b: Match) -> bool:
    """Whether whatever meets `a` meets `b`."""
    return all(name in a and _covers(b[name], a[name]) for name in b)


def _apart(a: Match, b: Match, single: set[str]) -> bool:
    """Whether nothing meets both. single: fields of which a thing has one value; attributes may be lists."""
    return any(_disjoint(a[name], b[name]) for name in set(a) & set(b) & single)


def _covers(b: Range | tuple[_Scalar, ...], a: Range | tuple[_Scalar, ...]) -> bool:
    if isinstance(b, Range):
        if isinstance(a, Range):
            low = b.at_least is None or (a.at_least is not None and a.at_least >= b.at_least)
            return low and (b.below is None or (a.below is not None and a.below <= b.below))
        return all(_inside(b, v) for v in a)
    return not isinstance(a, Range) and {*map(_key, a)} <= {*map(_key, b)}


def _disjoint(a: Range | tuple[_Scalar, ...], b: Range | tuple[_Scalar, ...]) -> bool:
    if isinstance(a, Range) and isinstance(b, Range):
        return (a.below is not None and b.at_least is not None and a.below <= b.at_least) or (
            b.below is not None and a.at_least is not None and b.below <= a.at_least)  # fmt: skip
    if isinstance(a, Range) or isinstance(b, Range):
        wide, values = (a, _values(b)) if isinstance(a, Range) else (b, _values(a))
        return not any(_inside(wide, v) for v in values)  # type: ignore[arg-type]
    return not {*map(_key, a)} & {*map(_key, b)}


def _inside(wide: Range, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (wide.at_least is None or value >= wide.at_least) and (wide.below is None or value < wide.below)


def _key(value: _Scalar) -> tuple[str, Any]:
    """True is not 1."""
    return ("word" if isinstance(value, str) else "truth" if isinstance(value, bool) else "number"), value
