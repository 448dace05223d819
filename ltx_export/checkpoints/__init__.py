"""Any file of weights -> named tensors."""
