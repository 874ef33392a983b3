"""The keeping of runs: accepted once, taken in order, never lost.

pending   --a--> running     the supervisor claims the run accepted first, its data set copied
pending   --b--> failed      the data set cannot be copied, or the request was refused
running   --c--> running     a server that starts takes up what its predecessor left: one attempt
                             more
running   --d--> completed   the worker left a result that says so
running   --e--> failed      the worker left another result, or none, or was lost too often
"""
