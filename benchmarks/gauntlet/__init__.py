"""How well the proxies rank the networks of every space whose trained values are known, with one setting for all.

* ``spaces``: the spaces, their networks and their trained values.
* ``collect``: scores networks, and writes one table of proxy scores per space and seed.
* ``tables``: the file format of these tables.
* ``report``: Kendall's tau, ranking below a budget and the place of the pick, from the tables alone.
"""
