"""CLIPer (arXiv 2411.13836) in plain torch: tensors in, tensors out."""
