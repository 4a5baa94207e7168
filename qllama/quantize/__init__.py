"""A model file in, a quantized model file out, as llama-quantize does it."""

from qllama.quantize.plan import Options, Plan, Step, make_plan
from qllama.quantize.run import Progress, Report, quantize_file

__all__ = ["Options", "Plan", "Progress", "Report", "Step", "make_plan", "quantize_file"]
