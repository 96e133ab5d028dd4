"""What trained blocks learned, measured: pure functions of states and arrays."""

from jaxlocal.diagnostics.alignment import alignment, cosine, end_to_end_gradients, local_gradients
from jaxlocal.diagnostics.classes import confusion, errors_by_class
from jaxlocal.diagnostics.observe import Observed, observe
from jaxlocal.diagnostics.positions import at_positions, drawn_positions
from jaxlocal.diagnostics.probes import fit_probe, pooled, probe_accuracy
from jaxlocal.diagnostics.similarity import centred_gram, cka, linear_cka
