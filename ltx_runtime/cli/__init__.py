"""The command `ltx-run`: options, progress bars and messages."""
