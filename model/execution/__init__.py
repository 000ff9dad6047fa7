"""How networks are computed: fused training, prepared inference, quantization."""
