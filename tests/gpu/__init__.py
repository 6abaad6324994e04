"""The GPU path without a GPU: counts on fake CUDA tensors, kernels interpreted and compiled."""
