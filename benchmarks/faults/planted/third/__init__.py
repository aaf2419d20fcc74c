"""The third held-out set: written by somebody who knew the names of the rules and nothing else of them, and first
diagnosed when the rules were frozen.
"""

from planted.third.ends import FAULTS as ENDS
from planted.third.inputs import FAULTS as INPUTS
from planted.third.norms import FAULTS as NORMS
from planted.third.starts import FAULTS as STARTS
from planted.third.steps import FAULTS as STEPS
from planted.third.wiring import FAULTS as WIRING

FAULTS = (*STARTS, *STEPS, *INPUTS, *ENDS, *NORMS, *WIRING)
