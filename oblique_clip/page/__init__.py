"""The page of finished runs: one HTML file that needs no server and no network.

`write` gathers what it shows, `render` turns it into HTML by the templates beside it; the other modules each work out
one part of it from a run.
"""
