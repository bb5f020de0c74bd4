"""The one exception that means "the user can mend this": it becomes one line on stderr, never a traceback."""


class UserError(Exception):
    """Work failed for a reason the user can mend; the message says what is wrong and what to do. Exit status 1."""

    exit_status = 1


class UsageError(UserError):
    """The command or its configuration is wrong, and nothing was started. Exit status 2."""

    exit_status = 2
