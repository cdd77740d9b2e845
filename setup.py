"""Build gmultisocket. Its metadata is in setup.cfg; this file says what the source distribution contains."""

from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

#: Folders that the README's test command, the documentation and the benchmarks need.
FOLDERS = ("tests", "examples", "docs", "benchmarks")
SKIPPED = ("__pycache__", "_build", "node_modules")


class SourceDistribution(sdist):
    """A source distribution with everything that the commands in the README need."""

    def make_distribution(self) -> None:
        self.filelist.append("CHANGES.rst")
        for folder in FOLDERS:
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file() and not any(part in SKIPPED for part in path.parts):
                    self.filelist.append(str(path))
        super().make_distribution()


setup(cmdclass={"sdist": SourceDistribution})
