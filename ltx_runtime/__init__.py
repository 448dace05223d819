"""LTX-Video without PyTorch: turns a folder of engines and a prompt into a video.

`import ltx_runtime` loads no backend, no command line and no torch; each stage imports what it needs.
"""

__version__ = "0.1.0"
