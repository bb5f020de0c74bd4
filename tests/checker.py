"""How annotations are checked while tests run: an int may stand where a float is asked, as type checkers have it."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
