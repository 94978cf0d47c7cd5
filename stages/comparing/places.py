"""Where a comparison keeps its files, inside a recipe's workspace."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.workspace import Workspace
from pipeline.data.prepared import open_data
from pipeline.settings.params import Params


@dataclass(frozen=True)
class Places:
    """The folder `methods/` of a workspace."""

    workspace: Path
    only: tuple[str, ...] = ()  # a comparison of some methods does not overwrite that of all

    @property
    def root(self) -> Path:
        return self.workspace / "methods"

    def settings(self, method: str) -> Path:
        return self.root / "settings" / f"{method}.yaml"

    def run(self, method: str, seed: int) -> Path:
        return self.root / "runs" / f"{method}-{seed}"

    def data(self, params: Params) -> Path:
        """A workspace of prepared data: one for all methods whose students read the same tokens."""
        decisive = [
            open_data(Workspace(self.workspace)).digest,  # of the files as they are now
            params.seed,
            params.teacher.model,
            params.teacher.revision,
            params.origin,
            params.data.model_dump(mode="json"),
            params.student.vocabulary,
            params.student.distillation_token,
        ]
        return self.root / "data" / hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def caches(self) -> Path:
        """What the teacher says, shared by all methods."""
        return self.root / "teacher_answers"

    @property
    def record(self) -> Path:
        return self._named("json")

    @property
    def table(self) -> Path:
        return self._named("md")

    @property
    def plot(self) -> Path:
        return self._named("svg")

    def _named(self, suffix: str) -> Path:
        return self.root / f"{'-'.join(('comparison', *sorted(self.only)))}.{suffix}"
