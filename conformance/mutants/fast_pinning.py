"""Faults in how a device reaches host memory: what is registered, for which device, and where that sees it."""

from __future__ import annotations

from .source import Fault

TESTS = "packages/kiv-fast/tests/test_"

ADDRESSES = f"{TESTS}other_addresses.py::test_"

FAULTS = [
    Fault(
        "slabs that were released count as pinned",
        "kiv_fast.memory.pinning:SlabPinning.release",
        "self._held -= slab",
        "pass",
        (f"{TESTS}parts.py::test_slabs_of_a_table_that_went_may_be_pinned_again",),
    ),
    Fault(
        "memory that is not pinned whole stays pinned",
        "kiv_fast.memory.pinning:SlabPinning.cover",
        "if self._failed or self._apart:",
        "if self._apart:",
        (f"{TESTS}pinning.py::test_a_table_is_pinned_whole_or_not_at_all",),
    ),
    Fault(
        "memory whose address is not known is read",
        "kiv_fast.memory.pinning:SlabPinning.cover",
        "self.release(region)  # also",
        "pass  # also",
        (f"{TESTS}pinning.py::test_a_slab_whose_address_on_the_device_is_not_told_is_given_back",),
    ),
    Fault(
        "slabs that a device sees apart are read as if side by side",
        "kiv_fast.memory.pinning:SlabPinning._register",
        "elif seen != region.seen + done:",
        "elif False:",
        (f"{ADDRESSES}a_table_that_is_seen_apart_is_one_slab",),
    ),
    Fault(
        "a table that is seen apart is registered anew with each record",
        "kiv_fast.memory.pinning:SlabPinning.cover",
        "1 << (nbytes - 1).bit_length()",
        "nbytes",
        (f"{ADDRESSES}a_table_that_is_seen_apart_is_one_slab",),
    ),
    Fault(
        "a device sees memory where the host does",
        "kiv_fast.memory.pinning:SlabPinning._register",
        "region.seen = seen",
        "region.seen = region.address",
        (f"{ADDRESSES}a_device_reads_memory_where_it_sees_it",),
    ),
    Fault(
        "a device reads a table where it saw it before",
        "kiv_fast.device.gather:Gather._seen",
        " or table.mapped[0] != table.seen",
        "",
        (f"{ADDRESSES}a_table_that_is_seen_apart_is_one_slab",),
    ),
    Fault(
        "a device is given the address of the host",
        "kiv_fast.device.gather:map_to_cuda",
        "_Registered(tensor, address)",
        "_Registered(tensor, tensor.data_ptr())",
        (f"{TESTS}cuda_calls.py::test_a_tensor_of_the_device_lies_where_the_device_sees_it",),
    ),
    Fault(
        "a device that is never asked is said to read host memory",
        "kiv_fast.device.gather:works",
        " and not table.pinned",
        " and False",
        (f"{ADDRESSES}a_trial_that_no_memory_is_registered_for",),
    ),
    Fault(
        "memory that torch has copied is taken for the device's",
        "kiv_fast.device.gather:map_to_cuda",
        "seen.data_ptr() == address",
        "True",
        (f"{TESTS}cuda_calls.py::test_a_tensor_of_the_device_lies_where_the_device_sees_it",),
    ),
    Fault(
        "memory is registered with the current device",
        "kiv_fast.memory.pinning:CudaRuntime.register",
        "with cuda.device(self._device):",
        "if True:",
        (f"{TESTS}cuda_calls.py::test_the_runtime_tells_the_address_of_the_device",),
    ),
    Fault(
        "the runtime remembers what it refused",
        "kiv_fast.memory.pinning:CudaRuntime._check",
        "if library is not None:",
        "if False:",
        (f"{TESTS}cuda_calls.py::test_a_refusal_is_forgotten_by_the_runtime",),
    ),
    Fault(
        "all of the memory may be pinned",
        "kiv_fast.memory.pinning:pinning_for",
        " // SHARE",
        "",
        (f"{TESTS}cuda_calls.py::test_a_quarter_of_the_memory_is_pinned_at_most",),
    ),
    Fault(
        "what a device reads by itself is believed after one trial",
        "kiv_fast.device.gather:works",
        "for start in (0.0, 100.0):",
        "for start in (0.0,):",
        (f"{TESTS}device.py::test_a_trial_tells_whether_the_device_reads_host_memory",),
    ),
    Fault(
        "memory that is not registered is read by the device",
        "kiv_fast.device.gather:Gather.rows",
        " and table.pinned",
        "",
        (f"{TESTS}parts.py::test_a_device_reads_registered_memory_alone",),
    ),
]
