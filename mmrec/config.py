"""Settings: one frozen tree, `<home>/mmrec.toml` < `MMREC_*` < flags.

In: a home folder. Out: `Config`. Unknown keys are errors; every field says what it is and in which unit.
Trade-off: what changes the content of a list is in `night` and goes into every manifest; the rest (threads,
engine) must not change a byte, and is left out of a run's identity. So is the device, though a GPU's vectors differ in
their last bits from a processor's: a night is replayed where it ran.
"""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, TomlConfigSettingsSource

from mmrec.errors import InputError

_Source = Literal["attributes", "context", "reviews", "social", "knowledge"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceConfig(_Part):
    spec: str = Field("builtin", description="builtin, movielens-small, movielens-..., amazon, or files")
    root: Path | None = Field(None, description="folder of the source; null: the home's own, or downloaded")
    seed: int = Field(0, description="seed of the built-in world")
    size: str = Field("small", description="size of the built-in world: tiny, small or rich")
    earliest: str = Field("1990-01-01", description="events before this day are quarantined")
    max_bad_share: float = Field(0.5, description="a delivery with a larger share of bad rows stops the night")
    min_share: float = Field(0.1, description="a delivery below this share of the median of three stops the night")
    gone: tuple[str, ...] = Field((), description="columns that the source delivers no more, as items.text")
    media_hosts: tuple[str, ...] = Field((), description="hosts whose media are fetched: a.com, *.a.com, a.com:8443")
    media_minutes: float = Field(60, gt=0, description="of a night that go into fetching; the rest waits, minutes")
    expect: tuple[str, ...] = Field(
        (), description="files that a night under Airflow waits for, below root; {day}: the last day before run_date"
    )


class NightConfig(_Part):
    k: int = Field(20, ge=1, description="items in a list")
    sequence_length: int = Field(1024, ge=1, description="a user's last interactions that features keep")
    half_life_days: float = Field(30, gt=0, description="half-life of popularity, days")
    interests: int = Field(10, ge=0, description="interests a user in gold.user_profiles; 0: none are derived")
    min_share: float = Field(0.5, description="lists below this share of the last night's are refused")
    text: str = Field("minilm", description="text encoder: a name, folder, owner/model or table:FILE; empty: none")
    image: str = Field("efficientnet-lite0", description="image encoder: the same")
    audio: str = Field("logmel", description="sound encoder: the same")


class ExploreConfig(_Part):
    share: float = Field(0, ge=0, le=0.5, description="of a list's places, drawn so that the shop learns; 0: none")
    pool: int = Field(10, ge=2, description="candidates behind the list for each such place, less what rules pass over")
    by: Literal["uniform", "uncertainty"] = Field("uniform", description="all alike, or the more, the less is known")


class DiversityConfig(_Part):
    by: Literal["mmr", "dpp"] = Field("mmr", description="unlike what stands above: mmr, the nearest of it; dpp, all")
    strength: float = Field(0, ge=0, le=0.9, description="weight of being unlike what stands above; 0: none")
    calibration: float = Field(0, ge=0, le=0.9, description="weight of keeping a user's own mix of what `over` names")
    over: str = Field("category", description="what calibration is about: category, or an attribute of items")
    novelty: float = Field(0, ge=0, le=0.9, description="weight of being little known")
    serendipity: float = Field(0, ge=0, le=0.9, description="weight of being unlike a user's latest twenty items")
    pool: int = Field(100, ge=2, description="first candidates of a ranking that are put in another order")
    places: int = Field(10, ge=1, description="of them, how many are chosen; the others follow in the model's order")

    @property
    def on(self) -> bool:
        return self._all > 0

    @property
    def _all(self) -> float:
        return self.strength + self.calibration + self.novelty + self.serendipity

    @model_validator(mode="after")
    def _left(self) -> Self:
        if self._all > 0.9:
            raise ValueError("strength, calibration, novelty and serendipity leave less than a tenth to relevance")
        return self


class CandidatesConfig(_Part):
    generators: tuple[Literal["content", "item_to_item", "new", "popular", "social"], ...] = Field(
        (), description="what else brings candidates, in turn: content, item_to_item, new, popular, social; empty: the"
        " model brings them all")  # fmt: skip
    every: int = Field(5, ge=2, description="each so-many-th place of a ranking is theirs")
    depth: int = Field(50, ge=1, description="items that each of them offers a user")
    new_days: int = Field(14, ge=1, description="for so long an item is new, days")
    social_days: int = Field(30, ge=1, description="what those whom a user is linked to had within so many days")

    @field_validator("generators")
    @classmethod
    def _once(cls, named: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(named)) < len(named):
            raise ValueError("a generator is named twice")
        return named


class SecondStageConfig(_Part):
    depth: int = Field(0, ge=0, le=1000, description="first candidates that a second model puts in order; 0: none does")
    sources: tuple[_Source, ...] = Field(get_args(_Source), description="what it looks at beside behaviour")
    columns: dict[str, str] = Field({}, description="column of the shop's -> transform; see docs/second-stage.md")
    kept: tuple[str, ...] = Field((), description="features, as mmrec features rank names them; empty: all")


class WishesConfig(_Part):
    places: int = Field(10, ge=1, description="that an item moves where its user asked for less or more of it")


class ReasonsConfig(_Part):
    language: Literal["en", "de", "nl", "fr", "es"] = Field("en", description="of reasons: en, de, nl, fr, es")
    rows: int = Field(10, ge=0, description="the first rows of a list that say what of the history and of the model")
    studied: int = Field(500, ge=0, description="users on whom it is measured, once a model, whether reasons are true")


class ContentConfig(_Part):
    comments: bool = Field(False, description="texts of interactions (reviews, comments, tags) are encoded too")
    text_fields: Literal["joined", "separate"] = Field(
        "joined", description="joined: title, categories and text are one text; separate: two, and their mean"
    )
    knowledge: int = Field(0, ge=0, description="size of vectors of what silver.relations say of items; 0: none")
    images: Literal["first", "mean"] = Field("first", description="what stands for an item with several pictures: the"
                                             " first that is good, or their mean")  # fmt: skip

    @property
    def fields(self) -> dict[str, str]:
        """Modality -> choice, as bundles keep it and models/fields.py takes it."""
        return {"text": self.text_fields, "image": self.images}


class TwinsConfig(_Part):
    bounds: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        {"minilm": 0.85, "words": 0.95, "efficientnet-lite0": 0.7, "phash": 0.6, "logmel": 0.999},
        description="encoder, or fingerprint words or phash -> cosine from which on two items' contents are alike; all"
        " that a modality has must agree; where the encoder has no bound, only equal contents are; given whole",
    )


