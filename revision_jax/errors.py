"""The error a person sees: one line that says what is wrong, where, and what would be right."""


class UserError(Exception):
    """Bad input. Mains print the message to stderr, without a traceback, and exit with status 2."""
