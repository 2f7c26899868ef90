"""Runs the blocks of docs/*.md: started by test_docs.py, never by pytest.

PyTorch takes seconds to import. So one process imports it, listens on a socket, and forks for every `minigpt` command
of a shell block: a real process, with its own working directory and streams, a tenth of a second after it was asked
for. A page is run by such a process too, which keeps the names of the page's Python blocks.

    docs_server.py SOCKET                       the server
    docs_server.py SOCKET WORD ...              runs `minigpt WORD ...` there (the file is its own client)
    docs_server.py SOCKET --page FILE           runs the blocks in the JSON file FILE there
"""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import traceback

ADDED = "MINIGPT_DOCS_TRAIN"  # what a page's comment makes `minigpt train` smaller with


def ask(path: str, words: list[str]) -> int:
    """Run the words in a child of the server, on this process's streams; its exit status."""
    request = json.dumps({"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [len(request).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(request)
        answer = connection.recv(1)
    return answer[0] if answer else 1


def serve(path: str) -> None:
    """Import everything, then fork for each request. Says `ready` on stdout and ends with its parent's stdin."""
    import torch

    import minigpt.evaluation
    import minigpt.reporting
    import minigpt.training

    torch.use_deterministic_algorithms(True)  # imports half of PyTorch, as every run does
    minigpt.training.setup.available_cores = lambda: 1  # the machine may be busy with other tests

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        if os.fork() == 0:
            print("ready", flush=True)
            while True:
                connection, _ = listener.accept()
                if os.fork() == 0:
                    listener.close()
                    _answer(connection)
                connection.close()
        sys.stdin.read()
        os.killpg(0, signal.SIGKILL)


def _answer(connection: socket.socket) -> None:
    """In the child: take over the client's streams, folder and environment, run, and tell the status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    wanted = int.from_bytes(size, "big")
    raw = b""
    while len(raw) < wanted:
        raw += connection.recv(wanted - len(raw))
    request = json.loads(raw)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    status = 1
    try:
        status = _page(request["words"][1]) if request["words"][:1] == ["--page"] else _command(request["words"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(bytes([status & 255]))
        os._exit(0)


def _command(words: list[str]) -> int:
    from minigpt.cli import main

    if words[:1] == ["train"]:
        words = [*words, *os.environ.get(ADDED, "").split()]
    sys.argv = ["minigpt", *words]
    return int(main(words) or 0)


def _page(file: str) -> int:
    """Run a page's blocks in order, until one fails; prints the outcome of each as a line of JSON."""
    with open(file) as opened:
        blocks = json.load(opened)
    names: dict[str, object] = {"__name__": "__main__"}
    result = os.fdopen(os.dup(1), "w")
    for number, block in enumerate(blocks):
        if block["kind"] == "file":
            with open(block["name"], "w") as target:
                target.write(block["text"])
            status, output = 0, ""
        elif block["kind"] == "sh":
            done = subprocess.run(
                ["bash", "-eu", "-c", block["text"]], capture_output=True, text=True,
                stdin=subprocess.DEVNULL, env=os.environ | {ADDED: block["added"]},
            )  # fmt: skip
            status, output = done.returncode, done.stdout + done.stderr
        else:
            status, output = _python(block["text"], names)
        print(json.dumps({"block": number, "status": status, "output": output}), file=result, flush=True)
        if status != block["status"]:
            return 1
    return 0


def _python(text: str, names: dict[str, object]) -> tuple[int, str]:
    """The block's status (1 if it raised something) and what it printed."""
    streams = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = printed = io.StringIO()
    try:
        exec(compile(text, "<block>", "exec"), names)
        return 0, printed.getvalue()
    except Exception:
        return 1, printed.getvalue() + traceback.format_exc()
    finally:
        sys.stdout, sys.stderr = streams


if __name__ == "__main__":
    sys.exit(ask(sys.argv[1], sys.argv[2:]) if len(sys.argv) > 2 else serve(sys.argv[1]))
