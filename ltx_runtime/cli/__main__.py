"""The program ltx-run, also as `python -m ltx_runtime.cli`."""

from __future__ import annotations

from ltx_runtime.errors import program


def main() -> None:
    """Runs `ltx-run`; its modules are imported when Ctrl-C is already heard."""
    with program():
        from ltx_runtime.cli.main import main as run

        run()


if __name__ == "__main__":
    main()
