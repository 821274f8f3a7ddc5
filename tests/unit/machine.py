"""A machine with nothing on it: fake Javas, a Spark and a Python that note what they are asked, an empty cache."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmrec.lake import java


def script(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)
    return path


def java_home(folder: Path, release: str | None, says: str | None = None) -> Path:
    """A folder that looks like a Java: with a `release` file, or one that only answers -version."""
    script(folder / "bin" / "java", f"echo 'openjdk version \"{says}\" 2025-04-15' >&2" if says else "exit 1")
    if release:
        (folder / "release").write_text(f'IMPLEMENTOR="Debian"\nJAVA_VERSION="{release}"\nOS_ARCH="x86_64"\n')
    return folder


@dataclass(frozen=True)
class Machine:
    """Of its own: JAVA_HOME, PATH, the systems folder of Javas, SPARK_HOME, the cache."""

    root: Path
    patch: pytest.MonkeyPatch

    def home(self, release: str | None = "17.0.15", says: str | None = None) -> Path:
        """JAVA_HOME with a Java in it."""
        made = java_home(self.root / f"java-{release or says}", release, says)
        self.patch.setenv("JAVA_HOME", str(made))
        return made

    def on_path(self, release: str) -> Path:
        made = java_home(self.root / "opt" / f"java-{release}", release)
        self.path.mkdir(exist_ok=True)
        (self.path / "java").symlink_to(made / "bin" / "java")
        return made

    def system(self, name: str, release: str) -> Path:
        return java_home(self.root / "jvm" / name, release)

    def spark(self, *lines: str) -> None:
        """SPARK_HOME with a spark-submit that notes its words and leaves jars where Ivy would."""
        fetch = ['for w in "$@"; do case "$w" in spark.jars.ivy=*) ivy="${w#spark.jars.ivy=}";; esac; done',
                 '/bin/mkdir -p "$ivy/jars" "$ivy/cache"',
                 'for n in io.delta_b io.delta_a io.unitycatalog_c org.stranger_d; do echo "$n" > "$ivy/jars/$n-1.jar"; done']  # fmt: skip
        script(self.root / "spark" / "bin" / "spark-submit", f'echo "$@" >> {self.root}/submitted', *(lines or fetch))
        self.patch.setenv("SPARK_HOME", str(self.root / "spark"))

    def python(self, *lines: str) -> None:
        """This Python's place, taken by one that notes its words and writes the archive it is told to."""
        write = ['for w in $3; do case "$w" in -XX:ArchiveClassesAtExit=*) part="${w#*=}";; esac; done', "/bin/sleep 0.3",
                 'echo archive > "$part"']  # fmt: skip
        made = script(self.root / "python", f'echo "$@" >> {self.root}/warmed', *(lines or write))
        self.patch.setattr(sys, "executable", str(made))

    def ready(self) -> Machine:
        self.home()
        self.spark()
        self.python()
        return self

    def times(self, what: str) -> int:
        noted = self.root / what
        return len(noted.read_text().splitlines()) if noted.is_file() else 0

    @property
    def path(self) -> Path:
        return self.root / "bin"

    @property
    def cache(self) -> Path:
        return self.root / "cache" / "mmrec"

    def kept(self) -> list[str]:
        """Files of the cache but locks, and folders without any file."""
        found = [p for p in sorted(self.cache.rglob("*")) if p.is_file() or not any(q.is_file() for q in p.rglob("*"))]
        return [str(p.relative_to(self.cache)) for p in found if p.suffix != ".lock" and p.parent != self.cache]


def bare(root: Path, patch: pytest.MonkeyPatch) -> Machine:
    """This process on such a machine, until `patch` is undone."""
    for name in ("JAVA_HOME", "SPARK_HOME", *(n for n in os.environ if n.startswith("MMREC_"))):
        patch.delenv(name, raising=False)
    patch.setenv("PATH", str(root / "bin"))
    patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    patch.setattr(java, "SYSTEM", root / "jvm")
    return Machine(root, patch)
