"""What runs on the device, in Triton's language. Arguments have no types but Triton's own: pointers and numbers.

A kernel is compiled anew where a number is 1 or divisible by 16 and was not before: not for those that a step changes,
which `do_not_specialize` names.
"""
