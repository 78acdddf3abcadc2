"""What leaves for other engines: ONNX graphs, their check against PyTorch, and how they are run."""
