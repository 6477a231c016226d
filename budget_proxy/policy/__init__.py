"""The policy file: YAML in, a `core.house.House` out, or every mistake as file:line:column.

    nodes        YAML text -> a tree with marks; the only file that knows PyYAML
    variables    ${NAME}, ${NAME:-default}, ${file:...} in scalars
    standins     what stands in for secrets where none are needed
    values       scalars: amounts, prices, durations, sizes, time zones
    entry        what all mappings share: closed, and errors in words
    model        the sections of the file
    tariff_model the tariff language
    sources      places, tests and quantities of a tariff, built
    tariffs      tariffs, built; the catalogue
    balance_model, providers, balances
                 balances and refusals of providers: the language, the files of the package, built
    topups       how more of a balance is bought
    credentials  credentials and their places
    network      addresses, URLs, hosts, mounts
    upstreams, services, budgets
                 the sections, built
    effective    which budgets bind which calls, and what is odd about them
    build        the whole: load, check
    sheet        a file while it is read; every message passes through it
    mistakes     what a mistake is

Only this package imports PyYAML and pydantic. No message, repr or output of it holds a secret.
"""

from budget_proxy.policy.build import Checked, check, load
from budget_proxy.policy.effective import EffectiveBudget, effective, warnings
from budget_proxy.policy.mistakes import Mistake, PolicyError
from budget_proxy.policy.model import json_schema
from budget_proxy.policy.tariffs import Catalogue, PricesOf

__all__ = [
    "Catalogue",
    "Checked",
    "EffectiveBudget",
    "Mistake",
    "PolicyError",
    "PricesOf",
    "check",
    "effective",
    "json_schema",
    "load",
    "warnings",
]
