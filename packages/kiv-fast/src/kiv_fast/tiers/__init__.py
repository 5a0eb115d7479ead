"""Where tokens lie: the hot window on the device, cold pages in RAM and on disk (SPEC 2, 10)."""
