"""The GPU path without a GPU: counted on fake CUDA tensors, interpreted, compiled."""
