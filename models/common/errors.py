"""The exception for errors that a user caused, raised by all packages."""


class UserError(ValueError):
    """The error of bad input; its message is one line with the problem, its place and its remedy.

    The command line prints it without a traceback and exits with code 2.
    """


# The extra of `pip install echo-lm[...]` that brings an optional package.
EXTRAS = {
    "ray": "cluster",
    "pyarrow": "cluster",
    "mlflow": "track",
    "fastapi": "serve",
    "uvicorn": "serve",
    "jinja2": "serve",
    "plotly": "serve",
    "datasets": "hub",
    "datasketch": "hub",
    "transformers": "hub",
    "lm_eval": "hub",
    "fla": "rivals",
}


def not_installed(error: ModuleNotFoundError) -> UserError | None:
    """The error message for an optional package that is not installed; None if the missing module is another one, which is a
    mistake in the code."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    return UserError(f"{package} is not installed here: pip install 'echo-lm[{EXTRAS[package]}]'")
