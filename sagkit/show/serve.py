"""The page of `sagkit explore`: the front end and its answers, on this machine alone, from the standard library.

    sagkit explore my/photos
    sagkit explore my/photos --encoder encoder.safetensors
    sagkit explore shapes --encoder timm:resnet18

    GET  /TOKEN/            the page;   /TOKEN/board.js  /TOKEN/board.css   the same front end as in a notebook
    POST /TOKEN/ask         a question as JSON -> its answer as JSON, or {"doing": ...} while there is none yet

The page is there at once and says what is being done: to import torch takes longer than to read 500 pictures. The
server is bound to 127.0.0.1. A page of another origin can neither guess the token nor read an answer, and a request
under another host name, as after DNS rebinding, is refused. [K]
"""

from __future__ import annotations

import json
import secrets
import threading
import webbrowser
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path

LARGEST = 10_000_000  # bytes of a question: a batch of every one of 20,000 images is a fiftieth of it
FRONT_END = {"board.js": "text/javascript", "board.css": "text/css"}
POLICY = "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>sagkit explore</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="board.css">
<body class="sag-page">
<main></main>
<script type="module" src="page.js"></script>
"""
START = """import { mount } from "./board.js";
const ask = async question => {
  const answer = await fetch("ask", { method: "POST", body: JSON.stringify(question) });
  if (!answer.ok) throw new Error("the program behind this page has ended: start `sagkit explore` again");
  return answer.json();
};
const main = document.querySelector("main"), said = document.createElement("p");
said.setAttribute("role", "status");
main.append(said);
for (;;) {
  const { doing } = await ask({ about: "ready" }).catch(error => ({ doing: error.message }));
  if (doing === undefined) break;
  said.textContent = doing;
  await new Promise(done => setTimeout(done, 200));
}
said.remove();
mount(main, ask);
"""


def main(
    folder: str,
    /,
    encoder: str | None = None,
    k: int | None = None,
    length: int = 4,
    seed: int = 0,
    port: int = 0,
    show: bool = True,
) -> None:
    """Explore a folder of images in a browser tab: map, neighbours, walks, look-alikes, pairs.

    Args:
        folder: of images, with or without class folders; also an .npz file or a data set by name.
        encoder: a stored encoder (.safetensors) or timm:NAME; the pixels themselves without one.
        k: neighbours kept per image, to begin with; 10 where there are as many.
        length: steps of a walk, to begin with.
        seed: of walks and map.
        port: of the page on this machine; 0 takes a free one.
        show: open the page in a browser; its address is printed in any case.
    """
    opening = Opening()
    with Server(opening, port) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        print(f"{server.address}\nThe page is for this machine alone. Ctrl-C ends it.", flush=True)
        at_once = Path(folder).exists()  # a name that is none of a data set's opens no page
        if show and at_once:
            webbrowser.open(server.address)
        from sagkit.show.explore import make_explorer  # here, because it imports torch, which takes seconds

        setting = {"length": length, "seed": seed} | ({} if k is None else {"k": k})
        opening.ask = make_explorer(folder, encoder, seed=seed, setting=setting, told=opening.tell).ask
        if show and not at_once:
            webbrowser.open(server.address)
        thread.join()


class Opening:
    """Answers of an explorer that is still being made: what is being done."""

    def __init__(self):
        self.ask: Callable[[dict], dict] | None = None
        self.doing = "starting"

    def tell(self, doing: str) -> None:
        self.doing = doing

    def __call__(self, question: dict) -> dict:
        return self.ask(question) if self.ask else {"doing": self.doing}


class Server(ThreadingHTTPServer):
    """A server on the loopback interface; `address` is where its page is, token included."""

    daemon_threads = True  # an unfinished UMAP does not keep the program alive

    def __init__(self, ask: Callable[[dict], dict], port: int = 0):
        self.token = secrets.token_urlsafe(24)
        super().__init__(("127.0.0.1", port), partial(Handler, ask, self.token))
        self.address = f"http://127.0.0.1:{self.server_port}/{self.token}/"


class Handler(BaseHTTPRequestHandler):
    """One request; everything outside /TOKEN/ is not found."""

    def __init__(self, ask: Callable[[dict], dict], token: str, *request):
        self.ask, self.token = ask, token
        super().__init__(*request)

    def do_GET(self) -> None:
        name = self._name()
        if name == "":
            self._send(PAGE, "text/html")
        elif name == "page.js":
            self._send(START, "text/javascript")
        elif name in FRONT_END:
            self._send(files("sagkit.show").joinpath(name).read_text(encoding="utf-8"), FRONT_END[name])
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self._name() != "ask" or not 0 < length <= LARGEST:
            self.send_error(404)
            return
        try:
            question = json.loads(self.rfile.read(length))
        except ValueError:
            self.send_error(400)
            return
        self._send(json.dumps(self.ask(question)), "application/json")

    def _name(self) -> str | None:
        """What is asked for below the token; None for a request that did not come from this page's address."""
        host = self.headers.get("Host", "").rpartition(":")[0]
        before, _, name = self.path.rpartition("/")
        known = secrets.compare_digest(before.encode(), f"/{self.token}".encode())
        return name if known and host in ("127.0.0.1", "localhost") else None

    def _send(self, text: str, kind: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Say nothing: the terminal holds the address."""
