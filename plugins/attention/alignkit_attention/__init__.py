"""The kernels of attention over a packed row that alignkit comes with, and the geometry they share.

``blocks``: PyTorch's CPU flash attention, block by block; ``varlen``: flash attention over many sequences in a launch;
``flex``: FlexAttention with a block mask; ``sdpa``: scaled dot-product attention by completion, on any device.
"""
