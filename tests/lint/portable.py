"""What ruff can't see of the portable subset: method names, SQL texts, patterns, writers. `python -m tests.lint.portable`.

In: Python files. Out: findings, `file:line: rule N: what; the portable way`. Functions of pyspark and modules are
banned by name in pyproject.toml (TID251); this is for the rest. Rule numbers are those of both places:

 1 no floating-point aggregate   9 before 1970 only unix_micros      16 overwriting only in the lake layer
 2 no exp and log                12 explicit character classes       17 sources are parsed in Python
 5 no rounding                   13 no hash() of anything            18 tables are read through the lake
 6 row_number for the greatest   14 values never as SQL text         19 no chance, no order that is not asked for
                                 15 what one engine lacks            20 toArrow only      21 text to date by timestamp

Methods are looked at only where pyspark is in reach: a file that imports it, or a session, or that has a frame.
Trade-off: types are not known, so a method of numpy with a banned name must be written otherwise in such a file.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("mmrec", "dags", "jobs")

_TOARROW = "toArrow; its timestamps are in UTC"
METHODS: dict[str, tuple[int, str]] = {
    **dict.fromkeys(("toPandas", "collect", "toLocalIterator"), (20, _TOARROW)),
    **dict.fromkeys(("rdd", "sparkContext", "_jvm", "_jdf", "_jsc", "_jsparkSession", "_sc"), (15, "DataFrame functions; not every session has a JVM beside it")),
    **dict.fromkeys(("sample", "sampleBy", "randomSplit"), (19, "choose by xxhash64 of the key")),
    **dict.fromkeys(("approxQuantile", "freqItems", "crosstab", "observe", "localCheckpoint", "checkpoint", "unpivot"), (15, "count, row_number, or write the table")),
    **dict.fromkeys(("avg", "mean", "describe", "summary", "cov", "corr"), (1, "sum integers, divide in numpy")),
}
# not a rule of the two engines: an exit code of 134 after a commit
_DELTA_READER = (20, "lake.arrow: delta-rs's own reader can abort the process when it ends")
_UNORDERED = ("collect_list", "collect_set", "array_agg")
_WINDOWED = ("first", "last", "first_value", "last_value", "nth_value", "lag", "lead")
_SQL_CALLS = ("expr", "selectExpr", "sql", "where", "filter")
_PATTERN_CALLS = ("rlike", "regexp", "regexp_like", "regexp_replace", "regexp_extract", "regexp_extract_all", "regexp_count", "regexp_instr", "regexp_substr", "split")
_OPTIONS = {"mergeSchema": (15, "create tables from schema.py"), "partitionOverwriteMode": (16, "commit.write"), "replaceWhere": (16, "commit.write"),
            "txnAppId": (16, "commit.write"), "txnVersion": (16, "commit.write")}  # fmt: skip
_PARSERS = ("csv", "json", "text", "xml", "orc", "table", "jdbc")
_SQL_SYNTAX = {r"\bqualify\b": (15, "row_number and where"), r"\bcollate\b": (15, "the order of UTF-8"), r"\b(un)?pivot\b": (15, "DataFrame.pivot"),
               r"\brecursive\b": (15, "a loop in Python"), r"\|>": (15, "DataFrame code"), r"\w''\w": (14, "F.lit")}  # fmt: skip
_PATTERN = re.compile(r"(?<!\\)(?:\\\\)*(\\[wWdDsSbB1-9]|\(\?(?:[=!]|<[=!]|P?<))")


@dataclass(frozen=True)
class Finding:
    file: str
    line: int
    rule: int
    what: str
    instead: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: rule {self.rule}: {self.what}; portable: {self.instead}"


def banned() -> dict[str, tuple[int, str]]:
    """The functions of pyspark that pyproject.toml bans, by bare name, for SQL texts."""
    names = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    found = {}
    for name, more in names.items():
        if name.startswith("pyspark.sql.functions."):
            rule, instead = re.fullmatch(r"rule (\d+): (.+)", more["msg"]).groups()  # type: ignore[union-attr]
            found[name.rsplit(".", 1)[1]] = (int(rule), instead)
    return found


def check(source: str, file: str, words: dict[str, tuple[int, str]] | None = None) -> list[Finding]:
    """Findings in one file's text; `file` is its path below the repository."""
    tree = ast.parse(source)
    modules = set(_imported(tree))
    delta = any(m.split(".")[0] == "deltalake" for m in modules) or file.startswith("mmrec/lake/")
    engine = file.startswith("mmrec/features/") or any(
        m.split(".")[0] == "pyspark" or m == "mmrec.lake.session.session" or m.startswith("mmrec.features") for m in modules)  # fmt: skip
    syntax = {rf"\b{word}\s*\(": rule for word, rule in (banned() if words is None else words).items()} | _SQL_SYNTAX
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    assigned = {target.id: node.value for node in ast.walk(tree) if isinstance(node, ast.Assign)
                for target in node.targets if isinstance(target, ast.Name)}  # fmt: skip
    found: list[Finding] = []

    def note(node: ast.AST, rule: tuple[int, str], what: str) -> None:
        found.append(Finding(file, node.lineno, rule[0], what, rule[1]))  # type: ignore[attr-defined]

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            # the second is a method of pyarrow too, which is harmless
            if node.attr == "to_pyarrow_table" or (delta and node.attr == "to_pandas"):
                note(node, _DELTA_READER, f".{node.attr}")
            elif engine and node.attr in METHODS and not _is_functions(node.value):
                note(node, METHODS[node.attr], f".{node.attr}")
            if engine and node.attr in _PARSERS and isinstance(node.value, ast.Attribute) and node.value.attr == "read":
                note(node, (17, "csv or json of Python, then Arrow"), f"spark.read.{node.attr}")
            # a benchmark measures an engine's own reader
            if engine and not file.startswith(("mmrec/lake/", "mmrec/bench/")) and node.attr in ("parquet", "delta") and _is_reader(node.value):
                note(node, (18, "lake.frame"), f"spark.read.{node.attr}")
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if not file.startswith("mmrec/lake/") and any(_text(v) == "overwrite" for v in _mode(node, name)):
            note(node, (16, "commit.write; a partition of one engine is the table of another"), 'mode "overwrite"')
        if not engine:
            continue
        if name in ("option", "options", "set"):
            for option in _OPTIONS.keys() & ({_text(a) for a in node.args[:1]} | {k.arg for k in node.keywords}):
                note(node, _OPTIONS[option], f"the option {option}")
        if name == "format" and _text(node.args[0] if node.args else None) in _PARSERS and _is_reader(node.func):
            note(node, (17, "csv or json of Python, then Arrow"), f'format("{_text(node.args[0])}")')
        if name in ("dropDuplicates", "drop_duplicates") and (node.args or node.keywords):
            note(node, (19, "row_number over a total order"), f"{name} of some columns keeps any row")
        if name in _UNORDERED and not _ordered(node, parents):
            note(node, (19, f"sort_array({name}(...))"), f"{name} in no order")
        if name in _WINDOWED and _is_functions(getattr(node.func, "value", None)) and not _is_over(node, parents):
            note(node, (19, f"{name}(...).over(a window with a total order)"), f"{name} of no window")
        if name == "try_cast" and _text(node.args[0] if node.args else None) == "date":
            note(node, (21, 'try_cast("timestamp").cast("date")'), "text with a time is no date on one engine")
        if name == "sql" and (len(node.args) > 1 or node.keywords):
            note(node, (14, "F.lit in DataFrame code"), "parameters of a statement")
        if name in _SQL_CALLS:
            for text in [*node.args, *(k.value for k in node.keywords)]:
                _sql(text, syntax, note, built=name in ("expr", "selectExpr", "sql"))
        if name in _PATTERN_CALLS:
            for constant in _constants([*node.args, *(k.value for k in node.keywords)], assigned):
                hit = _PATTERN.search(constant.value)
                if hit:
                    note(node, (12, "[0-9], [A-Za-z0-9_], [ \\t\\r\\n]"), f"{hit[1]} in a pattern")
            if name == "split" and _is_functions(getattr(node.func, "value", None)) and any(_text(a) == "" for a in node.args):
                note(node, (12, "regexp with a class"), "split at nothing")
    return sorted(found, key=lambda f: (f.line, f.what))


