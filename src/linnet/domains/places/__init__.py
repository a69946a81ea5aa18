"""Places: where a person goes next. Tables of fixes, stays or check-ins become visits, samples and honest scores.

`ingest` reads and mends, `splits` makes samples, `counters` and `ranker` are what a model has to beat, `scores`
says how well. Nothing here needs torch; tables need the extra `places`.
"""
