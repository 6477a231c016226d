"""What Prometheus sees. The only package that imports prometheus_client.

    families   the one table of names, labels and help texts
    counting   `Metrics`: counts events as they happen, renders a scrape
    children   the label sets of a family, never more than a bound
    asked      figures that are asked for at a scrape: only this process, or the ledger's keeper
               knows them
    accounts   budgets, read from the ledger at each scrape
    text       all of it as text, other processes' figures added

Three kinds of figures, each read where it is true: events are counted as they happen; budgets are
read from the ledger at each scrape, in the scrape's own thread, since a gauge kept beside the
ledger would drift from it; what only this process knows now (waiting, in flight) is asked for.

Forbidden here: raising out of an event, blocking on one, label values without a bound, and
floats on their way back into anything that decides.
"""
