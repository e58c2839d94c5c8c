"""The one error that a user can cause, whatever the folder that notices it."""


class UserError(ValueError):
    """Bad input: the message is one line that says what is wrong, where, and what would be right.

    The command line prints it without a traceback and exits with code 2.
    """
