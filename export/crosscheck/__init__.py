"""The cross-check: one judge (the float64 reference of the spec), many witnesses.

Every witness computes in float32 what the reference computes in float64, from the same weights
and images. Nothing is sorted, transposed or broadcast to make things match; a wrong shape, dtype
or a value that is not finite is a failure whatever the numbers say.

- `limits`: what float32 may differ in a layer, bounded by the number and size of the terms it sums. The
  file's own output is held to an outer, norm-wise limit, the logits to 32 u (|W||h| + |b|), u = 2^-24, plus
  what the layers before usually add.
- decisions: the largest class may differ only where the reference's own margin between its two
  largest is at most twice what the image's outputs are allowed to differ. (Twice what they do
  differ would be no rule: a class can only overtake another by half the margin each.)
- layers: judged on the input that the witness itself gave them, and alone on inputs of few terms where they
  differ more than usual. So an accumulated error is blamed on no layer, and a small fault in one is not
  hidden by those before it.
- `diagnosis` names the usual mistake that a wrong layer looks like; it never makes anything pass.
A model without labels has neither logits nor decisions.
"""

from export.crosscheck.comparison import Comparison, Decisions, compare, decide, outer_limit
from export.crosscheck.examination import examine
from export.crosscheck.inputs import LAYER_IMAGES, layer_images, probes
from export.crosscheck.judgement import JUDGE, Judgement, judge, judge_layers, logit_path
from export.crosscheck.limits import UNIT
from export.crosscheck.verdict import (
    DIRECT,
    EVALUATOR,
    UNOPTIMIZED,
    LayerVerdict,
    Report,
    Verdict,
    native_name,
    suspects,
)
from export.crosscheck.verification import (
    Depth,
    check_direct,
    check_network,
    second_opinion,
    verify,
    witness_names,
)
from export.crosscheck.witnesses import EvaluatorWitness, GraphWitness, Witness

__all__ = [
    "DIRECT",
    "EVALUATOR",
    "JUDGE",
    "LAYER_IMAGES",
    "UNIT",
    "UNOPTIMIZED",
    "Comparison",
    "Decisions",
    "Depth",
    "EvaluatorWitness",
    "GraphWitness",
    "Judgement",
    "LayerVerdict",
    "Report",
    "Verdict",
    "Witness",
    "check_direct",
    "check_network",
    "compare",
    "decide",
    "examine",
    "judge",
    "judge_layers",
    "layer_images",
    "logit_path",
    "native_name",
    "outer_limit",
    "probes",
    "second_opinion",
    "suspects",
    "verify",
    "witness_names",
]
