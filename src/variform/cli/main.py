"""Reading the command line, calling a verb, and turning errors into one message and status 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from variform.cli import output, verbs
from variform.errors import ConfigError, VariformError, did_you_mean


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, or 2 for anything a user can mend.

    Args:
        arguments: what follows `variform`; the process's own by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        options = read_arguments(given)
        options.run(options)
        sys.stdout.flush()
    except VariformError as error:
        return output.fail(error, as_json)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return output.fail(ConfigError(f"{name}{error.strerror or error}"), as_json)
    except KeyboardInterrupt:
        return output.fail(ConfigError("interrupted"), as_json)
    return 0


def read_arguments(given: list[str]) -> argparse.Namespace:
    """Parse a command line; overrides may stand anywhere after the verb.

    Raises:
        ConfigError: an unknown verb or option, a missing or wrong value.
    """
    parser = make_parser()
    verb = next((text for text in given if not text.startswith("-")), None)
    if verb is not None and verb not in verbs.VERBS:
        raise ConfigError(f"there is no verb {verb!r}", hint=did_you_mean(verb, verbs.VERBS))
    options, rest = parser.parse_known_args(given)
    if not hasattr(options, "run"):
        raise ConfigError(f"no verb was given; there are {', '.join(verbs.VERBS)}", hint="variform --help")
    for text in rest:
        if text.startswith("-") or not hasattr(options, "overrides"):
            known = [name for action in options.parser._actions for name in action.option_strings]
            hint = (
                did_you_mean(text.split("=")[0], known) if text.startswith("-") else f"variform {options.verb} --help"
            )
            raise ConfigError(f"variform {options.verb} does not know {text!r}", hint=hint)
        options.overrides.append(text)
    for text in getattr(options, "overrides", ()):
        if "=" not in text:
            raise ConfigError(f"an override is written path=value, not {text!r}")
    return options


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are the library's own errors."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise ConfigError(message, hint=f"{self.prog} --help")


def make_parser() -> Parser:
    """The parser of all verbs."""
    parser = Parser(prog="variform", description="Transformer architectures as data.", allow_abbrev=False)
    chosen = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB", parser_class=Parser)
    for name, (function, arguments) in verbs.VERBS.items():
        text = (function.__doc__ or "").split("\n", 1)[0]
        verb = chosen.add_parser(name, help=text, description=text, allow_abbrev=False)
        for flags, settings in arguments:
            verb.add_argument(*flags, **settings)
        verb.add_argument("--json", action="store_true", help="answer with JSON, errors too")
        verb.set_defaults(run=function, parser=verb)
    return parser
