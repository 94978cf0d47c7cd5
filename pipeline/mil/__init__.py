"""What a Core ML program means: reading a `.mlpackage` and executing its ML Program in PyTorch, on any machine.

Nothing here is Core ML. Each operation follows its definition in the MIL documentation, which is the documentation of
coremltools' `mil.ops.defs` (https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html).
"""
