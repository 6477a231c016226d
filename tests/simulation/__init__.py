"""Thousands of short histories of a whole fleet on one ledger, each drawn from a seed.

What decides is production code: `core.book` in the store, `ledgers.pending` (the rules of group
commit), `waitlist`, `core.shortfall` and `admission`'s judgement in the workers. What is simulated
is everything around it: clocks, the network, the store's answers, the upstream that bills, and
who dies or sleeps when. There is no wall clock, no thread and no event loop, and all chance comes
from one `random.Random(seed)`, so a seed is a history.

Where to read: `history` is what happens, `books` is what must hold after each step, `store` and
`worker` are the two sides of the network, `house` draws the budgets, `faults` are mistakes that
must be found. A history that fails is printed as a statement, with the command that replays it:

    PYTHONPATH=tests python -m simulation --seed 4711

Many, with progress, and in two processes:

    PYTHONPATH=tests python -m simulation --histories 1000000 --jobs 2

With the tests 10,000 are run, or as many as SIMULATED_HISTORIES says.
"""
