"""The seeded simulator: many writers and readers of one lake on a fake clock and a faulty store.

`schedule` says who runs next, `store` where they may be stopped and what the store does to them, `oracle` what may be
true, `shop` and `night` what they do, on `tables`; `tests.faults.simulator` runs them.
"""
