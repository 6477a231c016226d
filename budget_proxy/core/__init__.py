"""The pure rooms: decisions as synchronous functions of their arguments.

Forbidden here: I/O, clocks, randomness, `await`, and every third-party library but msgspec.
Time, ids and figures come in as arguments; answers go out as values.

money      amounts as integers            window    which calendar window an instant is in
budget     limits and whom they bind      tariff    what an API's requests cost
estimate   the ceiling of one call        meter     the actual figures in an answer
book       holds, settlements, accounts   refusal   why a call may not pass, and what to say
spans      where a JSON member stands     target    the one canonical form of a request target
events     what happened, as frozen facts
"""
