"""The command line: `variform VERB ...`; every verb answers `--json`, every mistake ends with status 2."""

from variform.cli.main import main

__all__ = ["main"]
