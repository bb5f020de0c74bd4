"""Names of weights as earlier versions saved them, and as the model has them now."""

from __future__ import annotations

import re
from typing import Any

_BEFORE_TOWERS = re.compile(r"^(audio|video)_(encoder|decoder)\.")


def current_key(name: str) -> str:
    """What the weight is called now that an earlier version called `name`; today's names stay as they are."""
    return _BEFORE_TOWERS.sub(r"towers.\1.\2.", name)


def rename_keys(_module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Hook for `load_state_dict`: renames, in place, what has an earlier name."""
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + current_key(key[len(prefix) :])] = state.pop(key)
