"""The deployment graph as a program of aten operations, for what reads those: Core ML and ExecuTorch."""

import torch
from torch import nn
from torch.export import Dim, ExportedProgram


def export_program(graph: nn.Module, longest: int, any_length: bool) -> ExportedProgram:
    """The program of one text as it is traced, for one length or for every length from 2 to `longest`.

    Args:
        graph: a deployment graph, or a module with the same inputs.
        longest: in tokens.
        any_length: false for a program of the longest length only.
    """
    example = (torch.ones(1, longest, dtype=torch.int32), torch.ones(1, longest, dtype=torch.int32))
    free = {1: Dim("length", min=2, max=longest)} if any_length else None
    with torch.no_grad():
        return torch.export.export(
            graph, example, dynamic_shapes={"input_ids": free, "attention_mask": free}, strict=False
        )
