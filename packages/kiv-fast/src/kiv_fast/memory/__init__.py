"""Bytes: the budgets, buffers used again, tables that grow, memory pinned for a device (SPEC 10.2)."""
