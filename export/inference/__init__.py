"""ONNX files where they are deployed: NumPy and onnxruntime alone, no framework and no onnx."""