class TrainConfig(_Part):
    every_days: int = Field(7, ge=1, description="the champion is retrained when it is older, days")
    model: Literal["champion", "popularity", "content_nn", "item_knn", "user_knn", "ease", "als", "bpr", "lightgcn",
                   "gru4rec", "sasrec"] = Field(
        "champion",
        description="champion: mmrec's own; or a rival that is trained and registered in its place: popularity,"
        " content_nn, item_knn, user_knn, ease, als, bpr, lightgcn, gru4rec, sasrec",
    )  # fmt: skip
    recipe: str = Field(
        "default", description="of the champion alone: one of `mmrec recipes`"
    )
    seed: int = Field(0, description="seed of initialisation, order and negatives")
    processes: int = Field(1, ge=1, description="processes that share the training of a model; with cuda, GPUs")
    exclude_suspects: bool = Field(False, description="learn nothing from the interactions of suspects")


class SuspectsConfig(_Part):
    hour: int = Field(300, ge=1, description="events of a user in one clock hour that are still usual")
    day: int = Field(1500, ge=1, description="events of a user in one day that are still usual")
    percentile: int = Field(95, ge=50, le=100, description="share of users that is taken to be people, percent")
    factor: int = Field(10, ge=1, description="so many times what those stay below is usual too")
    burst_users: int = Field(20, ge=2, description="users without other history at one item that make a burst")
    burst_minutes: int = Field(60, ge=1, description="within this time of each other, minutes")
    copy_users: int = Field(5, ge=2, description="users with nearly the same items that make copy-cats")
    copy_items: int = Field(8, ge=4, description="distinct items a user needs for that")
    copy_share: int = Field(90, ge=60, le=100, description="what two have in common of what they have, percent")


class EvaluateConfig(_Part):
    rolling_days: int = Field(91, ge=1, description="length of a rolling test window, days")
    rolling_cuts: int = Field(24, ge=1, description="rolling test windows, counted back from as_of")
    rolling_fits: int = Field(4, ge=1, description="fits shared by those windows")
    per_user_share: float = Field(0.2, gt=0, lt=1, description="last share of a user's interactions that is the test")
    min_history: int = Field(5, ge=1, description="distinct earlier items a user needs to be asked")
    ease_items: int = Field(40_000, ge=1, description="largest catalogue EASE is solved for; a larger one goes without")
    bootstrap: int = Field(2000, ge=100, description="bootstrap samples of an interval")


