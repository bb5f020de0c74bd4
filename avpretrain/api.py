"""What the command line does, as calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avpretrain.config import EngineConfig
    from avpretrain.training.loop import Outcome


def train(cfg: EngineConfig, stop_at: int | None = None) -> Outcome:
    """Trains what a config says, or goes on with the run in its folder, to the bit on the same number of ranks.

    Args:
        cfg: of a registered method, or of a dotted class of your own (`methods.load.load_config` reads a preset).
        stop_at: ends after the step that reaches this many clips, with a checkpoint.

    Raises:
        UsageError: the config does not fit the data, the ranks, or the run that the folder holds.
        UserError: training failed; the message says what to do.
    """
    from avpretrain.methods.load import make_method
    from avpretrain.training import loop

    return loop.train(cfg, make_method, stop_at)
