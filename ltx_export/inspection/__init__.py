"""The implementation of `ltx-export inspect`, which describes the weights at a path."""
