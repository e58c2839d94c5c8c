"""Statistics of scaling laws (laws, fits with intervals, IsoFLOP parabolas) as functions of arrays, independent of studies.

Read `laws.py` (what is fitted), `cells.py` (what it is fitted to), `law_fit.py` (estimate and bootstrap), `outliers.py`,
`choice.py` (cross-validation), `optimum.py` (best size, tokens), then `isoflop.py`, `recall_law.py`, `score_law.py`, `solver.py`.
"""
