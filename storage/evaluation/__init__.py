"""Offline evaluation: the measures of a ranking, the gains of one ranking over another, and their uncertainty.

Pure functions of dictionaries: run = {query id: {document id: score}}, qrels = {query id: {document id: grade}}. They
use no service, no clock and no unseeded randomness: the same input gives the same bytes.
"""
