"""Tests; here too how annotations are checked while they run."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""beartype, with an int allowed where a float is asked, as type checkers have it."""
