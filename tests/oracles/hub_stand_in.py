"""A hub of local folders, with the functions of ``huggingface_hub`` that are called, recording what is asked of it."""

import shutil
from pathlib import Path

from huggingface_hub.utils import filter_repo_objects


class StandInHub:
    """Serves the files under ``folder`` as the repository ``name``; what was fetched lies in a cache beside it.

    ``asked`` holds the keywords of every call.  ``error`` is what a call meets instead of the network; then the cache
    serves, as it does in the real functions.
    """

    def __init__(self, folder: Path, cache: Path, name: str = "owner/name"):
        self.folder, self.name, self.asked, self.error = folder, name, [], None
        self.snapshot = cache / f"models--{name.replace('/', '--')}" / "snapshots" / "0f1e"

    def install(self, monkeypatch) -> "StandInHub":
        for function in ("snapshot_download", "list_repo_files"):
            monkeypatch.setattr(f"huggingface_hub.{function}", getattr(self, function))
        return self

    @property
    def files(self) -> list[str]:
        return sorted(file.relative_to(self.folder).as_posix() for file in self.folder.rglob("*") if file.is_file())

    @property
    def fetched(self) -> set[str]:
        """What lies in the cache."""
        return {file.relative_to(self.snapshot).as_posix() for file in self.snapshot.rglob("*") if file.is_file()}

    def list_repo_files(self, name: str, *, revision=None, token=None) -> list[str]:
        self._ask(name, revision=revision, token=token)
        return self.files

    def snapshot_download(self, name: str, *, revision=None, token=None, allow_patterns=None) -> str:
        try:
            self._ask(name, revision=revision, token=token)
        except Exception:
            if not self.snapshot.is_dir():
                raise
            return str(self.snapshot)
        self.snapshot.mkdir(parents=True, exist_ok=True)
        for file in filter_repo_objects(self.files, allow_patterns=allow_patterns):
            target = self.snapshot / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / file, target)
        return str(self.snapshot)

    def _ask(self, name: str, **access) -> None:
        assert name == self.name
        self.asked.append(access)
        if self.error is not None:
            raise self.error
