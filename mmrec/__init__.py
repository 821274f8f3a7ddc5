"""mmrec: nightly multimodal recommendations, audited and repeatable."""

__version__ = "0.1.0"
