"""Offline evaluation: the measures of a ranking, the gains of one over another, and how sure one may be of them.

Pure functions of dictionaries: run = {query id: {document id: score}}, qrels = {query id: {document id: grade}}. No
service, no clock, no unseeded chance: the same input gives the same bytes.
"""
