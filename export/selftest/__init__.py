"""Is the cross-check itself to be trusted? Known faults are planted, and it has to find every one.

`faults` and `graph_faults` hold the mistakes, `mutants` puts them into ONNX files, frameworks' exports,
backends and the judge, `scoring` counts what is caught, where it is located and which side is suspected,
`comparators` shows what the checks of neighbouring tools make of the same faults, and `honest` that nobody is
accused who has no fault, on cases of three generators (`random_models`, `hard`, `trained`). `margins` says
how far the two are apart, by kind of layer.
"""

from export.selftest.comparators import COMPARATORS
from export.selftest.exemplar import exemplar
from export.selftest.honest import GENERATORS, Honest, sweep
from export.selftest.scoring import Result, Score, score, weights

__all__ = ["COMPARATORS", "GENERATORS", "Honest", "Result", "Score", "exemplar", "score", "sweep", "weights"]
