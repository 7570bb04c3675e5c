"""Compiles the Triton kernels for NVIDIA GPUs: that takes none, only what Triton brings.

It compiles whatever the functions of `fused` would start, and prints a line of JSON for each.
(A script, because Triton is an interpreter in the process of the tests.)
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from convlstm.kernels import fused

ARCHITECTURES = 80, 90  # A100, H100
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
HIDDEN, COUNT = 64, 2048


def resources(cubin):
    """Registers and memory that machine code takes."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "kernel.cubin")
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", path]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}


def build(kernel, like, *arguments, **constants):
    """In place of `fused._run`: what it would start, with the arguments that it would give."""
    values = [*arguments, like.numel(), like.shape[1], fused.BLOCK, *constants.values()]
    signature, constexprs, attributes = {}, {}, {}
    for i, (name, value) in enumerate(zip(kernel.arg_names, values, strict=True)):
        if isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif name in ("size", "hidden") or (name == "apart" and value):
            signature[name] = "i32"
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "constexpr"
            constexprs[(i,)] = value
    source = ASTSource(kernel, signature, constexprs, attributes)
    for architecture in ARCHITECTURES:
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
        result = {
            "kernel": f"{kernel.__name__}, {arguments[0].dtype}, {architecture}",
            "accesses": re.findall(r"(?:ld|st)\.global\S*", compiled.asm["ptx"]),
            "resources": resources(compiled.asm["cubin"]),
        }
        print(json.dumps(result))


def compile_all():
    """Every kernel, with and without what may be missing; peepholes of a channel."""
    fused._run = build
    for dtype in TYPES:
        gates, three = (torch.zeros(COUNT, n * HIDDEN, dtype=dtype) for n in (4, 3))
        h, c = torch.zeros(COUNT, HIDDEN, dtype=dtype), torch.zeros(COUNT, HIDDEN)
        for peephole in (None, torch.zeros(3, 1, HIDDEN)):
            fused.lstm_forward(gates, gates, c, peephole, gates, c, h, gates[0])
            fused.lstm_backward(gates, c, c, peephole, h, h, c)
        fused.lstm_forward(gates, None, None, None, None, c, h)  # a first step, without a backward
        fused.lstm_backward(gates, None, c, None, None, h, c)
        fused.gru_forward(three, three, h[0], h, three, h, h, three[0])
        fused.gru_backward(three, h, h, h, h, c, three)
        fused.rnn_forward(h, h, h, h[0])
        fused.rnn_backward(h, h, h, h)


if __name__ == "__main__":
    compile_all()
