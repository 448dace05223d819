"""The commands behind the figures of docs/demo.md: what the demo's weights follow, show, and teach."""
