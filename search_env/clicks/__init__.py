"""Models of how people examine and click a list of results: drawing clicks, fitting parameters, and their likelihood.

All of it is pure. A model says with which probability each result is clicked, given how attractive the results are and
what was clicked above. `published` has the models of the literature, `fitting` fits them to logged sessions.
"""
