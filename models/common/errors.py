"""The exception for errors that a user caused, raised by all packages."""


class UserError(ValueError):
    """Bad input; the message is one line with the problem, its place and its remedy.

    The command line prints it without a traceback and exits with code 2.
    """
