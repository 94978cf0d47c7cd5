"""What the teacher computes on the training rows, kept on disk: a frozen teacher says the same in every epoch.

A small student's step costs a fraction of its teacher's forward pass, so after the first epoch the teacher would be
most of the work. Each signal of each layer is one file of float16 vectors, the tokens of all rows end to end, mapped
into memory; runs that share a teacher share the files. Half precision halves the disk that a large teacher takes; it
keeps three digits of a target that a student will miss in its first.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.base.errors import IntegrityError, TrainingError
from pipeline.base.files import output_folder, require_space
from pipeline.base.records import open_folder, seal
from pipeline.data.batches import batches_by_length, pad
from pipeline.data.prepared import EncodedSplit
from pipeline.data.token_rows import lengths_of
from pipeline.families import family_of, shape_of
from pipeline.signals.reader import SignalReader, Signals, taken
from pipeline.training import processes

log = logging.getLogger(__name__)
KIND = "teacher_signal"
BATCH = 64
# signal -> the fields of Signals that hold it
FIELDS = {"hidden": ("hidden",), "attention": ("queries", "keys"), "values": ("values",)}
Key = tuple[str, int]  # field of Signals, place in its tuple
KEPT = np.dtype(np.float16)
LEAVE_OUT = "leave out the losses that look at them"


@dataclass(frozen=True, eq=False)
class TeacherSignals:
    """Signals of every training row, ready to be read in any batch."""

    vectors: Mapping[Key, Float[Tensor, "tokens width"]]
    starts: Int[Tensor, " rows"]  # where each row's tokens begin
    layers: int
    heads: int
    biases: tuple[Float[Tensor, "1 #heads longest longest"] | None, ...]  # of each layer, where scores are asked for

    def read(
        self,
        rows: Int[Tensor, " batch"],
        mask: Bool[Tensor, "batch length"],
        logits: Float[Tensor, "units choices"],
    ) -> Signals:
        """The signals of a batch of rows, padded with zeros as the mask says, on the mask's device."""
        inside = mask.cpu()
        # Padded positions read token 0 of the row, and are emptied below.
        places = self.starts[rows.cpu()][:, None] + torch.arange(mask.shape[1])[None, :] * inside

        def layered(field: str, entries: int) -> tuple[Tensor | None, ...]:
            if all(name != field for name, _ in self.vectors):
                return ()
            return tuple(self._gather(field, i, places, inside, mask.device) for i in range(entries))

        return Signals(
            logits=logits,
            mask=mask,
            hidden=layered("hidden", self.layers + 1),
            queries=layered("queries", self.layers),
            keys=layered("keys", self.layers),
            values=layered("values", self.layers),
            biases=tuple(None if bias is None else self._cut(bias, mask) for bias in self.biases),
        )

    @staticmethod
    def _cut(bias: Tensor, mask: Tensor) -> Tensor:
        return bias[..., : mask.shape[1], : mask.shape[1]].to(mask.device)

    def _gather(self, field: str, index: int, places: Tensor, inside: Tensor, device: torch.device) -> Tensor | None:
        if (field, index) not in self.vectors:
            return None
        kept = self.vectors[field, index][places].float()
        vectors = torch.where(inside[..., None], kept, 0.0).to(device)  # (B, L, D)
        return vectors if field == "hidden" else vectors.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def as_kept(signals: Signals) -> Signals:
    """The signals as they come back from disk, so that keeping them changes no result.

    Raises:
        TrainingError: they could not be kept.
    """

    def rounded(field: str) -> tuple[Tensor | None, ...]:
        layers = enumerate(getattr(signals, field))
        return tuple(None if one is None else _half(one, field, index, LEAVE_OUT).float() for index, one in layers)

    return replace(
        signals,
        hidden=rounded("hidden"),
        queries=rounded("queries"),
        keys=rounded("keys"),
        values=rounded("values"),
    )


def _half(tensor: Tensor, field: str, index: int, remedy: str) -> Tensor:
    """In half precision."""
    half = tensor.half()
    if not torch.isfinite(half).all():
        raise TrainingError(
            f"the teacher's {field} of layer {index} are too large for half precision, or not finite; {remedy}"
        )
    return half


def size_bytes(needs: Mapping[str, frozenset[int]], split: EncodedSplit, teacher: PreTrainedModel) -> int:
    """How much the signals of a split take on disk."""
    tokens = int(lengths_of(split.for_teacher[0]).sum())
    return KEPT.itemsize * tokens * shape_of(teacher.config).hidden * len(list(_keys(needs)))


