"""ONNX files as they are written: a model as a graph, its metadata, a framework's own export."""
