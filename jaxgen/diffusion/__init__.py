"""The mathematics of the forward and reverse process; no network is imported here.

The pair (alpha_t, sigma_t) of x_t = alpha_t x_0 + sigma_t eps is a :class:`~.process.Level`; a
schedule gives the level of a time; everything else is written in terms of levels.
"""
