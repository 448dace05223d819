"""What lies at a path: the answer of `ltx-export inspect`."""
