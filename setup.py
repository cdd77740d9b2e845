"""Build gmultisocket. Its metadata is in setup.cfg; this file makes the description and the source distribution."""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

#: Folders that the README's test command, the documentation and the benchmarks need.
FOLDERS = ("tests", "examples", "docs", "benchmarks")
SKIPPED = ("__pycache__", "_build", "node_modules")


def description() -> str:
    """Return the README without its pictures, and the changes: an index does not have files of the repository."""
    readme = re.sub(r"^\.\. image::.*\n(?:    .*\n)*\n", "", Path("README.rst").read_text(encoding="utf-8"), flags=re.M)
    return f"{readme}\n{Path('CHANGES.rst').read_text(encoding='utf-8')}"


class SourceDistribution(sdist):
    """A source distribution with everything that the commands in the README need."""

    def make_distribution(self) -> None:
        self.filelist.append("CHANGES.rst")
        for folder in FOLDERS:
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file() and not any(part in SKIPPED for part in path.parts):
                    self.filelist.append(str(path))
        super().make_distribution()


setup(cmdclass={"sdist": SourceDistribution}, long_description=description())
