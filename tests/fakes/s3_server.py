"""As much of Amazon's S3 as storing files takes, for one client at a time: an object is there when it is whole."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_OK = '<?xml version="1.0" encoding="UTF-8"?>'


class S3Server(ThreadingHTTPServer):
    """A server on this machine.

    Attributes:
        objects: content by path, the bucket first.
        fails: whether the upload of an object breaks off.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.fails = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def uri(self, bucket: str) -> str:
        """Returns the address of a bucket, as pyarrow takes it."""
        query = f"endpoint_override=127.0.0.1:{self.server_port}&scheme=http&region=us-east-1"
        return f"s3://key:secret@{bucket}?{query}"


class _Handler(BaseHTTPRequestHandler):
    server: S3Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        else:
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return body
        content = b""
        while size := int(re.match(rb"[0-9a-fA-F]+", body)[0], 16):
            start = body.index(b"\r\n") + 2
            content, body = content + body[start : start + size], body[start + size + 2 :]
        return content

    def _asked(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        return unquote(parts.path).strip("/"), parse_qs(parts.query, keep_blank_values=True)

    def do_HEAD(self) -> None:
        """Says whether an object is there."""
        path, _ = self._asked()
        if path in self.server.objects:
            self._answer_head(len(self.server.objects[path]))
        else:
            self._answer(404 if "/" in path else 200)

    def _answer_head(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.end_headers()

    def do_GET(self) -> None:
        """Returns an object, or lists those with a prefix."""
        path, query = self._asked()
        if path in self.server.objects:
            content = self.server.objects[path]
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if wanted is None:
                return self._answer(200, content)
            first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
            shown = f"bytes {first}-{last}/{len(content)}"
            return self._answer(206, content[first : last + 1], Content_Range=shown)
        prefix = f"{path}/{query.get('prefix', [''])[0]}"
        found = [name for name in self.server.objects if name.startswith(prefix)]
        listed = "".join(
            f"<Contents><Key>{escape(name.partition('/')[2])}</Key><Size>{len(self.server.objects[name])}</Size>"
            "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
            for name in found
        )
        body = f"{_OK}<ListBucketResult><KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>{listed}"
        self._answer(200, f"{body}</ListBucketResult>".encode())

    def do_PUT(self) -> None:
        """Stores an object, or a part of one."""
        path, query = self._asked()
        content = self._body()
        if self.server.fails:
            return self._answer(403, f"{_OK}<Error><Code>AccessDenied</Code></Error>".encode())
        if "uploadId" in query:
            self.server.parts[query["uploadId"][0]][int(query["partNumber"][0])] = content
        else:
            self.server.objects[path] = content
        self._answer(200, ETag='"tag"')

    def do_POST(self) -> None:
        """Begins an upload in parts, or ends it: only then the object is there."""
        path, query = self._asked()
        self._body()
        if "uploads" in query:
            number = str(len(self.server.parts) + 1)
            self.server.parts[number] = {}
            body = f"{_OK}<InitiateMultipartUploadResult><UploadId>{number}</UploadId></InitiateMultipartUploadResult>"
        else:
            parts = self.server.parts.pop(query["uploadId"][0])
            self.server.objects[path] = b"".join(content for _, content in sorted(parts.items()))
            body = f"{_OK}<CompleteMultipartUploadResult><ETag>tag</ETag></CompleteMultipartUploadResult>"
        self._answer(200, body.encode())

    def do_DELETE(self) -> None:
        """Removes an object, or an upload that was begun."""
        path, query = self._asked()
        if "uploadId" in query:
            self.server.parts.pop(query["uploadId"][0], None)
        else:
            self.server.objects.pop(path, None)
        self._answer(204)
