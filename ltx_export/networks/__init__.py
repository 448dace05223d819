"""A checkpoint's header and tensors -> the networks to export, each with exactly its tensors."""
