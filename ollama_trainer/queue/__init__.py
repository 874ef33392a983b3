"""The keeping of runs: accepted once, trained in order, never lost.

Run states (an internal detail may be finer, these four are what is stored and shown):

    pending --a--> running --b--> completed
       |             |  ^ \\
       c             d  e  f
       v             v  |   \\
     failed       failed    running

    a  the supervisor claims the oldest pending run whose data set is copied (attempt 1)
    b  the worker left a result that says completed
    c  the data set cannot be copied, or the request was refused
    d  the worker left a result that says failed, or ended without one
    e, f  a server that starts takes a running run up again (attempt + 1), unless its worker was
       lost too often
"""
