"""The command `ltx-serve`: options, the server process, and its log."""
