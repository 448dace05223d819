"""ONNX graphs written by hand, for tests that run without the onnx package."""


def field(number: int, content: int | str | bytes) -> bytes:
    """Encodes one field of a protobuf message: a number, or text or another message with its length in front."""
    if isinstance(content, int):
        return bytes([number << 3, content])
    content = content.encode() if isinstance(content, str) else content
    assert len(content) < 1 << 14
    return bytes([number << 3 | 2, len(content) & 127 | 128, len(content) >> 7]) + content


def graph_that_adds(*inputs: str, output: str) -> bytes:
    """Returns a graph whose `output` is the sum of two int64 inputs, both (batch, text_tokens)."""
    shape = b"".join(field(1, field(2, axis)) for axis in ("batch", "text_tokens"))
    kind = field(2, field(1, field(1, 7) + field(2, shape)))
    node = b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, "Add")
    values = b"".join(field(11, field(1, name) + kind) for name in inputs) + field(12, field(1, output) + kind)
    return field(1, 8) + field(8, field(2, 13)) + field(7, field(1, node) + field(2, "sum") + values)
