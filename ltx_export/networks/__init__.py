"""The networks to export, built from a checkpoint's header and tensors, each with exactly its own tensors."""
