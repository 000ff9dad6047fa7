"""Networks as symbols and as ONNX."""