class GateConfig(_Part):
    on: bool = Field(True, description="whether a version must pass the gate to serve; off: whatever is trained does")
    days: int = Field(28, ge=1, description="days before as_of it is judged on; at most what the test windows have")
    cases: int = Field(5000, ge=1, description="users that are asked at most, drawn by their ids")
    least: int = Field(30, ge=1, description="users below which a version is held")
    loss: float = Field(0.05, ge=0, lt=1, description="share of the ndcg@10 of a rival that it may fall behind it")
    too_good: float = Field(0.95, gt=0, description="an ndcg@10 above this is a leak until it is shown that it isn't")
    coverage: float = Field(0.5, ge=0, description="share of the champion's coverage@10 that it must reach")
    popularity_bias: float = Field(1.5, ge=1, description="times the champion's popularity_bias@10, if above 1")
    churn: float = Field(0.95, ge=0, le=1, description="share of the champion's first ten items that users may lose")
    canary: float = Field(0, ge=0, lt=1, description="share of users that what passes serves first; 0: it serves all")
    latency: float = Field(4, ge=1, description="times the champion's time to score a user")
    size: float = Field(4, ge=1, description="times the champion's bytes")


class SparkConfig(_Part):
    master: str = Field("local[*]", description="where engine spark runs: local[*], spark://..., k8s://..., sc://...")
    memory: str = Field("1g", description="heap of the driver, as Java writes it: 512m, 4g")
    partitions: int = Field(2, ge=1, description="partitions of a shuffle")
    quick_start: bool = Field(True, description="start local sessions from a class archive; off for runs of hours")
    options: dict[str, str] = Field({}, description="more settings of Spark, by name")


class MaintainConfig(_Part):
    target_mb: float = Field(128, gt=0, description="size that small files are put together to, megabytes")
    min_files: int = Field(8, ge=2, description="small files of a partition from which on that is worth it")
    checkpoint_every: int = Field(10, ge=1, description="commits of a table after which its log gets a checkpoint")
    grace_days: float = Field(7, ge=1, description="nothing that is younger is ever deleted, days")
    drop_days: dict[str, int] = Field({}, description="table -> days until its run_dates are dropped; empty: never")


class AirflowConfig(_Part):
    runner: Literal["process", "spark-submit", "container", "pod"] = Field(
        "process", description="how a task runs its stations: process, spark-submit, container or pod"
    )
    nightly: str = Field("0 2 * * *", description="when the night runs, cron in the shop's zone")
    training: str = Field("0 4 * * 0", description="when training runs, cron in the shop's zone")
    maintenance: str = Field("0 7 * * 0", description="when maintenance runs, cron in the shop's zone")
    start: date = Field(date(2026, 1, 1), description="first day of the schedules")
    end: date | None = Field(None, description="last day of the schedules; null: none")
    catchup: bool = Field(False, description="run the nights that were missed")
    retries: int = Field(3, ge=0, description="tries after a failure that may pass (exit 75, a kill)")
    retry_delay_s: float = Field(60, ge=0, description="pause before the first of them, seconds; doubles")
    wait_minutes: float = Field(120, ge=0, description="how long a night waits for late sources, minutes")
    poll_s: float = Field(30, gt=0, description="how often it looks, seconds")
    image: str = Field("mmrec-spark:latest", description="image of containers and pods")
    namespace: str = Field("mmrec", description="namespace of pods")
    connection: str = Field("spark_default", description="Airflow connection of spark-submit")


