"""Other people's models brought in: a framework's own ones, and ONNX files, as spec and weights.

Whatever is brought in is held against what it came from before anything is kept: the spec's float64
reference, every backend and the ONNX export on the same images (`export.imports.judging`).
"""
