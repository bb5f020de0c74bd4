"""Rehearses a run on two machines (docs/CLUSTERS.md) on one: two agents, each with its network, home and folder.

    python docs/studies/two_nodes.py OUT [--result docs/results/two_nodes.json]

The shards are read by HTTP; each node has a cache of its own; the run's folder is shared. Four launches: without
interruption; the same, stopped by SIGTERM to both agents after the first checkpoint; resumed with the nodes in each
other's places and with empty caches; and resumed where the nodes share no folder, which must be refused in a line. As
root on Linux each node is a network namespace, else both use 127.0.0.1. Takes a minute or two.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
import tyro
from safetensors.torch import load_file

from avpretrain.cli.main import main as avpretrain
from avpretrain.core.files import write_json
from avpretrain.core.provenance import environment

NETWORK = "10.213.77"
SETTINGS = [
    "--schedule.samples=160", "--schedule.batch.size=8", "--schedule.batch.rule=constant", "--data.num-workers=0",
    "--run.tracker=none", "--run.log-every=1", "--run.checkpoint-every=24", "--run.preview-clips=0",
]  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One machine: how to run a command on it, and its address."""

    name: str
    address: str
    home: Path
    prefix: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What was found."""

    network: str
    ranks_a_node: int
    stopped_at_clips: int
    same_weights: bool
    """Of the interrupted and the uninterrupted run, to the bit."""
    manifests_fetched_by_run: list[int]
    """How often the manifest was asked for in each of the first three launches; one a node."""
    refusal: str
    """Of a run whose folder the nodes do not share."""


class _Counting(SimpleHTTPRequestHandler):
    """Files by ranges, as object stores give them, counted by name."""

    def __init__(self, asked: Counter[str], *args: object, **options: object) -> None:
        self.asked = asked
        super().__init__(*args, **options)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.asked[Path(self.path).name] += 1
        wanted = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if wanted is None or not path.is_file():
            super().do_GET()
            return
        first, last = wanted.removeprefix("bytes=").split("-")
        data = path.read_bytes()
        part = data[int(first) : int(last or len(data) - 1) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@contextlib.contextmanager
def machines(out: Path) -> Iterator[tuple[list[Node], str, str]]:
    """Two nodes, the address at which both reach this process, and what their network is."""
    names = [f"avp{os.getpid() % 10_000}{i}" for i in range(2)]
    bridge = f"avpbr{os.getpid() % 10_000}"
    homes = [out / f"machine{i}" for i in range(2)]
    made = False
    try:
        try:
            _ip("link", "add", bridge, "type", "bridge")
            made = True
            _ip("addr", "add", f"{NETWORK}.254/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
            for i, name in enumerate(names):
                _ip("netns", "add", name)
                _ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
                _ip("link", "set", f"{name}v", "master", bridge, "up")
                _ip("-n", name, "addr", "add", f"{NETWORK}.{i + 1}/24", "dev", "eth0")
                _ip("-n", name, "link", "set", "eth0", "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except (OSError, subprocess.SubprocessError):
            yield [Node(n, "127.0.0.1", h) for n, h in zip(names, homes, strict=True)], "127.0.0.1", "one loopback"
        else:
            own = {"GLOO_SOCKET_IFNAME": "eth0"}
            nodes = [
                Node(name, f"{NETWORK}.{i + 1}", homes[i], ("ip", "netns", "exec", name), own)
                for i, name in enumerate(names)
            ]
            yield nodes, f"{NETWORK}.254", "a network namespace each, joined by a bridge"
    finally:
        for name in names if made else ():
            with contextlib.suppress(subprocess.SubprocessError):
                _ip("netns", "del", name)
        if made:
            with contextlib.suppress(subprocess.SubprocessError):
                _ip("link", "del", bridge)


def launch(nodes: list[Node], ranks: int, shards: str, run: str, port: int) -> list[subprocess.Popen[str]]:
    """Starts an agent on each node; the first is the head."""
    agents = []
    for number, node in enumerate(nodes):
        (node.home / "work").mkdir(parents=True, exist_ok=True)
        command = [
            *node.prefix, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(number),
            "--nproc-per-node", str(ranks), "--master-addr", nodes[0].address, "--master-port", str(port),
            "-m", "avpretrain.train", "tiny_diffmavil", "--data.shards", shards, "--output-dir", run, *SETTINGS,
        ]  # fmt: skip
        env = {**os.environ, "HOME": str(node.home), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **node.env}
        said = (node.home / "said.txt").open("a")
        agents.append(
            subprocess.Popen(command, cwd=node.home / "work", env=env, text=True, stdout=said, stderr=subprocess.STDOUT)
        )
    return agents


def finish(agents: list[subprocess.Popen[str]]) -> list[int]:
    """Exit codes, once both ended."""
    try:
        return [agent.wait(timeout=300) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()


def rehearse(out: Path, ranks: int) -> Rehearsal:
    """Runs all four launches below `out`, which is emptied."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    avpretrain(["synth", str(out / "scenes"), "--clips", "24", "--seconds", "4", "--size", "64"])
    avpretrain(["shards", str(out / "scenes"), str(out / "shards"), "--workers", "1"])
    asked: Counter[str] = Counter()
    with machines(out) as (nodes, here, network):
        handler = functools.partial(_Counting, asked, directory=str(out / "shards"))
        server = ThreadingHTTPServer((here, 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        shards, fetched = f"http://{here}:{server.server_address[1]}", []

        def run(place: str, order: list[Node], port: int, stop: bool = False) -> list[int]:
            asked.clear()
            for node in order:
                shutil.rmtree(node.home / ".cache", ignore_errors=True)
            agents = launch(order, ranks, shards, place, port)
            while stop and all(agent.poll() is None for agent in agents):
                if any((Path(place) / "checkpoints").glob("0*/state.json")):
                    for agent in agents:
                        agent.send_signal(signal.SIGTERM)
                    break
                time.sleep(0.05)
            codes = finish(agents)
            fetched.append(asked["manifest.arrow"])
            return codes

        straight, stopped = str(out / "shared" / "straight"), str(out / "shared" / "stopped")
        assert run(straight, nodes, 29_511) == [0, 0], said(nodes)
        run(stopped, nodes, 29_512, stop=True)
        last = max(p.parent.name for p in Path(stopped).glob("checkpoints/0*/state.json"))
        assert not (Path(stopped) / "model").exists(), "the run was over before it was stopped"
        assert run(stopped, nodes[::-1], 29_513) == [0, 0], said(nodes)
        weights = [load_file(f"{place}/model/model.safetensors") for place in (straight, stopped)]
        same = all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        for node in nodes:
            (node.home / "said.txt").unlink()
        (nodes[0].home / "work" / "run").symlink_to(stopped)  # the head alone has it
        shutil.rmtree(Path(stopped) / "model")
        codes = run("run", nodes, 29_514)
        assert 0 not in codes, codes
        refusal = next(line for line in said(nodes).splitlines() if "does not see" in line and "resumes (" in line)
        refusal = refusal.split("avpretrain: ", 1)[-1].replace(f" {socket.gethostname()} ", " HOST ")
        server.shutdown()
    return Rehearsal(
        network=network, ranks_a_node=ranks, stopped_at_clips=int(last), same_weights=same,
        manifests_fetched_by_run=fetched[:3], refusal=refusal,
    )  # fmt: skip


def said(nodes: list[Node]) -> str:
    """What both agents and their ranks printed."""
    return "\n".join((node.home / "said.txt").read_text() for node in nodes)


def main(out: tyro.conf.Positional[Path], ranks: int = 1, result: Path | None = None) -> None:
    """Args: out: folder for all of it, emptied first. ranks: of each node. result: JSON to write."""
    found = asdict(rehearse(out.resolve(), ranks))
    for name, value in found.items():
        print(f"{name}: {value}")
    assert found["same_weights"], "the resumed run differs from the uninterrupted one"
    if result is not None:
        write_json(result, {**found, **environment()})


if __name__ == "__main__":
    tyro.cli(main)
