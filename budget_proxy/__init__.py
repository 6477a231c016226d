"""budget-proxy: a hard spending cap between services and the paid APIs they call.

The path of a request, file by file:

    listener      accepts it and makes it a `call`
    proxy         tells its story, top to bottom:
      arrival       what the request must look like, and which upstream it is for
      identify      who pays
      core.tariff   which route of the upstream's tariff it is
      core.estimate what it can cost at most (`core.learned`: raised where that was too low)
      core.binding  which budgets it touches
      admission     holds that amount in all of them, or refuses, or lets it wait (`waitlist`);
                    without a ledger, what budgets allow passes (`fail_open`, `loss_file`)
      upstream      forwards it and brings the answer back
      core.meter    reads the actual figures from a copy
      core.settlement  which row of the outcome table ends it
    dialects      words a refusal for the upstream's SDKs
    metrics, call_log   read the events

Around it: `policy` (the YAML file), `catalogue` (model prices), `ledgers` (the durable book, as
`core.book` decides), `opening`, `relearning`, `janitor` and `folding` (start and upkeep of the
ledger), `admin` (the other port), `app` (wiring), `correction`, `upkeep` and `export` (what people
ask of a ledger), `__main__` (the command line), `sandbox` (an upstream to test against). With
several processes: `supervisor` keeps the ledger (and its policy in a `scratch` folder), each
`worker` answers calls, a `channel` joins them, `pooling` adds up their figures.

Beside the calls, where the ledger is kept (`keeping`):

    watch         asks providers what is left, and moves the limits that follow (`core.balance`,
                  `core.headroom`; shapes and errors of each provider: `providers`)
    stop_keeper   pauses, and breakers that a provider's own words opened (`hearing` in the call,
                  `core.verdict`); in every process, `stops` is asked before the ledger
    burn          how fast money goes, and until when it lasts (`core.runway`)
    alerting      what people are told of all this (`lookout`, `core.alert`); `webhooks` deliver it
    control_client  calls the outside for them
"""

__version__ = "0.1.0"
