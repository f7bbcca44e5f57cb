"""The agent: what keeps a proven model running on a device, and proves a new one before it serves.

It imports neither torch nor a web framework, and signs nothing that others believe.
"""

from edgewright.device.agent import Agent, RejectedInputError
from edgewright.device.inference.predictor import Prediction

__all__ = ["Agent", "Prediction", "RejectedInputError"]