class Config(BaseSettings):
    """The whole tree; see the module."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="MMREC_", env_nested_delimiter="__")

    home: Path = Field(description="folder of the lake, models, runs and reports")
    engine: Literal["local", "spark"] = Field("local", description="what computes table code: local (Sail) or spark")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where encoders, training and scoring run")
    threads: int = Field(2, ge=1, description="threads of encoders and scoring")
    zone: str = Field("UTC", description="the shop's time zone, IANA name")
    max_age_hours: float = Field(36, gt=0, description="an input older than this is stale, hours")
    mlflow_uri: str | None = Field(None, description="tracking server; null: SQLite in the home")
    source: SourceConfig = SourceConfig()
    night: NightConfig = NightConfig()
    explore: ExploreConfig = ExploreConfig()
    diversity: DiversityConfig = DiversityConfig()
    candidates: CandidatesConfig = CandidatesConfig()
    second_stage: SecondStageConfig = SecondStageConfig()
    wishes: WishesConfig = WishesConfig()
    reasons: ReasonsConfig = ReasonsConfig()
    content: ContentConfig = ContentConfig()
    twins: TwinsConfig = TwinsConfig()
    train: TrainConfig = TrainConfig()
    suspects: SuspectsConfig = SuspectsConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    spark: SparkConfig = SparkConfig()
    maintain: MaintainConfig = MaintainConfig()
    airflow: AirflowConfig = AirflowConfig()

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: Any, init_settings: Any, env_settings: Any, dotenv_settings: Any, file_secret_settings: Any
    ) -> tuple[Any, ...]:
        home = Path(init_settings.init_kwargs["home"])
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, home / "mmrec.toml")

    @property
    def lake(self) -> Path:
        return self.home / "lake"

    @property
    def source_root(self) -> Path | None:
        """The folder that the source delivers into; None: it has none of its own."""
        return self.source.root or (self.home / "source" if self.source.spec == "builtin" else None)

    @property
    def encoder_names(self) -> dict[str, str]:
        """Modality -> encoder; without the modalities that have none."""
        named = {"text": self.night.text, "image": self.night.image, "audio": self.night.audio}
        return {modality: name for modality, name in named.items() if name}

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    @property
    def bundles(self) -> Path:
        return self.home / "bundles"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @property
    def rules(self) -> Path:
        """What the shop rules about its lists; there need not be any."""
        return self.home / "rules.yaml"

    @property
    def recipes(self) -> Path:
        """Recipes of this home, NAME.toml each."""
        return self.home / "recipes"

    @property
    def tracking(self) -> str:
        return self.mlflow_uri or f"sqlite:///{self.home.absolute()}/mlflow.db"


def load(home: Path, **flags: Any) -> Config:
    """The settings of a home. InputError names the key, its value and what would be right."""
    _known_environment()
    try:
        return Config(home=home.absolute(), **{k: v for k, v in flags.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        key, variable = ".".join(map(str, first["loc"])), "MMREC_" + "__".join(map(str, first["loc"])).upper()
        where = f"environment: {variable}" if variable in os.environ else f"{home / 'mmrec.toml'}: {key}"
        raise InputError(f"a setting is wrong: {first['msg'].lower()}", where=where, value=first.get("input"),
                         valid=_valid(first["loc"]), next="edit mmrec.toml") from None  # fmt: skip
    except ValueError as error:
        raise InputError(f"the settings can't be read: {error}", where=str(home / "mmrec.toml"), valid="TOML",
                         next="edit mmrec.toml") from None  # fmt: skip


def _known_environment() -> None:
    """A misspelt variable would be passed over without a word."""
    for key, value in os.environ.items():
        if not key.startswith("MMREC_"):
            continue
        model: Any = Config
        for part in key.removeprefix("MMREC_").lower().split("__"):
            fields = getattr(model, "model_fields", {})
            if part not in fields:
                raise InputError("no such setting", where=f"environment: {key}", value=value,
                                 valid=[f"MMREC_{n.upper()}" for n in Config.model_fields]
                                 if model is Config else sorted(fields), next=f"unset {key}")  # fmt: skip
            model = fields[part].annotation


def write(home: Path, sections: dict[str, Any]) -> Path:
    """Write `<home>/mmrec.toml`: every setting with what it is; those of `sections` are set, the others commented out
    at their defaults.

    Args:
        sections: top-level values, and sections as dictionaries; None: left at its default.
    """
    unknown = set(sections) - set(Config.model_fields)
    if unknown:
        raise InputError("no such setting", where="mmrec.toml", value=sorted(unknown), valid=list(Config.model_fields))
    home.mkdir(parents=True, exist_ok=True)
    lines = ["# Settings of this home. A line that begins with # is a default.", ""]
    parts = {n: f for n, f in Config.model_fields.items() if isinstance(f.default, _Part)}
    lines += _section({n: f for n, f in Config.model_fields.items() if n not in parts and n != "home"}, sections)
    for name, part in parts.items():
        lines += [f"[{name}]", *_section(type(part.default).model_fields, sections.get(name) or {})]
    target = home / "mmrec.toml"
    target.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    return target


def _section(fields: dict[str, Any], values: dict[str, Any]) -> list[str]:
    lines = []
    for name, field in fields.items():
        value = values.get(name)
        # TOML has no null: such a default is shown as an empty name
        default = "" if field.default is None else _toml(field.default)
        lines += [f"# {field.description}", f"# {name} = {default}" if value is None else f"{name} = {_toml(value)}"]
    return [*lines, ""]


def _toml(value: Any) -> str:
    import json

    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(k)} = {_toml(v)}' for k, v in value.items())}}}"
    # TOML has no surrogate pairs
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _valid(where: tuple[Any, ...]) -> str:
    model: Any = Config
    for n, part in enumerate(where[:-1]):
        below = model.model_fields[part].annotation
        if not hasattr(below, "model_fields"):  # an element of a list or a table
            return _valid(where[: n + 1])
        model = below
    fields = model.model_fields
    if where[-1] in fields:
        about = fields[where[-1]]
        return about.description or f"a section [{where[-1]}] of " + ", ".join(type(about.default).model_fields)
    return "one of " + ", ".join(fields)
