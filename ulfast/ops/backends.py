"""Connects the operators to their implementations, device by device."""

from __future__ import annotations

from . import reference
from .schemas import LIBRARY

LIBRARY.impl("project", reference.project, "CompositeExplicitAutograd")
LIBRARY.impl("ingest", reference.ingest, "CompositeExplicitAutograd")
LIBRARY.impl("softmax_regression_step", reference.softmax_regression_step, "CompositeExplicitAutograd")
LIBRARY.impl("apply_perturbation", reference.apply_perturbation, "CompositeExplicitAutograd")
LIBRARY.impl("philox_uniform", reference.philox_uniform, "CompositeExplicitAutograd")
LIBRARY.impl("philox_normal", reference.philox_normal, "CompositeExplicitAutograd")
LIBRARY.impl("perturb_lsp", reference.perturb_lsp, "CompositeExplicitAutograd")
