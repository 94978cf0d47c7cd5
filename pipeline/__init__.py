"""What every other folder may use, in rooms; each imports only rooms that stand before it (pyproject.toml)."""

import logging

# transformers imports torchao wherever it is installed, which tells of CUDA libraries that a CPU build has not. Here,
# so that nothing in this project imports it unsilenced: stages/__init__.py imports this before a stage's own imports.
for _noisy in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)
