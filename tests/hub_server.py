# SPDX-License-Identifier: Apache-2.0
"""A model hub on 127.0.0.1 that speaks as much of the Hugging Face hub's API as its
client needs to look at a repository, to download it and to verify what it has."""
import hashlib
import http.server
import json
import re
import threading

COMMIT = "c0ffee" + "0" * 34


class Hub:
    """files: {name: bytes}. Names in `large` are what git-lfs would hold, and are known by
    their SHA-256. `cut`: names whose first download breaks off in the middle."""

    def __init__(self, repo, files, large, cut=()):
        self.repo, self.files, self.large, self.cut = repo, files, set(large), set(cut)
        self.downloads = []     # (name, first byte)
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self, True)

            def do_HEAD(self):
                hub.answer(self, False)

            def log_message(self, format, *args): # pylint: disable=redefined-builtin
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()

    def etag(self, name):
        data = self.files[name]
        if name in self.large:
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() # as git has it

    def entry(self, name):
        e = {"type": "file", "path": name, "size": len(self.files[name]), "oid": self.etag(name)}
        if name in self.large:
            e["oid"] = "1" * 40
            e["lfs"] = {"oid": self.etag(name), "size": len(self.files[name]), "pointerSize": 130}
        return e

    def answer(self, h, body):
        path = h.path.split("?")[0]
        api, resolve = f"/api/models/{self.repo}", f"/{self.repo}/resolve/"
        if path == api or path.startswith(api + "/revision/"):
            self.json(h, {"id": self.repo, "modelId": self.repo, "sha": COMMIT, "private": False, "tags": [],
                          "siblings": [{"rfilename": n} for n in self.files]})
        elif path.startswith(api + "/tree/"):
            self.json(h, [self.entry(n) for n in self.files])
        elif path.startswith(resolve) and path[len(resolve):].partition("/")[2] in self.files:
            self.file(h, path[len(resolve):].partition("/")[2], body)
        else:
            h.send_error(404)

    @staticmethod
    def json(h, value):
        data = json.dumps(value).encode()
        h.send_response(200)
        h.send_header("Content-Type", "application/json")
        h.send_header("Content-Length", str(len(data)))
        h.end_headers()
        h.wfile.write(data)

    def file(self, h, name, body):
        data, first = self.files[name], 0
        m = re.fullmatch(r"bytes=(\d+)-", h.headers.get("Range", ""))
        if m:
            first = int(m[1])
        h.send_response(206 if m else 200)
        if m:
            h.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        h.send_header("Content-Length", str(len(data) - first))
        h.send_header("ETag", f'"{self.etag(name)}"')
        h.send_header("X-Repo-Commit", COMMIT)
        h.send_header("Accept-Ranges", "bytes")
        if name in self.large:
            h.send_header("X-Linked-Etag", f'"{self.etag(name)}"')
            h.send_header("X-Linked-Size", str(len(data)))
        h.end_headers()
        if not body:
            return
        self.downloads.append((name, first))
        if name in self.cut:
            self.cut.discard(name)
            h.wfile.write(data[first:first + (len(data) - first) // 2])
            h.close_connection = True
        else:
            h.wfile.write(data[first:])
