"""One optimizer step on one batch, in whatever parts and by however many processes the batch is computed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.base.errors import TrainingError
from pipeline.data.batches import Collator
from pipeline.data.prepared import EncodedSplit
from pipeline.settings.training import TrainingSettings
from pipeline.training import processes
from pipeline.training.distiller import Distiller
from pipeline.training.optimizer import half_precision, make_optimizer, rate_factor


class Steps:
    """Takes one step after the other, and adds up what the losses were."""

    def __init__(
        self,
        distiller: Distiller,
        train: EncodedSplit,
        collate: Callable[[Sequence[Any], int], Tensor] | None,
        settings: TrainingSettings,
        total: int,
    ) -> None:
        self.device = processes.device()
        self.half = half_precision(settings.precision, self.device)
        self.distiller = distiller.to(self.device)
        self.settings, self.total = settings, total
        self.warmup = round(settings.warmup_fraction * total)
        self.optimizer = make_optimizer(distiller, settings)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half == torch.float16)
        self._names, self._collate = train.names, Collator(train, collate)
        self._sums: Tensor | None = None  # of the weighted sum and of each term, since they were told
        self._steps = 0
        self._told: dict[str, float] = {}
        self._norm = torch.zeros(())

    def take(self, step: int, rows: Sequence[int], is_logged: bool) -> None:
        """One step on a batch of rows.

        Raises:
            TrainingError: a loss is not finite.
        """
        factor = rate_factor(step, self.warmup, self.total)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = factor * rate
        self.distiller.train()
        # Neighbours are of similar length, so each process gets as much to do.
        ours = rows[processes.rank() :: processes.count()]
        parts = [ours[i :: self.settings.micro_batches] for i in range(min(self.settings.micro_batches, len(ours)))]
        found: list[Tensor] = []
        by_term: dict[str, Tensor] = {}
        for part in parts or [rows[:1]]:  # fewer rows than processes: this one stands in, and weighs nothing
            share = len(part) / len(rows) if parts else 0.0
            batch = {key: tensor.to(self.device) for key, tensor in self._collate(part).items()}
            with torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None):
                out = self.distiller(progress=step / self.total, rows=batch.pop("rows"), share=share, **batch)
            if is_logged and len(out["weighted"]) > 1:
                self._keep_gradients(out["weighted"], by_term)
            if out["loss"].requires_grad:
                self.scaler.scale(out["loss"]).backward()
            found.append(torch.stack([out["value"], *out["terms"].values()]))
        values = torch.stack(found).sum(0)
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        processes.add_up([values, *gradients])
        if not torch.isfinite(values).all():  # the one moment at which a step waits for the device
            self._stop(step, list(zip(parts, found, strict=False)))
        self._sums = values if self._sums is None else self._sums + values
        self._steps += 1
        self.scaler.unscale_(self.optimizer)
        self._norm = torch.nn.utils.clip_grad_norm_(self.distiller.parameters(), self.settings.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if by_term:
            self._told = _shares(by_term)

    def told(self) -> dict[str, float]:
        """Loss, norm of the gradient, rate, terms and shares of the gradient since this was last asked."""
        assert self._sums is not None
        loss, *terms = (self._sums / self._steps).tolist()
        told = {
            "loss": loss,
            "grad_norm": float(self._norm),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **{f"term_{name}": value for name, value in zip(self.distiller.losses, terms, strict=True)},
            **{f"gradient_share_{name}": share for name, share in self._told.items()},
        }
        self._sums, self._steps, self._told = None, 0, {}
        return told

    def _keep_gradients(self, weighted: Mapping[str, Tensor], by_term: dict[str, Tensor]) -> None:
        """Adds this part's gradient of each term, end to end, to what the other parts gave."""
        parameters = [parameter for parameter in self.distiller.student.parameters() if parameter.requires_grad]
        for name, term in weighted.items():
            found = (
                torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
                if term.requires_grad
                else [torch.zeros_like(parameter) for parameter in parameters]
            )
            flat = torch.cat([gradient.float().flatten() for gradient in found])
            by_term[name] = by_term[name] + flat if name in by_term else flat

    def _stop(self, step: int, parts: Sequence[tuple[Sequence[int], Tensor]]) -> None:
        terms = ["the sum", *self.distiller.losses]
        ours = [(terms[number], rows) for rows, values in parts for number in _not_finite(values)[-1:]]
        bad = [one for found in processes.from_all(ours) for one in found]

        def stop() -> None:
            # Each part may be finite, and their sum not.
            term, rows = bad[0] if bad else (terms[0], [row for some, _ in parts for row in some])
            raise TrainingError(
                f"step {step + 1}: loss '{term}' is not finite on a batch with rows "
                f"{', '.join(self._names[i] for i in rows[:5])}…; lower the learning rate or the loss's weight, or "
                "look at these rows"
            )

        processes.by_first(stop)


def _not_finite(values: Tensor) -> list[int]:
    return (~torch.isfinite(values)).nonzero().flatten().tolist()


def _shares(by_term: Mapping[str, Tensor]) -> dict[str, float]:
    """Each term's share of the summed gradient norms: what a weight means depends on it, not on the term's size."""
    processes.add_up(list(by_term.values()))
    norms = {name: float(gradient.norm()) for name, gradient in by_term.items()}
    total = sum(norms.values())
    return {name: norm / total if total else 0.0 for name, norm in norms.items()}
