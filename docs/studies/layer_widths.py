"""Asks what layer-wise scaling is worth: layer-wise, uniform, reverse at equal parameters, FLOPs and KV cache.

    avpretrain tokens TEXT TOKENS --vocabulary 1024
    python docs/studies/layer_widths.py TOKENS OUT --base widths_tiny [--result docs/results/layer_widths_cpu.json]

For each arm the learning rate is chosen by one seed that is not used again; then the seeds are trained at that rate.
A run that is there is not trained again. Prints every arm, whatever comes out. widths_tiny: under a minute a run on a
CPU; widths: for a GPU.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import tyro

from avpretrain.api import train
from avpretrain.core.files import read_json, write_json
from avpretrain.core.provenance import environment
from avpretrain.measures.intervals import across
from avpretrain.methods.load import load_config, make_method
from avpretrain.methods.openelm.config import OpenELMConfig
from avpretrain.methods.openelm.held_out_log import read_held_out
from avpretrain.methods.openelm.model import parameters
from avpretrain.training.metrics import read_metrics

ARMS = {
    "layerwise": ((0.5, 1.0), (0.5, 4.0)),
    "uniform": ((0.75, 0.75), (2.25, 2.25)),
    "reverse": ((1.0, 0.5), (4.0, 0.5)),
}
"""Multipliers of heads and of hidden widths, in the first block and the last."""
TUNING_SEED = 100


def main(
    tokens: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    base: str = "widths_tiny",
    rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3),
    seeds: tuple[int, ...] = (0, 1, 2),
    samples: int | None = None,
    result: Path | None = None,
) -> None:
    start = load_config(base)
    assert isinstance(start, OpenELMConfig)
    schedule = dataclasses.replace(start.schedule, samples=samples or start.schedule.samples)
    start = dataclasses.replace(start, schedule=schedule, data=dataclasses.replace(start.data, shards=(str(tokens),)))
    arms = {name: arm(start, name) for name in ARMS}
    matched = {name: sizes(cfg) for name, cfg in arms.items()}
    for key in ("parameters", "flops_per_window", "kv_bytes_per_token"):
        assert len({of[key] for of in matched.values()}) == 1, f"the arms differ in {key}: {matched}"
    found = {name: run_arm(cfg, out, name, rates, seeds) for name, cfg in arms.items()}
    print(f"{'arm':<10} {'rate':>8} {'bits per byte':>14} {'sd':>7} {'windows/s':>10}")
    for name, of in found.items():
        print(
            f"{name:<10} {of['rate']:>8g} {of['mean']:>14.4f} {of['sd']:>7.4f} {of['windows_per_second']:>10.1f}"
            + ("  (rate at the edge of the grid)" if of["rate_at_edge"] else "")
        )
    for name in ("layerwise", "reverse"):
        gains = [a - b for a, b in zip(found[name]["bits_per_byte"], found["uniform"]["bits_per_byte"], strict=True)]
        found[name]["less_uniform"] = {"values": gains, "mean": statistics.fmean(gains)}
        if len(gains) > 1:
            found[name]["less_uniform"]["ci"] = across(gains)["ci"]
        print(f"{name} less uniform, paired by seed: {found[name]['less_uniform']}")
    answer = {
        "study": "layer_widths", "base": base, "samples": schedule.samples, "rates": rates, "seeds": seeds,
        "tuning_seed": TUNING_SEED, "matched": matched, "arms": found,
        "data": read_json(tokens / "tokens.json", "index of tokens")["fingerprint"],
        **environment(),
    }  # fmt: skip
    write_json(result or out / "layer_widths.json", answer)


def arm(start: OpenELMConfig, name: str) -> OpenELMConfig:
    """The config of an arm."""
    alpha, beta = ARMS[name]
    scaling = dataclasses.replace(start.model.scaling, alpha=alpha, beta=beta)
    return dataclasses.replace(start, model=dataclasses.replace(start.model, scaling=scaling))


def sizes(cfg: OpenELMConfig) -> dict[str, Any]:
    """What must be equal in all arms, and the lists that differ."""
    shape, method = cfg.model.shape(cfg.data.vocabulary), make_method(cfg)
    return {
        "parameters": parameters(shape),
        "flops_per_window": method.flops(method.phase(0.0), 1),
        "kv_bytes_per_token": 4 * 2 * shape.head_width * sum(shape.kv_heads),
        "heads": list(shape.heads),
        "hidden": list(shape.hidden),
    }


def run_arm(
    cfg: OpenELMConfig, out: Path, name: str, rates: tuple[float, ...], seeds: tuple[int, ...]
) -> dict[str, Any]:
    """Tunes the rate of an arm, then trains its seeds."""
    tuned = {rate: one(cfg, out, name, rate, TUNING_SEED)["bits_per_byte"] for rate in rates}
    rate = min(tuned, key=lambda r: tuned[r])
    rows = {seed: one(cfg, out, name, rate, seed) for seed in seeds}
    values = [row["bits_per_byte"] for row in rows.values()]
    return {
        "rate": rate,
        "rate_at_edge": len(rates) > 1 and rate in (min(rates), max(rates)),
        "tuning": {str(r): value for r, value in tuned.items()},
        "bits_per_byte": values,
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
        "windows_per_second": statistics.median(row["windows_per_second"] for row in rows.values()),
    }


def one(cfg: OpenELMConfig, out: Path, name: str, rate: float, seed: int) -> dict[str, Any]:
    """Trains one run, or reads what it left."""
    folder = out / f"{name}-{rate:g}-s{seed}"
    record = folder / "result.json"
    if not record.is_file():
        outcome = train(
            dataclasses.replace(
                cfg, name=folder.name, output_dir=str(folder), seed=seed, optim=dataclasses.replace(cfg.optim, lr=rate)
            )
        )
        if not outcome.finished:
            raise SystemExit(f"stopped by {outcome.stopped_by} in {folder.name}; the same command resumes it")
        lines = read_metrics(folder)
        speed = statistics.median(line["clips_per_second"] for line in lines)
        write_json(record, {**read_held_out(folder)[-1], "windows_per_second": speed})
    return dict(json.loads(record.read_text()))


if __name__ == "__main__":
    tyro.cli(main)
