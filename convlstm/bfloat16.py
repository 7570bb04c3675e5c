"""Whether the processor computes in bfloat16."""

import torch

INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86, x86 and ARM


def has_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16; without, it is slow in software.

    Convolutions then may take slow paths (https://github.com/pytorch/pytorch/issues/183815), and
    products of matrices take dozens of times as long as in float32.
    """
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in INSTRUCTIONS)
