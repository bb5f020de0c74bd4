"""What the names of splits mean: which are for training, validation and test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from avpretrain.core.errors import UsageError, UserError

Role = Literal["train", "val", "test"]

ROLES: dict[str, Role] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
}
"""What splits of these names are for."""


def role_of(split: str) -> Role | None:
    """What a split is for, by its name: train, test ...; `balanced_train` is for training; none = nothing is known."""
    name = split.lower()
    return "train" if name.split("_")[-1] in ("train", "training") else ROLES.get(name)


def is_held_out(split: str) -> bool:
    """Whether a split is for evaluation, by its name: val, test, eval, test_unseen_speaker ..."""
    parts = [ROLES.get(part) for part in split.lower().split("_")]
    return role_of(split) != "train" and any(role in ("val", "test") for role in parts)


def chosen_splits(asked: str | Sequence[str], there: Iterable[str]) -> list[str]:
    """Those of a set's splits that are meant.

    A name is the split that bears it. Where the set has none of that name, 'train', 'val' and 'test' are the splits
    that are for that: `balanced_train` for 'train', `eval` for 'test'; unless one of them is named itself, so that
    ('balanced_train', 'train') takes that one of AudioSet and the training split of other sets. 'all' is every split.
    """
    names = split_names(asked)
    have = list(dict.fromkeys(there))
    chosen: set[str] = set()
    for name in names:
        if name == "all":
            chosen.update(have)
        elif name in have:
            chosen.add(name)
        elif name in ROLES.values() and not any(role_of(split) == name for split in names if split in have):
            chosen.update(split for split in have if role_of(split) == name)
    return [split for split in have if split in chosen]


def split_names(asked: str | Sequence[str]) -> tuple[str, ...]:
    """One split or several as names; none where the text is empty."""
    if isinstance(asked, str):
        return (asked,) if asked else ()
    return tuple(asked)


def split_text(asked: str | Sequence[str]) -> str:
    """One split or several, for people."""
    return ", ".join(split_names(asked))


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRoles:
    """Which splits are for training, validation and test, where their names are not to say it."""

    train: tuple[str, ...] = ()
    """Empty = those that `role_of` says; otherwise these and no others. The same for the other two."""
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        named = [*self.train, *self.val, *self.test]
        for name in named:
            if named.count(name) > 1:
                raise UsageError(f"split '{name}' is named twice; it can be for training, validation or test alone")

    def of(self, split: str) -> Role | None:
        """What a split is for; none = it is not used."""
        named: tuple[tuple[Role, tuple[str, ...]], ...]
        named = (("train", self.train), ("val", self.val), ("test", self.test))
        for role, splits in named:
            if split in splits:
                return role
        by_name = role_of(split)
        return None if any(splits for role, splits in named if role == by_name) else by_name

    def require(self, there: Iterable[str]) -> None:
        """Checks that all splits that are named are there.

        Raises:
            UserError: one is not.
        """
        have = list(dict.fromkeys(there))
        for option, splits in (("train", self.train), ("val", self.val), ("test", self.test)):
            for name in splits:
                if name not in have:
                    raise UserError(
                        f"no split '{name}' in the data (splits: {', '.join(have)}); "
                        f"--{option}-split says which are for {_FOR[option]}"
                    )


_FOR = {"train": "training", "val": "validation", "test": "test"}
