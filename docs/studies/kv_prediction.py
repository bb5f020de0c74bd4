"""Asks what a predicted cache is worth: accuracy and NLL after a prompt against the prompt's FLOPs and time.

    python docs/studies/kv_prediction.py OUT [--size tiny] [--tasks recall python] [--result FILE.json]

Two kinds of text. recall: letters are bound to letters, then asked for, so that the prompt is necessary; python:
sources of the running Python's library, whole packages held out. For each task and seed a base is trained, and then,
all for the same number of steps: auxiliary models alone (pruned copies, a smaller model), the base over the cache that
each predicts, the first half of the base (early exit). Random, static and progressive pruning of the prompt need no
training; each is measured at the FLOPs of each predicted cache, where it can be so cheap. Also lambda_C in
{0, 1 / base layers, 1}, and a control trained on shuffled positions.

Every (task, seed, arm) leaves a file and is not done again; nothing is chosen by the test split. Size tiny: ten to
thirty minutes a task and seed on one core of a CPU; size small (12 layers of 384): for a GPU.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import string
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from avpretrain.api import train
from avpretrain.bench.step import median_seconds
from avpretrain.bench.ttft import arms_of, first_token_flops
from avpretrain.config.text import PackConfig
from avpretrain.core.files import atomic_path, read_json, write_json
from avpretrain.core.provenance import environment
from avpretrain.data.text.pack import pack
from avpretrain.data.text.tokenizer import load_tokenizer
from avpretrain.data.text.tokens import TokenStream, is_token_set
from avpretrain.measures.intervals import across
from avpretrain.methods.kv_prediction.layers import kept_layers, pruned_shape
from avpretrain.methods.kv_prediction.model import KVPredictor, keep_layers
from avpretrain.methods.kv_prediction.prompts import Read, continued, matched, read_whole
from avpretrain.methods.load import config_of, load_language_model
from avpretrain.methods.openelm.held_out import measure
from avpretrain.methods.openelm.model import LanguageModel, TextModel, save_pretrained

Task = Literal["recall", "python"]
SPLITS = ("val", "test")


@dataclass(frozen=True)
class Size:
    """How large models and runs are."""

    context: dict[str, int]
    """By task."""
    prompt: dict[str, int]
    """Tokens of the prompts that are measured; even for recall, where what follows is a capital then."""
    base: dict[str, Any]
    small: dict[str, Any]
    """The canonical auxiliary model."""
    vocabulary: int
    """Of the tokenizer of sources."""
    steps: dict[str, int]
    """Of the base and of a canonical auxiliary model before they meet."""
    tuning: int
    """Steps of every arm after that."""
    batch: int
    bindings: int
    """Letters that are bound in a recall prompt."""
    letters: int
    """From which they are drawn."""
    windows: int
    """Of each split that are measured."""
    sources: int
    """Bytes of sources at most."""


SCALING = {"alpha": [0.5, 1.0], "beta": [0.5, 4.0]}
SIZES = {
    "tiny": Size(
        context={"recall": 25, "python": 48},
        prompt={"recall": 20, "python": 36},
        base={"width": 64, "depth": 4, "head_width": 16, "heads_per_group": 1, "scaling": {**SCALING, "divisor": 16}},
        small={"width": 32, "depth": 2, "head_width": 16, "heads_per_group": 1, "scaling": {**SCALING, "divisor": 16}},
        vocabulary=512,
        steps={"recall": 8000, "python": 500},
        tuning=120,
        batch=16,
        bindings=4,
        letters=8,
        windows=1024,
        sources=3_000_000,
    ),
    "small": Size(
        context={"recall": 257, "python": 512},
        prompt={"recall": 224, "python": 448},
        base={"width": 384, "depth": 12, "head_width": 32, "heads_per_group": 1, "scaling": {**SCALING, "divisor": 32}},
        small={"width": 192, "depth": 6, "head_width": 32, "heads_per_group": 1, "scaling": {**SCALING, "divisor": 32}},
        vocabulary=4096,
        steps={"recall": 8000, "python": 8000},
        tuning=3000,
        batch=64,
        bindings=24,
        letters=26,
        windows=2048,
        sources=200_000_000,
    ),
}
LAMBDAS = {"0": 0.0, "1": 1.0}
"""Weights of the cache's distance beside the default, one over the base's layers."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One arm of one task and seed."""

    task: str
    seed: int
    arm: str
    prompt: int
    """Tokens."""
    flops: float
    """From prompt to the first token, a prompt; pruned prompts by their formula."""
    share: float
    """Of the base's FLOPs."""
    milliseconds: float
    """Median time to the first token at batch 1, on the machine as loaded as it was."""
    load: float
    """The machine's load average then, a core."""
    accuracy: dict[str, float]
    """Of the first token after the prompt, by split."""
    first_nll: dict[str, float]
    """Nats of the first token after the prompt, by split: what the prompt's reading alone decides."""
    nll: dict[str, float]
    """Nats a token of all that follows the prompt, by split; the arm's own model, or the base, reads what follows."""
    whole_nll: dict[str, float]
    """Nats a token of whole windows, without a cache, by split; empty for pruned prompts, which have no such path."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Record:
        return cls(**{field.name: values[field.name] for field in fields(cls)})


def main(
    out: tyro.conf.Positional[Path],
    size: str = "tiny",
    tasks: tuple[Task, ...] = ("recall", "python"),
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = 0,
    tuning: int = 0,
    result: Path | None = None,
) -> None:
    chosen, records = SIZES[size], list[Record]()
    for task in tasks:
        place = out / task
        tokens = data(chosen, task, place)
        for seed in seeds:
            records += Study(
                chosen, task, seed, place, tokens, steps or chosen.steps[task], tuning or chosen.tuning
            ).run()
    answer = {
        "study": "kv_prediction", "size": size, "seeds": seeds, "steps": steps or chosen.steps,
        "tuning": tuning or chosen.tuning, "sizes": asdict(chosen), "records": [asdict(r) for r in records],
        "data": {task: read_json(out / task / "tokens" / "tokens.json", "index")["fingerprint"] for task in tasks},
        "summary": {task: summary([r for r in records if r.task == task]) for task in tasks}, **environment(),
    }  # fmt: skip
    for task in tasks:
        show(task, answer["summary"][task])
    write_json(result or out / "kv_prediction.json", answer)


# --- data -------------------------------------------------------------------------------------------------------------


def data(size: Size, task: str, place: Path) -> Path:
    """Packed tokens with splits train, val and test."""
    texts, tokens = place / "texts", place / "tokens"
    if not is_token_set(tokens):
        if not texts.is_dir():
            with atomic_path(texts) as folder:
                folder.mkdir(parents=True)
                write = recall_texts if task == "recall" else python_texts
                write(size, folder)
        vocabulary = 257 if task == "recall" else size.vocabulary
        kind = "line" if task == "recall" else "file"
        pack([texts], tokens, PackConfig(vocabulary=vocabulary, documents=kind, val_share=0.0))
    return tokens


def recall_texts(size: Size, folder: Path) -> None:
    """A line a prompt: letters bound to letters, then asked for until the window ends; it begins with a separator."""
    rng = random.Random(0)
    for split, count in (("train", 40_000), ("val", size.windows), ("test", size.windows)):
        lines = [recall_line(rng, size) for _ in range(count)]
        (folder / f"recall_{split}.txt").write_text("".join(f"{line}\n" for line in lines))


def recall_line(rng: random.Random, size: Size) -> str:
    """As 'aQbZaQ...': a binding is a small letter and a capital; after all are told, one after the other is asked for.

    One token shorter than a window, for the separator before it.
    """
    keys = rng.sample(string.ascii_lowercase[: size.letters], size.bindings)
    bound = {key: rng.choice(string.ascii_uppercase[:8]) for key in keys}
    told, length = "".join(key + bound[key] for key in keys), size.context["recall"] - 1
    while len(told) < length:
        key = rng.choice(keys)
        told += key + bound[key]
    return told[:length]


def python_texts(size: Size, folder: Path) -> None:
    """Sources of the library of this Python: whole packages are in one split."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [
        p
        for p in sorted(root.rglob("*.py"))
        if "test" not in str(p.relative_to(root)) and "site-packages" not in p.parts
    ]
    packages = sorted({p.relative_to(root).parts[0] for p in files})
    random.Random(0).shuffle(packages)
    split_of = {
        name: ("test", "val")[i] if i < 2 else "train" for i, name in ((i % 10, n) for i, n in enumerate(packages))
    }
    room = {"train": size.sources, "val": size.sources // 10, "test": size.sources // 10}
    random.Random(1).shuffle(files)
    for path in files:
        split = split_of[path.relative_to(root).parts[0]]
        text = path.read_text(errors="ignore")
        if text.strip() and len(text) <= room[split]:
            room[split] -= len(text)
            name = "-".join(path.relative_to(root).with_suffix("").parts)
            (folder / f"{name}_{split}.txt").write_text(text)


# --- one task and seed ------------------------------------------------------------------------------------------------


class Study:
    """All arms of one task and seed."""

    def __init__(self, size: Size, task: str, seed: int, place: Path, tokens: Path, steps: int, tuning: int) -> None:
        self.size, self.task, self.seed, self.place, self.tokens = size, task, seed, place, tokens
        self.steps, self.tuning, self.prompt = steps, tuning, size.prompt[task]
        self.runs, self.notes = place / f"runs-s{seed}", place / "records"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._windows: dict[str, torch.Tensor] = {}

    def run(self) -> list[Record]:
        base_run = self._train("base", "openelm", self.steps, model=self._model(self.size.base))
        base = self._load(base_run)
        assert isinstance(base, LanguageModel)
        small_run = self._train("small", "openelm", self.steps, model=self._model(self.size.small))
        self.base_flops = first_token_flops(lambda: LanguageModel(base.cfg), "base", self.prompt)
        found = [self._record("base", base, lambda: base)]
        depth = len(base.blocks)
        starts = {
            "lp50": self._pruned(base, "lp50", kept_layers(depth, 0.5)),
            "lp25": self._pruned(base, "lp25", kept_layers(depth, 0.25)),
            "exit": self._pruned(base, "exit", tuple(range(depth // 2))),
            "c": small_run,
        }
        for name, start in starts.items():
            found.append(self._alone(name, start))
        for name in ("lp50", "lp25", "c"):
            found.append(self._predicted(f"kvp_{name}", starts, name))
        for label, weight in LAMBDAS.items():
            found.append(self._predicted(f"kvp_lp50_lambda{label}", starts, "lp50", loss={"cache": weight}))
        found.append(self._predicted("kvp_lp50_shuffled", starts, "lp50", shuffle_positions=True))
        for name in ("lp50", "lp25", "c"):
            share = next(r.share for r in found if r.arm == f"kvp_{name}")
            for kind, read in matched(base, share).items():
                found.append(self._record(f"{kind}_at_{name}", base, lambda: base, read, share))
        return found

    # --- arms

    def _alone(self, name: str, start: Path) -> Record:
        """A smaller model that reads and answers, trained as long as those over predicted caches."""

        def get() -> TextModel:
            shape = LanguageModel.from_pretrained(weights(start)).cfg
            sizes = {key: getattr(shape, key) for key in ("width", "head_width", "heads_per_group", "heads", "hidden")}
            model = self._model(
                {**sizes, "heads": list(shape.heads), "hidden": list(shape.hidden), "depth": len(shape.heads)}
            )
            return self._load(self._train(f"alone_{name}", "openelm", self.tuning, model=model, init=str(start)))

        return self._record("early_exit" if name == "exit" else f"alone_{name}", None, get)

    def _predicted(self, arm: str, starts: dict[str, Path], name: str, **more: Any) -> Record:
        kind = {"kind": "canonical"} if name == "c" else {"kind": "layer_pruned", "keep": int(name[2:]) / 100}

        def get() -> TextModel:
            auxiliary = {**kind, "init": str(starts[name])}
            return self._load(
                self._train(
                    arm, "kv_prediction", self.tuning, base=str(self.runs / "base"), auxiliary=auxiliary, **more
                )
            )

        return self._record(arm, None, get)

    def _pruned(self, base: LanguageModel, name: str, kept: tuple[int, ...]) -> Path:
        """A copy of some layers, saved as a model."""
        folder = self.runs / f"start_{name}"
        if not folder.is_dir():
            with atomic_path(folder) as temporary:
                temporary.mkdir(parents=True)
                save_pretrained(keep_layers(base, kept, LanguageModel(pruned_shape(base.cfg, kept))), temporary)
                load_tokenizer(self.tokens).save(temporary)
        return folder

    def _record(
        self,
        arm: str,
        model: TextModel | None,
        get: Callable[[], TextModel],
        read: Read | None = None,
        share: float = 0.0,
    ) -> Record:
        """What an arm is worth; from its file, if it is there."""
        path = self.notes / f"{arm}-s{self.seed}.json"
        if path.is_file():
            return Record.from_json(json.loads(path.read_text()))
        model = model or get()
        flops = share * self.base_flops
        if read is None:
            way = "kv_prediction" if isinstance(model, KVPredictor) else "base"
            flops = first_token_flops(lambda: fresh(model), way, self.prompt)
        reader = read or read_whole(model, self.size.context[self.task])
        one = self._tokens("val")[:1, : self.prompt]
        timed = read or arms_of(model)[way][0]
        with torch.no_grad():
            seconds = median_seconds(lambda: timed(one), warmup=3, repeats=20)
        scores = {split: self._score(reader, split) for split in SPLITS}
        record = Record(
            task=self.task, seed=self.seed, arm=arm, prompt=self.prompt, flops=flops, share=flops / self.base_flops,
            milliseconds=1e3 * seconds, load=os.getloadavg()[0] / (os.cpu_count() or 1),
            accuracy={split: score[0] for split, score in scores.items()},
            first_nll={split: score[1] for split, score in scores.items()},
            nll={split: score[2] for split, score in scores.items()},
            whole_nll={} if read is not None else {
                split: measure(model, TokenStream([self.tokens], split), self.size.windows).nll for split in SPLITS
            },
        )  # fmt: skip
        self.notes.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(record))
        scored = f"test accuracy {record.accuracy['test']:.3f}, nll {record.nll['test']:.4f}"
        print(f"{self.task} s{self.seed} {arm}: share {record.share:.3f}, {scored}", flush=True)
        return record

    def _score(self, read: Read, split: str) -> tuple[float, float, float]:
        """Accuracy and nats of the first token after the prompt, and nats a token of all after it."""
        tokens, found = self._tokens(split), []
        for part in tokens.split(128):
            found.append(continued(read, part, self.prompt))
        correct, nll = torch.cat([f.correct for f in found]), torch.cat([f.nll for f in found])
        return float(correct.mean()), float(nll[:, 0].mean()), float(nll.mean())

    def _tokens(self, split: str) -> torch.Tensor:
        """Windows of a split, int64 [windows, context]."""
        if split not in self._windows:
            stream, context = TokenStream([self.tokens], split), self.size.context[self.task]
            count = min(self.size.windows, (len(stream) - 1) // context)
            rows = torch.from_numpy(stream.read(0, count * context)).view(count, context)
            self._windows[split] = rows.to(self.device)
        return self._windows[split]

    # --- runs

    def _model(self, sizes: dict[str, Any]) -> dict[str, Any]:
        return {**sizes, "context": self.size.context[self.task]}

    def _train(self, name: str, method: str, steps: int, **sections: Any) -> Path:
        """Trains a run, or leaves one that is finished as it is."""
        run, lr = self.runs / name, 4e-3 if name in ("base", "small") else 2e-3
        if (run / "model" / "model.safetensors").is_file():
            return run
        extra = {"average": 1} if method == "openelm" else {}
        cfg = config_of({
            "name": run.name, "method": method, "output_dir": str(run), "seed": self.seed, **extra, **sections,
            "data": {"shards": [str(self.tokens)], "held_out": ""},
            "schedule": {"samples": steps * self.size.batch, "batch": {"size": self.size.batch}},
            "optim": {"lr": lr, "warmup": 0.05, "min_lr_ratio": 0.1, "weight_decay": 0.1},
            "run": {"tracker": "none", "log_every": 100, "keep_checkpoints": 1, "keep_best": "none"},
        })  # fmt: skip
        outcome = train(cfg)
        if not outcome.finished:
            raise SystemExit(f"stopped by {outcome.stopped_by} in {run.name}; the same command resumes it")
        return run

    def _load(self, run: Path) -> TextModel:
        return load_language_model(run)[0].to(self.device)


def weights(folder: Path) -> Path:
    """Where the weights of a run, or of a saved model, are."""
    return folder / "model" if (folder / "model").is_dir() else folder


def fresh(model: TextModel) -> TextModel:
    """A model of the same shape."""
    return KVPredictor.of_shape(model.shape) if isinstance(model, KVPredictor) else LanguageModel(model.cfg)


# --- what comes out ---------------------------------------------------------------------------------------------------


def summary(records: list[Record]) -> dict[str, Any]:
    """Arms over seeds, differences paired by seed, and who is not beaten at its FLOPs."""
    arms: dict[str, Any] = {}
    for arm in dict.fromkeys(r.arm for r in records):
        mine = [r for r in records if r.arm == arm]
        arms[arm] = {
            "share": statistics.fmean(r.share for r in mine),
            "milliseconds": statistics.median(r.milliseconds for r in mine),
            **{
                f"{key}_{split}": spread([getattr(r, key)[split] for r in mine])
                for key in ("accuracy", "first_nll", "nll")
                for split in SPLITS
            },
        }
        if mine[0].whole_nll:
            arms[arm] |= {f"whole_nll_{split}": spread([r.whole_nll[split] for r in mine]) for split in SPLITS}
    pairs = {f"kvp_{name} less alone_{name}": (f"kvp_{name}", f"alone_{name}") for name in ("lp50", "lp25", "c")}
    pairs |= {f"lambda {label} less 1/n": (f"kvp_lp50_lambda{label}", "kvp_lp50") for label in LAMBDAS}
    pairs |= {"shuffled less kvp_lp50": ("kvp_lp50_shuffled", "kvp_lp50")}
    pairs |= {f"kvp_lp50 less {kind}": ("kvp_lp50", f"{kind}_at_lp50") for kind in ("random", "static", "lazy")}
    pairs |= {"kvp_lp50 less early_exit": ("kvp_lp50", "early_exit")}
    differences = {
        name: {key: spread(list(paired(records, *two, key))) for key in ("accuracy", "first_nll", "nll")}
        for name, two in pairs.items()
        if two[0] in arms and two[1] in arms
    }
    points = {arm: (of["share"], of["first_nll_test"]["mean"]) for arm, of in arms.items()}
    front = [arm for arm, (cost, nll) in points.items() if not any(c <= cost and n < nll for c, n in points.values())]
    return {"arms": arms, "paired_test_differences": differences, "pareto_by_first_test_nll": front}


def paired(records: list[Record], a: str, b: str, key: str) -> Iterator[float]:
    by = {(r.arm, r.seed): getattr(r, key)["test"] for r in records}
    yield from (value - by[b, seed] for (arm, seed), value in by.items() if arm == a and (b, seed) in by)


def spread(values: list[float]) -> dict[str, Any]:
    """Mean over seeds, and its interval where there are several."""
    found: dict[str, Any] = {"mean": statistics.fmean(values), "values": values}
    if len(values) > 1 and len(set(values)) > 1:
        found["ci"] = across(values)["ci"]
    return found


def show(task: str, found: dict[str, Any]) -> None:
    print(f"\n{task}\n{'arm':<22} {'share':>6} {'ms':>7} {'accuracy':>9} {'first nll':>9} {'nll':>8} {'whole nll':>10}")
    for arm, of in sorted(found["arms"].items(), key=lambda item: -item[1]["share"]):
        whole = f"{of['whole_nll_test']['mean']:>10.4f}" if "whole_nll_test" in of else ""
        print(
            f"{arm:<22} {of['share']:>6.3f} {of['milliseconds']:>7.2f} {of['accuracy_test']['mean']:>9.4f} "
            f"{of['first_nll_test']['mean']:>9.4f} {of['nll_test']['mean']:>8.4f} {whole}"
            + ("  *" if arm in found["pareto_by_first_test_nll"] else "")
        )
    print("* not beaten in NLL of the first token (test) by any that is as cheap")
    for name, of in found["paired_test_differences"].items():
        first = of["first_nll"]
        print(
            f"{name}: accuracy {of['accuracy']['mean']:+.4f}, nll of the first token {first['mean']:+.4f} "
            f"{first.get('ci', '')}, of all {of['nll']['mean']:+.4f} {of['nll'].get('ci', '')}"
        )


if __name__ == "__main__":
    tyro.cli(main)
