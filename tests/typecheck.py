"""The run-time type checker of the tests: beartype, for which an int is a fine float."""

from beartype import BeartypeConf, beartype


def check(function):
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)
