"""ONNX graphs: the canonical form, its export and import, value-preserving passes, and reverse-mode differentiation."""
