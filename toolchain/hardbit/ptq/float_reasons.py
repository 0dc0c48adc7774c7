"""Why an operator of somebody's graph is computed in float: the reason that its node declares.

Integer kernels exist for Conv and Gemm with constant weights, for sums of feature maps and for averages. All else works
on numbers.
"""

from __future__ import annotations

__all__ = ["DECIDES_A_SIGN", "NOT_CONSTANT", "PREPROCESSING", "reason_for"]

PREPROCESSING = "preprocessing: it works on pixels before the first quantizer"
DECIDES_A_SIGN = "its exact sum decides between -1 and +1"
NOT_CONSTANT = "its weights are not constant"
_NORMALIZES = "divides by a deviation of its own input: no integer kernel does that"
_SMOOTH = "a smooth function of floats: no integer kernel does that"
_PICKS = "picks or places values, which it takes and gives as numbers"
_ARITHMETIC = "arithmetic of floats"

_REASONS = {
    "Add": "a sum of floats",
    "BatchNormalization": "a factor and a shift for each channel that no layer before it could take in",
    "Clip": "cuts numbers that no quantizer follows at once",
    "Conv": "a convolution of other than two spatial axes",
    "ConvTranspose": "a transposed convolution: the runtime has no integer kernel for it",
    "Gemm": "a product of a transposed activation",
    "MatMul": "a product of two activations",
    "ReduceMean": "an average of floats",
    "Sign": "a sign, whose derivative the attack graph takes straight through",
    "Softmax": "exponentials, divided by their sum: no integer kernel does that",
    **dict.fromkeys(("GroupNormalization", "InstanceNormalization", "LayerNormalization"), _NORMALIZES),
    **dict.fromkeys(("Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Log", "Mish", "Selu"), _SMOOTH),
    **dict.fromkeys(("Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh"), _SMOOTH),
    **dict.fromkeys(("Concat", "DepthToSpace", "Expand", "Gather", "GlobalMaxPool", "Pad", "Resize"), _PICKS),
    **dict.fromkeys(("Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Unsqueeze", "Upsample", "Where"), _PICKS),
    **dict.fromkeys(("Abs", "Div", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Sub"), _ARITHMETIC),
}


def reason_for(operator: str) -> str:
    """The reason that a node of this operator declares, where nothing more is known about its place."""
    return _REASONS.get(operator, f"{operator} has no integer kernel")
