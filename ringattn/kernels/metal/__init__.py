"""Fused attention for Apple GPUs in the Metal Shading Language, proved on a CPU by the harness of tests/support/metal."""

from ringattn.kernels.metal.checked import CheckedKernel
from ringattn.kernels.metal.kernel import MetalKernel

__all__ = ["CheckedKernel", "MetalKernel"]