def cached_teacher_signals(
    teacher: PreTrainedModel,
    needs: Mapping[str, frozenset[int]],
    split: EncodedSplit,
    work: Path,
    key: str,
    remedy: str = LEAVE_OUT,
) -> TeacherSignals:
    """The teacher's signals on a split, computed once and kept under `key`; damaged files are made again.

    Args:
        teacher: put into eval mode.
        needs: layers of each signal, as `pipeline.training.needs` gives them.
        split: the training rows.
        work: folder of caches.
        key: digest of the teacher's weights and of the rows.
        remedy: what to do about signals that half precision cannot hold, for messages.
    """
    folder = _folder(work, key)
    ids, pad_id = split.for_teacher
    lengths = torch.from_numpy(lengths_of(ids))
    starts = lengths.cumsum(0) - lengths
    missing = [name for name in _keys(needs) if not _is_whole(folder / _file(name))]
    if missing:
        _compute(teacher, missing, ids, pad_id, starts, folder, remedy)
    shape = shape_of(teacher.config)
    vectors = {
        name: torch.from_numpy(np.load(folder / _file(name) / "vectors.npy", mmap_mode="c")) for name in _keys(needs)
    }
    family, longest = family_of(teacher.config), int(lengths.max())
    with torch.no_grad():
        biases = tuple(
            family.score_bias(teacher, layer, longest) if layer + 1 in needs.get("attention", ()) else None
            for layer in range(shape.layers)
        )
    return TeacherSignals(vectors, starts, shape.layers, shape.heads, biases)


def remove_others(work: Path, key: str) -> None:
    """Removes what is kept there under other keys."""
    for folder in work.glob("teacher_signals-*"):
        if folder != _folder(work, key):
            shutil.rmtree(folder)


def _folder(work: Path, key: str) -> Path:
    return work / f"teacher_signals-{key[:16]}"


def _keys(needs: Mapping[str, frozenset[int]]) -> Iterator[Key]:
    for need, fields in FIELDS.items():
        for layer in sorted(needs.get(need, ())):
            for field in fields:
                yield field, layer if field == "hidden" else layer - 1


def _file(key: Key) -> str:
    return f"{key[0]}-{key[1]}"


def _is_whole(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        open_folder(folder, KIND)
    except IntegrityError as error:
        log.warning("%s; computing the teacher's signals again", error)
        return False
    return True


def _compute(
    teacher: PreTrainedModel,
    keys: list[Key],
    ids: Sequence[list[int]],
    pad_id: int,
    starts: Tensor,
    folder: Path,
    remedy: str,
) -> None:
    """Writes one sealed folder for each key, in one pass over the rows."""
    from tqdm import tqdm

    device = processes.device()
    nn.Module.to(teacher, device)
    tokens, width = int(lengths_of(ids).sum()), shape_of(teacher.config).hidden
    needs: dict[str, set[int]] = {}
    for field, index in keys:
        need = next(name for name, fields in FIELDS.items() if field in fields)
        needs.setdefault(need, set()).add(index if field == "hidden" else index + 1)
    folder.mkdir(parents=True, exist_ok=True)
    # All together, before the first: the files are sparse until rows are written, and a write through a memory map to
    # a full disk ends the process without a word.
    require_space(folder, KEPT.itemsize * tokens * width * len(keys))
    with ExitStack() as stack:
        reader = stack.enter_context(SignalReader(teacher, needs, frozen=True))
        places = {key: stack.enter_context(output_folder(folder / _file(key))) for key in keys}
        files = {
            key: np.lib.format.open_memmap(place / "vectors.npy", mode="w+", dtype=KEPT, shape=(tokens, width))
            for key, place in places.items()
        }
        batches = batches_by_length(lengths_of(ids), BATCH)
        for rows in tqdm(batches, desc="teacher's signals", disable=None, leave=False):
            batch = {name: tensor.to(device) for name, tensor in pad([ids[i] for i in rows], pad_id).items()}
            # Nobody looks at the logits, and naming them spares the upper layers.
            signals = reader.read(batch, outputs={"logits": torch.empty(len(rows), 0, device=device)})
            for field, index in keys:
                tensor = taken(getattr(signals, field), index).float().cpu()
                whole = tensor if field == "hidden" else tensor.transpose(1, 2).flatten(2)
                vectors = _half(whole, field, index, remedy).numpy()
                for place_in_batch, row in enumerate(rows):
                    start, length = int(starts[row]), len(ids[row])
                    files[field, index][start : start + length] = vectors[place_in_batch, :length]
        for key, place in places.items():
            files[key].flush()
            seal(place, KIND)
