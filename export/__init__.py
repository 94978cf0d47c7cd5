"""One deployment format a file: `to_<format>.py` turns a model folder into an artefact.

An exporter file has:

- `PRECISIONS`: the precisions it can write.
- `TOLERANCES`: precision -> largest parity difference, as a share of the spread of the reference logits, with reasons.
- `scheme(precision, params)`: where the ranges of 8-bit activations come from and whether pairs of weights are kept
  safe (`pipeline.quantization.plan.Scheme`), None where nothing is 8-bit. The plan has one entry a scheme in use.
- `PLANNED` (optional): the precisions that are given the quantization plan; without it, int8 alone.
- `Params`: a frozen model of `targets.<name>.options`.
- `why_unusable()` (optional): why it cannot write here, such as a package of an extra that is not installed, or None.
- `convert(source, out, precision, params, max_length, plan)`: reads the model folder `source` (as
  `pipeline.models.checkpoints.load_classifier` does), writes into the existing empty folder `out`, gives a
  `pipeline.base.records.Artefact`. `plan` is the quantization plan's entry for its scheme
  (`pipeline.quantization.plan.Plan`), and None for a precision that does not ask for it. Same source, same bytes.
"""
