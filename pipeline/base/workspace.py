"""Where everything the pipeline writes lies. One place, so that no stage spells a path of another."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """The folder that has params.yaml, dvc.yaml and artifacts/."""

    root: Path = Path()

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def machine(self) -> Path:
        return self.artifacts / "machine.json"

    @property
    def inputs(self) -> Path:
        """Digests of the data files and of the base model."""
        return self.artifacts / "inputs.json"

    @property
    def accepted(self) -> Path:
        """The exceptions of accepted.yaml that are in force."""
        return self.artifacts / "accepted.json"

    def depends(self, stage: str, target: str | None = None) -> Path:
        """What the result of a stage (for a target) depends on besides data and settings."""
        folder = self.artifacts / "depends"
        return folder / f"{stage}.json" if target is None else folder / stage / f"{target}.json"

    @property
    def data(self) -> Path:
        return self.artifacts / "data"

    @property
    def floors(self) -> Path:
        return self.artifacts / "floors.json"

    @property
    def teacher(self) -> Path:
        return self.artifacts / "teacher"

    @property
    def second_teacher(self) -> Path:
        """Another teacher, inside the folder of the first."""
        return self.teacher / "second"

    @property
    def reference(self) -> Path:
        return self.artifacts / "reference"

    @property
    def general(self) -> Path:
        """A student that was distilled on general text, before any task."""
        return self.artifacts / "general"

    @property
    def student(self) -> Path:
        return self.artifacts / "student"

    @property
    def variants(self) -> Path:
        """Every student that was trained, controls included."""
        return self.artifacts / "variants"

    @property
    def quantized(self) -> Path:
        return self.artifacts / "quantized"

    def exported(self, target: str) -> Path:
        return self.artifacts / "exported" / target

    def scored(self, target: str) -> Path:
        return self.artifacts / "scored" / f"{target}.json"

    def examined(self, target: str) -> Path:
        return self.artifacts / "examined" / f"{target}.json"

    def measured(self, target: str) -> Path:
        return self.artifacts / "measured" / f"{target}.json"

    def left_by_others(self, targets: Collection[str]) -> list[Path]:
        """Artefacts and records of targets that are none of these, sorted."""
        folders = (self.exported(""), *(of("").parent for of in (self.scored, self.examined, self.measured)))
        there = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
        return sorted(path for path in there if not path.name.startswith(".") and path.stem not in targets)

    @property
    def report(self) -> Path:
        return self.artifacts / "report"

    @property
    def tokenizers(self) -> Path:
        """How the tokenizers of apps compare with that of training."""
        return self.artifacts / "tokenizers.json"

    @property
    def bundles(self) -> Path:
        """A folder for each platform that an app drops in, and a zip of each."""
        return self.artifacts / "bundles"

    @property
    def compared(self) -> Path:
        """The last comparison with a base."""
        return self.artifacts / "compared"

    @property
    def history(self) -> Path:
        """The page of accepted versions."""
        return self.artifacts / "history"

    def work(self, name: str) -> Path:
        """Checkpoints and caches of a stage: not tracked by DVC, so that a killed run can go on."""
        return self.artifacts / "work" / name
