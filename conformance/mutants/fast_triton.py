"""Faults in a decode step in Triton, and in what the host does around it."""

from __future__ import annotations

from .kernels import KernelFault
from .source import Fault

STEPS = ("conformance/test_decode_steps.py", "--impl=fast-interpreted", "--profile=kill")
WIDENING = ("conformance/test_ch04_widening.py", "--impl=fast-interpreted", "--profile=kill")
DEVICE = ("packages/kiv-fast/tests/test_device_steps.py",)
FAR = ("packages/kiv-fast/tests/test_device_steps.py::test_scores_may_lie_far_apart",)
TWO = ("packages/kiv-fast/tests/test_two_devices.py",)
KERNELS = "kiv_fast.ops.triton.kernels"

FAULTS: list[Fault] = [
    KernelFault(
        "the last of equal ones is not taken", f"{KERNELS}.numbers:is_best", "place <= last", "place < last", STEPS
    ),
    KernelFault(
        "one too few are the best",
        f"{KERNELS}.numbers:nth_best",
        "above < want[:, None]",
        "above < want[:, None] - 1",
        STEPS,
    ),
    KernelFault(
        "the lower half of a weight counts twice", f"{KERNELS}.scan:scan", "== 0, 128, 1)", "== 0, 128, 2)", STEPS
    ),
    KernelFault(
        "the upper channels' codes are the lower ones'", f"{KERNELS}.scan:_weight", "at % 2 * W", "0 * W", STEPS
    ),
    KernelFault(
        "weights have seven bits",
        f"{KERNELS}.scan:scan",
        "bitcast=True) >> 23) - 12",
        "bitcast=True) >> 23) - 5",
        STEPS,
    ),
    KernelFault(
        "sequences look at the first one's pages", f"{KERNELS}.scan:scan", "head // H * room", "0 * room", STEPS
    ),
    KernelFault(
        "estimates lack their base", f"{KERNELS}.scan:scan", "estimate = low[:, None] + ", "estimate = ", STEPS
    ),
    KernelFault(
        "group scores are not relative to the largest",
        f"{KERNELS}.scan:rank",
        "estimate - number(tl.load(top_ptr + row))",
        "estimate",
        STEPS,
    ),
    KernelFault(
        "as many candidates as widening takes",
        f"{KERNELS}.choose:choose",
        "rank == 1, candidates,",
        "rank == 1, most,",
        STEPS,
    ),
    KernelFault("scores without scale", f"{KERNELS}.read:_scores", "score *= scale", "score *= 1.0", STEPS),
    KernelFault(
        "a head widens one late token early", f"{KERNELS}.read:read", "- early) > want", "- early) >= want", WIDENING
    ),
    KernelFault(
        "what is selected stays in the tail",
        f"{KERNELS}.read:_settle",
        'token, float("-inf"), mask=item < want',
        'token, float("-inf"), mask=item < 0',
        STEPS,
    ),
    KernelFault(
        "a size without weight is nothing",
        f"{KERNELS}.read:_sizes",
        "most + tl.log(total)",
        "tl.log(tl.exp(most) * total)",
        FAR,
    ),
    KernelFault(
        "a power is more than there is",
        f"{KERNELS}.read:_settle",
        "-tl.maximum(power, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(power)))",
        "-tl.log(1.0 + tl.exp(power))",
        FAR,
    ),
    KernelFault("selected tokens shift alike", f"{KERNELS}.attend:_selection", "logit + fade[None]", "logit", STEPS),
    KernelFault(
        "the shift is not from the mean", f"{KERNELS}.attend:_selection", "part -= less", "part -= 0.0 * less", STEPS
    ),
    KernelFault("a cap of one", f"{KERNELS}.attend:_cap", "softcap * tl.where(", "tl.where(", STEPS),
    KernelFault("half of the shift", f"{KERNELS}.combine:combine", "guessed * 0.5", "guessed * 0.25", STEPS),
    KernelFault(
        "learned sinks do not count",
        f"{KERNELS}.combine:combine",
        "total += tl.exp(learned - most)",
        "total += 0.0",
        STEPS,
    ),
    KernelFault(
        "the largest estimate outlives its step",
        f"{KERNELS}.combine:combine",
        "tl.store(top_ptr + row, -2147483648)",
        "tl.store(top_ptr + row, 0x7F7FFFFF)",
        STEPS,
    ),
    KernelFault(
        "odd numbers are not noted",
        f"{KERNELS}.append:note_odd",
        "tl.store(odd_ptr, 1)",
        "tl.store(odd_ptr, 0)",
        DEVICE,
    ),
    Fault(
        "three quarters are all",
        "kiv_fast.ops.triton.decode:_retrieve",
        "3 * sizes.candidates // 4",
        "sizes.candidates",
        WIDENING,
    ),
    Fault(
        "a refused token stays",
        "kiv_fast.state:State.settle",
        "self.crop(self.length - 1)",
        "self.crop(self.length)",
        DEVICE,
    ),
    Fault(
        "a crop is refused for what it drops",
        "kiv_fast.store:FastStore.crop",
        "refused=not 0 <= length < state.length",
        "refused=True",
        DEVICE,
    ),
    Fault(
        "a step is taken on the current device",
        "kiv_fast.ops.triton:TritonDecoder.decode",
        "with torch.cuda.device_of(asked.query):",
        "if True:",
        TWO,
    ),
    Fault(
        "a token is appended on the current device",
        "kiv_fast.ops.triton:TritonDecoder.append",
        "with torch.cuda.device_of(key):",
        "if True:",
        TWO,
    ),
    Fault("what was found is found again", "kiv_fast.device.flags:Flags.take", "if any(found):", "if False:", DEVICE),
    Fault(
        "a store never asks the device",
        "kiv_fast.store_view:StoreView._settle",
        "what = state.settle()",
        "what = state.settle() and None",
        DEVICE,
    ),
    Fault(
        "the host looks before every answer",
        "kiv_fast.store:FastStore.attend",
        "late = step is not None and state.late",
        "late = False",
        DEVICE,
    ),
]
