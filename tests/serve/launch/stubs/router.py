"""A router as the launcher sees one: ports announced, /ready, one model, one streamed answer. ARGV: where it and where
the launcher announce, its mode between the two."""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

USAGE = {"prompt_tokens": 9, "completion_tokens": 14, "completion_tokens_details": {"reasoning_tokens": 10}}
EVENTS = [
    {"choices": [{"index": 0, "delta": {"role": "assistant"}}]},
    {"choices": [{"index": 0, "delta": {"reasoning_content": "7 + 5 = 12", "reasoning": "7 + 5 = 12"}}]},
    {"choices": [{"index": 0, "delta": {"content": "132"}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": USAGE},
]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": "r1-nano"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        print("announced" if launcher.exists() else "not announced", flush=True)  # to the router's log
        self.send_response(200)
        self.end_headers()
        for event in EVENTS:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b": keep-alive\n\ndata: [DONE]\n\n")

    def log_message(self, *arguments: object) -> None:
        pass


announce, mode, launcher = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
if mode == "broken":
    sys.exit("error: plan x: model.checkpoint: no such directory: give another")
if mode == "silent":
    time.sleep(600)
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
port = server.server_address[1]
part = announce.with_suffix(".part")
part.write_text(json.dumps({"pid": os.getpid(), "http_port": port, "grpc_port": 1}), encoding="utf-8")
part.replace(announce)
server.serve_forever()