def tree(root: Path = ROOT, folders: tuple[str, ...] = FOLDERS) -> list[Finding]:
    """Findings in every Python file of the product."""
    words = banned()
    files = sorted(p for folder in folders for p in (root / folder).rglob("*.py"))
    return [f for p in files for f in check(p.read_text(), p.relative_to(root).as_posix(), words)]


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{a.name}" for a in node.names)


def _is_functions(node: ast.AST | None) -> bool:
    """`F`, whose names ruff resolves."""
    return isinstance(node, ast.Name) and node.id in ("F", "functions")


def _is_reader(node: ast.AST) -> bool:
    """A chain that begins at `.read`."""
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node
        if isinstance(node, ast.Attribute):
            if node.attr in ("read", "readStream"):
                return True
            node = node.value
    return False


def _text(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _mode(node: ast.Call, name: str) -> Iterator[ast.AST]:
    if name == "mode":
        yield from node.args
    yield from (k.value for k in node.keywords if k.arg in ("mode", "saveMode"))


def _ordered(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    above = parents[node]
    named = isinstance(above, ast.Call) and isinstance(above.func, ast.Attribute | ast.Name)
    return (named and getattr(above.func, "attr", getattr(above.func, "id", "")) == "sort_array") or _is_over(node, parents)  # type: ignore[attr-defined]


def _is_over(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    above = parents[node]
    return isinstance(above, ast.Attribute) and above.attr == "over"


def _sql(text: ast.expr, syntax: dict[str, tuple[int, str]], note: Callable[..., None], built: bool) -> None:
    """Note what is wrong with one argument that may be SQL text; `built`: it can be nothing else."""
    lit = (14, "F.lit, or a constant in capitals")
    if built and isinstance(text, ast.BinOp) and any(_text(n) is not None for n in ast.walk(text)):
        note(text, lit, "SQL text put together")
    for piece in text.values if isinstance(text, ast.JoinedStr) else [text]:
        if isinstance(piece, ast.FormattedValue) and not (isinstance(piece.value, ast.Name) and piece.value.id.isupper()):
            note(text, lit, "a value within SQL text")
        for pattern, rule in syntax.items():
            hit = re.search(pattern, _text(piece) or "", re.IGNORECASE)
            if hit:
                note(text, rule, f"{hit[0]} in SQL text")


def _constants(nodes: list[ast.expr], assigned: dict[str, ast.expr]) -> Iterator[ast.Constant]:
    """Texts within expressions, names looked up among the file's assignments."""
    seen: set[str] = set()
    waiting: list[ast.AST] = list(nodes)
    while waiting:
        for node in ast.walk(waiting.pop()):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node
            elif isinstance(node, ast.Name) and node.id in assigned and node.id not in seen:
                seen.add(node.id)
                waiting.append(assigned[node.id])


if __name__ == "__main__":
    lines = tree()
    print(*lines, sep="\n")
    sys.exit(bool(lines))
