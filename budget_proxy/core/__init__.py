"""The pure rooms: decisions as synchronous functions of their arguments.

Forbidden here: I/O, clocks, randomness, `await`, and every third-party library but msgspec.
Time, ids and figures come in as arguments; answers go out as values.

money      amounts as integers            window    which calendar window an instant is in
budget     limits and whom they bind      tariff    what an API's requests cost
estimate   the ceiling of one call        meter     the actual figures in an answer
book       holds, settlements, accounts   refusal   why a call may not pass, and what to say
spans      where a JSON member stands     target    the one canonical form of a request target
events     what happened, as frozen facts

A tariff, from the whole to its parts:

tariff     the routes of one API          route     which requests it covers, and all it reads
quantity   what a route counts            rate      what a piece of it costs
source     where its figure comes from    figure    what of a JSON value is one
document   a request, or an answer        place     where a value stands in it, and tests of that
sheet      an answer's places, in one walk
"""
