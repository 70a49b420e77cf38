"""The exception tree. Every message says what was wrong, the nearest fix, and what to set; the CLI prints it as one
line.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable

from rareclass.masking import masked


class RareclassError(Exception):
    """Something the user can mend. The CLI prints the message as one line and exits with ``exit_code``."""

    exit_code = 2

    def __init__(self, *said: object) -> None:
        # an error ends in terminals, logs, answers, ledgers and registries: no password may leave with it
        super().__init__(*(masked(each) if isinstance(each, str) else each for each in said))


class ConfigError(RareclassError):
    """A setting is unknown, misspelt, out of range or contradicts another one."""


class DataError(RareclassError):
    """The rows cannot be used as they are."""


class NoLabelsError(DataError):
    """The target has no value in any row."""


class NoPositivesError(DataError):
    """No row of the rare class: only one-class methods could work, and they are not part of this recipe."""


class TooLargeError(DataError):
    """The operation is quadratic in rows and was asked for more rows than its documented bound."""


class ModelError(RareclassError):
    """A model cannot be found, loaded or verified."""


class UnreachableError(ModelError):
    """A server gives no answer now: a name is not found, a connection fails, nobody stands behind its Service."""


class EngineError(RareclassError):
    """The scheduler or the workers of ``compute.engine`` cannot do the work."""


class InputError(RareclassError):
    """A request to a served model does not fit its signature (HTTP 400)."""


class StoreError(RareclassError):
    """The store of predictions, labels and the ledger is unreachable or refused a write."""


class StoreRefusedError(StoreError):
    """The store was reached and will never accept this write: trying again does not help."""


class SpoolError(RareclassError):
    """The durable spool between an answer and the store cannot be used."""


class SpoolFullError(SpoolError):
    """The disk of the spool is full: the answer must be refused (HTTP 503), because it could not be logged."""


class AlreadyDoneError(RareclassError):
    """The ledger already has this action: doing it twice was refused."""


class NeedsApprovalError(RareclassError):
    """A version may not answer before a person approved it (``promotion.mode: manual``)."""

    exit_code = 20


class NotAllowedError(RareclassError):
    """This person may not do this; another one may."""


class MissingExtraError(RareclassError):
    """An optional dependency is needed for what was asked."""

    def __init__(self, package: str, extra: str, why: str) -> None:
        super().__init__(f"{why} needs the package '{package}'. Install it with: pip install 'rareclass[{extra}]'")


def need_package(package: str, extra: str, why: str) -> None:
    """Raise MissingExtraError where a package of an extra is not installed; it is not imported."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, extra, why)


def nearest(value: object, choices: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest choice, or an empty string."""
    close = difflib.get_close_matches(str(value), list(choices), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown(
    kind: str, value: object, choices: Iterable[str], setting: str, error: type[RareclassError] = ConfigError
) -> RareclassError:
    """Build the one-line error for a value outside a table of choices."""
    names = sorted(choices)
    return error(f"unknown {kind} '{value}'.{nearest(value, names)} Set {setting} to one of: {', '.join(names)}")
