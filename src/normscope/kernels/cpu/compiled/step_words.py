"""Which word holds the address of what at one time step of a recurrent layer, for who packs and who unpacks them.

Numbers alone, so that who packs can read them before Numba is loaded.
"""

from __future__ import annotations

PRODUCT, OUT, GIVEN, WEIGHT, BIAS, CELL, CELL_BIAS, BEFORE, AFTER, GATES, TOLD = range(10, 21)
DH, DC, OF_WEIGHT, OF_BIAS, OF_CELL, OF_CELL_BIAS, OF_PRODUCT, OF_GIVEN, WORK = range(21, 30)
