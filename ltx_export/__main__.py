"""The program ltx-export, also as `python -m ltx_export`."""

from __future__ import annotations

from ltx_runtime.errors import program


def main() -> None:
    """Runs `ltx-export`; its modules are imported when Ctrl-C is already heard."""
    with program():
        from ltx_export.cli import main as run  # noqa: PLC0415

        run()


if __name__ == "__main__":
    main()
