"""Writes golden_losses.json (python -m tests.methods.diffmavil.golden_losses).

When numbers are meant to change; the commit says why.
"""

import json
from pathlib import Path

import torch

from avpretrain.methods.diffmavil.curriculum import MaskRatios
from avpretrain.methods.diffmavil.model import DiffMAViL
from tests.support.tiny_models import random_batch, tiny

PATH = Path(__file__).with_name("golden_losses.json")

CASES = {
    "mavil": {"kind": "joint", "source": "mask_token"},
    "diffmavil": {"kind": "cross", "source": "diffused"},
    "diffmavil adaLN velocity": {
        "kind": "cross_self",
        "diffusion": {"time_conditioning": "adaln", "prediction_type": "v_prediction", "rho": 0.8},
    },
}


def losses(name: str) -> dict[str, float]:
    """Losses of a seeded tiny model on a seeded batch, in float32 on the CPU."""
    model = DiffMAViL(tiny(**CASES[name]))
    generator = torch.Generator().manual_seed(0)
    for part in model.parts().values():  # independent of how initialisation draws
        for parameter in part.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    batch = random_batch(model.cfg)
    return {key: value.item() for key, value in model(batch, MaskRatios(0.8, 0.75)).items()}


if __name__ == "__main__":
    text = json.dumps({name: losses(name) for name in CASES}, indent=2)
    PATH.write_text(text + "\n")
