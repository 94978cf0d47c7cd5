"""What every other folder may use, in rooms; each imports only rooms that stand before it (pyproject.toml)."""

import logging

# transformers imports torchao wherever it is installed, which tells of CUDA libraries that a CPU build has not. Here,
# since a stage imports transformers before its own first line runs.
for _noisy in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)
